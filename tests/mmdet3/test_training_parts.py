"""The plugin's detector, average, sizes, histories, hooks and optimizer for MMDetection 3 beside stock's."""

import copy
import io
import os
import pickle
import random
from collections import Counter
from types import SimpleNamespace
from unittest.mock import Mock, patch

import mmengine.device.utils
import numpy as np
import pytest
import torch
from mmcv.cnn.bricks import Swish
from mmdet.engine.hooks import SyncNormHook as StockSyncNormHook
from mmdet.engine.hooks import YOLOXModeSwitchHook as StockModeSwitchHook
from mmdet.models.data_preprocessors import BatchSyncRandomResize as StockResize
from mmdet.models.detectors.yolox import YOLOX as StockYOLOX
from mmdet.models.layers.ema import ExpMomentumEMA as StockEMA
from mmdet.structures import DetDataSample
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.hooks import RuntimeInfoHook as StockRuntimeInfoHook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODEL_WRAPPERS, OPTIMIZERS
from mmengine.runner import LogProcessor, Runner
from mmengine.structures import InstanceData
from samples import detector, train_data
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from yolox_plugin.core.sgd import SGD
from yolox_plugin.mmdet3 import history
from yolox_plugin.mmdet3.checkpoints import save_checkpoint
from yolox_plugin.mmdet3.detector import YOLOX
from yolox_plugin.mmdet3.ema import ExpMomentumEMA
from yolox_plugin.mmdet3.history import DeferredHistory, Waiting
from yolox_plugin.mmdet3.hooks import RuntimeInfoHook, SyncNormHook, YOLOXModeSwitchHook
from yolox_plugin.mmdet3.sizes import BatchSyncRandomResize
from yolox_plugin.network import FusedSwish, quicken
from yolox_plugin.precision import Precision
from yolox_plugin.protocol import Moment


class Reads(TorchDispatchMode):
    """Counts reads of single values from the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def hub():
    """Where the iteration stands that image sizes ask for."""
    yield MessageHub.get_instance("test of sizes")
    del MessageHub._instance_dict["test of sizes"]


# The average of weights


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def averages(kinds=(StockEMA, ExpMomentumEMA), **options):
    """Of the same network, one after stock."""
    return [kind(network(), **{"momentum": 0.01, "gamma": 20, **options}) for kind in kinds]


def train(pair, steps, seed=0):
    """Moves the weights and the statistics of a network, which both averages follow."""
    net, g = network(), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            net(torch.randn(2, 3, 8, 8, generator=g))
            for parameter in net.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=g))
        for average in pair:
            average.update_parameters(net)
    return net


def assert_same_average(stock, ours):
    assert list(ours.state_dict()) == list(stock.state_dict())
    torch.testing.assert_close(ours.state_dict(), stock.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interval", [1, 2, 7])
@pytest.mark.parametrize("update_buffers", [False, True])
def test_thirty_steps_of_the_average(update_buffers, interval):
    stock, ours = averages(update_buffers=update_buffers, interval=interval)
    for steps in (1, 1, 28):
        net = train((stock, ours), steps, seed=steps)
        assert_same_average(stock, ours)
    assert int(ours.steps) == 30
    mean = ours.module[1].running_mean
    assert torch.equal(mean, net[1].running_mean) != update_buffers
    assert not torch.equal(ours.module[0].weight, net[0].weight)


def test_an_average_that_is_loaded_goes_on():
    before = averages(update_buffers=True)
    train(before, 12)
    after = averages(update_buffers=True)
    train(after, 3, seed=1)
    for old, new in zip(before, after, strict=True):
        new.load_state_dict(old.state_dict())
    train(after, 5, seed=2)
    assert int(after[1].steps) == 17
    assert_same_average(*after)


def set_in_place(average, steps):
    average.steps.fill_(steps)


def set_anew(average, steps):
    average.steps = torch.tensor(steps)


def set_anew_and_change(average, steps):
    """So that the tensor has been changed as often as the one before it."""
    average.steps, version = torch.tensor(steps - 1), average.steps._version
    for _ in range(version - 1):
        average.steps += 0
    average.steps += 1
    assert average.steps._version == version


@pytest.mark.parametrize("way", [set_in_place, set_anew, set_anew_and_change])
@pytest.mark.parametrize("steps", [1, 500])
def test_steps_that_somebody_has_set(way, steps):
    pair = averages()
    train(pair, 4)
    for average in pair:
        way(average, steps)
    train(pair, 3, seed=1)
    assert int(pair[1].steps) == steps + 3
    assert_same_average(*pair)


def test_an_average_is_begun_anew():
    pair = averages()
    train(pair, 4)
    for average in pair:
        average.steps.zero_()
    net = train(pair, 1, seed=1)
    assert torch.equal(pair[1].module[0].weight, net[0].weight)
    assert_same_average(*pair)


def test_the_steps_of_a_copy_are_its_own():
    pair = averages()
    train(pair, 4)
    copies = copy.deepcopy(pair)
    train(pair, 2, seed=1)
    train(copies, 3, seed=2)
    assert_same_average(*pair)
    assert_same_average(*copies)
    assert int(copies[1].steps) == 7


def test_a_subclass_has_its_own_way_of_averaging():
    def avg_func(self, averaged_param, source_param, steps):
        averaged_param.lerp_(source_param, 1 / (1 + int(steps)))

    pair = averages([type("Mine", (kind,), {"avg_func": avg_func}) for kind in (StockEMA, ExpMomentumEMA)])
    train(pair, 6)
    assert_same_average(*pair)
    usual = averages()
    train(usual, 6)
    assert not torch.equal(usual[1].module[0].weight, pair[1].module[0].weight)


@pytest.mark.parametrize("update_buffers", [False, True])
def test_the_steps_are_not_read_from_the_device(update_buffers):
    [ours] = averages([ExpMomentumEMA], update_buffers=update_buffers)
    train([ours], 1)
    with Reads() as reads:
        train([ours], 20)
    assert reads.count == 0
    with Reads() as reads:
        set_in_place(ours, 7)
        train([ours], 20)
    assert reads.count == 1
    [stock] = averages([StockEMA], update_buffers=update_buffers)
    with Reads() as reads:
        train([stock], 20)
    assert reads.count > 20


# Image sizes


def image_batch(size=(64, 96), seed=0):
    """Images, their gts, and boxes to be ignored in the first."""
    g = torch.Generator().manual_seed(seed)
    boxes = [torch.rand(n, 4, generator=g) * 64 for n in (3, 0, 2)]
    samples = [
        DetDataSample(gt_instances=InstanceData(bboxes=b[:2]), metainfo={"img_shape": (60, 90), "pad_shape": size})
        for b in boxes
    ]
    samples[0].ignored_instances = InstanceData(bboxes=boxes[0][2:])
    return torch.rand(3, 3, *size, generator=g) * 255, samples


def assert_same_batch(ours, theirs):
    assert torch.equal(ours[0], theirs[0])
    for mine, other in zip(ours[1], theirs[1], strict=True):
        assert dict(mine.metainfo_items()) == dict(other.metainfo_items())
        assert set(mine.keys()) == set(other.keys())
        for name in mine.keys():  # noqa: SIM118  samples are no dicts
            assert torch.equal(mine.get(name).bboxes, other.get(name).bboxes), name


def sizes_of(resize, hub, iterations, size=(64, 64)):
    """Of what comes out of it in these iterations."""
    sizes = []
    for i in iterations:
        hub.update_info("iter", i)
        sizes.append(tuple(resize(*image_batch(size))[0].shape[2:]))
    return sizes


def resizer(seed=3, iteration=0, kind=BatchSyncRandomResize, interval=4):
    made = kind(random_size_range=(64, 160), interval=interval, size_divisor=32)
    if seed is not None:
        made.start_epoch(Moment(seed=seed, iteration=iteration))
    return made


def test_outside_of_an_epoch_sizes_are_those_of_stock(hub):
    results = []
    for kind in (StockResize, BatchSyncRandomResize):
        resize = resizer(None, kind=kind, interval=3)
        random.seed(5)
        results.append([])
        for i in range(30):
            hub.update_info("iter", i)
            results[-1].append(resize(*image_batch(seed=i)))
    for ours, theirs in zip(*results, strict=True):
        assert_same_batch(ours, theirs)
    assert len({images.shape for images, _ in results[1]}) > 2


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 64)], ids=str)
def test_a_resized_batch_is_that_of_stock(hub, size):
    ours, stock = resizer(), resizer(None, kind=StockResize)
    seen = set()
    for i in range(0, 40, 4):
        hub.update_info("iter", i)
        stock._input_size = ours.size_at(i, size)
        seen.add(stock._input_size)
        assert_same_batch(ours(*image_batch(size)), stock(*image_batch(size)))
    assert len(seen) > 2


def test_sizes_depend_on_seed_and_iteration_alone(hub):
    sizes = sizes_of(resizer(), hub, range(60))
    assert sizes[:4] == [(64, 64)] * 4
    assert all(len(set(sizes[i : i + 4])) == 1 for i in range(0, 60, 4))
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    with patch("mmdet.models.data_preprocessors.data_preprocessor.broadcast", side_effect=AssertionError):
        assert sizes_of(resizer(), hub, range(60)) == sizes
    resumed = resizer(iteration=22)
    assert sizes_of(resumed, hub, range(22, 60)) == sizes[22:]
    resumed.end_epoch(), resumed.start_epoch(Moment(seed=3, iteration=30))
    assert sizes_of(resumed, hub, range(30, 60)) == sizes[30:]
    assert sizes_of(resizer(seed=4), hub, range(60)) != sizes


def test_the_rhythm_is_that_of_stock(hub):
    """All sizes but the first differ, most times."""
    changes = []
    for resize in (resizer(None, kind=StockResize), resizer()):
        random.seed(0)
        sizes = sizes_of(resize, hub, range(200))
        changes.append({i for i in range(1, 200) if sizes[i] != sizes[i - 1]})
    assert all({i % 4 for i in found} == {0} for found in changes)
    assert all(len(found) > 25 for found in changes)


def test_sizes_are_distributed_as_in_stock():
    counts = Counter(resizer(interval=1).size_at(i, (64, 96)) for i in range(1, 4001))
    assert set(counts) == {(32 * n, 32 * int(1.5 * n)) for n in range(2, 6)}
    assert all(abs(count - 1000) < 5 * 750**0.5 for count in counts.values())


# Histories of logged values


def numbers(count, seed=0):
    return np.random.default_rng(seed).normal(size=count).round(3).tolist()


def histories(values, *, begin=(), max_length=1_000_000, deferred=lambda i: i % 3 < 2):
    """Stock's and the plugin's of these values, of which the latter gets some as tensors."""
    stock = HistoryBuffer(list(begin), [1] * len(begin), max_length)
    ours = DeferredHistory(Waiting(), HistoryBuffer(list(begin), [1] * len(begin)), max_length)
    for i, value in enumerate(values):
        stock.update(value, i % 4 + 1)
        ours.update(torch.tensor(value, dtype=torch.float64) if deferred(i) else value, i % 4 + 1)
    return stock, ours


def assert_same_history(stock, ours):
    for theirs, mine in zip(stock.data, ours.data, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for statistic in ("mean", "min", "max"):
        for window in (None, 1, 2, 5, 1000):
            assert ours.statistics(statistic, window) == getattr(ours, statistic)(window)
            assert getattr(ours, statistic)(window) == getattr(stock, statistic)(window)
    assert ours.current() == ours.statistics("current") == stock.current()


@pytest.mark.parametrize("deferred", [lambda i: True, lambda i: i % 3 < 2, lambda i: False], ids=["all", "some", "no"])
@pytest.mark.parametrize("begin", [(), (3.0, 4.0)], ids=len)
@pytest.mark.parametrize("count", [1, 7, 30])
def test_a_history_has_the_numbers_of_stock(count, begin, deferred):
    assert_same_history(*histories(numbers(count), begin=begin, deferred=deferred))


@pytest.mark.parametrize("deferred", [lambda i: True, lambda i: i % 3 < 2], ids=["all", "some"])
@pytest.mark.parametrize("max_length", [1, 6, 30, 31])
def test_a_history_is_bounded_as_in_stock(max_length, deferred):
    stock, ours = histories(numbers(30), max_length=max_length, begin=[9.0], deferred=deferred)
    assert_same_history(stock, ours)
    assert len(ours.data[0]) == min(max_length, 31)


def test_a_bound_that_becomes_narrower():
    _, ours = histories(numbers(30))
    ours.max_length = 10
    ours.update(torch.tensor(2.0))
    assert [len(values) for values in ours.data] == [10, 10]
    assert ours.current() == 2


def test_a_longer_history_before_it_is_cut():
    ours = DeferredHistory(Waiting(), HistoryBuffer(numbers(30), [1] * 30), 10)
    assert ours.data[0].tolist() == numbers(30)[-10:]


@pytest.fixture
def middle():
    """A statistic that a user has registered."""

    def middle(self, window):
        return float(np.median(self._log_history[-window:])) + self._count_history[-window:].sum()

    yield HistoryBuffer.register_statistics(middle)
    del HistoryBuffer._statistics_methods["middle"]


def test_statistics_that_a_user_has_registered(middle):
    stock, ours = histories(numbers(30))
    assert ours.statistics("middle", 7) == stock.statistics("middle", 7)
    with pytest.raises(KeyError, match="has not been registered"):
        ours.statistics("no such")


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_and_pickles_are_of_the_stock_class(way):
    stock, ours = histories(numbers(8), max_length=20)
    other = way(ours)
    assert type(other) is HistoryBuffer
    assert other.max_length == 20
    ours.update(torch.tensor(100.0))
    assert_same_history(stock, other)
    other.update(1.5)
    assert [len(other.data[0]), len(ours.data[0])] == [9, 9]
    assert ours.current() == 100


def test_values_are_read_together_and_when_somebody_looks():
    waiting = Waiting()
    several = [DeferredHistory(waiting, HistoryBuffer(), 100) for _ in range(3)]
    with patch.object(history, "read_together", wraps=history.read_together) as read, Reads() as reads:
        for i in range(5):
            for j, each in enumerate(several):
                each.update(torch.tensor(float(10 * i + j)).requires_grad_(), i + 1)
        assert read.call_count == 0
        assert several[1].mean(2) == pytest.approx((31 + 41) / (4 + 5))
        assert [each.current() for each in several] == [40, 41, 42]
        assert [len(call.args[0]) for call in read.call_args_list if call.args[0]] == [15]
    assert reads.count == 0


def test_as_many_as_wait_are_bounded(monkeypatch):
    """Or a run that logs nothing keeps a tensor of every iteration."""
    monkeypatch.setattr(history, "MOST_WAITING", 10)
    ours = DeferredHistory(Waiting(), HistoryBuffer(), 1000)
    for i in range(25):
        ours.update(torch.tensor(float(i)))
        assert len(ours._waiting._values) < 10
    assert ours.data[0].tolist() == list(range(25))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_one_value_of_any_shape_and_type(dtype, shape):
    stock, ours = MessageHub("a"), DeferredHistory(Waiting(), HistoryBuffer(), 100)
    for value in (1, 0, 3):
        tensor = torch.full(shape, value, dtype=dtype)
        stock.update_scalar("value", tensor)
        ours.update(tensor)
    assert_same_history(stock.get_scalar("value"), ours)


# The hook that logs


def logging_runner(samples=4, **processor):
    return SimpleNamespace(
        message_hub=MessageHub("test"), log_processor=LogProcessor(**processor), epoch=0, iter=0, max_epochs=9,
        max_iters=99, train_dataloader=DataLoader(torch.ones(samples, 2)),
    )  # fmt: skip


def log(hook, runner, iterations, begin=True):
    if begin:
        hook.before_train(runner)
    for i in iterations:
        outputs = {"loss": torch.tensor(0.5 * i), "loss_l1": torch.tensor([1.0 / (i + 1)]), "seen": i, "acc": 0.25 * i}
        if i > 3:  # as the L1 loss, which comes with the last epochs
            outputs["late"] = torch.tensor(float(i))
        hook.after_train_iter(runner, i, None, outputs)


def test_the_hook_logs_what_stock_logs():
    runners = logging_runner(), logging_runner()
    for hook, runner in zip((StockRuntimeInfoHook(), RuntimeInfoHook()), runners, strict=True):
        runner.message_hub.update_scalar("train/loss", 7.0)  # which makes a history of the stock class
        log(hook, runner, range(6))
        hook.after_train_iter(runner, 6, None, None)
        hook.after_train_iter(runner, 7, None, {})
    theirs, ours = (runner.message_hub for runner in runners)
    assert ours.log_scalars.keys() == theirs.log_scalars.keys()
    for name, stock in theirs.log_scalars.items():
        assert_same_history(stock, ours.log_scalars[name])
    assert ours.get_scalar("train/loss").data[0].tolist() == [7, 0, 0.5, 1, 1.5, 2, 2.5]
    kinds = {name: type(ours.log_scalars[name]) for name in ("train/loss", "train/late", "train/seen")}
    assert list(kinds.values()) == [DeferredHistory, DeferredHistory, HistoryBuffer]
    with pytest.raises(AssertionError):  # of a tensor that has several, as in stock
        RuntimeInfoHook.after_train_iter(RuntimeInfoHook(), runners[1], 0, None, {"loss": torch.ones(2)})


def test_what_the_hook_has_logged_is_in_a_checkpoint():
    hubs = []
    for hook in (StockRuntimeInfoHook(), RuntimeInfoHook()):
        runner = logging_runner()
        log(hook, runner, range(6))
        hubs.append(runner.message_hub.state_dict())
    theirs, ours = hubs
    assert ours["resumed_keys"] == theirs["resumed_keys"]
    assert ours["log_scalars"].keys() == theirs["log_scalars"].keys()
    file = io.BytesIO()
    torch.save(ours, file)
    assert b"yolox_plugin" not in file.getvalue()
    file.seek(0)
    resumed = logging_runner()
    resumed.message_hub.load_state_dict(torch.load(file))
    hook = RuntimeInfoHook()
    log(hook, resumed, range(6, 8))
    assert resumed.message_hub.get_scalar("train/loss").data[0].tolist() == [0.5 * i for i in range(8)]


def test_the_hook_reads_nothing_until_somebody_looks():
    runner = logging_runner()
    hook = RuntimeInfoHook()
    with patch.object(history, "read_together", wraps=history.read_together) as read, Reads() as reads:
        log(hook, runner, range(50))
        assert read.call_count == reads.count == 0
        for name in ("train/loss", "train/loss_l1", "train/late"):
            runner.message_hub.get_scalar(name).mean(10)
    assert [len(call.args[0]) for call in read.call_args_list if call.args[0]] == [50 + 50 + 46]
    with Reads() as reads:
        log(StockRuntimeInfoHook(), logging_runner(), range(50))
    assert reads.count == 50 + 50 + 46


@pytest.mark.parametrize(
    ("processor", "samples", "kept"),
    [
        ({}, 4, 30),
        ({"window_size": 50}, 4, 50),
        ({}, 60, 60),
        ({"custom_cfg": [{"data_src": "loss", "method_name": "max", "window_size": 70}]}, 4, 70),
        ({"custom_cfg": [{"data_src": "loss", "method_name": "max", "window_size": "epoch"}]}, 60, 60),
        ({"custom_cfg": [{"data_src": "loss", "method_name": "max", "window_size": "global"}]}, 4, 100),
        ({"custom_cfg": [{"data_src": "loss", "method_name": "max", "log_name": "most"}]}, 4, 100),
    ],
    ids=str,
)
def test_as_many_values_are_kept_as_the_log_can_ask_for(monkeypatch, processor, samples, kept):
    monkeypatch.setattr("yolox_plugin.mmdet3.hooks.SHORTEST_HISTORY", 30)
    runner = logging_runner(samples, **processor)
    runner.message_hub.update_scalar("val/bbox_mAP", 0.5)
    log(RuntimeInfoHook(), runner, range(100))
    lengths = {name: len(found.data[0]) for name, found in runner.message_hub.log_scalars.items()}
    assert {lengths[f"train/{name}"] for name in ("loss", "loss_l1", "seen")} == {kept}
    assert lengths["val/bbox_mAP"] == 1
    expected = {found.max_length for found in runner.message_hub.log_scalars.values()}
    assert expected == {1_000_000 if kept == 100 else kept}


# Runs of mmengine's runner


class Toy(BaseModel):
    """Learns a line."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line, self.norm = nn.Linear(2, 1), nn.BatchNorm1d(1)

    def forward(self, inputs, data_samples=None, mode="tensor"):
        found = self.norm(self.line(inputs))
        if mode != "loss":
            return [{"found": float(value)} for value in found]
        return {"loss_a": (found - 1).square().mean(), "loss_b": [found.abs().sum() * 0.01], "seen": found.mean()}

    def train_step(self, data, optim_wrapper):
        return super().train_step({"inputs": data}, optim_wrapper)

    def val_step(self, data):
        return super().val_step({"inputs": data})


class Sum(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [sample["found"] for sample in data_samples]

    def compute_metrics(self, results):
        return {"sum": float(sum(results))}


class Log(Hook):
    """What the log says after each iteration."""

    priority = "VERY_LOW"

    def __init__(self):
        self.rows = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        tag, _ = runner.log_processor.get_log_after_iter(runner, batch_idx, "train")
        self.rows.append({name: value for name, value in tag.items() if "time" not in name})


def new_runner(work_dir, hooks=(), epochs=2, validate=False, **options):
    g = torch.Generator().manual_seed(1)
    points = torch.rand(12, 2, generator=g)
    if validate:
        options |= {"val_dataloader": DataLoader(points, 4), "val_cfg": {}, "val_evaluator": [Sum()]}
    train_cfg = {"by_epoch": True, "max_epochs": epochs, **options.pop("train_cfg", {})}
    return Runner(
        model=Toy(), work_dir=str(work_dir), train_dataloader=DataLoader(points, 4), train_cfg=train_cfg,
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}}, custom_hooks=list(hooks),
        experiment_name=f"{work_dir.parent.name} {work_dir.name}", log_level="ERROR", randomness={"seed": 3}, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    "processor",
    [
        {},
        {"window_size": 4},
        {"custom_cfg": [{"data_src": "loss", "method_name": "max", "window_size": "epoch", "log_name": "most"}]},
        {"custom_cfg": [{"data_src": "loss_a", "method_name": "min", "window_size": "global"}]},
    ],
    ids=str,
)
def test_a_run_has_the_log_of_stock(tmp_path, processor):
    rows = []
    for kind in (StockRuntimeInfoHook, RuntimeInfoHook):
        values = Log()
        with patch.dict(HOOKS.module_dict, {"RuntimeInfoHook": kind}):
            runner = new_runner(tmp_path / kind.__module__, [values], epochs=4, log_processor=processor)
        assert kind in map(type, runner.hooks)
        runner.train()
        rows.append(values.rows)
    assert len(rows[0]) == 12
    assert rows[1] == [pytest.approx(row) for row in rows[0]]
    assert {"loss", "loss_a", "loss_b", "seen", "lr"} <= rows[0][0].keys()


@pytest.mark.parametrize(
    ("train_cfg", "averaged"),
    [
        ({}, [1, 2, 3]),
        ({"val_interval": 2}, [2, 3]),
        ({"val_begin": 2}, [2, 3]),
        ({"val_begin": 2, "val_interval": 3}, [3]),
        ({"val_interval": 10}, [3]),
        ({"val_interval": 10, "dynamic_intervals": [(3, 1)]}, [2, 3]),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [StockSyncNormHook, SyncNormHook])
def test_norm_layers_are_averaged_before_the_checkpoint_of_an_epoch_that_is_validated(
    tmp_path, monkeypatch, train_cfg, averaged, kind
):
    """And once; stock does it when that checkpoint is written already."""
    events = []

    def note(what):
        return lambda *args, **kwargs: events.append((what, args[1].epoch + (what == "saves")))

    monkeypatch.setattr(StockSyncNormHook, "before_val_epoch", note("averages"))
    monkeypatch.setattr("mmengine.hooks.CheckpointHook._save_checkpoint", note("saves"))
    monkeypatch.setattr("yolox_plugin.mmdet3.checkpoints.CheckpointHook._save_checkpoint", note("saves"), raising=False)
    hook = kind()
    new_runner(tmp_path, [hook], epochs=3, validate=True, train_cfg=train_cfg).train()
    averages = [i for i, (what, _) in enumerate(events) if what == "averages"]
    saves = {epoch: i for i, (what, epoch) in enumerate(events) if what == "saves"}
    assert list(saves) == [1, 2, 3]
    assert len(averages) == len(averaged)
    for place, epoch in zip(averages, averaged, strict=True):
        assert (place == saves[epoch] - 1) == (kind is SyncNormHook)
        assert (place == saves[epoch] + 1) == (kind is StockSyncNormHook)


def test_a_full_disk_keeps_the_last_good_checkpoint(disk, tmp_path):
    """On a real file system without room, of which torch says something else where it writes to a path."""
    full = disk(tmp_path / "disk", "200k")
    save_checkpoint({"state_dict": {"a": torch.zeros(10_000)}}, str(full / "epoch_1.pth"))
    (full / "filler").write_bytes(bytes(os.statvfs(full).f_bavail * os.statvfs(full).f_frsize - 20_000))
    with pytest.raises(OSError, match="cannot write the checkpoint: No space left"):
        save_checkpoint({"state_dict": {"a": torch.zeros(10_000)}}, str(full / "epoch_2.pth"))
    assert sorted(p.name for p in full.iterdir()) == ["epoch_1.pth", "filler"]


class Best(Hook):
    """Which figures the validations find, by epoch."""

    priority = "HIGH"

    def __init__(self, figures):
        self.figures = figures

    def after_val_epoch(self, runner, metrics=None):
        metrics["figure"] = self.figures[runner.epoch - 1]


def test_a_resumed_run_writes_the_checkpoints_of_one_in_one_go(tmp_path):
    """Those of a best score between two others, which stock writes after a checkpoint of the same process alone."""
    found = []
    for stops in ((4, 7), (7,)):
        work_dir = tmp_path / str(len(stops))
        for stop in stops:
            checkpoint = {"type": "CheckpointHook", "interval": 4, "save_best": "figure", "rule": "greater"}
            runner = new_runner(
                work_dir, [Best([1, 2, 3, 4, 5, 6, 7])], epochs=stop, validate=True, train_cfg={"val_interval": 1},
                resume=stop != stops[0], default_hooks={"checkpoint": {**checkpoint, "save_last": False}},
            )  # fmt: skip
            runner.train()
        found.append(sorted(path.name for path in work_dir.glob("*.pth")))
    assert found[0] == found[1]
    assert "epoch_5.pth" in found[0]


class Stops(Hook):
    """Ends the process, as it were, in the validation of an epoch."""

    def __init__(self, epoch=None):
        self.epoch, self.validated = epoch, []

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.epoch == self.epoch:
            raise KeyboardInterrupt

    def after_val_epoch(self, runner, metrics=None):
        self.validated.append(runner.epoch)


@pytest.mark.parametrize("epoch", [2, 4], ids=["within", "at the end"])
def test_a_validation_that_was_cut_comes_first_in_the_resumed_run(tmp_path, epoch):
    """The best score is that of this epoch."""
    checkpoint = {"type": "CheckpointHook", "interval": 1, "save_best": "figure", "rule": "greater"}
    kept = {"default_hooks": {"checkpoint": checkpoint}}
    figures = Best([1 if number == epoch else 0 for number in range(1, 5)])
    cut = new_runner(tmp_path, [figures, Stops(epoch)], epochs=4, validate=True, **kept)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    assert torch.load(tmp_path / f"epoch_{epoch}.pth", weights_only=False)["meta"]["evaluation_due"]
    seen = Stops()
    new_runner(tmp_path, [figures, seen], epochs=4, validate=True, resume=True, **kept).train()
    assert seen.validated == list(range(epoch, 5))
    assert (tmp_path / f"best_figure_epoch_{epoch}.pth").is_file()
    for number in range(1, 5):
        content = torch.load(tmp_path / f"epoch_{number}.pth", weights_only=False)
        assert "evaluation_due" not in content["meta"] and content["meta"]["epoch"] == number
    again = Stops()
    new_runner(tmp_path, [figures, again], epochs=4, validate=True, resume=True, **kept).train()
    assert again.validated == []


def test_norm_layers_are_averaged_once_where_a_validation_was_cut(tmp_path, monkeypatch):
    """The mean of equal numbers, as of three processes, may be another one."""
    calls = []
    monkeypatch.setattr(StockSyncNormHook, "before_val_epoch", lambda _, runner: calls.append(runner.epoch))
    cut = new_runner(tmp_path, [SyncNormHook(), Stops(2)], epochs=3, validate=True)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    assert calls == [0, 1]
    new_runner(tmp_path, [SyncNormHook()], epochs=3, validate=True, resume=True).train()
    assert calls == [0, 1, 2]


@pytest.mark.parametrize("named", [True, False])
def test_a_store_s_checkpoint_is_left_to_mmengine(tmp_path, named):
    """Whether the config names it, or last_checkpoint does; this folder may have an older one."""
    address = "https://example.org/epoch_3.pth"
    (tmp_path / "last_checkpoint").write_text(address)
    (tmp_path / "mid_epoch.pth").write_bytes(b"")
    runner = SimpleNamespace(
        _resume=True, _has_loaded=False, _load_from=address if named else None, work_dir=str(tmp_path), logger=Mock()
    )
    HOOKS.get("CheckpointHook")(interval=1).before_run(runner)
    assert runner._load_from == (address if named else None)


def test_a_backend_that_is_named_and_local_writes_whole_files_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(LocalBackend, "put", lambda *_: pytest.fail("stock writes to the file itself"))
    save_checkpoint({"state_dict": {}}, str(tmp_path / "epoch_1.pth"), backend_args={"backend": "local"})
    assert torch.load(tmp_path / "epoch_1.pth") == {"state_dict": {}}


def test_a_better_score_removes_no_other_folder_s_best(tmp_path):
    """Of the training that this one was resumed from; stock does."""
    checkpoint = {"type": "CheckpointHook", "interval": 1, "save_best": "figure", "rule": "greater"}
    options = {"validate": True, "default_hooks": {"checkpoint": checkpoint}}
    new_runner(tmp_path / "a", [Best([1, 2, 3, 4])], epochs=2, **options).train()
    content = (tmp_path / "a/best_figure_epoch_2.pth").read_bytes()
    options["load_from"] = str(tmp_path / "a/epoch_2.pth")
    new_runner(tmp_path / "b", [Best([1, 2, 3, 4])], epochs=4, resume=True, **options).train()
    assert (tmp_path / "a/best_figure_epoch_2.pth").read_bytes() == content
    assert [path.name for path in (tmp_path / "b").glob("best_*")] == ["best_figure_epoch_4.pth"]


def test_norm_layers_are_averaged_where_nothing_was_trained(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(StockSyncNormHook, "before_val_epoch", lambda *_: calls.append(1))
    runner = new_runner(tmp_path, [SyncNormHook()], validate=True)
    runner.val()
    assert len(calls) == 1
    new_runner(tmp_path / "no validation", [SyncNormHook()], epochs=1).train()
    assert len(calls) == 1


# The last epochs


class Mixing:
    """A data set that hears which steps of its pipeline to leave out."""

    skipped = ()

    def update_skip_type_keys(self, skip_type_keys):
        self.skipped = skip_type_keys


@MODEL_WRAPPERS.register_module(force=True)
class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def switching_runner(max_epochs=4, wrap=lambda model: model):
    model = nn.Module()
    model.bbox_head = SimpleNamespace(use_l1=False)
    return SimpleNamespace(
        model=wrap(model), max_epochs=max_epochs, logger=Mock(),
        train_dataloader=SimpleNamespace(dataset=Mixing(), persistent_workers=False),
    ), model.bbox_head  # fmt: skip


def first_without_mixing(hook, max_epochs, start=0):
    runner, head = switching_runner(max_epochs)
    for epoch in range(start, max_epochs):
        runner.epoch = epoch
        hook.before_train_epoch(runner)
        assert head.use_l1 == bool(runner.train_dataloader.dataset.skipped)
        if head.use_l1:
            return epoch
    return None


@pytest.mark.parametrize(
    ("max_epochs", "num_last", "first"), [(300, 15, 285), (20, 1, 19), (20, 19, 1), (5, 5, 0), (3, 10, 0), (7, 0, None)]
)
def test_the_last_epochs_are_as_many_as_asked_for(max_epochs, num_last, first):
    """In stock they are one more (open-mmlab/mmdetection#7284)."""
    assert first_without_mixing(YOLOXModeSwitchHook(num_last_epochs=num_last), max_epochs) == first
    theirs = first_without_mixing(StockModeSwitchHook(num_last_epochs=num_last), max_epochs)
    assert theirs == (max_epochs - 1 if first is None else max(first - 1, 0))


@pytest.mark.parametrize("start", [0, 7, 8, 9])
def test_a_run_that_is_resumed_among_the_last_epochs(start):
    assert first_without_mixing(YOLOXModeSwitchHook(num_last_epochs=3), 10, start) == max(start, 7)


def with_detector(model):
    outer = nn.Module()
    outer.detector = model
    return outer


@pytest.mark.parametrize(
    "wrap", [Wrapper, with_detector, lambda model: Wrapper(with_detector(model))], ids=["wrapped", "detector", "both"]
)
def test_the_head_is_found_in_a_wrapped_model(wrap):
    runner, head = switching_runner(wrap=wrap)
    runner.epoch = 3
    YOLOXModeSwitchHook(num_last_epochs=1, skip_type_keys=("Mosaic",)).before_train_epoch(runner)
    assert head.use_l1
    assert runner.train_dataloader.dataset.skipped == ("Mosaic",)


def test_a_data_set_that_cannot_be_told_is_an_error():
    runner, _ = switching_runner()
    runner.epoch, runner.train_dataloader.dataset = 3, [1, 2]
    with pytest.raises(TypeError, match="needs a MultiImageMixDataset in the data loader, found none"):
        YOLOXModeSwitchHook().before_train_epoch(runner)


@pytest.mark.parametrize("kind", [StockModeSwitchHook, YOLOXModeSwitchHook])
def test_living_workers_of_another_data_set_make_way(kind):
    """It hears nothing from this process, so that others have to begin with what it is now."""
    runner, _ = switching_runner()
    loader = runner.train_dataloader
    loader.persistent_workers, loader._DataLoader__initialized, loader._iterator = True, True, object()
    hook = kind(num_last_epochs=2)
    switched = 2 if kind is YOLOXModeSwitchHook else 1
    for epoch in range(4):
        runner.epoch = epoch
        hook.before_train_epoch(runner)
        assert (loader._iterator is None) == (epoch >= switched)
        assert loader._DataLoader__initialized == (epoch != switched)


# Optimizer


@pytest.mark.parametrize("nesterov", [False, True])
def test_thirty_steps_of_the_optimizer(nesterov):
    """In mmengine's wrapper, a group a parameter, as the standard config has it."""
    assert OPTIMIZERS.get("SGD") is SGD
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": nesterov}
    paramwise = {"norm_decay_mult": 0.0, "bias_decay_mult": 0.0}
    ours, theirs = network(), network()
    wrapper = build_optim_wrapper(
        ours,
        {"type": "OptimWrapper", "optimizer": {"type": "SGD", **options}, "paramwise_cfg": paramwise},
    )
    assert type(wrapper.optimizer) is SGD
    groups = wrapper.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0, 0, 0, 0.05, 0]
    groups = [{**group, "params": [p]} for group, p in zip(groups, theirs.parameters(), strict=True)]
    other = torch.optim.SGD(groups, **options)
    g = torch.Generator().manual_seed(0)
    for step in range(30):
        images = torch.randn(2, 3, 8, 8, generator=g)
        for group in (*wrapper.optimizer.param_groups, *other.param_groups):
            group["lr"] = 0.1 / (step + 1)
        wrapper.update_params(ours(images).square().mean())
        other.zero_grad()
        theirs(images).square().mean().backward()
        other.step()
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))
    assert not torch.equal(ours[0].weight, network()[0].weight)
    assert wrapper.state_dict()["state"].keys() == other.state_dict()["state"].keys()
    torch.testing.assert_close(wrapper.state_dict()["state"], other.state_dict()["state"])


# Detector


def test_the_detector_has_the_weights_of_stock():
    ours, stock = detector(), detector(stock=True)
    assert [type(model) for model in (ours, stock)] == [YOLOX, StockYOLOX]
    assert type(ours.data_preprocessor.batch_augments[0]) is BatchSyncRandomResize
    assert type(stock.data_preprocessor.batch_augments[0]) is StockResize
    assert list(ours.state_dict()) == list(stock.state_dict())
    torch.testing.assert_close(ours.state_dict(), stock.state_dict(), rtol=0, atol=0)


def with_the_plugins_network(model):
    """By the last bits of stock's, an assignment or a detection may be another."""
    quicken(model)
    Precision(None).prepare(model, "cpu")
    return model


def test_the_network_computes_what_stock_computes():
    theirs, ours = losses_of(detector(stock=True)), losses_of(detector())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    kinds = Counter(type(module) for module in detector().modules())
    assert kinds[FusedSwish] > 20 and not kinds[Swish]


def wrapped(model):
    options = {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    return build_optim_wrapper(model, {"optimizer": options})


@pytest.mark.parametrize("use_l1", [False, True])
def test_five_steps_of_the_whole_detector(hub, use_l1):
    """Images, sizes, losses, gradients and weights, from the model's own config. Each step begins with stock's weights
    and momenta: in a few, the last bits make another assignment."""
    stock, ours = with_the_plugins_network(detector(stock=True, interval=2)), detector(interval=2)
    optimizers = [wrapped(model) for model in (stock, ours)]
    assert type(optimizers[1].optimizer) is SGD
    stock.bbox_head.use_l1 = ours.bbox_head.use_l1 = use_l1
    sizes = set()
    for step, gts in enumerate([(3, 8), (0, 5), (30, 1), (0, 0), (12, 4)]):
        hub.update_info("iter", step)
        ours.load_state_dict(before := copy.deepcopy(stock.state_dict()))
        optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        logs = []
        for model, optimizer in zip((stock, ours), optimizers, strict=True):
            random.seed(step + 10)
            logs.append(model.train_step(train_data(step, gts), optimizer))
        assert list(logs[1]) == list(logs[0])
        assert ("loss_l1" in logs[1]) == use_l1
        torch.testing.assert_close(dict(logs[1]), dict(logs[0]), rtol=1e-5, atol=1e-6)
        for name, theirs in stock.named_parameters():
            changes = [weight - before[name] for weight in (ours.get_parameter(name), theirs)]
            scale = float(changes[1].abs().max())
            torch.testing.assert_close(*changes, rtol=1e-4, atol=1e-4 * scale + 1e-7, msg=name)
        assert not torch.equal(before["backbone.stem.conv.conv.weight"], ours.backbone.stem.conv.conv.weight)
        sizes.add(ours.data_preprocessor.batch_augments[0]._input_size)
    assert len(sizes) > 1


@torch.no_grad()
def test_a_test_of_the_whole_detector():
    found = []
    for stock in (True, False):
        model, data = with_the_plugins_network(detector(stock=stock)), train_data(0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        losses_of(model, seed=0)  # or activations fade, layer by layer, to numbers that are all alike
        model.eval()
        for predictor in (*model.bbox_head.multi_level_conv_obj, *model.bbox_head.multi_level_conv_cls):
            predictor.bias.zero_()
        for sample in data["data_samples"]:
            sample.set_metainfo({"scale_factor": (0.5, 0.25), "ori_shape": (512, 256)})
        found.append([sample.pred_instances for sample in model.test_step(data)])
    for theirs, ours in zip(*found, strict=True):
        assert len(ours) > 10
        assert torch.equal(ours.labels, theirs.labels)
        torch.testing.assert_close(ours.bboxes, theirs.bboxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-6)


def losses_of(model, seed=1):
    data = train_data(seed)
    return model(torch.stack(data["inputs"]).float(), data["data_samples"], mode="loss")


def test_bfloat16_keeps_losses_and_weights_in_float32(hub):
    exact, quick = detector(), detector(autocast="bfloat16")
    seen = {}
    quick.backbone.stem.conv.conv.register_forward_hook(lambda module, inputs, output: seen.update(conv=output))
    theirs, ours = losses_of(exact), losses_of(quick)
    assert seen["conv"].dtype == torch.bfloat16
    assert seen["conv"].is_contiguous(memory_format=torch.channels_last)
    for name, loss in ours.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, theirs[name], rtol=0.05, atol=0.0)
    assert not torch.is_autocast_enabled("cpu")
    hub.update_info("iter", 0)
    logged = quick.train_step(train_data(0), wrapped(quick))
    assert all(value.isfinite() for value in logged.values())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in quick.parameters())


@pytest.mark.parametrize(("device", "is_last"), [("cpu", True), ("npu", False)])
def test_bfloat16_has_the_layout_of_the_device_that_is_trained_on(monkeypatch, device, is_last):
    monkeypatch.setattr(mmengine.device.utils, "DEVICE", device)
    weight = detector(autocast="bfloat16").backbone.stem.conv.conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == is_last


@pytest.mark.parametrize("autocast", [None, "float32"])
def test_other_precisions_change_nothing(autocast):
    torch.testing.assert_close(losses_of(detector(autocast=autocast)), losses_of(detector()), rtol=0, atol=0)


def test_a_precision_that_the_caller_chose_stays():
    """As mmengine's AmpOptimWrapper chooses it."""
    model = detector()
    seen = {}
    model.backbone.stem.conv.conv.register_forward_hook(lambda module, inputs, output: seen.update(conv=output))
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model)
    assert seen["conv"].dtype == torch.bfloat16
    assert all(loss.dtype == torch.float32 for loss in losses.values())


@pytest.mark.parametrize("autocast", ["float8", "", torch.bfloat16], ids=str)
def test_a_precision_that_is_none(autocast):
    with pytest.raises(ValueError, match=r"autocast must be None, 'float32', 'bfloat16' or 'float16', got"):
        detector(autocast=autocast)


def test_float16_wants_an_accelerator():
    with pytest.raises(ValueError, match=r"needs an accelerator; on a CPU use autocast='bfloat16'"):
        losses_of(detector(autocast="float16"))


def test_a_detector_for_inference_predicts_what_it_predicted():
    exact, ours, low = detector(), detector(), detector()
    g = torch.Generator().manual_seed(0)
    for name, buffer in exact.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=g) + ("var" in name) * 0.5)
    for conv in (*exact.bbox_head.multi_level_conv_obj, *exact.bbox_head.multi_level_conv_cls):
        conv.bias.data.fill_(2.0)
    exact.eval()
    for model, autocast in ((ours, None), (low, "bfloat16")):
        model.load_state_dict(exact.state_dict())
        model.prepare_for_inference("cpu", autocast)
    img = torch.rand(2, 3, 128, 96, generator=g) * 255
    found = []
    with torch.no_grad():
        for model in (exact, ours, low):
            metas = {"scale_factor": (0.5, 0.5), "img_shape": (128, 96), "ori_shape": (256, 192)}
            samples = model.predict(img, [DetDataSample(metainfo=metas) for _ in range(2)])
            found.append([sample.pred_instances for sample in samples])
    for theirs, mine, lows in zip(*found, strict=True):
        assert len(theirs) > 5
        # Rounding may change the order of equal scores.
        rows = [torch.cat([i.bboxes, i.scores[:, None], i.labels[:, None] * 1e4], 1) for i in (mine, theirs)]
        distances = torch.cdist(*rows, p=torch.inf)
        assert len(mine) == len(theirs) and max(distances.amin(0).max(), distances.amin(1).max()) < 1e-3
        assert lows.bboxes.dtype == torch.float32
        assert len(lows) == pytest.approx(len(theirs), rel=0.1)
    with pytest.raises(RuntimeError, match="was prepared for inference: build it again to train it"):
        ours.train()
    assert len(exact.extract_feat(batch_inputs=img)) == 3  # by stock's name


@pytest.mark.parametrize("in_epoch", [False, True])
def test_logged_values_are_those_of_stock_and_are_not_read(in_epoch):
    model = detector()
    if in_epoch:
        model.start_epoch(Moment(seed=0))
    losses = {
        "loss_a": torch.tensor(2.0, requires_grad=True), "loss_b": [torch.ones(2), torch.zeros(2)],
        "acc": torch.ones(3), "loss_c": torch.arange(4.0),
    }  # fmt: skip
    with Reads() as reads:
        loss, logged = model.parse_losses(losses)
    assert reads.count == 0
    their_loss, theirs = StockYOLOX.parse_losses(model, losses)
    assert list(logged) == list(theirs) == ["loss", "loss_a", "loss_b", "acc", "loss_c"]
    torch.testing.assert_close(dict(logged), dict(theirs))
    assert loss == their_loss == 4.5
    assert logged["loss_a"].requires_grad != in_epoch
    loss.backward()
    assert losses["loss_a"].grad == 1
    with pytest.raises(TypeError, match="loss_a is not a tensor or list of tensors"):
        model.parse_losses({"loss_a": 1.0})
    model.end_epoch()
    assert model.parse_losses(losses)[1]["loss_a"].requires_grad
