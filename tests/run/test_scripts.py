"""The seed's commands on the data set of shapes: what they leave, what they refuse, and several processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import ENV, HOST, ROOT, finished, small

from yolox_plugin.core.checkpoint import newest_checkpoint
from yolox_plugin.run import report
from yolox_plugin.run import train as training
from yolox_plugin.run.demo_data import make_dataset

host = training.host


def log_of(work_dir):
    return host.read_log(work_dir) if HOST == "mmdet2" else host.read_log(work_dir, per_epoch=None)


def trainings_in(work_dir):
    """The lines of a run's log, without its evaluations."""
    return [line for line in log_of(work_dir) if line["mode"] == "train"]


# Python's end aborts a process of which a thread of gloo's still holds a tensor: each has to leave its group before.
LEAVES = """
import atexit, os, sys

@atexit.register
def _():
    if "RANK" in os.environ:
        distributed = sys.modules["torch.distributed"]
        state = "joined" if distributed.is_initialized() else "left"
        sys.stdout.write("rank " + os.environ["RANK"] + " at its end: " + state + "\\n")  # in one piece
"""


@pytest.mark.parametrize("cores", ["all", "some"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"TASK_QUEUE_ENABLE": "2", "CPU_AFFINITY_CONF": "1"}),
        ({"TASK_QUEUE_ENABLE": "1"}, {"TASK_QUEUE_ENABLE": "1", "CPU_AFFINITY_CONF": "1"}),
        ({"TASK_QUEUE_ENABLE": "0", "CPU_AFFINITY_CONF": "0"}, {"TASK_QUEUE_ENABLE": "0", "CPU_AFFINITY_CONF": "0"}),
    ],
)
def test_settings_for_npus(tmp_path, given, expected, cores):
    """Where torch_npu is, the user has not set them, and, for the cores, all are the process's."""
    names = ("TASK_QUEUE_ENABLE", "CPU_AFFINITY_CONF")
    clean = {key: value for key, value in ENV.items() if key not in names}
    mine = os.sched_getaffinity(0)
    allowed = mine if cores == "all" else {min(mine)}
    if len(allowed) < os.cpu_count() and "CPU_AFFINITY_CONF" not in given:
        expected = {"TASK_QUEUE_ENABLE": expected["TASK_QUEUE_ENABLE"]}

    def settings(environment):
        code = f". {ROOT}/scripts/launch.sh && env"
        process = subprocess.run(
            ["bash", "-c", code], env=environment, capture_output=True, text=True, check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        )  # fmt: skip
        found = dict(line.split("=", 1) for line in process.stdout.splitlines() if line.startswith(names))
        return found, process.stderr

    assert settings(clean | given) == (given, "")
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu/__init__.py").write_text("raise SystemExit('looked for, not imported')")
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), ENV.get("PYTHONPATH", "")])}
    found, told = settings(clean | path | given)
    assert found == expected
    added = [f"{name}={value}" for name, value in expected.items() if name not in given]
    assert told.startswith(f"set for NPUs: {' '.join(added)}; what you set stays") if added else told == ""


def check_ends(process, devices):
    ends = sorted(line for line in process.stdout.splitlines() if "at its end" in line)
    assert ends == [f"rank {rank} at its end: left" for rank in range(devices) if devices > 1]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_full_training_and_evaluation(script, learned, tmp_path, devices):
    """Of a network that has learned something, so that the figures are not those of nothing."""
    data, config, learned_weights = learned
    (tmp_path / "sitecustomize.py").write_text(LEAVES)
    environment = ENV | {"PYTHONPATH": os.pathsep.join([str(tmp_path), ENV.get("PYTHONPATH", "")])}
    several = [f"--devices={devices}", f"--batch_size={4 // devices}"] if devices > 1 else []
    common = [f"--data-path={data}", f"--config={config}"]
    options = [
        "--epochs=3",
        "--work_dir=run",
        "--cfg-options",
        f"{small.LEARNING_RATE}=1e-5",
        f"load_from={learned_weights}",
    ]
    name = "train_full_8p.sh" if devices > 1 else "train_full_1p.sh"
    process = script(name, *common, *several, *options, environment=environment)
    trained = finished(process, tmp_path / "run")
    check_ends(process, devices)
    assert (trained["devices"], trained["epochs"], trained["device"]) == (devices, 3, "cpu")
    assert trained["images_per_second"]["median"] > 0
    assert trained["images_per_second"]["measurements"] > 1
    assert 0 <= trained["data_wait"] < 1
    assert trained["loss"] > 0
    assert trained["mAP"] > 0.1
    assert trained["seconds"] > 1
    assert trained["versions"]["mmdet"] in small.VERSIONS
    assert (tmp_path / "run/curves.png").stat().st_size > 1000
    checkpoint = newest_checkpoint(tmp_path / "run")
    assert torch.load(checkpoint)["meta"]["epoch"] == 3

    name = "test_8p.sh" if devices > 1 else "test_1p.sh"
    options = [f"--pth_path={checkpoint}", "--work_dir=test", "--batch_size=2", "--save-dir=pictures", *several[:1]]
    process = script(name, *common, *options, "--score-thr=0", environment=environment)
    tested = finished(process, tmp_path / "test")
    check_ends(process, devices)
    assert (tested["devices"], tested["images"]) == (devices, 4)
    for key in report.FIGURES:  # batches and norms in another order
        assert tested[key] == pytest.approx(trained[key], abs=5e-4), key
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == 4
    assert "unexpected key" not in process.stdout + process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_performance_1p.sh", "train_performance_8p.sh"])
def test_performance(script, tmp_path, name):
    options = ["--devices=2"] if "8p" in name else []
    process = script(name, *options, "--batch_size=2", "--iterations=9", "--work_dir=run")
    result = finished(process, tmp_path / "run")
    assert result["mAP"] is None
    assert "Final Train Accuracy : not measured" in process.stdout
    log = log_of(tmp_path / "run")
    assert len(log) == 9
    assert result["images_per_second"]["measurements"] == 8  # without the first
    assert log[-1]["lr"] > log[0]["lr"]  # the schedule's beginning, not its end
    again = script(name, *options, "--work_dir=run")
    assert again.returncode == 2
    assert "has a run already: --resume goes on with it" in again.stderr


@pytest.mark.slow
def test_two_processes_train_as_one_does(script, tmp_path):
    data = tmp_path / "data"
    make_dataset(data, train=40, val=5)
    path = data / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())  # samplers keep wide and tall images apart: only wide ones
    content["images"] = [image for image in content["images"] if image["width"] > image["height"]][:16]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    path.write_text(json.dumps(content))
    config = small.write_config(tmp_path / "comparable.py", data, epochs=6, more=small.COMPARABLE)
    logs, weights = [], []
    for devices in (1, 2):
        work_dir = tmp_path / f"run{devices}"
        options = [f"--devices={devices}", f"--batch_size={16 // devices}", f"--work_dir={work_dir}"]
        finished(script("train_full_8p.sh", *options, f"--config={config}", f"--data-path={data}"), work_dir)
        logs.append(trainings_in(work_dir))
        weights.append(torch.load(newest_checkpoint(work_dir))["state_dict"])
    assert len(logs[0]) == len(logs[1]) == 6
    for one, two in zip(*logs, strict=True):
        for name in ("loss", "loss_cls", "loss_bbox", "loss_obj", "lr"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), (one["epoch"], name)
    assert logs[0][0]["loss"] != pytest.approx(logs[0][-1]["loss"], rel=0.01)  # it trains
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=small.WEIGHTS_ATOL,
                                   msg=lambda m, n=name: f"{n}: {m}")  # fmt: skip


def rank_of(work_dir, rank):
    """The process of a rank that trains in this folder; None while there is none."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes()
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                parents = (Path("/proc") / str(parent) / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            mine = f"--work-dir={work_dir}".encode()
            # A data-loading worker has the same command and environment, but a rank for its parent.
            trains = f"RANK={rank}".encode() in environment and mine in command and b"\0-u\0" in command
            if trains and b"\0-u\0" not in parents:
                return int(folder.name)
    return None


def iterations_of(checkpoint):
    """How many it has behind it."""
    return torch.load(checkpoint)["meta"]["iter"]


@pytest.mark.slow
def test_a_killed_rank_changes_no_bit(data, tmp_path):
    config = small.write_config(tmp_path / "tiny.py", data, epochs=5)
    checkpoints = {}
    for killed in (False, True):
        work_dir = tmp_path / f"killed-{killed}"
        log = tmp_path / f"{work_dir.name}.log"
        command = ["bash", ROOT / "scripts/train_full_8p_resume.sh", f"--data-path={data}", f"--config={config}",
                   "--device=cpu", "--devices=2", "--batch_size=2", f"--work-dir={work_dir}",
                   "--checkpoint-iterations=3"]  # fmt: skip
        with log.open("w") as output:
            process = subprocess.Popen(command, env=ENV, stdout=output, stderr=output)
            try:
                second, middle = work_dir / "epoch_2.pth", work_dir / "mid_epoch.pth"
                # In the middle of the third epoch.
                while killed and not (second.exists() and iterations_of(middle) > iterations_of(second)):
                    assert process.poll() is None, log.read_text()[-3000:]
                    time.sleep(0.02)
                if killed:
                    os.kill(rank_of(work_dir, rank=1), signal.SIGKILL)
                assert process.wait(timeout=300) == 0, log.read_text()[-3000:]
            finally:
                process.kill()
        checkpoints[killed] = torch.load(newest_checkpoint(work_dir))
        per_epoch = checkpoints[killed]["meta"]["iter"] // 5
        resumed = re.findall(r"resumed epoch:? \d+, iter:? (\d+)", log.read_text())
        assert len(resumed) == killed and all(int(iteration) > 2 * per_epoch for iteration in resumed)
        assert json.loads((work_dir / "result.json").read_text())["devices"] == 2
        epochs = [line["epoch"] for line in trainings_in(work_dir)]
        assert epochs == [epoch for epoch in range(1, 6) for _ in range(per_epoch)]
    whole, cut = checkpoints[False], checkpoints[True]
    assert cut["meta"]["epoch"] == whole["meta"]["epoch"] == 5
    assert not [name for name, value in whole["state_dict"].items() if not torch.equal(cut["state_dict"][name], value)]
    moments = [[s["momentum_buffer"] for s in c["optimizer"]["state"].values()] for c in (whole, cut)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


@pytest.mark.slow
def test_the_end_of_all_restarts_says_why(script, data, tmp_path):
    root = Path(shutil.copytree(data, tmp_path / "data"))
    cut = min((root / "val2017").iterdir())
    cut.write_bytes(cut.read_bytes()[:100])  # shows at the first evaluation, after a checkpoint
    options = ["--devices=2", "--max-restarts=1", "--work-dir=run", "--epochs=2", "--batch-size=2"]
    options += ["--cfg-options", *small.EVERY_EPOCH]
    process = script("train_full_8p_resume.sh", f"--data-path={root}", *options)
    assert process.returncode == 1
    assert "error: process" in process.stderr
    assert "after 1 restarts" in process.stderr
    assert cut.name in process.stderr
    assert "The same command with --resume goes on from the newest checkpoint in run." in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_ctrl_c_says_how_to_go_on(data, config, tmp_path, devices):
    work_dir = tmp_path / "run"
    command = [sys.executable, "-m", "yolox_plugin.train", f"--data-path={data}", f"--config={config}", "--device=cpu",
               f"--devices={devices}", "--batch-size=2", f"--work-dir={work_dir}"]  # fmt: skip
    with (tmp_path / "log").open("w") as output:
        process = subprocess.Popen(
            command, env=ENV, stdout=output, stderr=output, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
        )  # fmt: skip
        try:
            while not (work_dir / "epoch_1.pth").exists():
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            assert process.wait(timeout=100) == 130
        finally:
            process.kill()
    log = (tmp_path / "log").read_text()
    assert "error: stopped by SIGINT\n" in log
    assert f"The same command with --resume goes on from the newest checkpoint in {work_dir}.\n" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_processes_find_the_modules_of_the_command(data, config, tmp_path):
    """Not those of the current folder, where a script has kept that out."""
    (tmp_path / "yolox_plugin").mkdir()
    (tmp_path / "yolox_plugin/__init__.py").write_text("raise SystemExit('the wrong package')")
    code = "import sys; sys.path.remove(''); from yolox_plugin.train import main; sys.exit(main())"
    process = subprocess.run(
        [sys.executable, "-c", code, f"--data-path={data}", f"--config={config}", "--device=cpu", "--devices=2",
         "--iterations=2", "--work-dir=run", "--batch-size=2"],
        env=ENV, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    finished(process, tmp_path / "run")


@pytest.mark.slow
def test_what_a_process_refuses_is_the_commands_status(script, tmp_path):
    options, words = small.REFUSED
    process = script("train_full_8p.sh", "--devices=2", "--work-dir=run", "--cfg-options", *options)
    assert process.returncode == 2
    assert words in process.stderr
    assert not (tmp_path / "run").exists()
