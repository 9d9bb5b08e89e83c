"""Whole training steps of MMDetection 3 on the simulated NPU: what they cost, and what they leave behind."""

import copy
from itertools import pairwise

import pytest
import torch
from device import SOC, recorded
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.logging import MessageHub
from mmengine.optim import AmpOptimWrapper as StockAmpOptimWrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from samples import detector, train_data
from steps3 import train
from torch import nn

from yolox_plugin.core.flat import merged
from yolox_plugin.core.scaling import DeviceGradScaler
from yolox_plugin.core.sgd import SGD
from yolox_plugin.mmdet3.batch import DetDataPreprocessor, StockDetDataPreprocessor
from yolox_plugin.mmdet3.ema import ExpMomentumEMA
from yolox_plugin.mmdet3.scaling import AmpOptimWrapper
from yolox_plugin.mmdet3.sizes import BatchSyncRandomResize
from yolox_plugin.protocol import Moment, TrainingPart

WRAPPERS = {
    "float32": {"type": "OptimWrapper"},  # which mmengine makes an AmpOptimWrapper on a 910A
    "float16": {"type": "AmpOptimWrapper", "loss_scale": {"init_scale": 8.0}},
}


@pytest.fixture(autouse=True)
def _scope_of_mmdet():
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


@pytest.mark.parametrize("amp", list(WRAPPERS) if SOC == "A2" else ["float16"])
def test_a_step_waits_for_nothing(tmp_path, amp, record_property):
    """YOLOX-nano has more layers than YOLOX-M, so it stands for its launches."""
    runner, records = train(tmp_path, options={"optim_wrapper": WRAPPERS[amp]})
    record = records[2]  # the first ones allocate, the last one writes the log
    record_property(f"mmdet 3, nano, {SOC}, {amp}", record.counts())
    for calls in (record.waits(), record.dynamic(), record.aicpu()):
        assert not calls, "\n".join(map(str, calls))
    assert record.runtime_waits == 0
    assert len(record.copies()) <= 4  # images, boxes, labels; counts of the gts
    assert len(record.launches()) <= {"A2": 1000, "910A": 1050}[SOC]
    assert isinstance(runner.optim_wrapper, AmpOptimWrapper) == (amp == "float16")


def test_a_resumed_training_ends_with_the_same_bits(tmp_path):
    """In float16, with a scale that has changed on the way."""
    scaling = {"type": "AmpOptimWrapper", "loss_scale": {"init_scale": 2.0**18, "growth_interval": 2}}
    narrow = {"in_channels": [32, 64, 128], "out_channels": 32}
    options = {
        "optim_wrapper": scaling, "model.backbone.widen_factor": 0.125, "model.neck": narrow,
        "model.bbox_head": {"in_channels": 32, "feat_channels": 32},
    }  # fmt: skip
    whole = {
        "train_cfg": {"by_epoch": True, "max_epochs": 2},
        "steps": 2,
        "config": "yolox_tiny_8xb8-300e_coco.py",
        "options": options,
    }
    runner, _ = train(tmp_path / "whole", **whole)
    expected = torch.load(tmp_path / "whole/epoch_2.pth", map_location="cpu", weights_only=False)
    again, _ = train(tmp_path / "again", **whole, resume=True, load_from=str(tmp_path / "whole/epoch_1.pth"))
    found = torch.load(tmp_path / "again/epoch_2.pth", map_location="cpu", weights_only=False)
    for name in ("state_dict", "ema_state_dict", "optimizer"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)
    assert expected["optimizer"]["loss_scaler"]["scale"] != scaling["loss_scale"]["init_scale"]
    for each in (runner, again):
        [hook] = [hook for hook in each.hooks if hasattr(hook, "ema_model")]
        assert len(merged(list(each.model.parameters()), list(hook.ema_model.module.parameters()))[0]) <= 2


def batches():
    """As mmengine's loader gives them: images of one shape, and of several."""
    for sizes in ([(64, 64), (64, 64)], [(64, 96), (40, 64)], [(50, 70)]):
        g = torch.Generator().manual_seed(len(sizes))
        samples = []
        for i, size in enumerate(sizes):
            gts = {
                name: InstanceData(bboxes=HorizontalBoxes(torch.rand(n, 4, generator=g)), labels=torch.arange(n))
                for name, n in (("gt_instances", 3 * i), ("ignored_instances", i))
            }
            samples.append(DetDataSample(**gts, metainfo={"img_shape": size, "img_id": i}))
        images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=g) for size in sizes]
        yield {"inputs": images, "data_samples": samples}


@pytest.mark.parametrize("dtypes", [(torch.int64, torch.int64), (torch.float16, torch.float32)], ids=str)
def test_boxes_of_other_dtypes_are_resized_as_stock_resizes_them(dtypes, monkeypatch):
    """Whole numbers times 1.5 are not those times 1."""
    monkeypatch.setitem(MessageHub.get_current_instance().runtime_info, "iter", 0)
    found = []
    for kind in (BatchSyncRandomResize, BatchSyncRandomResize.__bases__[0]):
        resize = kind((64, 64), interval=10)
        resize._input_size = (32, 96)
        boxes = [torch.tensor([[10, 20, 33, 47]], dtype=dtype, device="npu") for dtype in dtypes]
        samples = [
            DetDataSample(metainfo={"img_shape": (64, 64), "batch_input_shape": (64, 64), "pad_shape": (64, 64)},
                          gt_instances=InstanceData(bboxes=some))
            for some in boxes
        ]  # fmt: skip
        resize(torch.rand(2, 3, 64, 64, device="npu"), samples)
        found.append([sample.gt_instances.bboxes.cpu() for sample in samples])
    assert [some.dtype for some in found[0]] == [some.dtype for some in found[1]]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert not torch.equal(ours.long().cpu(), torch.tensor([[10, 20, 33, 47]]))


def test_images_that_stock_has_something_to_say_about():
    prepare = DetDataPreprocessor(mean=[1, 2, 3], std=[1, 1, 1]).to(torch.device("npu"))
    grey = {"inputs": [torch.zeros(1, 8, 8)] * 2, "data_samples": [DetDataSample(), DetDataSample()]}
    with pytest.raises(AssertionError, match="If the mean has 3 values"):
        prepare(grey, training=False)
    image = torch.rand(3, 8, 8, requires_grad=True)
    prepared = prepare({"inputs": [image] * 2, "data_samples": [DetDataSample(), DetDataSample()]}, training=False)
    prepared["inputs"].sum().backward()
    torch.testing.assert_close(image.grad, torch.full((3, 8, 8), 2.0))


def test_an_average_of_tied_weights_is_that_of_stock():
    found = []
    for kind in (ExpMomentumEMA, ExpMomentumEMA.__bases__[0]):
        torch.manual_seed(0)
        tied = nn.Linear(3, 3)
        model = nn.Sequential(tied, nn.ReLU(), tied).to("npu")
        average = kind(model, momentum=0.0002, update_buffers=True)
        for _ in range(3):
            average.update_parameters(model)
            with torch.no_grad():
                tied.weight.mul_(1.5)
        found.append({name: value.cpu() for name, value in average.module.state_dict().items()})
    torch.testing.assert_close(found[0], found[1])


def test_resized_batches_are_those_of_stock(monkeypatch):
    """Their boxes take two launches; those of stock four for each image."""
    monkeypatch.setitem(MessageHub.get_current_instance().runtime_info, "iter", 0)
    for data in batches():
        found = []
        for device in ("cpu", "npu"):
            resize = BatchSyncRandomResize((64, 64), interval=10)
            resize._input_size = (64, 96) if len(data["inputs"]) > 1 else (64, 64)
            prepare = DetDataPreprocessor(pad_size_divisor=32).to(torch.device(device))
            prepared = prepare(copy.deepcopy(data), training=True)
            for _ in range(2):  # constants travel once
                samples = copy.deepcopy(prepared["data_samples"])
                with recorded() as record:
                    images, samples = resize(prepared["inputs"], samples)
            found.append((images.cpu(), [(sample.metainfo, sample.cpu()) for sample in samples]))
        (expected, their_samples), (mine, samples) = found
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-4)
        assert not record.waits(), "\n".join(map(str, record.waits()))
        assert len(record.launches()) <= 3, "\n".join(map(str, record.launches()))
        for (meta, sample), (their_meta, their_sample) in zip(samples, their_samples, strict=True):
            assert meta == their_meta
            for name in ("gt_instances", "ignored_instances"):
                torch.testing.assert_close(sample.get(name).bboxes, their_sample.get(name).bboxes, rtol=0, atol=0)
                assert len(sample.get(name).labels) == len(sample.get(name).bboxes)


@pytest.mark.parametrize(
    "options", [{}, {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "bgr_to_rgb": True}], ids=len
)
def test_a_batch_is_that_of_stock_and_its_copies_wait_for_nothing(options):
    stock = StockDetDataPreprocessor(pad_size_divisor=32, pad_value=7, **options)
    ours = DetDataPreprocessor(pad_size_divisor=32, pad_value=7, **options).to(torch.device("npu"))
    for data in batches():
        expected = stock(copy.deepcopy(data), training=True)
        with recorded() as record:
            found = ours(data, training=True)
        if not options:  # stock turns the channels by a list, which travels by itself
            assert not record.waits(), "\n".join(map(str, record.waits()))
            assert len(record.copies()) <= 3, record.copies()
        assert found["inputs"].device.type == "npu"
        torch.testing.assert_close(found["inputs"].cpu(), expected["inputs"], rtol=0, atol=0)
        copied = copy.deepcopy(found["data_samples"])  # as semi-supervised detectors do
        for mine, theirs in zip(copied, expected["data_samples"], strict=True):
            assert mine.metainfo == theirs.metainfo
            for name in ("gt_instances", "ignored_instances"):
                assert mine.get(name).bboxes.device.type == "npu"
                for key in ("bboxes", "labels"):
                    torch.testing.assert_close(mine.get(name)[key].cpu(), theirs.get(name)[key], rtol=0, atol=0)
    assert data["data_samples"][0].gt_instances.labels.device.type == "cpu"  # the loader's own stay


class Trainer:
    """A detector, its optimizer and its moving average on a device."""

    def __init__(self, device):
        self.model = detector().to(device)
        for part in self.model.modules():
            if isinstance(part, TrainingPart):
                part.start_epoch(Moment(seed=1))
        parameters = self.model.parameters()
        groups = [{"params": [p], "weight_decay": 0.0 if p.dim() == 1 else 5e-4} for p in parameters]
        self.wrapper = OptimWrapper(SGD(groups, lr=1e-3, momentum=0.9, nesterov=True))
        self.average = ExpMomentumEMA(self.model, momentum=0.01, update_buffers=True)

    def step(self, seed):
        MessageHub.get_current_instance().update_info("iter", seed + 8)  # the image size changes on the way
        data = train_data(seed, (4, 0), 96)
        with recorded() as record:
            logged = self.model.train_step(data, self.wrapper)
            self.average.update_parameters(self.model)
        return logged, record

    def state(self):
        return {**self.model.state_dict(), **self.average.state_dict()}


def test_steps_of_a_whole_detector():
    """From the same weights, each step gives what it gives on the CPU, and none waits."""
    theirs, ours = Trainer("cpu"), Trainer("npu")
    for step in range(3):
        for of in ("model", "average"):
            getattr(ours, of).load_state_dict(getattr(theirs, of).state_dict())
        ours.wrapper.load_state_dict(copy.deepcopy(theirs.wrapper.state_dict()))
        expected, _ = theirs.step(step)
        logged, record = ours.step(step)
        assert not record.waits() or step == 0, "\n".join(map(str, record.waits()))
        assert not record.dynamic(), "\n".join(map(str, record.dynamic()))
        for name, value in expected.items():
            torch.testing.assert_close(logged[name].cpu(), value, rtol=1e-4, atol=1e-5, msg=name)
        found = ours.state()
        for name, value in theirs.state().items():
            scale = float(value.float().abs().max())
            torch.testing.assert_close(
                found[name].cpu(), value, rtol=1e-3, atol=1e-4 * scale + 1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
    averages = [value for value in ours.average.avg_parameters.values() if value.dtype.is_floating_point]
    assert len(merged(averages)[0]) <= 4
    assert all(
        value.data_ptr() == found[f"module.{name}"].data_ptr() for name, value in ours.average.avg_parameters.items()
    )


def test_the_scaler_is_replaced_where_it_may_be():
    """Not a static one, which steps whatever it finds, and not that of an optimizer that asks the host."""
    for settings in ({"dynamic": False}, {"enabled": False}, {}):
        wrapper = AmpOptimWrapper(optimizer=SGD(network().parameters(), lr=0.01), loss_scale=settings)
        assert isinstance(wrapper.loss_scaler, DeviceGradScaler) == (not settings)
    other = AmpOptimWrapper(optimizer=torch.optim.AdamW(network().parameters()))
    assert not isinstance(other.loss_scaler, DeviceGradScaler)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.Conv2d(7, 2, 1)).to("npu")


def steps_with(kind, options, count=8, **state):
    """The weights and scales that `count` steps leave, some of which overflow; and the wrapper."""
    model = network()
    model.load_state_dict(state.get("model", model.state_dict()))
    wrapper = kind(optimizer=SGD(model.parameters(), lr=0.01, momentum=0.9), **copy.deepcopy(options))
    if "wrapper" in state:
        wrapper.load_state_dict(copy.deepcopy(state["wrapper"]))
    images = torch.linspace(-1, 1, 2 * 3 * 8 * 8, device="npu").view(2, 3, 8, 8).sin()
    seen = []
    for step in range(state.get("first", 0), count):
        with recorded() as record:
            with wrapper.optim_context(model):
                out = model(images).float()
            # A gradient beyond float16's range overflows as soon as a layer of float16 sees it.
            wrapper.update_params(out.square().mean() * (1e9 if step in (2, 5) else 1))
        seen.append((wrapper.loss_scaler.state_dict()["scale"], [p.detach().cpu().clone() for p in model.parameters()]))
    return seen, wrapper, model, record


@pytest.mark.parametrize("options", [
    {"loss_scale": {"init_scale": 16.0, "growth_interval": 2}}, {"accumulative_counts": 2}, {"loss_scale": 32.0},
], ids=str)  # fmt: skip
def test_scales_and_weights_are_those_of_stocks_wrapper(options):
    found, ours, _, record = steps_with(AmpOptimWrapper, options)
    if SOC == "A2":  # on a 910A, a kernel that is not simulated has to show torch_npu's scaler the flag
        expected, stock, _, _ = steps_with(StockAmpOptimWrapper, options)
        assert [scale for scale, _ in found] == [scale for scale, _ in expected]
        for (_, mine), (_, theirs) in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        assert ours.loss_scaler.state_dict() == stock.loss_scaler.state_dict()
    assert not record.waits(), "\n".join(map(str, record.waits()))
    if "growth_interval" in str(options):
        left_out = [all(map(torch.equal, before, after)) for (_, before), (_, after) in pairwise(found)]
        assert left_out == [False, True, False, False, True, False, False]
    half, wrapper, model, _ = steps_with(AmpOptimWrapper, options, count=4)
    rest, _, _, _ = steps_with(
        AmpOptimWrapper, options, first=4, model=model.state_dict(), wrapper=wrapper.state_dict()
    )
    for (scale, mine), (other_scale, theirs) in zip(half + rest, found, strict=True):
        assert scale == other_scale
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
