"""Trainings and evaluations on two machines that share no folder."""

import json
import shutil
import signal
import subprocess
from importlib.metadata import version

import pytest
import torch
from tiny import HOST, ROOT, small

from yolox_plugin.core.checkpoint import newest_checkpoint
from yolox_plugin.run import report
from yolox_plugin.run import train as training

# An evaluation after each epoch, of whatever the network finds.
OPTIONS = ("--batch-size=2", "--cfg-options", *small.EVERY_EPOCH, "model.test_cfg.score_thr=0.0")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, two_machines):
    """The work directories, a's and b's, of a training that nothing has interrupted."""
    with two_machines(tmp_path_factory.mktemp("trained")) as made:
        for command in made.start("train", *OPTIONS):
            assert command.ended() == 0, command.told()
        return [machine.work_dir for machine in made.machines]


def log_of(work_dir):
    return training.host.read_log(work_dir) if HOST == "mmdet2" else training.host.read_log(work_dir, per_epoch=None)


def evaluations_in(work_dir):
    return [{key: value for key, value in line.items() if key.startswith("bbox_mAP")}
            for line in log_of(work_dir) if line["mode"] == "val"]  # fmt: skip


def check_same_bits(work_dir, other):
    """Of weights, averages and optimizer."""
    one, two = (torch.load(newest_checkpoint(folder), weights_only=False) for folder in (work_dir, other))
    assert one["meta"]["epoch"] == two["meta"]["epoch"] == 6
    for part in ("state_dict", "ema_state_dict"):
        assert (part in one) == (part in two) == (part == "state_dict" or HOST == "mmdet3")
        assert one.get(part, {}).keys() == two.get(part, {}).keys()
        assert not [name for name, value in one.get(part, {}).items() if not torch.equal(two[part][name], value)]
    moments = [[state["momentum_buffer"] for state in found["optimizer"]["state"].values()] for found in (one, two)]
    assert moments[0]
    assert all(torch.equal(*pair) for pair in zip(*moments, strict=True))


def files_in(work_dir):
    return sorted(path.name for path in work_dir.rglob("*") if not path.is_dir())


def test_two_machines_train_as_one_does(pair, trained):
    """And evaluate as one does; the second one is left nothing."""
    a, _ = pair.machines
    one = a.run("train", f"--data-path={a.data}", f"--config={a.folder / 'tiny.py'}", "--device=cpu", "--devices=2",
                f"--work-dir={a.work_dir}", *OPTIONS)  # fmt: skip
    assert one.ended() == 0, one.told()
    check_same_bits(a.work_dir, trained[0])
    found = evaluations_in(trained[0])
    assert found == evaluations_in(a.work_dir)
    assert len(found) == 6
    assert all("bbox_mAP" in line for line in found)  # there were boxes to evaluate
    assert json.loads((trained[0] / "result.json").read_text())["devices"] == 2
    assert files_in(trained[1]) == []


@pytest.mark.parametrize("killed", ["a", "b"])
def test_a_killed_machine_changes_no_bit(pair, trained, killed):
    """Also a, which has checkpoints and the rendezvous. The other one ends by itself, and says how."""
    a, b = pair.machines
    commands = pair.start("train", *OPTIONS)
    pair.wait_for(a.work_dir / "epoch_2.pth", commands)
    lost, left = commands if killed == "a" else commands[::-1]
    lost.send_signal(signal.SIGKILL)
    assert left.ended() == 1, left.told()
    assert "error: process " in left.told() or "error: the other machines have ended" in left.told(), left.told()
    assert files_in(b.work_dir) == []
    newest = newest_checkpoint(a.work_dir).resolve().name
    assert newest < "epoch_6.pth"
    for command in pair.start("train", "--resume", *OPTIONS):
        assert command.ended() == 0, command.told()
    check_same_bits(a.work_dir, trained[0])
    told = b.commands[-1].told()
    assert f"{b.work_dir / newest}, " in told
    assert "has come from machine-a (node 0)" in told
    assert [path.name for path in b.work_dir.glob("*.pth") if not path.is_symlink()] == [newest]


def test_the_newest_checkpoint_wherever_rank_0_is(pair, trained):
    """b comes first in the rendezvous's order after a restart, and a after another one."""
    a, b = pair.machines
    commands = pair.start("train", *OPTIONS)
    pair.wait_for(a.work_dir / "epoch_2.pth", commands)
    commands[1].send_signal(signal.SIGKILL)
    assert commands[0].ended() == 1
    commands = pair.start("train", "--resume", *OPTIONS, b=["--local-addr=10.77.0.2"])
    pair.wait_for(b.work_dir / "epoch_4.pth", commands)
    commands[1].send_signal(signal.SIGKILL)
    assert commands[0].ended() == 1
    assert "has come from machine-a (node 1)" in commands[1].told()
    newest = newest_checkpoint(b.work_dir).resolve().name
    assert newest_checkpoint(a.work_dir).resolve().name < newest < "epoch_6.pth"
    for command in pair.start("train", "--resume", *OPTIONS):
        assert command.ended() == 0, command.told()
    assert f"{a.work_dir / newest}, " in a.commands[-1].told()
    assert "has come from machine-b (node 1)" in a.commands[-1].told()
    check_same_bits(a.work_dir, trained[0])


def test_a_machine_that_comes_back_to_a_command_that_waits(pair, trained):
    """With --max-restarts, that of the other machine goes on with it."""
    a, b = pair.machines
    again = ("--resume", "--max-restarts=3", *OPTIONS)
    commands = pair.start("train", *again)
    pair.wait_for(a.work_dir / "epoch_2.pth", commands)
    commands[1].send_signal(signal.SIGKILL)
    commands[1].wait()
    back = pair.start_on(b, "train", *again)
    assert commands[0].ended() == 0, commands[0].told()
    assert back.ended() == 0, back.told()
    assert "has come from machine-a (node 0)" in back.told()
    check_same_bits(a.work_dir, trained[0])


def test_a_cable_that_is_cut(pair):
    """Nothing is reset then: both wait as long as they are told, and end."""
    a, _ = pair.machines
    commands = pair.start("train", "--timeout-minutes=0.2", *OPTIONS)
    pair.wait_for(a.work_dir / "epoch_1.pth", commands)
    subprocess.run(["ip", "-n", a.namespace, "link", "set", "net0", "down"], check=True)
    for command in commands:
        assert command.ended() == 1, command.told()
        assert "error: " in command.told(), command.told()
    assert "--resume goes on" in commands[0].told()


def check_refused(pair, commands, words, untouched=True):
    """With status 2 and the same sentence on both; nothing has been written."""
    for command, machine in zip(commands, pair.machines, strict=True):
        assert command.ended() == 2, command.told()
        lines = [line for line in command.told().splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and words in lines[0], command.told()
        assert "Traceback" not in command.told()
        assert not untouched or files_in(machine.work_dir) == []


def test_another_option(pair):
    words = "the machines differ: machine-b (node 1) has --seed 3, machine-a (node 0) 0; "
    check_refused(pair, pair.start("train", *OPTIONS, b=["--seed=3"]), words)


def test_one_resumes(pair):
    words = "the machines differ: machine-b (node 1) has --resume True, machine-a (node 0) False"
    check_refused(pair, pair.start("train", *OPTIONS, b=["--resume"]), words)


def test_another_entry_of_the_config(pair):
    b = pair.machines[1]
    file = b.folder / "tiny.py"
    file.write_text(file.read_text() + "\nmodel['bbox_head']['feat_channels'] = 16\n")
    words = "machine-b (node 1) has config model.bbox_head.feat_channels 16, machine-a (node 0) 32"
    check_refused(pair, pair.start("train", *OPTIONS), words)


def test_other_annotations(pair):
    b = pair.machines[1]
    path = b.data / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"].pop()
    path.write_text(json.dumps(content))
    commands = pair.start("train", *OPTIONS)
    check_refused(pair, commands, "the machines differ: machine-b (node 1) has annotations 1 (")
    assert f" of {path.stat().st_size} bytes, machine-a (node 0) " in commands[0].told()


def test_another_version(pair):
    b = pair.machines[1]
    (b.folder / "site/numpy-9.9.9.dist-info").mkdir(parents=True)
    (b.folder / "site/numpy-9.9.9.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: numpy\nVersion: 9.9.9\n"
    )
    b.add_to_path(b.folder / "site")
    words = f"the machines differ: machine-b (node 1) has numpy 9.9.9, machine-a (node 0) {version('numpy')}"
    check_refused(pair, pair.start("train", *OPTIONS), words)


def test_other_code(pair):
    """And the machines do not end at the same time: the one that ends first has the rendezvous."""
    b = pair.machines[1]
    for package in ("yolox_plugin", "yolox_ops"):
        shutil.copytree(ROOT / package, b.folder / "site" / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (b.folder / "site/yolox_plugin/core/sgd.py").open("a") as file:
        file.write("# changed\n")
    slow = 'import atexit, os, time\nif "RANK" in os.environ:\n    atexit.register(time.sleep, 3)\n'
    (b.folder / "site/sitecustomize.py").write_text(slow)
    b.add_to_path(b.folder / "site")
    words = "the machines differ: machine-b (node 1) has yolox_plugin/core/sgd.py "
    check_refused(pair, pair.start("train", *OPTIONS), words)


def test_what_one_machine_refuses(pair, trained):
    """There is no room for the checkpoint that it is sent: all say so, and end."""
    a, b = pair.machines
    a.work_dir.mkdir()
    shutil.copy(trained[0] / "epoch_5.pth", a.work_dir)
    (b.work_dir / "epoch_5.pth.part").mkdir(parents=True)
    words = (
        f"error: machine-b (node 1): --work-dir {b.work_dir}: [Errno 21] cannot write the checkpoint: Is a directory"
    )
    check_refused(pair, pair.start("train", "--resume", *OPTIONS), words, untouched=False)


def test_weights_and_split_that_each_command_writes(pair, trained):
    """They have to be the same, whatever the files are called that they come from."""
    a, b = pair.machines
    checkpoint = torch.load(trained[0] / "epoch_6.pth", weights_only=False)
    for machine, name in ((a, "weights.pth"), (b, "other.pth")):
        shutil.copytree(machine.data / "train2017", machine.folder / f"own-{name}/images")
        shutil.copy(
            machine.data / "annotations/instances_train2017.json", machine.folder / f"own-{name}/annotations.json"
        )
        torch.save({"state_dict": checkpoint["state_dict"]}, machine.folder / name)
    own = {
        machine.name[-1]: [f"--data-path={machine.folder / f'own-{name}'}", f"--load-from={machine.folder / name}"]
        for machine, name in ((a, "weights.pth"), (b, "other.pth"))
    }
    options = ("--val-fraction=0.2", "--epochs=1", *OPTIONS)
    for command in pair.start("train", *options, **own):
        assert command.ended() == 0, command.told()
    assert json.loads((a.work_dir / "result.json").read_text())["val_fraction"] == 0.2
    assert files_in(b.work_dir) == ["initial_weights.pth", "train.json", "val.json"]

    changed = {name: value + 1 for name, value in checkpoint["state_dict"].items()}
    torch.save({"state_dict": changed}, b.folder / "other.pth")
    for machine in pair.machines:
        shutil.rmtree(machine.work_dir)
    words = "the machines differ: machine-b (node 1) has weights 1 "
    check_refused(pair, pair.start("train", *options, **own), words, untouched=False)


def test_an_evaluation(pair, trained):
    """Finds what one process finds."""
    a, b = pair.machines
    options = ["--batch-size=1", "--score-thr=0", "--cfg-options", "model.test_cfg.score_thr=0.0"]
    weights = {machine.name[-1]: [f"--pth-path={shutil.copy(trained[0] / 'epoch_6.pth', machine.folder)}"]
               for machine in pair.machines}  # fmt: skip
    for command in pair.start("test", *options, **weights):
        assert command.ended() == 0, command.told()
    assert files_in(b.work_dir) == []
    alone = a.folder / "alone"
    one = a.run("test", f"--data-path={a.data}", f"--config={a.folder / 'tiny.py'}", "--device=cpu",
                f"--work-dir={alone}", *weights["a"], *options)  # fmt: skip
    assert one.ended() == 0, one.told()
    results = [json.loads((folder / "result.json").read_text()) for folder in (a.work_dir, alone)]
    assert [result["devices"] for result in results] == [2, 1]
    assert all(results[0][name] == results[1][name] for name in report.FIGURES)
    tables = [(folder / "classes.csv").read_text() for folder in (a.work_dir, alone)]
    assert tables[0] == tables[1]

    shutil.copy(trained[0] / "epoch_5.pth", b.folder / "epoch_6.pth")
    shutil.rmtree(a.work_dir)
    check_refused(pair, pair.start("test", *options, **weights), "machine-b (node 1) has weights 1 ")
