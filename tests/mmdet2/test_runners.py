"""The plugin under runners, loaders and data sets other than those of the standard config, beside MMDetection's own
classes, and with a part of it left out."""

import copy
import json
import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mmdet
import numpy as np
import pytest
import torch
from batches import nano, train_data
from mmcv.runner import HOOKS, OPTIMIZERS, RUNNERS, EpochBasedRunner, Hook, build_runner
from mmdet.core.hook.ema import ExpMomentumEMAHook as StockEMAHook
from mmdet.core.hook.sync_norm_hook import SyncNormHook as StockSyncNormHook
from mmdet.core.hook.yolox_mode_switch_hook import YOLOXModeSwitchHook as StockModeSwitchHook
from mmdet.datasets.dataset_wrappers import ConcatDataset, RepeatDataset
from mmdet.datasets.samplers import DistributedGroupSampler
from tiny2 import write_config
from torch.utils.data import DataLoader, Subset

from yolox_plugin.network import quicken
from yolox_plugin.precision import Precision
from yolox_plugin.run.demo_data import make_dataset

TRAIN = Path(mmdet.__file__).parent / ".mim/tools/train.py"
SIZES = (4, 6)  # not smaller: a gt that runs out of priors in box and centre ties, and torch.topk leaves ties open
STOCK_HOOKS = {
    "ExpMomentumEMAHook": StockEMAHook, "SyncNormHook": StockSyncNormHook, "YOLOXModeSwitchHook": StockModeSwitchHook,
}  # fmt: skip


def hook(name, stock, **options):
    return (STOCK_HOOKS[name] if stock else HOOKS.get(name))(**options)


def optimizer_of(model, stock):
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    return (torch.optim.SGD if stock else OPTIMIZERS.get("SGD"))(model.parameters(), **options)


def distance(ours, theirs, start):
    """How far the weights are apart, and how far their averages, in parts of the way that stock's have moved."""
    assert ours.keys() == theirs.keys()
    began = {**start, **{f"ema_{name.replace('.', '_')}": value for name, value in start.items()}}
    parts = []
    for averaged in (False, True):
        names = [n for n, v in theirs.items() if n.startswith("ema_") == averaged and v.is_floating_point()]
        apart = sum(float((ours[n] - theirs[n]).square().sum()) for n in names) ** 0.5
        parts.append(apart / sum(float((theirs[n] - began[n]).square().sum()) for n in names) ** 0.5)
    return parts


class Losses(Hook):
    """Remembers what was logged."""

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner):
        self.seen.append(dict(runner.outputs["log_vars"]))
        assert json.dumps(self.seen[-1])  # numbers


@pytest.mark.slow
def test_thirty_batches_give_what_stock_gives():
    """Detector, SGD and moving average in float32, sizes changing on the way, L1 from the middle on."""
    states, logs = [], []
    for stock in (False, True):
        model = nano(stock=stock, calm=True, random_size_interval=5, random_size_range=SIZES)
        quicken(model)  # in so many steps, the last bits of stock's own network make another assignment
        Precision(None).prepare(model, "cpu")
        start = copy.deepcopy(model.state_dict())
        optimizer = optimizer_of(model, stock)
        ema = hook("ExpMomentumEMAHook", stock, momentum=0.01, total_iter=20)
        runner = SimpleNamespace(model=model, iter=0, logger=logging.getLogger("test"))
        ema.before_run(runner)
        random.seed(1)
        losses = []
        for runner.iter in range(30):
            model.bbox_head.use_l1 = runner.iter >= 15
            out = model.train_step(train_data(runner.iter, gts=((3, 8), (0, 5), (0, 0))[runner.iter % 3]), optimizer)
            optimizer.zero_grad()
            out["loss"].backward()
            optimizer.step()
            ema.after_train_iter(runner)
            losses.append(out["log_vars"])
        states.append(model.state_dict())
        logs.append(losses)
    for step, (ours, theirs) in enumerate(zip(*logs, strict=True)):
        assert ours == pytest.approx(theirs, rel=1e-3), step
    assert max(distance(*states, start)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["IterBasedRunner", "a user's own epoch-based runner"])
def test_other_runners(tmp_path, kind):
    """Stock's logs, hooks and checkpoints on the plugin's classes: the losses and weights of stock throughout."""
    results = []
    for stock in (False, True):
        model = nano(stock=stock, calm=True, random_size_interval=2, random_size_range=SIZES)
        start = copy.deepcopy(model.state_dict())
        common = {
            "model": model, "optimizer": optimizer_of(model, stock), "logger": logging.getLogger("test"),
            "work_dir": str(tmp_path / str(stock)), "meta": {"seed": 1},
        }  # fmt: skip
        if kind == "IterBasedRunner":
            runner = build_runner({"type": kind, "max_iters": 6}, common)
        else:
            runner = type("Mine", (EpochBasedRunner,), {})(max_epochs=2, **common)
        seen = Losses()
        runner.register_training_hooks(
            {"policy": "fixed"}, {"grad_clip": None}, {"interval": 3},
            {"interval": 2, "hooks": [{"type": "TextLoggerHook"}]},
            custom_hooks_config=[
                hook("SyncNormHook", stock, num_last_epochs=1), hook("ExpMomentumEMAHook", stock, momentum=0.1), seen,
            ],
        )  # fmt: skip
        random.seed(2)
        loader = DataLoader([train_data(i) for i in range(3)], batch_size=None)
        runner.run([loader], [("train", 1)])
        results.append((seen.seen, model.state_dict(), runner.iter))
    (ours, state, count), (theirs, their_state, their_count) = results
    assert count == their_count == len(ours) == 6
    assert any(name.startswith("ema_") for name in state)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-3)
    assert max(distance(state, their_state, start)) < 1e-3
    logs = list((tmp_path / "False").glob("*.log.json"))
    assert any("loss_obj" in line for line in logs[0].read_text().splitlines())


class Net(torch.nn.Module):
    """Knows nothing of the plugin's protocol, not even a head until it is given one."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.bbox_head = torch.nn.Module()
        self.drawn = []

    def train_step(self, data, optimizer):
        self.drawn.append(torch.rand(1).item())
        return {"loss": self.weight.sum(), "log_vars": {"loss": 0.5}, "num_samples": 1}


def new_runner(meta=None, max_epochs=2, **more):
    net = Net()
    return RUNNERS.get("EpochBasedRunner")(
        net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), logger=logging.getLogger("test"), meta=meta,
        max_epochs=max_epochs, **more,
    )  # fmt: skip


def test_train_without_run():
    """As in stock; with a seed of its own, or the given one."""
    drawn = []
    for meta in (None, {}, {"seed": 7}, {"seed": 7}):
        torch.manual_seed(3)
        runner = new_runner(meta)
        runner.train([1, 2, 3])
        assert (runner.epoch, runner.iter, runner.max_iters) == (1, 3, 6)
        drawn.append(runner.model.drawn)
        assert runner.meta["hook_msgs"] == {}
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]


@pytest.mark.parametrize("loader", [[1, 2], (1, 2), DataLoader([1, 2])], ids=["list", "tuple", "DataLoader"])
def test_a_loader_needs_neither_data_set_nor_sampler(loader):
    if isinstance(loader, tuple):
        loader = type("Loader", (tuple,), {"sampler": None, "dataset": None})(loader)
    runner = new_runner({"seed": 0})
    runner.run([loader], [("train", 1)])
    assert runner.iter == 4


@pytest.mark.parametrize(
    ("given", "seed", "after"),
    [
        ({"seed": 5}, 5, 9),  # the command's seed, which the checkpoint's follows on a resume
        ({"seed": 5}, 3, 3),  # one of its own
        ({}, 0, 0),
    ],
    ids=["the command's", "its own", "none given"],
)
def test_a_samplers_own_seed_stays(tmp_path, given, seed, after):
    first = new_runner({"seed": 9}, work_dir=str(tmp_path))
    first.run([[1]], [("train", 1)])
    first.save_checkpoint(str(tmp_path))
    data = type("Data", (list,), {"flag": np.zeros(4, np.uint8)})(range(4))
    for resume in (False, True):
        sampler = DistributedGroupSampler(data, 1, num_replicas=1, rank=0, seed=seed)
        runner = new_runner(dict(given), max_epochs=5)
        if resume:
            runner.resume(str(tmp_path / "latest.pth"))
        runner.train(DataLoader(data, sampler=sampler))
        assert sampler.seed == (after if resume else seed)


def test_a_foreign_samplers_seed_stays():
    class Mine(torch.utils.data.SequentialSampler):
        seed = 5

    sampler = Mine([1, 2])
    runner = new_runner({"seed": 5})
    runner._given_seed, runner.meta["seed"] = 5, 6
    runner.train(DataLoader([1, 2], sampler=sampler))
    assert sampler.seed == 5


def test_data_sets_and_models_with_methods_of_the_same_names_are_left_alone():
    """A user's own `start_epoch` takes other arguments."""

    class Data(list):
        def start_epoch(self):
            raise AssertionError

    runner = new_runner({"seed": 0})
    runner.model.start_epoch = runner.model.end_epoch = lambda: 1 / 0
    runner.run([DataLoader(Data([1, 2]))], [("train", 1)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: RepeatDataset(d, 2), lambda d: ConcatDataset([d, d]), lambda d: Subset(d, range(8)),
        lambda d: RepeatDataset(ConcatDataset([d, d]), 2),
    ],
    ids=["RepeatDataset", "ConcatDataset", "Subset", "both"],
)  # fmt: skip
def test_mixing_sets_inside_others_hear_of_epoch_and_switch(mixed_dataset, run_epochs, wrap):
    """MMDetection asks the outermost data set alone. Workers that live on hear of it, too."""
    mixed_dataset.pipeline[-3].active = True
    mixed_dataset.update_skip_type_keys(["Blank"])
    switch = [{"type": "YOLOXModeSwitchHook", "num_last_epochs": 1, "skip_type_keys": ["Mosaic"], "priority": 48}]
    dataset = wrap(mixed_dataset)
    dataset.CLASSES = mixed_dataset.CLASSES
    epochs = run_epochs(dataset, max_epochs=3, hooks=switch, persistent_workers=True)
    blank = [[entry["blank"] for entry in entries] for entries in epochs.values()]
    assert [any(entries) for entries in blank] == [False, False, True]  # what was left out before comes back
    assert all(blank[2]) and all(entry["l1"] for entry in epochs[2])
    mixed_dataset.update_skip_type_keys(["Blank"])
    again = run_epochs(dataset, max_epochs=2, persistent_workers=True)
    hashes = [[entry["hash"] for entry in entries] for entries in epochs.values()]
    assert hashes[0] != hashes[1]
    assert hashes[:2] == [[entry["hash"] for entry in entries] for entries in again.values()]


def test_the_mode_switch_says_what_it_needs():
    with pytest.raises(TypeError, match=r"must be a sequence of names such as .*, got 'Mosaic' alone"):
        HOOKS.get("YOLOXModeSwitchHook")(skip_type_keys=("Mosaic"))
    runner = new_runner({"seed": 0}, max_epochs=1)
    runner.register_hook(HOOKS.get("YOLOXModeSwitchHook")(1))
    with pytest.raises(TypeError, match="YOLOXModeSwitchHook needs a MultiImageMixDataset in the data loader"):
        runner.run([[1, 2]], [("train", 1)])


def test_workers_of_a_foreign_mixing_set_are_replaced():
    """It tells living workers nothing: MMDetection starts new ones."""

    class Data(list):
        skipped = ()

        def update_skip_type_keys(self, keys):
            self.skipped = keys

        def __getitem__(self, index):
            return len(self.skipped)

    runner = new_runner({"seed": 0}, max_epochs=3)
    runner.register_hook(HOOKS.get("YOLOXModeSwitchHook")(1))
    seen = []
    runner.model.train_step = lambda data, optimizer: seen.append(int(data[0])) or {"loss": torch.zeros(())}
    runner.run([DataLoader(Data([0, 0]), num_workers=1, persistent_workers=True)], [("train", 1)])
    assert seen == [0, 0, 0, 0, 3, 3]


def test_the_moving_average_follows_what_a_subclass_averages():
    """Names and buffers of its own, and no call of the plugin's before_run."""

    class Mine(HOOKS.get("ExpMomentumEMAHook")):
        def before_run(self, runner):
            self.model_parameters = {"weight": runner.model.weight}
            self.param_ema_buffer = {"weight": "mine"}
            self.model_buffers = {"mine": torch.ones(1)}

    runner = new_runner({"seed": 0}, max_epochs=1)
    mine = Mine(momentum=0.5, total_iter=1)
    mine.before_run(runner)
    mine.after_train_iter(runner)
    momentum = mine.get_momentum(runner)
    assert mine.model_buffers["mine"].item() == pytest.approx(1 - momentum)


@pytest.mark.slow
def test_a_part_left_out_of_a_real_training(tmp_path):
    """MMDetection's own train.py: the losses are those of the whole plugin, to the figures that the log has."""
    make_dataset(tmp_path / "data", train=8, val=1)
    config = write_config(
        tmp_path / "tiny.py", tmp_path / "data", 2, "log_config = dict(interval=1)\ncudnn_benchmark = False\n"
    )
    runs = {}
    for part in ("", "HEAD", "ASSIGNER"):
        work_dir = tmp_path / (part or "whole")
        env = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": "1"}
        if part:
            env[f"YOLOX_PLUGIN_{part}"] = "off"
        done = subprocess.run(
            [sys.executable, TRAIN, config, "--no-validate", "--seed", "0", "--work-dir", work_dir],
            env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        [log] = work_dir.glob("*.log.json")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        runs[part] = [{k: v for k, v in line.items() if "loss" in k} for line in lines if line.get("mode") == "train"]
    assert len(runs[""]) >= 4 and "loss_l1" in runs[""][-1]
    for part in ("HEAD", "ASSIGNER"):
        for ours, theirs in zip(runs[""], runs[part], strict=True):
            assert ours == pytest.approx(theirs, rel=2e-3), part
