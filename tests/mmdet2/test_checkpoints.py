"""Saving and resuming: nothing is lost, whatever happens when. MMDetection's own classes fail these tests
(YOLOX_PLUGIN_TRAINING=off)."""

import builtins
import contextlib
import copy
import errno
import inspect
import io
import itertools
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from mmcv.runner import EvalHook, Hook, build_optimizer, build_runner
from tiny2 import write_config
from torch.utils.data import DataLoader

import yolox_plugin  # noqa: F401  registers its classes
from yolox_plugin.core import mid_epoch
from yolox_plugin.core.checkpoint import (
    DamagedCheckpoint,
    UnsafeCheckpoint,
    newest_checkpoint,
    read_checkpoint,
    read_newest,
    write_whole,
)  # fmt: skip
from yolox_plugin.core.sgd import SGD
from yolox_plugin.mmdet2.hooks import MidEpochCheckpointHook
from yolox_plugin.mmdet2.runner import EpochBasedRunner
from yolox_plugin.run.demo_data import make_dataset

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


def new_runner(work_dir, max_epochs, checkpoints=None, lr=None, meta=None, model=Net, optimizer=None, averages=(EMA,)):
    model, hook = model(), optimizer
    optimizer = build_optimizer(model, {"type": "SGD", "lr": 0.01, "momentum": 0.9})
    runner = build_runner(
        {"type": "EpochBasedRunner", "max_epochs": max_epochs},
        {
            "model": model,
            "optimizer": optimizer,
            "work_dir": str(work_dir),
            "logger": logging.getLogger("mmdet.test"),
            "meta": {"seed": 5} if meta is None else meta,
        },
    )
    runner.register_training_hooks(
        lr or {"policy": "step", "step": [3]}, hook or {"grad_clip": None}, {"interval": 1, **(checkpoints or {})},
        {"interval": 2, "hooks": []}, custom_hooks_config=[dict(hook) for hook in averages],
    )  # fmt: skip
    return runner


def run(runner, iterations=5):
    """A list is all that the runner needs of a data loader."""
    batches = [torch.randn(6, 4, generator=torch.Generator().manual_seed(i)) for i in range(iterations)]
    runner.run([batches], [("train", 1)])
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


class Drawing(Net):
    """Whose training draws, as dropout does."""

    def train_step(self, data, optimizer):
        return super().train_step(data + torch.rand_like(data) + random.random() + np.random.random(), optimizer)


class Begins(Hook):
    """Which iteration each epoch begins with, as hooks see it."""

    def __init__(self):
        self.seen = []

    def before_train_epoch(self, runner):
        self.seen.append((runner.epoch, runner.iter))


class StopAfter(Hook):
    """Has the process told to end in this iteration, counted from 1."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner):
        if runner.iter + 1 == self.iteration:
            mid_epoch.hear(signal.SIGTERM)


@pytest.fixture
def unheard():
    yield
    mid_epoch.hear(0)


def mid_epoch_runner(work_dir, epochs=3, stop=None, model=Drawing, **options):
    runner = new_runner(work_dir, epochs, model=model)
    runner.register_hook(StopAfter(stop), "HIGHEST")
    runner.register_hook(MidEpochCheckpointHook(**options), "LOWEST")
    return runner


def batches_of():
    """Of a data set that is shuffled in every epoch; 5 in each."""
    data = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(data, 6, shuffle=True)


def state_of(runner):
    moments = [entry["momentum_buffer"] for entry in runner.optimizer.state_dict()["state"].values()]
    return [*runner.model.state_dict().values(), *moments]


@pytest.mark.parametrize("kind", [batches_of, lambda: [torch.randn(6, 4) for _ in range(5)]], ids=["loader", "list"])
def test_a_training_that_is_told_to_end_goes_on_bit_by_bit(tmp_path, kind, unheard):
    """Wherever in an epoch that is, its last iteration too; of a model that draws, with averages of its weights."""
    torch.manual_seed(1)
    loader = kind()
    whole = mid_epoch_runner(tmp_path / "whole")
    whole.run([loader], [("train", 1)])
    for stop in (1, 4, 5, 6, 8, 10, 11):
        work_dir = tmp_path / str(stop)
        with pytest.raises(mid_epoch.Stopped, match="SIGTERM") as stopped:
            mid_epoch_runner(work_dir, stop=stop).run([loader], [("train", 1)])
        assert stopped.value.status == 143
        mid_epoch.hear(0)
        assert newest_checkpoint(work_dir) == work_dir / "latest.pth"
        assert (work_dir / "latest.pth").resolve().name == "mid_epoch.pth"
        resumed = mid_epoch_runner(work_dir)
        resumed.resume(work_dir / "latest.pth")
        assert (resumed.epoch, resumed.iter) == ((stop - 1) // 5, stop)
        resumed.run([loader], [("train", 1)])
        assert resumed.iter == whole.iter == 15
        assert all(torch.equal(*pair) for pair in zip(state_of(resumed), state_of(whole), strict=True)), stop
        assert (work_dir / "latest.pth").resolve().name == "epoch_3.pth"
        assert "ranks" not in resumed.meta and "mid_epoch" not in resumed.meta


@pytest.mark.parametrize(
    "average", [{"type": "EMAHook"}, {"type": "LinearMomentumEMAHook"}, {"type": "ExpMomentumEMAHook"}],
    ids=lambda average: average["type"],
)  # fmt: skip
@pytest.mark.parametrize("stop", [None, 7])
def test_every_kind_of_average_goes_on(tmp_path, unheard, average, stop):
    """From the end of an epoch and from the middle of one. Stock's go on from the averages."""

    def runner(name, epochs, **options):
        made = new_runner(
            tmp_path / name, epochs, model=Drawing, averages=[{**average, "momentum": 0.1, "priority": 49}]
        )
        made.register_hook(StopAfter(options.get("stop")), "HIGHEST")
        made.register_hook(MidEpochCheckpointHook(), "LOWEST")
        return made

    loader = batches_of()
    whole = runner("whole", 3)
    whole.run([loader], [("train", 1)])
    with contextlib.suppress(mid_epoch.Stopped):
        runner("cut", 2, stop=stop).run([loader], [("train", 1)])
    mid_epoch.hear(0)
    resumed = runner("cut", 3)
    resumed.resume(tmp_path / "cut/latest.pth")
    resumed.run([loader], [("train", 1)])
    assert all(torch.equal(*pair) for pair in zip(state_of(resumed), state_of(whole), strict=True))


def test_no_evaluation_before_the_first_epoch_of_a_resumed_training(tmp_path):
    """mmcv's hook with a `start` evaluates once more then, and leaves the network as it is for that."""

    class Evaluates(Hook):
        def __init__(self):
            self.initial_flag, self.modes = True, []

        def before_train_epoch(self, runner):
            if self.initial_flag:
                runner.model.eval()

        def before_train_iter(self, runner):
            self.modes.append(runner.model.training)

    run(new_runner(tmp_path, 1))
    resumed, hook = new_runner(tmp_path, 2), Evaluates()
    resumed.register_hook(hook)
    resumed.resume(tmp_path / "latest.pth")
    run(resumed)
    assert not hook.initial_flag
    assert hook.modes == [True] * 5


class Scores(EvalHook):
    """The score of each epoch is given; at a `Killed` the evaluation is cut off."""

    def __init__(self, scores, **options):
        super().__init__(DataLoader([0]), save_best="mAP", test_fn=lambda *_: [], **options)
        self.scores = scores

    def evaluate(self, runner, results):
        score = self.scores[runner.epoch]
        if isinstance(score, Killed):
            raise score
        return score


def run_evaluated(work_dir, scores, checkpoints=({},), resume=None, hook=Scores, **options):
    """One epoch for each score; the first checkpoint hook is that of the config."""
    runner = new_runner(work_dir, len(scores), checkpoints=dict(checkpoints[0]))
    for more in checkpoints[1:]:
        runner.register_hook_from_cfg({"type": "CheckpointHook", **more})
    runner.register_hook(hook(scores, **options), "LOW")
    if resume is not None:
        runner.resume(resume)
    return run(runner)


def meta_of(path):
    return read_checkpoint(path)["meta"]


KEPT = {"interval": 2, "filename_tmpl": "kept_{}.pth"}


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("last", [KEPT, {**KEPT, "priority": "LOWEST"}], ids=["before", "after the evaluation"])
def test_all_checkpoints_of_an_epoch_tell_of_its_evaluation(tmp_path, resumed, last):
    """Wherever a second hook comes, the files are in the end as if nothing had been cut off."""
    checkpoints = ({}, last)
    if resumed:
        with pytest.raises(Killed):
            run_evaluated(tmp_path, [0.1, Killed()], checkpoints)
        before = [path.name for path in tmp_path.glob("*_2.pth") if "evaluation_due" in meta_of(path)]
        assert sorted(before) == (["epoch_2.pth"] if "priority" in last else ["epoch_2.pth", "kept_2.pth"])
    run_evaluated(tmp_path, [0.1, 0.3], checkpoints, tmp_path / "latest.pth" if resumed else None)
    for name in ("epoch_2.pth", "kept_2.pth"):
        meta = meta_of(tmp_path / name)
        assert "evaluation_due" not in meta and meta["hook_msgs"]["best_score"] == 0.3, name
    assert (tmp_path / "latest.pth").resolve().name == "kept_2.pth"
    assert not (tmp_path / "kept_1.pth").exists()


def test_a_hook_that_has_nothing_to_save_saves_nothing_after_a_resume(tmp_path):
    checkpoints = ({}, {**KEPT, "interval": 3})
    with pytest.raises(Killed):
        run_evaluated(tmp_path, [0.1, Killed(), 0.2], checkpoints)
    run_evaluated(tmp_path, [0.1, 0.3, 0.2], checkpoints, tmp_path / "latest.pth")
    assert "evaluation_due" not in meta_of(tmp_path / "epoch_2.pth")
    assert [path.name for path in tmp_path.glob("kept_*")] == ["kept_3.pth"]


def test_what_was_the_last_epoch_is_evaluated_as_one_of_more(tmp_path):
    """Its checkpoint, which there is because it was the last, is written again all the same."""
    with pytest.raises(Killed):
        run_evaluated(tmp_path, [Killed()], ({"interval": 2},))
    run_evaluated(tmp_path, [0.3, 0.2], ({"interval": 2},), tmp_path / "latest.pth")
    assert meta_of(tmp_path / "epoch_1.pth")["hook_msgs"]["best_score"] == 0.3


def test_hooks_see_the_beginning_of_an_epoch_that_goes_on(tmp_path, unheard):
    with pytest.raises(mid_epoch.Stopped):
        mid_epoch_runner(tmp_path, stop=8).run([batches_of()], [("train", 1)])
    mid_epoch.hear(0)
    resumed, begins = mid_epoch_runner(tmp_path), Begins()
    resumed.register_hook(begins)
    resumed.resume(str(tmp_path / "mid_epoch.pth"))
    resumed.run([batches_of()], [("train", 1)])
    assert begins.seen == [(1, 5), (2, 10)] and resumed.iter == 15


def test_a_checkpoint_by_iterations_that_is_damaged(tmp_path):
    """The one before it is used here, too; one of another kind is not."""
    run(new_runner(tmp_path, 1))
    (tmp_path / "epoch_1.pth").rename(tmp_path / "iter_500.pth")
    (tmp_path / "iter_1000.pth").write_bytes(b"cut short")
    (tmp_path / "epoch_7.pth").write_bytes(b"of another kind")
    (tmp_path / "writer_epoch_3.pth").write_bytes(b"cut short")
    shutil.copy(tmp_path / "iter_500.pth", tmp_path / "writer_epoch_2.pth")
    assert read_newest(tmp_path / "writer_epoch_3.pth", print)[0] == tmp_path / "writer_epoch_2.pth"
    assert read_newest(tmp_path / "iter_1000.pth", print)[0] == tmp_path / "iter_500.pth"
    (tmp_path / "iter_500.pth").unlink()
    with pytest.raises(ValueError, match="There is none before it in that folder"):
        read_newest(tmp_path / "iter_1000.pth", print)


def test_checkpoints_by_iteration_beside_one_in_the_middle(tmp_path, unheard):
    with pytest.raises(mid_epoch.Stopped):
        mid_epoch_runner(tmp_path, stop=8).run([batches_of()], [("train", 1)])
    (tmp_path / "latest.pth").unlink()
    (tmp_path / "epoch_1.pth").rename(tmp_path / "iter_5.pth")
    assert newest_checkpoint(tmp_path) == tmp_path / "mid_epoch.pth"
    (tmp_path / "iter_5.pth").rename(tmp_path / "iter_9.pth")
    assert newest_checkpoint(tmp_path) == tmp_path / "iter_9.pth"


def test_what_is_evaluated_of_a_checkpoint_in_the_middle_are_the_averages(tmp_path, unheard):
    """As of one at the end of an epoch."""
    runner = mid_epoch_runner(tmp_path, stop=3)
    with pytest.raises(mid_epoch.Stopped):
        runner.run([batches_of()], [("train", 1)])
    content = read_checkpoint(tmp_path / "mid_epoch.pth")["state_dict"]
    weights = runner.model.state_dict()
    for name in ("net.0.weight", "net.1.running_mean"):
        average = f"ema_{name.replace('.', '_')}"
        assert torch.equal(content[name], weights[average]) and torch.equal(content[average], weights[name])
        assert not torch.equal(content[name], content[average])


@pytest.mark.parametrize(
    ("options", "written"), [({"iterations": 2}, [2, 4, 6, 8]), ({"minutes": 1.5}, [3, 6, 9]), ({}, [])]
)
def test_when_they_are_written(tmp_path, monkeypatch, options, written):
    """By a clock on which each iteration takes half a minute and a bit."""
    clock = itertools.count()
    monkeypatch.setattr(mid_epoch.time, "monotonic", lambda: 31.0 * next(clock))
    found = []
    monkeypatch.setattr(EpochBasedRunner, "save_mid_epoch", lambda runner, link: found.append(runner.iter + 1))
    runner = mid_epoch_runner(tmp_path, epochs=2, **options)
    runner.run([batches_of()], [("train", 1)])
    assert found[: len(written)] == written
    assert bool(found) == bool(written)


def test_no_checkpoint_while_gradients_are_accumulated(tmp_path, unheard):
    """They are in none: it is written when the weights have changed."""
    runner = new_runner(tmp_path, 1, model=Drawing, optimizer={"type": "GradientCumulativeOptimizerHook",
                                                               "cumulative_iters": 2})  # fmt: skip
    runner.register_hook(StopAfter(3), "HIGHEST")
    runner.register_hook(MidEpochCheckpointHook(), "LOWEST")
    with pytest.raises(mid_epoch.Stopped):
        runner.run([batches_of()], [("train", 1)])
    assert read_checkpoint(tmp_path / "mid_epoch.pth")["meta"]["iter"] == 4


def test_which_checkpoint_is_the_newest(tmp_path, unheard):
    with pytest.raises(mid_epoch.Stopped):
        mid_epoch_runner(tmp_path, stop=8).run([batches_of()], [("train", 1)])
    middle, first, latest = (tmp_path / name for name in ("mid_epoch.pth", "epoch_1.pth", "latest.pth"))
    latest.unlink()
    assert newest_checkpoint(tmp_path) == middle
    kept = middle.read_bytes()
    later = tmp_path / "epoch_2.pth"
    later.write_bytes(first.read_bytes())
    assert newest_checkpoint(tmp_path) == later
    later.write_bytes(b"cut short")  # then the one in the middle is the next
    told = []
    assert read_newest(later, told.append)[0] == middle and len(told) == 1
    later.unlink()
    middle.write_bytes(kept[:1000])
    assert newest_checkpoint(tmp_path) == middle  # so that it is reported
    assert read_newest(middle, told.append)[0] == first and len(told) == 2


@pytest.mark.parametrize("name", ["iterations", "minutes"])
@pytest.mark.parametrize("value", [0, -1])
def test_how_often_must_be_larger_than_nothing(name, value):
    with pytest.raises(ValueError, match=f"{name} must be larger than 0, got {value}"):
        MidEpochCheckpointHook(**{name: value})


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
    with pytest.raises(ValueError, match=r"epoch_1\.pth is no readable checkpoint.*There is none before it"):
        new_runner(tmp_path, 4).resume(str(tmp_path / "latest.pth"))


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"epoch_9\.pth"):
        new_runner(tmp_path, 4).resume(str(tmp_path / "epoch_9.pth"))


def test_the_best_checkpoint_is_there_until_a_better_one_is(tmp_path, monkeypatch, caplog):
    """mmcv removes it first. Log lines and messages are mmcv's; a score that is no better changes nothing."""
    write = EpochBasedRunner.save_checkpoint

    def save_checkpoint(runner, out_dir, filename_tmpl="epoch_{}.pth", **options):
        if filename_tmpl == "best_mAP_epoch_4.pth":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(runner, out_dir, filename_tmpl, **options)

    monkeypatch.setattr(EpochBasedRunner, "save_checkpoint", save_checkpoint)
    with caplog.at_level(logging.INFO, "mmdet.test"), pytest.raises(OSError, match="No space left"):
        run_evaluated(tmp_path, [0.2, 0.3, 0.1, 0.4])
    assert [path.name for path in tmp_path.glob("best_*")] == ["best_mAP_epoch_2.pth"]
    best = tmp_path / "best_mAP_epoch_2.pth"
    assert meta_of(best)["hook_msgs"]["best_ckpt"] == str(best)
    assert caplog.text.count(f"The previous best checkpoint {tmp_path / 'best_mAP_epoch_1.pth'} was removed") == 1
    assert caplog.text.count("The previous best checkpoint") == 1
    assert "Now best checkpoint is saved as best_mAP_epoch_2.pth." in caplog.text
    monkeypatch.undo()
    messages = run_evaluated(tmp_path, [0.2, 0.3, 0.1, 0.4], resume=tmp_path / "latest.pth").meta["hook_msgs"]
    assert [path.name for path in tmp_path.glob("best_*")] == ["best_mAP_epoch_4.pth"]
    assert messages["best_score"] == 0.4 and messages["best_ckpt"] == str(tmp_path / "best_mAP_epoch_4.pth")


@pytest.mark.parametrize("by", ["path", "relative path", "stock's way"])
def test_the_best_checkpoint_of_another_folder_is_left_alone(tmp_path, monkeypatch, by):
    """As that of a training that went on from there; its score counts."""
    monkeypatch.chdir(tmp_path)
    hook = type("Own", (Scores,), {"_save_ckpt": lambda *a: EvalHook._save_ckpt(*a)}) if by == "stock's way" else Scores
    options = {"out_dir": "scored"} if by == "relative path" else {}
    folder = tmp_path / "scored" if options else tmp_path
    run_evaluated(tmp_path / "old", [0.3], **options)
    resumed = run_evaluated(
        tmp_path / "new", [0.3, 0.2, 0.4, 0.5], resume=tmp_path / "old/epoch_1.pth", hook=hook, **options
    )
    assert [path.name for path in (folder / "old").glob("best_*")] == ["best_mAP_epoch_1.pth"]
    assert [path.name for path in (folder / "new").glob("best_*")] == ["best_mAP_epoch_4.pth"]
    assert meta_of(tmp_path / "new/epoch_2.pth")["hook_msgs"]["best_score"] == 0.3
    assert resumed.meta["hook_msgs"]["best_score"] == 0.5


@pytest.mark.parametrize("by", ["path", "relative path", "link"])
def test_the_best_checkpoint_of_the_same_folder_goes_by_whichever_name(tmp_path, monkeypatch, by):
    monkeypatch.chdir(tmp_path)
    options = {"out_dir": "scored"} if by == "relative path" else {}
    run_evaluated(tmp_path / "run", [0.3], **options)
    work_dir = tmp_path / "run"
    if by == "link":  # where it was before it was moved
        work_dir = work_dir.rename(tmp_path / "moved")
        (tmp_path / "run").symlink_to("moved")
    run_evaluated(work_dir, [0.3, 0.4], resume=work_dir / "latest.pth", **options)
    folder = tmp_path / "scored/run" if options else work_dir
    assert [path.name for path in folder.glob("best_*")] == ["best_mAP_epoch_2.pth"]


def test_a_folder_that_was_moved_owns_nothing_where_it_was(tmp_path):
    run_evaluated(tmp_path / "run", [0.3])
    (tmp_path / "run").rename(tmp_path / "moved")
    run_evaluated(tmp_path / "run", [0.1])
    run_evaluated(tmp_path / "moved", [0.3, 0.4], resume=tmp_path / "moved/latest.pth")
    assert (tmp_path / "run/best_mAP_epoch_1.pth").is_file()
    assert (tmp_path / "moved/best_mAP_epoch_2.pth").is_file()


@pytest.mark.parametrize("of", ["subclass", "object", "everybody"])
def test_who_saves_the_best_in_a_way_of_their_own_keeps_it(tmp_path, monkeypatch, of):
    seen = []

    class Own(Scores):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            if of == "object":
                self._save_ckpt = lambda runner, score: seen.append(score)

    kind = EvalHook if of == "everybody" else Own
    if of != "object":
        monkeypatch.setattr(kind, "_save_ckpt", lambda hook, runner, score: seen.append(score), raising=False)
    run_evaluated(tmp_path, [0.2, 0.3], hook=Own)
    assert seen == [0.2, 0.3]


def test_a_full_disk_keeps_the_last_good_checkpoint(disk, tmp_path):
    """On a real file system without room."""
    full = disk(tmp_path / "disk", "64k")
    run(new_runner(full, 1))
    (full / "filler").write_bytes(bytes(os.statvfs(full).f_bavail * os.statvfs(full).f_frsize))
    before = (full / "epoch_1.pth").read_bytes()
    resumed = new_runner(full, 2)
    resumed.resume(str(full / "latest.pth"))
    with pytest.raises(OSError, match=r"cannot write the checkpoint: No space left.*epoch_1\.pth is still") as info:
        run(resumed)
    assert info.value.errno == errno.ENOSPC
    assert (full / "epoch_1.pth").read_bytes() == before
    assert sorted(p.name for p in full.iterdir()) == ["epoch_1.pth", "filler", "latest.pth"]
    new_runner(full, 2).resume(str(full / "latest.pth"))


def test_whatever_ends_the_writing_leaves_nothing_unfinished(tmp_path):
    """Also what is no OSError, as torch's own words about a disk."""

    def write(part):
        part.write_bytes(b"begun")
        raise RuntimeError("unexpected pos 704 vs 598")

    with pytest.raises(RuntimeError, match="unexpected pos"):
        write_whole(tmp_path, "epoch_1.pth", write, link=True)
    assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    """Caught by nobody, as SIGKILL is not."""


class Faults:
    """Counts the file operations, writes included; the one numbered `fatal` is begun and fails with `error`."""

    def __init__(self, fatal, error):
        self.count, self.fatal, self.error = 0, fatal, error

    def step(self, half=None):
        self.count += 1
        if self.count - 1 == self.fatal:
            if half is not None:
                half()
            raise self.error

    def before(self, function):
        def wrapped(*args, **kwargs):
            self.step()
            return function(*args, **kwargs)

        return wrapped

    def opened(self, function):
        def wrapped(path, mode="r", *args, **kwargs):
            file = self.before(function)(path, mode, *args, **kwargs)
            if "w" not in mode:
                return file

            class Writer:
                def __enter__(writer):
                    return writer

                def __exit__(writer, *_):
                    file.close()

                def write(writer, data):
                    self.step(half=lambda: file.write(data[: len(data) // 2]))
                    return file.write(data)

            return Writer()

        return wrapped


@pytest.mark.parametrize("error", [Killed(), OSError(errno.EIO, "I/O error"), OSError("no number")], ids=repr)
def test_a_checkpoint_is_never_seen_half_written(tmp_path, monkeypatch, error):
    """Each file operation of the second save in turn is the last: what `latest.pth` names can be resumed from."""
    number, killed = 0, True
    while killed:
        folder = tmp_path / str(number)
        runner = run(new_runner(folder, 1))
        runner.model.net[0].weight.data.fill_(7)
        faults = Faults(number, error)
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "open", faults.opened(builtins.open))
            patch.setattr(io, "open", faults.opened(io.open))
            for name in ("fsync", "replace", "rename", "symlink", "unlink", "remove"):
                patch.setattr(os, name, faults.before(getattr(os, name)))
            patch.setattr(torch, "save", faults.before(torch.save))
            try:
                runner.save_checkpoint(str(folder))
                killed = False
            except BaseException as caught:
                assert caught is error or (isinstance(caught, OSError) and caught.__cause__ is error)
                if isinstance(error, OSError) and caught is not error:
                    assert "cannot write the checkpoint" in str(caught)
                    assert "epoch_" in str(caught) and "is still there" in str(caught)
        again = new_runner(folder, 3)
        again.resume(str(folder / "latest.pth"))
        assert again.epoch in ((1, 2) if killed else (2,))
        for path in folder.glob("*.pth"):
            read_checkpoint(path)
        if not isinstance(error, Killed):
            assert not list(folder.glob("*.part")) + list(folder.glob(".*.part"))
        number += 1
    assert number >= 8  # torch.save, open, write, open for fsync, fsync, replace, unlink, symlink, replace


def test_checkpoints_go_where_paths_and_names_say(tmp_path):
    """A Path, as mmcv's DvcliveLoggerHook gives one; a name in a folder; a name without a number."""
    runner = run(new_runner(tmp_path, 1))
    runner.save_checkpoint(tmp_path / "dvc", filename_tmpl="model.pth", create_symlink=False)
    assert [p.name for p in (tmp_path / "dvc").iterdir()] == ["model.pth"]
    runner.save_checkpoint(tmp_path / "deep", filename_tmpl="all/epoch_{}.pth")
    assert (tmp_path / "deep/latest.pth").resolve() == (tmp_path / "deep/all/epoch_2.pth").resolve()
    assert read_checkpoint(tmp_path / "deep/latest.pth")["meta"]["epoch"] == 2


def test_resume_from_home(tmp_path, monkeypatch):
    run(new_runner(tmp_path, 1))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("~/epoch_1.pth", tmp_path / "epoch_1.pth"):
        resumed = new_runner(tmp_path, 2)
        resumed.resume(name)
        assert resumed.epoch == 1


class Foreign:
    """Of a type that torch does not load without being told to."""


def change_meta(path, **changes):
    content = torch.load(path, weights_only=False)
    content["meta"].update(changes)
    torch.save(content, path)


NUMPY = {
    "best": np.float64(0.25), "half": np.float16(1), "count": np.int64(3), "flag": np.bool_(True),
    "name": np.str_("bbox_mAP"), "array": np.arange(6, dtype=np.float32).reshape(2, 3), "dtype": np.dtype("int8"),
}  # fmt: skip


def test_numpy_in_a_checkpoint_costs_no_epoch(tmp_path, caplog):
    """torch.load refuses it from 2.6 on, and an older epoch was resumed from."""
    run(new_runner(tmp_path, 2))
    change_meta(tmp_path / "epoch_2.pth", hook_msgs={"best_score": NUMPY["best"]}, **NUMPY)
    resumed = new_runner(tmp_path, 3)
    resumed.resume(str(tmp_path / "latest.pth"))
    assert resumed.epoch == 2
    assert resumed.meta["hook_msgs"]["best_score"] == 0.25
    assert all(np.array_equal(resumed.meta[key], value) for key, value in NUMPY.items())
    run(resumed)
    assert new_runner(tmp_path, 3).load_checkpoint(str(tmp_path / "epoch_3.pth"))["meta"]["best"] == 0.25
    with pytest.raises(Exception, match="Unsupported global"):  # allowed for the call only
        torch.load(tmp_path / "epoch_3.pth", weights_only=True)


def test_numpy_of_the_other_major_version(tmp_path):
    """numpy 1 and 2 write the same numbers under two names."""
    torch.save({"state_dict": {}, "meta": {"a": np.float64(2)}}, tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    here, there = (b"numpy._core", b"numpy.core") if b"numpy._core" in content else (b"numpy.core", b"numpy._core")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive, zipfile.ZipFile(tmp_path / "y.pth", "w") as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name).replace(here, there))
    assert read_checkpoint(tmp_path / "y.pth")["meta"]["a"] == 2


def test_an_unsafe_checkpoint_is_an_error_and_not_an_older_epoch(tmp_path, monkeypatch):
    run(new_runner(tmp_path, 2))
    change_meta(tmp_path / "epoch_2.pth", mine=Foreign())
    resumed = new_runner(tmp_path, 3)
    with pytest.raises(UnsafeCheckpoint, match=r"latest\.pth is whole, but") as info:
        resumed.resume(str(tmp_path / "latest.pth"))
    assert resumed.epoch == 0
    message = str(info.value)
    assert "\n" not in message and "\x1b" not in message
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1" in message and "add_safe_globals" in message
    assert "Foreign" in message
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    resumed.resume(str(tmp_path / "latest.pth"))
    assert resumed.epoch == 2


@pytest.fixture
def of_mmengine(tmp_path, monkeypatch):
    """A checkpoint such as MMDetection 3's, which hold histories of logged values, with `more` in it."""

    def make(more):
        module = types.ModuleType("mmengine.logging.history_buffer")
        exec("class HistoryBuffer:\n def mean(self): pass", module.__dict__)
        packages = [types.ModuleType(name) for name in ("mmengine", "mmengine.logging")]
        for package in packages:
            package.__path__ = []
        with monkeypatch.context() as there:
            for part in (*packages, module):
                there.setitem(sys.modules, part.__name__, part)
            history = module.HistoryBuffer()
            history.values = np.arange(3.0)
            history.statistics = {"mean": Attribute(module.HistoryBuffer, "mean")}
            hub = {"log_scalars": {"loss": history}}
            torch.save({"state_dict": {"a": torch.ones(2)}, "message_hub": hub, **more}, tmp_path / "x.pth")
        return tmp_path / "x.pth"

    return make


class Attribute:
    """Pickled as an attribute of something else, as functions in classes are."""

    def __init__(self, owner, name):
        self.asked = (owner, name)

    def __reduce__(self):
        return getattr, self.asked


def test_checkpoints_of_mmengine_are_read_without_it(of_mmengine):
    assert torch.equal(read_checkpoint(of_mmengine({}))["state_dict"]["a"], torch.ones(2))
    # Nothing else has attributes asked of it.
    with pytest.raises(UnsafeCheckpoint, match="attribute 'dump' of"):
        read_checkpoint(of_mmengine({"more": Attribute(np.ndarray, "dump")}))


def test_what_cannot_be_read_without_mmengine_says_how_to_get_the_weights(of_mmengine, monkeypatch):
    """If torch is told to take all that a file has."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UnsafeCheckpoint, match="holds objects of mmengine, which is not installed here; where it is"):
        read_checkpoint(of_mmengine({}))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        ({"state_dict": {"a": torch.ones(2)}, "meta": {}}, "read"),
        ({"a": torch.ones(2), "b": torch.zeros(1)}, "read"),
        ({"state_dict": {}, "x": Foreign()}, UnsafeCheckpoint),
        ({"epoch": 3}, DamagedCheckpoint),
        ([torch.ones(1)], DamagedCheckpoint),
        ({}, DamagedCheckpoint),
    ],
    ids=["checkpoint", "state dict alone", "foreign type", "no state dict", "list", "nothing"],
)
def test_reading(tmp_path, content, outcome, legacy):
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    if outcome == "read":
        assert torch.equal(read_checkpoint(path)["state_dict"]["a"], torch.ones(2))
        whole = path.read_bytes()
        for share in (0, 0.01, 0.3, 0.5, 0.6, 0.7, 0.8, 0.99):
            path.write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(DamagedCheckpoint, match=r"x\.pth is no readable checkpoint"):
                read_checkpoint(path)
    else:
        with pytest.raises(outcome):
            read_checkpoint(path)


def test_what_is_no_file_of_torch_at_all(tmp_path):
    """Whatever its first byte, which a pickle would take for an instruction."""
    path = tmp_path / "x.pth"
    for first in range(256):
        path.write_bytes(bytes([first]) + b"omething\nelse\n" * 5)
        with pytest.raises(DamagedCheckpoint):
            read_checkpoint(path)


def test_weights_alone_cannot_be_resumed_from(tmp_path):
    """But begun with; an older epoch is no answer either."""
    run(new_runner(tmp_path, 2))
    weights = read_checkpoint(tmp_path / "epoch_2.pth")["state_dict"]
    for content in (dict(weights), {"state_dict": weights}, {"state_dict": weights, "meta": {"epoch": 2}}):
        torch.save(content, tmp_path / "epoch_2.pth")
        with pytest.raises(ValueError, match=r"has weights, but no epoch and iteration.*use load_from"):
            new_runner(tmp_path, 3).resume(str(tmp_path / "epoch_2.pth"))
        runner = new_runner(tmp_path, 3)
        runner.load_checkpoint(str(tmp_path / "epoch_2.pth"))
        assert torch.equal(runner.model.net[0].weight, weights["net.0.weight"])


def test_another_number_of_devices_again_and_again(tmp_path):
    """Each epoch is that much of the training, whichever devices did those before. mmcv divides the iteration at every
    resume by the devices of the run that began, and the training does not end at the lowest learning rate."""
    lr = {
        "policy": "YOLOX", "warmup": "exp", "by_epoch": False, "warmup_by_epoch": True, "warmup_ratio": 1,
        "warmup_iters": 1, "num_last_epochs": 2, "min_lr_ratio": 0.05,
    }  # fmt: skip
    for epochs, devices in ((2, 1), (4, 2), (6, 1), (9, 1)):
        iterations = 6 // devices
        meta = {"seed": 5, "config": f"gpu_ids = range(0, {devices})"}
        runner = new_runner(tmp_path, epochs, lr=dict(lr), meta=meta)
        if epochs > 2:
            runner._world_size = devices
            runner.resume(str(tmp_path / "latest.pth"))
            runner._world_size = 1  # there is but one process here
        run(runner, iterations)
        assert runner.iter == epochs * iterations
        assert runner.meta is meta and meta["config"] == f"gpu_ids = range(0, {devices})"
        saved = read_checkpoint(tmp_path / "latest.pth")["meta"]
        assert (saved["config"], saved["iter"]) == (meta["config"], epochs * iterations)
    assert runner.current_lr() == [pytest.approx(0.05 * 0.01)] * len(runner.current_lr())


def test_the_meta_that_was_given_tells_the_seed_in_use(tmp_path):
    run(new_runner(tmp_path, 1))
    meta = {"seed": 6}
    resumed = new_runner(tmp_path, 2, meta=meta)
    resumed.resume(str(tmp_path / "latest.pth"))
    assert meta["seed"] == 5
    run(resumed)
    assert meta["seed"] == 5 and resumed.meta is meta
    assert resumed.meta["hook_msgs"]["last_ckpt"].endswith("epoch_2.pth")


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
def test_kills_change_no_bit(tmp_path):
    """MMDetection's own train.py with --auto-resume, killed (SIGKILL) at random moments while it trains. Those of
    `make test-faults` are more, of the plugin's commands."""
    make_dataset(tmp_path / "data", train=24, val=1)
    wanted, epochs = 3, 9
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
                while kills < wanted and process.poll() is None and latest(tmp_path / "cut") == before:
                    time.sleep(0.02)
                if kills < wanted and process.poll() is None:
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
    assert kills == wanted
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


def test_sgd_has_the_arguments_of_torchs():
    """MMDetection 3 reads the first one's name."""
    assert inspect.signature(SGD) == inspect.signature(torch.optim.SGD)


def test_sgd_heeds_the_layout_of_gradients_and_momenta():
    """torch's fused kernel on the CPU does not: it adds whatever lies at the same place in memory."""
    cfg = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    gradient = torch.randn(8, 4, 3, 3)
    holders = [torch.nn.Conv2d(4, 8, 3, bias=False).to(memory_format=torch.channels_last) for _ in range(2)]
    holders[1].load_state_dict(holders[0].state_dict())
    optimizers = [build_optimizer(holders[0], {"type": "SGD", **cfg}), torch.optim.SGD(holders[1].parameters(), **cfg)]
    for turn in range(3):
        for holder, optimizer in zip(holders, optimizers, strict=True):
            same_layout = gradient.contiguous(memory_format=torch.channels_last)
            holder.weight.grad = same_layout if turn == 1 else gradient.clone()
            optimizer.step()
    torch.testing.assert_close(holders[0].weight, holders[1].weight)


def sgd_pair(parameters, **options):
    """The plugin's SGD and torch's on copies of these parameters."""
    copies = [[torch.nn.Parameter(p.detach().clone()) for p in parameters] for _ in range(2)]
    mine = build_optimizer(torch.nn.ParameterList(copies[0]), {"type": "SGD", "lr": 0.1, **options})
    assert type(mine).__module__.startswith("yolox_plugin")
    return copies, (mine, torch.optim.SGD(copies[1], **{"lr": 0.1, **options}))


def step(copies, optimizers, gradients):
    for parameters, optimizer in zip(copies, optimizers, strict=True):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
@pytest.mark.parametrize(
    "options", [{"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, {}], ids=["all", "none"]
)
def test_sgd_of_other_types_is_that_of_torch(dtype, options):
    """torch's fused kernel rounds the momenta of half types wrongly on a CPU (pytorch#191763), and takes no complex."""
    torch.manual_seed(0)
    copies, optimizers = sgd_pair([torch.randn(5, 3).to(dtype), torch.randn(300).to(dtype)], **options)
    for _ in range(20):
        step(copies, optimizers, [torch.randn(p.shape).to(dtype) for p in copies[0]])
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(list(copies[0]), list(copies[1]), **tolerance)
    ours, theirs = (optimizer.state_dict()["state"] for optimizer in optimizers)
    torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}, {"lr": torch.tensor(0.1)}])
def test_sgd_steps_in_the_way_that_was_asked_for(options):
    """A loss scaler, for instance, leaves unscaling to a fused optimizer."""
    copies, optimizers = sgd_pair([torch.ones(4, 2)], momentum=0.9, **{"lr": 0.1, **options})
    for optimizer in optimizers:
        if options.get("fused"):
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    calls = []
    for optimizer in optimizers:
        optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    for _ in range(2):
        step(copies, optimizers, [torch.full((4, 2), 2.0)])
    assert torch.equal(copies[0][0], copies[1][0])
    assert calls == ["before", "after"] * 4


def test_sgd_of_sparse_gradients():
    copies, optimizers = sgd_pair([torch.ones(4, 2), torch.ones(3)])
    sparse = torch.sparse_coo_tensor([[1, 1]], torch.ones(2, 2), (4, 2))
    for _ in range(2):
        step(copies, optimizers, [sparse, torch.ones(3)])
    torch.testing.assert_close(list(copies[0]), list(copies[1]))


def test_sgd_evaluates_a_closure_once():
    (ours, theirs), optimizers = sgd_pair([torch.ones(3)], momentum=0.5, foreach=False)
    calls = []
    for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):

        def closure(parameters=parameters):
            calls.append(1)
            parameters[0].grad = None
            loss = parameters[0].square().sum()
            loss.backward()
            return loss

        assert optimizer.step(closure) == 3
    assert torch.equal(ours[0], theirs[0])
    assert len(calls) == 2


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
