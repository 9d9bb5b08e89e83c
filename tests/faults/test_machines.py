"""Trainings and evaluations on two machines that share no folder."""

import json
import signal
import time

import pytest
import torch
from tiny import HOST, small

from yolox_plugin.core.checkpoint import newest_checkpoint
from yolox_plugin.run import train as training

OPTIONS = ("--batch-size=2", "--cfg-options", *small.EVERY_EPOCH, "model.test_cfg.score_thr=0.0")


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
    begin = time.monotonic()
    assert left.ended() == 1, left.told()
    print(f"the other has ended after {time.monotonic() - begin:.1f} s")
    print(left.told()[-3500:])
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
