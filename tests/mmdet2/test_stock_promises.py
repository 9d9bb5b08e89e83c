"""What the tests of mmcv and MMDetection ask of the replaced classes, asked of stock's class and of the plugin's."""

import json
import logging
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock, Mock, patch

import numpy as np
import pytest
import torch
from batches import CONFIGS, train_data
from mmcv import Config
from mmcv.cnn import DepthwiseSeparableConvModule
from mmcv.fileio.file_client import PetrelBackend
from mmcv.parallel import MMDataParallel
from mmcv.runner import (
    CheckpointHook,
    DefaultOptimizerConstructor,
    Hook,
    OptimizerHook,
    build_runner,
    epoch_based_runner,
)
from mmcv.runner.hooks import EMAHook, GradientCumulativeOptimizerHook, IterTimerHook, LoggerHook
from mmdet.core.evaluation import EvalHook
from mmdet.datasets import ClassBalancedDataset, RepeatDataset, build_dataset, dataset_wrappers
from mmdet.models import build_detector
from torch import nn
from torch.utils.data import DataLoader

from yolox_plugin.mmdet2 import PARTS
from yolox_plugin.parts import stock_of

PAIRS = [(place, c) for pairs in PARTS.values() for place, c in pairs if not isinstance(place, ModuleType)]
LOG = logging.getLogger("promises")


@pytest.fixture(params=["stock", "plugin"])
def side(request, monkeypatch):
    """The replaced classes of one side by their names, and in the registries."""
    classes = {c.__name__: stock_of(c) if request.param == "stock" else c for _, c in PAIRS}
    for registry, replacement in PAIRS:
        monkeypatch.setitem(registry.module_dict, replacement.__name__, classes[replacement.__name__])
    monkeypatch.setattr(dataset_wrappers, "MultiImageMixDataset", classes["MultiImageMixDataset"])
    monkeypatch.setattr(epoch_based_runner, "time", Mock())  # stock sleeps two seconds an epoch
    return SimpleNamespace(**classes)


# Runner


class Silent(nn.Module):
    """Cannot be trained."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)


class Toy(Silent):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.modes = []

    def train_step(self, data, optimizer, **kwargs):
        self.modes.append(self.training)
        return {"loss": self.linear(data).mean(), "log_vars": {"seen": 1.0}, "num_samples": len(data)}

    val_step = train_step


def loader(samples=10, batch_size=1):
    return DataLoader(torch.ones(samples, 2), batch_size=batch_size)


def runner_of(side, work_dir, model=None, max_epochs=1, **options):
    model = Toy() if model is None else model
    work_dir = str(work_dir) if isinstance(work_dir, Path) else work_dir
    return side.EpochBasedRunner(
        **{"model": model, "work_dir": work_dir, "logger": LOG, "max_epochs": max_epochs, **options}
    )


def two_optimizers(model, optimizer):
    return {
        "a": optimizer(model.linear.parameters(), lr=0.02, momentum=0.95),
        "b": optimizer(model.conv.parameters(), lr=0.01, momentum=0.9),
    }


REFUSED = {
    "no train_step": ({"model": Silent()}, AssertionError),
    "optimizer": ({"optimizer": "SGD"}, TypeError),
    "one of the optimizers": ({"optimizer": {"a": torch.optim.SGD([torch.zeros(1)], 0.1), "b": "SGD"}}, TypeError),
    "logger": ({"logger": None}, TypeError),
    "meta": ({"meta": ["a list"]}, TypeError),
    "work_dir": ({"work_dir": 1}, TypeError),
    "batch_processor": ({"model": Silent(), "batch_processor": 0}, TypeError),
    "both ways of a step": ({"batch_processor": print}, RuntimeError),
    "both, wrapped": ({"model": MMDataParallel(Toy()), "batch_processor": print}, RuntimeError),
    "both limits": ({"max_iters": 1}, ValueError),
}


@pytest.mark.parametrize(("options", "error"), REFUSED.values(), ids=REFUSED)
def test_what_a_runner_refuses(side, tmp_path, options, error):
    with pytest.raises(error):
        runner_of(side, **{"work_dir": tmp_path, **options})


def test_what_a_runner_takes(side, tmp_path):
    assert runner_of(side, None).work_dir is None
    for model in (Silent(), MMDataParallel(Silent())):
        with pytest.warns(DeprecationWarning):
            runner_of(side, tmp_path, model, batch_processor=print)
    for _ in range(2):
        assert runner_of(side, tmp_path / "new", MMDataParallel(Toy())).model_name == "Toy"
        assert (tmp_path / "new").is_dir()
    config = {"type": "EpochBasedRunner", "max_epochs": 3}
    built = build_runner(config, {"model": Toy(), "logger": LOG})
    assert type(built) is side.EpochBasedRunner and built.max_epochs == 3 and built.max_iters is None
    built = side.EpochBasedRunner(Toy(), None, None, None, LOG, {"a": 1}, None, 7)  # by position
    assert built.max_epochs == 7 and built.meta["a"] == 1


@pytest.mark.parametrize(
    ("loaders", "workflow", "error"),
    [
        ([loader()], [("train", 1), ("val", 1)], AssertionError),
        (loader(), [("train", 1)], AssertionError),
        ([loader()], [("fly", 1)], ValueError),
        ([loader()], [(1, 1)], TypeError),
        ([loader()], [("train", "1")], (TypeError, ValueError)),
    ],
    ids=["one loader", "no list", "no such mode", "mode", "number"],
)
def test_workflows_that_a_runner_refuses(side, tmp_path, loaders, workflow, error):
    with pytest.raises(error):
        runner_of(side, tmp_path).run(loaders, workflow)


def test_a_workflow_of_training_and_validation(side, tmp_path):
    runner = runner_of(side, tmp_path, max_epochs=3)
    runner.run([loader(4), loader(2)], [("train", 2), ("val", 1)])
    assert runner.model.modes == [*[True] * 8, *[False] * 2, *[True] * 4, *[False] * 2]
    assert (runner.epoch, runner.iter, runner.inner_iter, runner.max_iters) == (3, 12, 1, 12)
    runner = runner_of(side, tmp_path, max_epochs=None)
    with pytest.warns(DeprecationWarning):
        runner.run([loader(4)], [("train", 1)], 2)
    assert runner.epoch == runner.max_epochs == 2
    with pytest.raises(AssertionError):
        runner_of(side, tmp_path, max_epochs=None).run([loader(4)], [("train", 1)])


def test_a_batch_processor(side, tmp_path):
    def process(model, data, train_mode, **kwargs):
        calls.append((len(data), train_mode, kwargs))
        return {"log_vars": {"seen": 2.0}, "num_samples": len(data)}

    calls = []
    with pytest.warns(DeprecationWarning):
        runner = runner_of(side, tmp_path, Silent(), batch_processor=process)
    runner.run([loader(4, 2), loader(1)], [("train", 1), ("val", 1)], more=1)
    assert calls == [(2, True, {"more": 1})] * 2 + [(1, False, {})]
    assert runner.log_buffer.val_history["seen"] == [2.0] * 3 and runner.log_buffer.n_history["seen"] == [2, 2, 1]
    runner = runner_of(side, tmp_path)
    runner.model.train_step = lambda *_, **__: [1]
    with pytest.raises(TypeError):
        runner.run([loader(4)], [("train", 1)])


@pytest.mark.parametrize("name", ["ExpMomentumEMAHook", "YOLOXModeSwitchHook", "SyncNormHook"])
def test_stages_of_a_hook(side, name):
    hook = getattr(side, name)()
    stages = {
        "ExpMomentumEMAHook": ["before_run", "before_train_epoch", "after_train_epoch", "after_train_iter"],
        "YOLOXModeSwitchHook": ["before_train_epoch"],
        "SyncNormHook": ["before_train_epoch", "after_train_epoch"],
    }
    assert set(hook.get_triggered_stages()) == set(stages[name])


def test_checkpoints_of_a_runner(side, tmp_path):
    model = Toy()
    optimizer = side.SGD(model.parameters(), lr=0.1, momentum=0.9)
    runner = runner_of(side, tmp_path, model, optimizer=optimizer, meta={"mine": 1})
    with pytest.raises(TypeError):
        runner.save_checkpoint(str(tmp_path), meta=[])
    runner.save_checkpoint(str(tmp_path), meta={"more": 2})
    latest = tmp_path / "latest.pth"
    assert latest.resolve() == tmp_path / "epoch_1.pth"
    saved = torch.load(latest)
    assert saved["meta"].items() >= {"mine": 1, "more": 2, "epoch": 1, "iter": 0}.items()
    assert saved["state_dict"].keys() == model.state_dict().keys()
    assert saved["optimizer"]["param_groups"][0]["momentum"] == 0.9
    runner.save_checkpoint(str(tmp_path), "my_{}.pth", save_optimizer=False, create_symlink=False)
    assert "optimizer" not in torch.load(tmp_path / "my_1.pth")
    assert latest.resolve() == tmp_path / "epoch_1.pth"


def test_keys_are_revised(side, tmp_path):
    inner, outer = Toy(), nn.Module()
    outer.backbone, file = Toy(), str(tmp_path / "weights.pth")
    runner = runner_of(side, tmp_path, inner)
    torch.save(inner.state_dict(), file)
    runner.model = outer
    runner.load_checkpoint(file, revise_keys=[("^", "backbone.")])
    assert all(torch.equal(value, inner.state_dict()[key]) for key, value in outer.backbone.state_dict().items())
    nn.init.ones_(outer.backbone.linear.weight)
    torch.save(outer.state_dict(), file)
    runner.model = inner
    found = runner.load_checkpoint(file, "cpu", False, revise_keys=[(r"^backbone\.", "")])
    assert inner.linear.weight.eq(1).all() and len(found) == len(inner.state_dict())


@pytest.mark.parametrize("several", [False, True], ids=["one optimizer", "several"])
def test_resume(side, tmp_path, several):
    def started():
        model = Toy()
        optimizer = two_optimizers(model, side.SGD) if several else side.SGD(model.parameters(), 0.1, momentum=0.9)
        runner = runner_of(side, tmp_path, model, max_epochs=3, optimizer=optimizer, meta={})
        runner.register_hook(CheckpointHook(interval=1))
        if not several:
            runner.register_hook(OptimizerHook())
        return runner

    whole = started()
    whole.run([loader(4)], [("train", 1)])
    assert whole.meta["hook_msgs"]["last_ckpt"] == str(tmp_path / "epoch_3.pth")
    resumed = started()
    resumed.resume(str(tmp_path / "epoch_2.pth"))
    assert (resumed.epoch, resumed.iter) == (2, 8)
    assert resumed.meta["hook_msgs"]["last_ckpt"] == str(tmp_path / "epoch_1.pth")
    resumed.run([loader(4)], [("train", 1)])
    assert (resumed.epoch, resumed.iter) == (3, 12)
    assert torch.equal(resumed.model.linear.weight, whole.model.linear.weight)
    assert resumed.current_lr() == whole.current_lr() and resumed.current_momentum() == whole.current_momentum()


# mmcv's hooks in the runner


def test_kinds_of_schedules_and_timers(side, tmp_path):
    runner = runner_of(side, tmp_path)
    cosine = {"by_epoch": False, "warmup_iters": 2, "warmup_ratio": 0.9}
    cyclic = {"by_epoch": False, "target_ratio": (10, 1), "cyclic_times": 1, "step_ratio_up": 0.4}
    for policy, options in {"CosineAnnealing": {**cosine, "min_lr_ratio": 0}, "Cyclic": cyclic, "cyclic": cyclic,
                            "Step": {"step": [8]}, "step": {"step": [8]}}.items():  # fmt: skip
        runner.register_lr_hook({"policy": policy, **options})
    for policy, options in {"CosineAnnealing": {**cosine, "min_momentum_ratio": 0.5}, "Cyclic": cyclic,
                            "cyclic": cyclic}.items():  # fmt: skip
        runner.register_momentum_hook({"policy": policy, **options})
    assert len(runner.hooks) == 8
    for timer, more in ((None, 0), ({"type": "IterTimerHook"}, 1), (IterTimerHook(), 2)):
        runner.register_timer_hook(timer)
        assert len(runner.hooks) == 8 + more


class Named(Hook):
    def __init__(self, name):
        self.name = name


def test_hooks_go_by_their_priority(side, tmp_path):
    names = ["HIGHEST", "VERY_HIGH", "HIGH", "ABOVE_NORMAL", "NORMAL", "BELOW_NORMAL", "LOW", "VERY_LOW", "LOWEST"]
    runner = runner_of(side, tmp_path)
    runner.register_custom_hooks(None)
    for name in reversed(names):
        runner.register_hook(Named(name), priority=name)
    assert [hook.name for hook in runner.hooks] == names

    runner = runner_of(side, tmp_path)
    runner.register_training_hooks(
        **{f"{name}_config": Named(name) for name in ("lr", "optimizer", "checkpoint", "momentum", "timer")},
        custom_hooks_config=Named("own"),
    )
    assert [hook.name for hook in runner.hooks] == ["lr", "momentum", "optimizer", "checkpoint", "own", "timer"]


class Values(LoggerHook):
    """Remembers what it is given to log."""

    def __init__(self):
        super().__init__(interval=1)
        self.rows = []

    def log(self, runner):
        self.rows.append((runner.mode, self.get_iter(runner), self.get_loggable_tags(runner)))


def cosine(i, end=40):
    return 0.5 * (1 + math.cos(math.pi * i / end))


def yolox(i):  # 40 iterations: an exponential warm-up of 10, a cosine of 20, the last 10 at its end
    return ((i + 1) / 10) ** 2 if i < 10 else 0.05 + 0.95 * cosine(min(i - 9, 20), 20)


SCHEDULES = {
    "Step": ({"step": [2, 3]}, lambda i: (1, 1, 0.1, 0.01)[i // 10]),
    "CosineAnnealing": ({"by_epoch": False, "min_lr_ratio": 0}, cosine),
    "Poly": ({"by_epoch": False, "power": 2}, lambda i: (1 - i / 40) ** 2),
    "Exp": ({"gamma": 0.5}, lambda i: 0.5 ** (i // 10)),
    "Fixed": (
        {"warmup": "linear", "warmup_iters": 8, "warmup_ratio": 0.2},
        lambda i: 1 - (1 - i / 8) * 0.8 if i < 8 else 1,
    ),
    "YOLOX": (
        {"warmup": "exp", "by_epoch": False, "warmup_by_epoch": True, "warmup_ratio": 1, "warmup_iters": 1,
         "num_last_epochs": 1, "min_lr_ratio": 0.05},
        yolox,
    ),
}  # fmt: skip


@pytest.mark.parametrize("several", [False, True], ids=["one optimizer", "several"])
@pytest.mark.parametrize("policy", SCHEDULES)
def test_schedules(side, tmp_path, policy, several):
    model, values = Toy(), Values()
    one = side.SGD(model.parameters(), lr=0.02, momentum=0.95)
    runner = runner_of(
        side, tmp_path, model, max_epochs=4, optimizer=two_optimizers(model, side.SGD) if several else one
    )
    options, factor = SCHEDULES[policy]
    runner.register_lr_hook({"policy": policy, **options})
    runner.register_momentum_hook({"policy": "CosineAnnealing", "by_epoch": False, "min_momentum": 0})
    runner.register_timer_hook(IterTimerHook())
    runner.register_hook(values, priority="VERY_LOW")
    runner.run([loader()], [("train", 1)])
    assert [row[:2] for row in values.rows] == [("train", i + 1) for i in range(40)]
    for i, (_, _, tags) in enumerate(values.rows):
        rates = {"/a": 0.02, "/b": 0.01} if several else {"": 0.02}
        momenta = {"/a": 0.95, "/b": 0.9} if several else {"": 0.95}
        expected = {f"learning_rate{name}": rate * factor(i) for name, rate in rates.items()}
        expected |= {f"momentum{name}": momentum * cosine(i) for name, momentum in momenta.items()}
        assert tags == pytest.approx({"train/seen": 1.0, **expected}), i


def test_accumulated_gradients(side, tmp_path):
    data = torch.rand(6, 2)

    def weights(batch_size, hook):
        torch.manual_seed(0)
        model = Toy()
        runner = runner_of(
            side, tmp_path, model, max_epochs=3, optimizer=side.SGD(model.linear.parameters(), lr=0.1, momentum=0.9)
        )
        runner.register_hook(hook)
        before = model.linear.weight.clone()
        runner.run([DataLoader(data, batch_size=batch_size)], [("train", 1)])
        assert not torch.equal(model.linear.weight, before)
        return torch.cat([model.linear.weight[0], model.linear.bias]).detach()

    clip = {"max_norm": 0.2}
    accumulated = weights(1, GradientCumulativeOptimizerHook(grad_clip=clip, cumulative_iters=3))
    torch.testing.assert_close(accumulated, weights(3, OptimizerHook(grad_clip=clip)))


@pytest.mark.parametrize("kept", [-1, 2])
def test_the_checkpoint_hook(side, tmp_path, kept):
    runner = runner_of(side, tmp_path, max_epochs=4, meta={})
    runner.register_checkpoint_hook({"interval": 1, "max_keep_ckpts": kept})
    runner.run([loader(2)], [("train", 1)])
    assert runner.meta["hook_msgs"]["last_ckpt"] == str(tmp_path / "epoch_4.pth")
    first = 1 if kept < 0 else 3
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [
        *(f"epoch_{i}.pth" for i in range(first, 5)),
        "latest.pth",
    ]


def test_checkpoints_go_to_a_store(side, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "petrel_client", MagicMock())
    monkeypatch.setitem(sys.modules, "petrel_client.client", MagicMock())
    runner = runner_of(side, tmp_path / "run", max_epochs=4, meta={})
    with (
        patch.object(PetrelBackend, "put") as put,
        patch.object(PetrelBackend, "remove") as remove,
        patch.object(PetrelBackend, "isfile", return_value=True),
    ):
        runner.register_hook(CheckpointHook(interval=1, out_dir="s3://user/data", max_keep_ckpts=2))
        runner.run([loader(2)], [("train", 1)])
    assert [call.args[1] for call in put.call_args_list] == [f"s3://user/data/run/epoch_{i}.pth" for i in range(1, 5)]
    assert {call.args[0] for call in remove.call_args_list} == {f"s3://user/data/run/epoch_{i}.pth" for i in (1, 2)}
    assert runner.meta["hook_msgs"]["last_ckpt"] == "s3://user/data/run/epoch_4.pth"


@pytest.mark.parametrize(
    ("options", "began", "epochs", "evaluations"),
    [
        ({}, 0, 2, 2),
        ({"start": 1}, 0, 2, 2),
        ({"interval": 2}, 0, 2, 1),
        ({"start": 1, "interval": 2}, 0, 3, 2),
        ({"start": 0}, 0, 2, 3),
        ({"start": 0, "interval": 2, "dynamic_intervals": [(3, 1)]}, 0, 4, 3),
        ({"start": 1}, 2, 3, 2),
        ({"start": 2}, 1, 3, 2),
        ({"by_epoch": False, "interval": 3}, 0, 2, 3),
    ],
    ids=str,
)
def test_when_it_is_evaluated(side, tmp_path, options, began, epochs, evaluations):
    runner = runner_of(side, tmp_path, max_epochs=epochs)
    hook = EvalHook(loader(5), **options)
    hook.evaluate = Mock(return_value=None)
    runner.register_hook(hook)
    runner._epoch = began
    with patch("mmdet.apis.single_gpu_test"):
        runner.run([loader(5)], [("train", 1)])
    assert hook.evaluate.call_count == evaluations


class Figures(torch.utils.data.Dataset):
    """A data set whose evaluations have these figures, one after the other."""

    def __init__(self, figures):
        self.figures = list(figures)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return torch.ones(2)

    def evaluate(self, results, logger=None):
        figure = self.figures.pop(0)
        return {"mAP": figure, "score": figure}


@pytest.mark.parametrize(
    ("options", "epoch", "name"),
    [
        ({"save_best": "auto"}, 4, "mAP"),
        ({"save_best": "mAP"}, 4, "mAP"),
        ({"save_best": "score", "rule": "greater"}, 4, "score"),
        ({"save_best": "mAP", "rule": "less"}, 6, "mAP"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stops", [(8,), (2, 8)], ids=["in one go", "resumed"])
def test_the_best_checkpoint(side, tmp_path, options, epoch, name, stops):
    figures = [0.1, 0.4, 0.3, 0.7, 0.2, 0.05, 0.4, 0.6]
    data_set = Figures(figures)
    for stop in stops:
        runner = runner_of(side, tmp_path, max_epochs=stop, meta={})
        runner.register_checkpoint_hook({"interval": 1})
        runner.register_hook(EvalHook(DataLoader(data_set), **options))
        if stop != stops[0]:
            runner.resume(str(tmp_path / "latest.pth"))
        with patch("mmdet.apis.single_gpu_test"):
            runner.run([loader(1)], [("train", 1)])
    assert runner.meta["hook_msgs"]["best_score"] == figures[epoch - 1]
    best = tmp_path / f"best_{name}_epoch_{epoch}.pth"
    assert runner.meta["hook_msgs"]["best_ckpt"] == str(best) and best.is_file()
    # Stock's checkpoint is older than the evaluation of its epoch: resumed, it does not know which file was the best.
    if len(stops) == 1 or side.EpochBasedRunner.__module__.startswith("yolox_plugin"):
        assert len(list(tmp_path.glob("best_*"))) == 1


@pytest.mark.parametrize("epoch", [2, 4], ids=["within", "at the end"])
def test_an_evaluation_that_was_cut_comes_first_in_the_resumed_run(tmp_path, monkeypatch, epoch):
    """The best score is that of this epoch. No promise of stock's, which evaluates it no more."""
    monkeypatch.setattr(epoch_based_runner, "time", Mock())
    side, evaluated = SimpleNamespace(**{c.__name__: c for _, c in PAIRS}), []

    class Numbered(EvalHook):
        def evaluate(self, runner, results):
            evaluated.append(runner.epoch + 1)
            if len(evaluated) == epoch:  # the first time
                raise KeyboardInterrupt
            self.dataloader.dataset.figures = [1.0 if evaluated[-1] == epoch else 0.5]
            return super().evaluate(runner, results)

    def run():
        runner = runner_of(side, tmp_path, max_epochs=4, meta={})
        runner.register_checkpoint_hook({"interval": 1})
        runner.register_hook(Numbered(DataLoader(Figures([])), save_best="mAP"))
        if (tmp_path / "latest.pth").is_file():
            runner.resume(str(tmp_path / "latest.pth"))
        with patch("mmdet.apis.single_gpu_test"):
            runner.run([loader(1)], [("train", 1)])

    with pytest.raises(KeyboardInterrupt):
        run()
    assert torch.load(tmp_path / f"epoch_{epoch}.pth")["meta"]["evaluation_due"]
    del evaluated[:]
    evaluated.append(0)  # so that none is the first of its number
    evaluated.extend(range(1, 4))
    run()
    assert evaluated[4:] == list(range(epoch, 5))
    for number in range(1, 5):
        meta = torch.load(tmp_path / f"epoch_{number}.pth")["meta"]
        assert "evaluation_due" not in meta and (meta["epoch"], meta["iter"]) == (number, number)
    assert meta["hook_msgs"]["best_score"] == 1.0
    assert [path.name for path in tmp_path.glob("best_*")] == [f"best_mAP_epoch_{epoch}.pth"]
    run()
    assert len(evaluated) == 4 + 5 - epoch


# MMDetection's hooks


class Falling(nn.Module):
    """Its weight falls by one a step, with `OptimizerHook` and lr 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.norm = nn.BatchNorm2d(2)

    def train_step(self, data, optimizer, **kwargs):
        return {"loss": self.weight.sum(), "num_samples": 1}

    val_step = train_step


def falling_run(side, work_dir, hook, epochs=1):
    runner = runner_of(side, work_dir, Falling(), max_epochs=epochs, meta={})
    runner.optimizer = side.SGD([runner.model.weight], lr=1.0)
    runner.register_hook(OptimizerHook(), priority="ABOVE_NORMAL")
    runner.register_hook(hook, priority=49)
    runner.register_checkpoint_hook({"interval": 1})
    runner.run([loader(4), loader(1)], [("train", 1), ("val", 1)])
    return torch.load(work_dir / f"epoch_{epochs}.pth")["state_dict"]


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("skip_buffers", [True, False])
def test_the_moving_average(side, tmp_path, interval, skip_buffers):
    options = {"momentum": 0.1, "total_iter": 5, "interval": interval, "skip_buffers": skip_buffers}
    saved = falling_run(side, tmp_path / "whole", side.ExpMomentumEMAHook(**options), epochs=2)
    averages = [name for name in saved if name.startswith("ema_")]
    assert len(averages) == (3 if skip_buffers else 6)
    average = 0.0
    for i in range(8):
        if (i + 1) % interval == 0:
            momentum = 0.9 * math.exp(-(1 + i) / 5) + 0.1
            average = (1 - momentum) * average - momentum * (i + 1)
    assert saved["weight"].tolist() == pytest.approx([average] * 2)  # evaluated and deployed
    assert saved["ema_weight"].tolist() == [-8.0] * 2  # to go on from

    falling_run(side, tmp_path / "cut", side.ExpMomentumEMAHook(**options))
    hook = side.ExpMomentumEMAHook(**options, resume_from=str(tmp_path / "cut/epoch_1.pth"))
    resumed = falling_run(side, tmp_path / "resumed", hook, epochs=2)
    assert resumed.keys() == saved.keys()
    assert all(torch.equal(resumed[name], value) for name, value in saved.items())


@pytest.mark.parametrize("momentum", [0, 1, -0.1])
def test_momenta_that_are_none(side, momentum):
    with pytest.raises(AssertionError):
        side.ExpMomentumEMAHook(momentum=momentum)


def test_mmcvs_own_moving_average(side, tmp_path):
    falling_run(side, tmp_path / "cut", EMAHook(momentum=0.1, warm_up=4))
    whole = falling_run(side, tmp_path / "whole", EMAHook(momentum=0.1, warm_up=4), epochs=2)
    hook = EMAHook(momentum=0.1, warm_up=4, resume_from=str(tmp_path / "cut/epoch_1.pth"))
    resumed = falling_run(side, tmp_path / "resumed", hook, epochs=2)
    assert whole["ema_weight"].tolist() == [-8.0] * 2 and -8 < float(whole["weight"][0]) < 0
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


class Informed(Toy):
    """Knows the epoch, and may lose its way."""

    def __init__(self, loss=None):
        super().__init__()
        self.loss, self.epoch, self.bbox_head = loss, 0, SimpleNamespace(use_l1=False)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def train_step(self, data, optimizer, **kwargs):
        found = super().train_step(data if isinstance(data, torch.Tensor) else torch.ones(1, 2), optimizer)
        return found if self.loss is None else {**found, "loss": torch.tensor(self.loss)}


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_invalid_losses_are_found(side, tmp_path, loss):
    runner = runner_of(side, tmp_path, Informed(loss))
    runner.register_hook_from_cfg({"type": "CheckInvalidLossHook", "interval": 1})
    if loss is None:
        runner.run([loader(5)], [("train", 1)])
        return
    with pytest.raises(AssertionError):
        runner.run([loader(5)], [("train", 1)])


def test_small_hooks(side, tmp_path):
    runner = runner_of(side, tmp_path, Informed(), max_epochs=3)
    data = DataLoader(torch.ones(5, 2))
    data.dataset.update_dynamic_scale = Mock()
    for hook in (
        "SetEpochInfoHook",
        "SyncNormHook",
        "SyncBuffersHook",
        {"type": "SyncRandomSizeHook", "device": "cpu"},
    ):
        runner.register_hook_from_cfg(hook if isinstance(hook, dict) else {"type": hook})
    runner.run([data, loader(2)], [("train", 1), ("val", 1)])
    assert runner.model.epoch == 2 and side.SyncNormHook().num_last_epochs == 15


# Data sets


BOXES = [[50, 60, 20, 20], [100, 120, 30, 30], [150, 160, 40, 40], [250, 260, 100, 100]]


def annotations(path, ids=(1, 2, 3, 4)):
    """Three images: one with four cars, one with a bus, one with nothing."""
    boxes = [
        {"id": id_, "image_id": 0, "category_id": 0, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for id_, box in zip(ids, BOXES, strict=True)
    ]
    boxes.append({**boxes[0], "id": 9, "image_id": 1, "category_id": 1})
    images = [{"id": i, "width": 640, "height": 480, "file_name": f"{i}.jpg"} for i in range(3)]
    categories = [{"id": 0, "name": "car"}, {"id": 1, "name": "bus"}]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return str(path)


def detections():
    boxes = np.array([[x, y, x + w, y + h, 1 - i / 100] for i, (x, y, w, h) in enumerate(BOXES)])
    none = np.zeros((0, 5))
    return [[boxes, none], [none, boxes[:1]], [none, none]]


def coco(side, file, **options):
    return side.CocoDataset(**{"ann_file": file, "pipeline": [], "classes": ("car", "bus"), **options})


def test_annotation_ids_are_unique(side, tmp_path):
    with pytest.raises(AssertionError):
        coco(side, annotations(tmp_path / "a.json", ids=(1, 1, 2, 3)))


@pytest.mark.parametrize("test_mode", [False, True])
@pytest.mark.parametrize(("classes", "length"), [(["bus"], 1), (["car"], 1), (["car", "bus"], 2)], ids=str)
def test_images_without_gts(side, tmp_path, classes, length, test_mode):
    file = annotations(tmp_path / "a.json")
    for keep in (False, True):
        found = coco(side, file, classes=classes, filter_empty_gt=not keep, test_mode=test_mode)
        expected = 3 if keep or test_mode else length
        assert len(found) == len(found.img_ids) == expected and classes == found.CLASSES
        assert test_mode or len(found.flag) == expected


def test_classes(side, tmp_path):
    file, names = annotations(tmp_path / "a.json"), tmp_path / "classes.txt"
    names.write_text("bus\ncar\n")
    for given, expected in ((("bus", "car"), None), (["bus", "car"], None), (str(names), ["bus", "car"]),
                            (None, side.CocoDataset.CLASSES)):  # fmt: skip
        found = coco(side, file, classes=given, test_mode=True)
        assert (expected or given) == found.CLASSES
        assert "CocoDataset Test dataset with number of images 3" in repr(found)
    assert side.CocoDataset.CLASSES[2] == "car"  # the class's own stay
    with pytest.raises(ValueError):
        coco(side, file, classes=1)


@pytest.mark.parametrize("test_mode", [False, True])
def test_evaluation(side, tmp_path, test_mode):
    found = coco(side, annotations(tmp_path / "a.json"), filter_empty_gt=False, test_mode=test_mode)
    figures = found.evaluate(detections(), classwise=True)
    assert figures["bbox_mAP"] == figures["bbox_mAP_50"] == figures["bbox_mAP_75"] == 1
    half = [[boxes[:2] for boxes in image] for image in detections()]
    figures = found.evaluate(half, metric=["bbox", "proposal"], metric_items=["mAP_50", "AR@100"][:1])
    assert figures["bbox_mAP_50"] == pytest.approx((51 / 101 + 1) / 2, abs=1e-3)
    assert found.evaluate(detections(), "proposal")["AR@100"] == 1
    with pytest.raises(KeyError):
        found.evaluate(detections(), metric="mAP")
    with pytest.raises(AssertionError):
        found.evaluate(detections()[:2])
    with pytest.raises(AssertionError):
        found.evaluate(detections()[0][0])
    files, folder = found.format_results(detections(), str(tmp_path / "out"))
    assert folder is None and len(json.loads((tmp_path / "out.bbox.json").read_text())) == 5
    assert files == {"bbox": str(tmp_path / "out.bbox.json"), "proposal": str(tmp_path / "out.bbox.json")}


@pytest.mark.parametrize("way", ["two configs", "two files", "named"])
def test_evaluation_of_several(side, tmp_path, way):
    file = annotations(tmp_path / "a.json")
    config = {"type": "CocoDataset", "ann_file": file, "pipeline": [], "classes": ("car", "bus"), "test_mode": True}
    joined = {"type": "ConcatDataset", "datasets": [config, config]}
    several = build_dataset(
        {"two configs": [config, config], "two files": {**config, "ann_file": [file, file]}, "named": joined}[way]
    )
    assert len(several) == 6 and type(several.datasets[1]) is side.CocoDataset
    figures = several.evaluate(detections() * 2)
    assert [figures[f"{i}_bbox_{name}"] for i in (0, 1) for name in ("mAP", "mAP_50", "mAP_75")] == [1] * 6
    with pytest.raises(NotImplementedError):  # MMDetection has no evaluation as a whole
        build_dataset({**joined, "separate_eval": False})


def test_wrapped_data_sets(side, tmp_path):
    inner = coco(side, annotations(tmp_path / "a.json"))
    repeated, balanced = RepeatDataset(inner, 3), ClassBalancedDataset(inner, 0.9)
    joined = build_dataset(
        [{"type": "CocoDataset", "ann_file": inner.ann_file, "pipeline": [], "classes": inner.CLASSES}] * 2
    )
    assert (len(repeated), len(balanced), len(joined)) == (6, 4, 4)
    for index in range(4):
        for wrapper, place in ((repeated, index % 2), (joined, index % 2), (balanced, index // 2)):
            assert wrapper is balanced or wrapper.get_cat_ids(index) == inner.get_cat_ids(place)
            expected = inner.get_ann_info(place)
            assert all(np.array_equal(value, expected[key]) for key, value in wrapper.get_ann_info(index).items())
    assert [len(w.flag) for w in (repeated, balanced, joined)] == [6, 4, 4]


class Noise(torch.utils.data.Dataset):
    """Images of float64 and boxes of integers, as nobody has decoded them."""

    CLASSES, flag = ("a",), np.zeros(2, np.uint8)

    def __len__(self):
        return 2

    def get_ann_info(self, index):
        return {"bboxes": self[index]["gt_bboxes"]}

    def __getitem__(self, index):
        rng = np.random.RandomState(index)
        corner = rng.randint(1, 5, (2, 2))
        boxes = np.concatenate([corner, rng.randint(6, 10, (2, 2))], 1)
        return {"img": np.ones((12 + index, 20, 3)), "gt_bboxes": boxes, "gt_labels": rng.randint(80, size=2)}


MIX = [
    {"type": "Mosaic", "img_scale": (60, 60), "pad_val": 114.0},
    {"type": "RandomAffine", "scaling_ratio_range": (0.1, 2), "border": (-30, -30)},
    {"type": "MixUp", "img_scale": (60, 60), "ratio_range": (0.8, 1.6), "pad_val": 114.0},
    {"type": "RandomFlip", "flip_ratio": 0.5},
    {"type": "Resize", "img_scale": (60, 60), "keep_ratio": True},
    {"type": "Pad", "pad_to_square": True, "pad_val": 114.0},
]


def test_mixing(side):
    with pytest.raises(RuntimeError):
        side.MultiImageMixDataset(Noise(), MIX, (80, 80))
    with pytest.raises(AssertionError):
        side.MultiImageMixDataset(Noise(), {"type": "Mosaic"})
    with pytest.raises(TypeError):
        side.MultiImageMixDataset(Noise(), ["Mosaic"])
    with pytest.raises(AssertionError):
        side.MultiImageMixDataset(Noise(), MIX, skip_type_keys=(1,))
    mixing = side.MultiImageMixDataset(Noise(), MIX)
    assert len(mixing) == 2 and mixing.CLASSES == ("a",) and mixing.PALETTE is None
    assert np.array_equal(mixing.flag, Noise.flag) and mixing.num_samples == 2
    for _ in range(5):
        assert all(mixing[i]["img"].shape == (60, 60, 3) for i in range(2))
    shorter = side.MultiImageMixDataset(Noise(), MIX, skip_type_keys=("MixUp", "RandomFlip", "Resize", "Pad"))
    assert all(shorter[i]["img"].shape == (60, 60, 3) for i in range(2))
    mixing.update_skip_type_keys([step["type"] for step in MIX[:5]])
    assert [mixing[i]["img"].shape for i in range(2)] == [(20, 20, 3)] * 2
    with pytest.raises(AssertionError):
        mixing.update_skip_type_keys([1])


def test_a_step_that_never_gives_a_sample(side):
    """FilterAnnotations has emptied what it was given when it returns None."""
    never = side.MultiImageMixDataset(Noise(), [{"type": "FilterAnnotations", "min_gt_bbox_wh": (999, 999)}])
    with pytest.raises(RuntimeError):
        never[0]


def test_the_mode_switch(side, tmp_path):
    mixing = side.MultiImageMixDataset(Noise(), MIX)
    runner = runner_of(side, tmp_path, Informed(), max_epochs=5)
    runner.register_hook(side.YOLOXModeSwitchHook(num_last_epochs=2))
    used = []
    runner.register_hook(Named("last"))
    runner.hooks[-1].after_train_epoch = lambda runner: used.append(runner.model.bbox_head.use_l1)
    runner.run([DataLoader(mixing, collate_fn=lambda batch: batch)], [("train", 1)])
    assert used[0] is False and used[-2:] == [True, True]
    assert tuple(mixing._skip_type_keys) == ("Mosaic", "RandomAffine", "MixUp")


# Augmentations


def picture(seed=0, gts=8):
    rng = np.random.RandomState(seed)
    image = rng.randint(256, size=(288, 512, 3)).astype(np.uint8)

    def boxes(count):
        return (rng.uniform([0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], (count, 4)) * [512, 288, 512, 288]).astype(np.float32)

    return {"img": image, "gt_bboxes": boxes(gts), "gt_bboxes_ignore": boxes(2), "gt_labels": np.ones(gts, np.int64),
            "bbox_fields": ["gt_bboxes", "gt_bboxes_ignore"]}  # fmt: skip


def check(sample, shape, gts=None):
    assert sample["img"].shape == shape and sample["img"].dtype == np.uint8 and sample["img_shape"] == shape
    assert len(sample["gt_labels"]) == len(sample["gt_bboxes"]) and gts in (None, len(sample["gt_bboxes"]))
    assert sample["gt_labels"].dtype == np.int64
    assert sample["gt_bboxes"].dtype == sample["gt_bboxes_ignore"].dtype == np.float32


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Mosaic", {"img_scale": 640}),
        ("Mosaic", {"prob": 1.5}),
        ("MixUp", {"img_scale": 640}),
        ("RandomAffine", {"max_translate_ratio": 1.5}),
        ("RandomAffine", {"scaling_ratio_range": (1.5, 0.5)}),
        ("RandomAffine", {"scaling_ratio_range": (0, 0.5)}),
    ],
    ids=str,
)
def test_what_an_augmentation_refuses(side, name, options):
    with pytest.raises(AssertionError):
        getattr(side, name)(**options)


def test_mosaic(side):
    mosaic = side.Mosaic(img_scale=(10, 12))
    with pytest.raises(AssertionError):
        mosaic(picture())
    check(mosaic({**picture(), "mix_results": [picture(i) for i in (1, 2, 3)]}), (20, 24, 3))
    unchanged = side.Mosaic(img_scale=(10, 12), prob=0)(picture())
    assert np.array_equal(unchanged["img"], picture()["img"])
    assert len(list(mosaic.get_indexes(range(5)))) == 3


def test_mixup(side):
    mixup = side.MixUp(img_scale=(10, 12))
    for others in (None, [picture(1), picture(2)]):
        with pytest.raises(AssertionError):
            mixup(picture() if others is None else {**picture(), "mix_results": others})
    check(mixup({**picture(), "mix_results": [picture(1)]}), (288, 512, 3))
    small = np.array([[0, 0, 1, 1], [0, 0, 3, 3]], np.float32)  # the partner's are left out, as too small
    given = {"gt_bboxes": small, "gt_labels": np.ones(2, np.int64)}
    mixup = side.MixUp(img_scale=(10, 12), ratio_range=(1.5, 1.5), min_bbox_size=5, skip_filter=False)
    check(mixup({**picture(), **given, "mix_results": [{**picture(1), **given}]}), (288, 512, 3), gts=2)


def test_random_affine(side):
    check(side.RandomAffine()(picture()), (288, 512, 3))
    still = {"max_rotate_degree": 0, "max_translate_ratio": 0, "scaling_ratio_range": (1, 1), "max_shear_degree": 0}
    thin = {"gt_bboxes": np.array([[0, 0, 1, 1], [0, 0, 3, 100]], np.float32), "gt_labels": np.ones(2, np.int64)}
    limits = {"min_bbox_size": 2, "max_aspect_ratio": 20, "skip_filter": False}
    check(side.RandomAffine(**still, **limits)({**picture(), **thin}), (288, 512, 3), gts=0)
    same = side.RandomAffine(**still)({**picture(), **thin})
    assert np.array_equal(same["img"], picture()["img"]) and np.array_equal(same["gt_bboxes"], thin["gt_bboxes"])


def test_hsv(side):
    check({**side.YOLOXHSVRandomAug()(picture()), "img_shape": (288, 512, 3)}, (288, 512, 3), gts=8)


@pytest.mark.parametrize("name", ["Mosaic", "MixUp", "RandomAffine", "YOLOXHSVRandomAug"])
def test_an_augmentation_tells_its_settings(side, name):
    assert re.fullmatch(rf"{name}\(?\w+=.*\)", repr(getattr(side, name)()), re.S)


# Assigner, head, detector


ASSIGNER = {"center_radius": 2.5, "candidate_topk": 10, "iou_weight": 3.0, "cls_weight": 1.0}


def test_no_prior_is_near_a_gt(side):
    """MMDetection's own test has boxes of [priors, 1, 4] and a label beyond the scores; neither is looked at."""
    assigner = side.SimOTAAssigner(**{**ASSIGNER, "candidate_topk": 1})
    priors = torch.tensor([[0.0, 12, 23, 34], [4, 5, 6, 7]])
    boxes = torch.tensor([[[30.0, 40, 50, 60]], [[4, 5, 6, 7]]])
    gts = torch.tensor([[23.6667, 23.8757, 238.6326, 151.8874]])
    found = assigner.assign(torch.tensor([[0.2], [0.8]]), priors, boxes, gts, torch.tensor([2]))
    assert found.gt_inds.tolist() == [0, 0] and found.labels.tolist() == [-1, -1] and found.num_gts == 1


@pytest.mark.parametrize(("priors", "gts"), [(4, 0), (0, 2), (0, 0)])
@pytest.mark.parametrize("labelled", [True, False])
def test_nothing_to_assign(side, priors, gts, labelled):
    labels = torch.zeros(gts, dtype=torch.long) if labelled else None
    found = side.SimOTAAssigner(**ASSIGNER).assign(
        torch.rand(priors, 3), torch.rand(priors, 4), torch.rand(priors, 4), torch.rand(gts, 4), labels
    )
    assert found.gt_inds.tolist() == [0] * priors and found.num_gts == gts
    assert (found.labels is None) == (not labelled)


GTS = {"none": [], "one": [[23.6667, 23.8757, 238.6326, 151.8874]], "outside": [[1024, 1024, 1034, 1034]]}


@pytest.mark.parametrize("gts", GTS)
@pytest.mark.parametrize("use_l1", [False, True])
@pytest.mark.parametrize("depthwise", [False, True])
def test_losses_of_a_head(side, gts, use_l1, depthwise):
    train_cfg = Config({"assigner": {"type": "SimOTAAssigner", **ASSIGNER}})
    head = side.YOLOXHead(num_classes=4, in_channels=1, use_depthwise=depthwise, train_cfg=train_cfg)
    assert not head.use_l1
    assert isinstance(head.multi_level_cls_convs[0][0], DepthwiseSeparableConvModule) == depthwise
    head.use_l1 = use_l1
    predictions = head([torch.rand(1, 1, 256 // stride, 256 // stride) for stride in (4, 8, 16)])
    losses = head.loss(
        *predictions, [torch.tensor(GTS[gts]).view(-1, 4)], [torch.full((len(GTS[gts]),), 2)],
        [{"img_shape": (256, 256, 3), "scale_factor": 1, "pad_shape": (256, 256, 3)}],
    )  # fmt: skip
    assert losses.keys() == {"loss_cls", "loss_bbox", "loss_obj", *(["loss_l1"] if use_l1 else [])}
    assert all((loss > 0) == (name == "loss_obj" or gts == "one") for name, loss in losses.items())


def test_a_head_of_one_class_and_an_unknown_sampler(side):
    head = side.YOLOXHead(1, 8, feat_channels=8, stacked_convs=1, strides=[8], train_cfg=None, test_cfg=None)
    scores, boxes, objectness = head([torch.rand(2, 8, 4, 4)])
    assert (scores[0].shape, boxes[0].shape, objectness[0].shape) == ((2, 1, 4, 4), (2, 4, 4, 4), (2, 1, 4, 4))


@pytest.mark.parametrize("gts", [(3, 8), (0, 0)], ids=str)
def test_a_detector_trains_and_detects(side, gts):
    config = Config.fromfile(str(CONFIGS / "yolox_tiny_8x8_300e_coco.py")).model
    config.update(random_size_range=(2, 2), input_size=(64, 96), random_size_interval=1)
    detector = build_detector(config)
    assert type(detector) is side.YOLOX and type(detector.bbox_head) is side.YOLOXHead
    data = train_data(0, gts, 64)
    losses = detector.train()(data["img"], data["img_metas"], gt_bboxes=data["gt_bboxes"], gt_labels=data["gt_labels"])
    assert losses.keys() == {"loss_cls", "loss_bbox", "loss_obj"}
    assert all(loss.isfinite() for loss in losses.values()) and losses["loss_obj"] > 0
    assert detector._input_size == (64, 96)
    metas = [{"img_shape": (64, 64, 3), "ori_shape": (64, 64, 3), "scale_factor": np.ones(4), "flip": False}] * len(gts)
    with torch.no_grad():
        found = detector.eval()([data["img"]], [metas], rescale=True, return_loss=False)
    assert [len(image) for image in found] == [80] * len(gts)
    assert all(boxes.shape[1] == 5 for image in found for boxes in image)


# Optimizer


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.ones(1))
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.deep = nn.Conv2d(4, 4, 1, groups=4)


def test_an_optimizer_without_groups(side):
    model = Parts()
    optimizer = DefaultOptimizerConstructor({"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4})(model)
    assert type(optimizer) is side.SGD and isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults.items() >= {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}.items()
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


def test_an_optimizer_with_a_group_for_each_parameter(side):
    model = Parts()
    factors = {"bias_lr_mult": 2, "bias_decay_mult": 0.5, "norm_decay_mult": 0, "dwconv_decay_mult": 0.1}
    config = {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}
    optimizer = DefaultOptimizerConstructor(config, factors)(model)
    expected = {
        "own": (1, 1), "conv.weight": (1, 1), "conv.bias": (2, 0.5), "norm.weight": (1, 0), "norm.bias": (1, 0),
        "deep.weight": (1, 0.1), "deep.bias": (2, 0.1),
    }  # fmt: skip
    assert len(optimizer.param_groups) == len(expected)
    for group, (name, parameter) in zip(optimizer.param_groups, model.named_parameters(), strict=True):
        assert group["params"][0] is parameter and group["momentum"] == 0.9
        rate, decay = expected[name]
        assert (group["lr"], group["weight_decay"]) == pytest.approx((0.01 * rate, 1e-4 * decay)), name

    model.again = model.conv
    model.shared = nn.Sequential(model.conv)
    with pytest.raises(ValueError):
        DefaultOptimizerConstructor({**config, "lr": -1}, factors)(Parts())
    again = DefaultOptimizerConstructor(config, {**factors, "bypass_duplicate": True})(model)
    assert len(again.param_groups) == len(expected)


@pytest.mark.parametrize(
    "options", [{"lr": -1.0}, {"momentum": -1.0}, {"weight_decay": -1.0}, {"nesterov": True}], ids=str
)
def test_what_an_optimizer_refuses(side, options):
    with pytest.raises(ValueError):
        side.SGD([torch.zeros(1, requires_grad=True)], **{"lr": 0.1, **options})
