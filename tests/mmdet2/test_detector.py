"""The plugin's detector beside MMDetection's: image sizes, logged values, precision."""

import json
import logging
import random
from collections import Counter
from unittest.mock import patch

import numpy as np
import pytest
import torch
import two_ranks
from batches import nano, train_data
from mmcv.cnn.bricks import Swish
from mmcv.runner import Fp16OptimizerHook, LogBuffer, OptimizerHook, build_runner
from mmdet.models.detectors.yolox import YOLOX as StockYOLOX
from torch.utils._python_dispatch import TorchDispatchMode

from yolox_plugin.mmdet2.detector import YOLOX
from yolox_plugin.mmdet2.runner import DeferredLogBuffer
from yolox_plugin.protocol import Moment


def test_the_registered_detector_is_ours():
    assert type(nano()) is YOLOX


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_the_same_seed_gives_the_weights_of_stock_in_any_layout(autocast):
    ours, stock = nano(autocast=autocast).state_dict(), nano(stock=True).state_dict()
    assert ours.keys() == stock.keys()
    assert not [name for name, value in stock.items() if not torch.equal(ours[name], value)]


def test_sizes_keep_the_rhythm_and_the_distribution_of_stock():
    model = nano(random_size_interval=5)
    model.start_epoch(Moment(seed=3, iteration=0))
    sizes = [model.input_size_at(i) for i in range(5000)]
    assert sizes[:5] == [(128, 128)] * 5
    blocks = [sizes[i : i + 5] for i in range(0, 5000, 5)]
    assert all(len(set(block)) == 1 for block in blocks)
    counts = Counter(block[0] for block in blocks[1:])
    assert set(counts) == {(32 * n, 32 * n) for n in range(3, 7)}
    assert all(abs(count - 999 / 4) < 5 * (999 * 0.25 * 0.75) ** 0.5 for count in counts.values())
    other = nano(random_size_interval=5)
    other.start_epoch(Moment(seed=3, iteration=2000))  # a resumed run
    assert [other.input_size_at(i) for i in range(2000, 2500)] == sizes[2000:2500]
    other.start_epoch(Moment(seed=4, iteration=0))
    assert [other.input_size_at(i) for i in range(5000)] != sizes


def test_an_oblong_image_keeps_its_shape_as_in_stock():
    model = nano(input_size=(128, 256))
    sizes = {model.input_size_at(10 * i) for i in range(1, 100)}
    assert sizes == {(32 * n, 64 * n) for n in range(3, 7)}


def test_a_scaled_image_gives_the_losses_of_stock():
    ours, stock = nano(), StockYOLOX.__new__(StockYOLOX)
    stock.__dict__.update(ours.__dict__)
    ours.start_epoch(Moment(seed=0, iteration=10))
    stock._input_size = ours.input_size_at(10)
    assert stock._input_size != (128, 128)
    losses, theirs = ours.forward_train(**train_data(0)), stock.forward_train(**train_data(0))
    torch.testing.assert_close(losses, theirs)


def test_without_the_plugins_runner_sizes_and_logs_are_those_of_stock():
    """Any runner takes what it is given: numbers, which json can write."""
    logs, sizes = [], []
    for stock in (False, True):
        model = nano(stock=stock, random_size_interval=2)
        random.seed(3)
        for step in range(6):
            with torch.no_grad():
                log = model.train_step(train_data(step), None)["log_vars"]
            assert json.dumps(log)
            logs.append(log)
            sizes.append(model._input_size)
    assert sizes[:6] == sizes[6:]
    assert len(set(sizes)) > 1
    for ours, theirs in zip(logs[:6], logs[6:], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
        assert all(type(value) is float for value in ours.values())


def test_what_a_runner_began_it_ends():
    model = nano()
    model.start_epoch(Moment(seed=3, iteration=0))
    assert isinstance(model._parse_losses({"loss": torch.ones(1)})[1]["loss"], torch.Tensor)
    with pytest.raises(TypeError, match="loss_a is not a tensor or list of tensors"):
        model._parse_losses({"loss_a": 1.0})
    model.end_epoch()
    assert model._parse_losses({"loss": torch.ones(1)})[1] == {"loss": 1.0}


def test_a_subclass_has_the_sizes_that_it_draws_itself():
    class Mine(YOLOX):
        def _random_resize(self, device):
            return 96, 96

    model = nano(random_size_interval=1)
    model.__class__ = Mine
    model.start_epoch(Moment(seed=0, iteration=100))
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[2:])))
    with torch.no_grad():
        for step in range(3):
            model.forward_train(**train_data(step))
    assert seen == [(128, 128), (96, 96), (96, 96)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_detector_of_a_half_type(dtype):
    """Images come as its user gives them; only uint8 is converted."""
    model = nano().to(dtype)
    data = train_data(0)
    data["img"] = data["img"].to(dtype)
    losses = model.forward_train(**data)
    sum(losses.values()).backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in model.parameters())
    theirs = nano().forward_train(**train_data(0))
    for name, loss in losses.items():
        torch.testing.assert_close(loss.float(), theirs[name], rtol=0.1, atol=0.0)


def test_uint8_images_are_those_of_float():
    model = nano().eval()  # batch norm would remember the first
    byte, number = train_data(0), train_data(0)
    byte["img"] = byte["img"].byte()
    number["img"] = byte["img"].float()
    with torch.no_grad():
        assert model.forward_train(**byte) == model.forward_train(**number)


def test_an_activation_stays_the_module_that_it_was():
    """Fused to one step, with the hooks and the type that it has."""
    module = torch.nn.Sequential(Swish())
    calls = []
    module[0].register_forward_hook(lambda *_: calls.append(1))
    with patch.object(
        StockYOLOX, "__init__", lambda self: torch.nn.Module.__init__(self) or self.add_module("a", module)
    ):
        model = YOLOX()
    assert isinstance(model.a[0], Swish)
    x = torch.randn(100, requires_grad=True)
    torch.testing.assert_close(model.a(x), x * x.sigmoid())
    assert calls == [1]


class Reads(TorchDispatchMode):
    """Counts reads of single values from the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_logged_values_are_those_of_stock_and_are_not_read():
    model = nano()
    model.start_epoch(Moment(seed=0, iteration=0))
    losses = {
        "loss_a": torch.tensor(2.0, requires_grad=True),
        "loss_b": [torch.ones(2), torch.zeros(2)],
        "acc": torch.ones(3),
    }
    with Reads() as reads:
        loss, logged = model._parse_losses(losses)
    assert reads.count == 0
    their_loss, theirs = StockYOLOX._parse_losses(model, losses)
    assert {name: float(value) for name, value in logged.items()} == dict(theirs)
    assert list(logged) == list(theirs)
    assert loss == their_loss == 3
    loss.backward()
    assert losses["loss_a"].grad == 1


def test_the_log_buffer_averages_as_mmcv_and_reads_once():
    ours, theirs = DeferredLogBuffer(), LogBuffer()
    for i in range(7):
        values = torch.tensor([0.5 * i, 1.0 / (i + 1)])
        ours.update({"loss": values[0], "time": 0.25 * i, "loss_l1": values[1]}, count=i + 1)
        theirs.update({"loss": float(values[0]), "time": 0.25 * i, "loss_l1": float(values[1])}, count=i + 1)
        if i in (3, 6):
            ours.average(3), theirs.average(3)
            assert ours.output == theirs.output
            assert all(isinstance(value, (float, np.floating)) for value in ours.output.values())
    ours.average(), theirs.average()
    assert ours.output == theirs.output


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_the_log_buffer_takes_one_value_of_any_shape_and_type(shape):
    buffer = DeferredLogBuffer()
    for i in range(3):
        buffer.update({
            "loss": torch.tensor(float(i)).expand(shape), "acc": torch.tensor([i]), "time": 0.5 * i,
            "exact": torch.tensor(i + 2**25), "double": torch.tensor(i / 3, dtype=torch.float64),
            "grad": torch.tensor(float(i), requires_grad=True).view(shape),
        })  # fmt: skip
    buffer.average()
    expected = {"loss": 1.0, "acc": 1.0, "time": 0.5, "exact": 2**25 + 1, "double": 1 / 3, "grad": 1.0}
    assert dict(buffer.output) == pytest.approx(expected, rel=1e-15)
    assert json.dumps({name: float(value) for name, value in buffer.output.items()})


@pytest.mark.slow
def test_a_rank_without_a_positive_has_every_gradient(tmp_path):
    """Or DistributedDataParallel waits for it: "Expected to have finished reduction"."""
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(two_ranks.train_on_a_rank, (str(tmp_path / "store"), results), nprocs=2)
        first, second = results[0], results[1]
    assert len(first) > 100
    assert all(np.isfinite(a).all() and np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_two_ranks_log_their_mean_and_agree_on_the_seed(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(two_ranks.reduce_on_a_rank, (str(tmp_path / "store"), 7, results), nprocs=2)
        (logged, theirs, seed), (logged1, _, seed1) = results[0], results[1]
    assert logged == logged1 == theirs == {"loss_a": 1.5, "loss_b": 5.0, "loss": 6.5}
    assert seed == seed1 == 7


def test_bfloat16_keeps_losses_and_weights_in_float32():
    exact, quick = nano(), nano(autocast="bfloat16")
    quick.load_state_dict(exact.state_dict())
    seen = {}
    quick.backbone.stem.conv.conv.register_forward_hook(lambda module, inputs, output: seen.update(conv=output))
    data = train_data(1)
    theirs = exact.forward_train(**train_data(1))
    ours = quick.forward_train(**data)
    assert seen["conv"].dtype == torch.bfloat16
    assert seen["conv"].is_contiguous(memory_format=torch.channels_last)
    for name, loss in ours.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, theirs[name], rtol=0.05, atol=0.0)
    sum(ours.values()).backward()
    for name, parameter in quick.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert not torch.is_autocast_enabled("cpu")


def test_a_precision_that_the_caller_chose_stays():
    """mmcv's fp16 wraps the detector in autocast; the option left out must not end it."""
    model = nano()
    seen = {}
    model.backbone.stem.conv.conv.register_forward_hook(lambda module, inputs, output: seen.update(conv=output))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.forward_train(**train_data(1))
    assert seen["conv"].dtype == torch.bfloat16
    assert all(loss.dtype == torch.float32 for loss in losses.values())


@pytest.mark.parametrize("autocast", ["float8", torch.bfloat16])
def test_a_precision_that_is_none(autocast):
    with pytest.raises(ValueError, match=r"autocast must be None, 'float32', 'bfloat16' or 'float16', got"):
        nano(autocast=autocast)


def test_float16_wants_an_accelerator():
    with pytest.raises(ValueError, match=r"needs an accelerator; on a CPU use autocast='bfloat16'"):
        nano(autocast="float16").forward_train(**train_data(0))


@pytest.mark.parametrize("config", [{"grad_clip": {"max_norm": 3}}, OptimizerHook(grad_clip={"max_norm": 3})])
def test_float16_brings_a_loss_scaler(config):
    """As mmdet passes it for one process, and for several."""
    runner = build_runner(
        {"type": "EpochBasedRunner", "max_epochs": 1},
        {"model": nano(autocast="float16"), "logger": logging.getLogger("test"), "meta": {}},
    )
    runner.register_optimizer_hook(config)
    assert type(runner.hooks[0]) is Fp16OptimizerHook
    assert runner.hooks[0].grad_clip == {"max_norm": 3}
    with pytest.raises(ValueError, match="goes with OptimizerHook or Fp16OptimizerHook, got GradientCumulative"):
        runner.register_optimizer_hook({"type": "GradientCumulativeOptimizerHook"})


@pytest.mark.parametrize(("autocast", "kept"), [(None, True), ("float32", False), ("bfloat16", False)])
def test_an_explicit_precision_ends_the_float16_that_mmdet_adds_on_an_npu(monkeypatch, autocast, kept):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # mmcv asks for its scaler
    runner = build_runner(
        {"type": "EpochBasedRunner", "max_epochs": 1},
        {"model": nano(autocast=autocast), "logger": logging.getLogger("test"), "meta": {}},
    )
    runner.register_optimizer_hook(Fp16OptimizerHook(grad_clip={"max_norm": 3}, loss_scale="dynamic"))
    assert type(runner.hooks[0]) is (Fp16OptimizerHook if kept else OptimizerHook)
    assert runner.hooks[0].grad_clip == {"max_norm": 3}


def test_a_detector_for_inference_detects_what_stock_detects():
    stock, ours = nano(stock=True), nano()
    g = torch.Generator().manual_seed(0)
    for name, buffer in stock.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=g) + ("var" in name) * 0.5)
    for conv in (*stock.bbox_head.multi_level_conv_obj, *stock.bbox_head.multi_level_conv_cls):
        conv.bias.data.fill_(2.0)
    ours.load_state_dict(stock.state_dict())
    stock.eval()
    low = nano()
    low.load_state_dict(stock.state_dict())
    ours.prepare_for_inference("cpu")
    low.prepare_for_inference("cpu", "bfloat16")
    img = torch.rand(2, 3, 128, 96, generator=g) * 255
    metas = [{"scale_factor": np.array([0.5, 0.5, 0.5, 0.5], dtype=np.float32)}] * 2
    with torch.no_grad():
        theirs, mine, lows = (model.simple_test(img, metas, rescale=True) for model in (stock, ours, low))
        features = low.bbox_head(low.extract_feat(img))
    assert all(level.dtype == torch.float32 for levels in features for level in levels)
    assert sum(len(boxes) for boxes in theirs[0]) > 5
    for by_class, theirs_by_class in zip(mine, theirs, strict=True):
        for boxes, expected in zip(by_class, theirs_by_class, strict=True):
            if len(boxes) == len(expected) == 0:
                continue
            distances = np.abs(boxes[:, None] - expected).max(-1)  # rounding may change the order of equal scores
            assert len(boxes) == len(expected) and (distances.min(0) < 1e-3).all() and (distances.min(1) < 1e-3).all()
    counts = [sum(len(boxes) for image in found for boxes in image) for found in (theirs, lows)]
    assert counts[1] == pytest.approx(counts[0], rel=0.1)
    with pytest.raises(RuntimeError, match="was prepared for inference: build it again to train it"):
        ours.train()
    ours.eval()
    with pytest.raises(RuntimeError, match="was prepared for inference already: build it again"):
        low.prepare_for_inference("cpu")


def test_inference_in_a_precision_that_cannot_be():
    model = nano()
    for autocast, words in (("float8", "autocast must be"), ("float16", "needs an accelerator")):
        with pytest.raises(ValueError, match=words):
            model.prepare_for_inference("cpu", autocast)
    assert model.train() is model  # it still can
