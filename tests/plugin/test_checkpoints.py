"""Saving and resuming: nothing is lost, whatever happens when. MMDetection's own classes fail these tests
(YOLOX_PLUGIN_TRAINING=off)."""

import copy
import errno
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import mmdet
import pytest
import torch
from mmcv.runner import build_optimizer, build_runner
from tiny import write_config

import yolox_plugin  # noqa: F401  registers its classes
from yolox_plugin.demo_data import make_dataset

TRAIN = Path(mmdet.__file__).parent / ".mim/tools/train.py"
EMA = {"type": "ExpMomentumEMAHook", "momentum": 0.1, "total_iter": 3, "priority": 49}


class Net(torch.nn.Module):
    """Enough of a detector for the runner: weights, running statistics, and a loss that moves them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))

    def train_step(self, data, optimizer):
        loss = self.net(data).square().sum()
        return {"loss": loss, "log_vars": {"loss": loss.detach()}, "num_samples": len(data)}


class Batches(list):
    """What the runner asks of a data loader."""

    dataset = sampler = None


def new_runner(work_dir, max_epochs, checkpoints=None):
    model = Net()
    optimizer = build_optimizer(model, {"type": "SGD", "lr": 0.01, "momentum": 0.9})
    runner = build_runner(
        {"type": "EpochBasedRunner", "max_epochs": max_epochs},
        {
            "model": model,
            "optimizer": optimizer,
            "work_dir": str(work_dir),
            "logger": logging.getLogger("mmdet.test"),
            "meta": {"seed": 5},
        },
    )
    runner.register_training_hooks(
        {"policy": "step", "step": [3]}, {"grad_clip": None}, {"interval": 1, **(checkpoints or {})},
        {"interval": 2, "hooks": []}, custom_hooks_config=[dict(EMA)],
    )  # fmt: skip
    return runner


def loader():
    return Batches(torch.randn(6, 4, generator=torch.Generator().manual_seed(i)) for i in range(5))


def run(runner):
    runner.run([loader()], [("train", 1)])
    return runner


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_resume_continues_as_if_nothing_had_happened(tmp_path, killed_after):
    """Raw weights, averages, momentum, counters: open-mmlab/mmdetection#8654 and #11202 lose the raw weights."""
    expected = run(new_runner(tmp_path / "whole", 4))
    run(new_runner(tmp_path / "cut", killed_after))
    resumed = new_runner(tmp_path / "cut", 4)
    resumed.resume(str(tmp_path / "cut/latest.pth"))
    assert (resumed.epoch, resumed.iter) == (killed_after, killed_after * 5)
    run(resumed)
    ours, theirs = resumed.model.state_dict(), expected.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("ema_") for name in ours)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    for mine, other in zip(
        resumed.optimizer.state_dict()["state"].values(), expected.optimizer.state_dict()["state"].values(), strict=True
    ):
        assert torch.equal(mine["momentum_buffer"], other["momentum_buffer"])


def test_the_seed_of_the_checkpoint_outlives_that_of_the_command_line(tmp_path):
    run(new_runner(tmp_path, 1))
    resumed = new_runner(tmp_path, 2)
    resumed.meta["seed"] = 6
    resumed.resume(str(tmp_path / "latest.pth"))
    run(resumed)
    assert resumed.meta["seed"] == 5


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [cut_short, lambda p: p.write_bytes(b""), lambda p: p.write_text("<html>404</html>"), lambda p: torch.save({}, p)],
    ids=["cut short", "empty", "garbage", "of something else"],
)
def test_an_unreadable_checkpoint_is_reported_and_the_one_before_it_used(tmp_path, damage, caplog):
    run(new_runner(tmp_path, 3))
    damage(tmp_path / "epoch_3.pth")
    damage(tmp_path / "epoch_2.pth")
    resumed = new_runner(tmp_path, 4)
    with caplog.at_level(logging.INFO, "mmdet.test"):
        resumed.resume(str(tmp_path / "latest.pth"))
    assert resumed.epoch == 1
    assert "latest.pth is no readable checkpoint" in caplog.text
    assert "epoch_2.pth is no readable checkpoint" in caplog.text
    damage(tmp_path / "epoch_1.pth")
    with pytest.raises(ValueError, match=r"epoch_1\.pth is no readable checkpoint.*No other checkpoint"):
        new_runner(tmp_path, 4).resume(str(tmp_path / "latest.pth"))


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"epoch_9\.pth"):
        new_runner(tmp_path, 4).resume(str(tmp_path / "epoch_9.pth"))


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    """On a real file system without room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        run(new_runner(disk, 1))
        (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
        before = (disk / "epoch_1.pth").read_bytes()
        resumed = new_runner(disk, 2)
        resumed.resume(str(disk / "latest.pth"))
        with pytest.raises(OSError, match=r"cannot write the checkpoint: No space left.*epoch_1\.pth is still") as info:
            run(resumed)
        assert info.value.errno == errno.ENOSPC
        assert (disk / "epoch_1.pth").read_bytes() == before
        assert sorted(p.name for p in disk.iterdir()) == ["epoch_1.pth", "filler", "latest.pth"]
        new_runner(disk, 2).resume(str(disk / "latest.pth"))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_checkpoint_is_never_seen_half_written(tmp_path, monkeypatch):
    """Killed at any time while writing: here, every file operation of the second save in turn fails for good."""
    run(new_runner(tmp_path, 1))

    class Killed(BaseException):
        pass

    resumed = new_runner(tmp_path, 2)
    resumed.resume(str(tmp_path / "latest.pth"))
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        run(resumed)
    assert not (tmp_path / "epoch_2.pth").exists()
    monkeypatch.setattr(Path, "replace", replace)
    again = new_runner(tmp_path, 2)
    again.resume(str(tmp_path / "latest.pth"))
    assert again.epoch == 1


def test_checkpoints_are_interchangeable_with_stock(tmp_path):
    """Keys, shapes and optimizer groups are those of MMDetection's runner, hook and SGD."""
    from mmcv.runner.epoch_based_runner import EpochBasedRunner as StockRunner
    from mmdet.core.hook.ema import ExpMomentumEMAHook as StockHook

    ours = run(new_runner(tmp_path / "ours", 1))
    model = Net()
    stock = StockRunner(
        model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), work_dir=str(tmp_path / "stock"),
        logger=logging.getLogger("mmdet.test"), meta={"seed": 5}, max_epochs=1,
    )  # fmt: skip
    stock.register_training_hooks(
        {"policy": "step", "step": [3]}, {"grad_clip": None}, {"interval": 1}, {"interval": 2, "hooks": []}
    )
    stock.register_hook(StockHook(momentum=0.1, total_iter=3), priority=49)
    run(stock)
    mine, theirs = (torch.load(tmp_path / name / "latest.pth") for name in ("ours", "stock"))
    assert mine["state_dict"].keys() == theirs["state_dict"].keys()
    assert mine["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
    for name, value in theirs["state_dict"].items():
        torch.testing.assert_close(mine["state_dict"][name], value, msg=name)
    ours.resume(str(tmp_path / "stock/latest.pth"))
    stock.resume(str(tmp_path / "ours/latest.pth"))
    assert ours.epoch == stock.epoch == 1


def command(config, work_dir):
    return [
        sys.executable, TRAIN, config, "--no-validate", "--seed", "0", "--work-dir", work_dir, "--auto-resume",
        "--cfg-options", "mp_start_method=fork",
    ]  # fmt: skip


@pytest.mark.slow
def test_ten_kills_change_no_bit(tmp_path):
    """MMDetection's own train.py with --auto-resume, killed (SIGKILL) at ten random moments while it trains."""
    make_dataset(tmp_path / "data", train=24, val=1)
    epochs = 24
    config = write_config(tmp_path / "tiny.py", tmp_path / "data", epochs)
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": "1"}
    whole = subprocess.run(command(config, tmp_path / "whole"), env=env, capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr[-3000:]

    rng = random.Random(time.time_ns())
    kills = 0
    last = tmp_path / "cut" / f"epoch_{epochs}.pth"
    (tmp_path / "cut").mkdir()
    for attempt in range(40):
        before = latest(tmp_path / "cut")
        with (tmp_path / f"attempt{attempt}.log").open("w") as log:
            process = subprocess.Popen(command(config, tmp_path / "cut"), env=env, stdout=log, stderr=log)
            try:
                # Killed once it has saved again and some random time, as long as an epoch or two, has passed.
                while kills < 10 and process.poll() is None and latest(tmp_path / "cut") == before:
                    time.sleep(0.02)
                if kills < 10 and process.poll() is None:
                    time.sleep(rng.uniform(0, 1.0))
                    process.send_signal(signal.SIGKILL)
                code = process.wait(timeout=300)
            finally:
                process.kill()
        if code == 0:
            break
        assert code == -signal.SIGKILL, (tmp_path / f"attempt{attempt}.log").read_text()[-3000:]
        kills += 1
        print(f"kill {kills}: after {latest(tmp_path / 'cut')}")
    assert kills == 10
    assert last.exists()
    ours, theirs = (torch.load(path) for path in (last, tmp_path / "whole" / last.name))
    assert ours["meta"]["iter"] == theirs["meta"]["iter"] == epochs * 6
    assert any(name.startswith("ema_") for name in theirs["state_dict"])
    different = [n for n, v in theirs["state_dict"].items() if not torch.equal(ours["state_dict"][n], v)]
    assert not different
    moments = [[s["momentum_buffer"] for s in c["optimizer"]["state"].values()] for c in (ours, theirs)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


def latest(folder):
    return max((int(path.stem.split("_")[1]) for path in folder.glob("epoch_*.pth")), default=0)


def test_sgd_heeds_the_layout_of_gradients_and_momenta():
    """torch's fused kernel on the CPU does not: it adds whatever lies at the same place in memory."""
    cfg = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    gradient = torch.randn(8, 4, 3, 3)
    holders = [torch.nn.Conv2d(4, 8, 3, bias=False).to(memory_format=torch.channels_last) for _ in range(2)]
    holders[1].load_state_dict(holders[0].state_dict())
    optimizers = [build_optimizer(holders[0], {"type": "SGD", **cfg}), torch.optim.SGD(holders[1].parameters(), **cfg)]
    for step in range(3):
        for holder, optimizer in zip(holders, optimizers, strict=True):
            same_layout = gradient.contiguous(memory_format=torch.channels_last)
            holder.weight.grad = same_layout if step == 1 else gradient.clone()
            optimizer.step()
    torch.testing.assert_close(holders[0].weight, holders[1].weight)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_steps_as_torch_does(nesterov):
    torch.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 4, 1))
    ours.to(memory_format=torch.channels_last)
    theirs = copy.deepcopy(ours)
    cfg = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": nesterov}
    mine = build_optimizer(
        ours, {"type": "SGD", **cfg, "paramwise_cfg": {"norm_decay_mult": 0.0, "bias_decay_mult": 0.0}}
    )
    assert type(mine).__module__.startswith("yolox_plugin")
    other = torch.optim.SGD(
        [{**g, "params": [p]} for g, p in zip(mine.param_groups, theirs.parameters(), strict=True)], **cfg
    )
    for step in range(4):
        for model, optimizer in ((ours, mine), (theirs, other)):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (step + 1)
            optimizer.zero_grad()
            if step == 0:  # a first gradient that comes later than the others'
                model[2].weight.grad = torch.ones_like(model[2].weight)
            elif step != 2:  # a step without a gradient for some
                model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            else:
                model[0].weight.grad = torch.ones_like(model[0].weight)
            optimizer.step()
        torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))
    assert len({len(g["params"]) for g in mine.param_groups}) == 1  # the groups are left as they were
    assert mine.state_dict().keys() == other.state_dict().keys()
    theirs_groups = other.state_dict()["param_groups"]
    assert [
        {k: v for k, v in g.items() if k != "initial_lr"} for g in mine.state_dict()["param_groups"]
    ] == theirs_groups
    other.load_state_dict(mine.state_dict())
    mine.load_state_dict(other.state_dict())
