"""The plugin's head, detector and hooks on the simulated NPU: the losses of the CPU, and no wait."""

import logging
from types import SimpleNamespace

import pytest
import torch
from batches import CONFIGS
from device import SOC, recorded
from mmcv import Config, ConfigDict
from mmcv.runner import HOOKS, build_optimizer
from mmdet.models import build_detector
from scenes import batch

import yolox_plugin
from yolox_plugin import network
from yolox_plugin.mmdet2.head import YOLOXHead
from yolox_plugin.mmdet2.runner import DeferredLogBuffer
from yolox_plugin.protocol import Moment


def new_head():
    torch.manual_seed(0)
    head = YOLOXHead(
        num_classes=20, in_channels=16, feat_channels=16,
        train_cfg=ConfigDict(assigner={"type": "SimOTAAssigner", "center_radius": 2.5}),
        test_cfg=ConfigDict(score_thr=0.01, nms={"type": "nms", "iou_threshold": 0.65}),
    )  # fmt: skip
    head.init_weights()
    return head.train()


def gts(counts, size=160):
    _, boxes, labels = batch(1, counts, size)
    return boxes, [label % 20 for label in labels]


def features(size=160, images=3):
    g = torch.Generator().manual_seed(3)
    return [torch.randn(images, 16, size // s, size // s, generator=g) for s in (8, 16, 32)]


def losses_on(device, head, counts):
    head = head.to(device)
    boxes, labels = ([t.to(device) for t in part] for part in gts(counts))
    inputs = [f.to(device) for f in features(images=len(counts))]
    outputs = head(inputs)
    with recorded() as forward:
        losses = head.loss(*outputs, boxes, labels, [{}] * len(counts))
    with recorded() as backward:
        sum(losses.values()).backward()
    gradients = {n: torch.zeros(p.shape) if p.grad is None else p.grad.cpu() for n, p in head.named_parameters()}
    return {name: loss.detach().cpu() for name, loss in losses.items()}, gradients, forward, backward


@pytest.mark.parametrize("use_l1", [False, True])
@pytest.mark.parametrize("counts", [(5, 9, 2), (0, 12), (0, 0), (30,)], ids=lambda c: "-".join(map(str, c)))
def test_losses_and_gradients_are_those_of_the_cpu_and_nothing_waits(counts, use_l1):
    results = []
    for device in ("cpu", "npu"):
        head = new_head()
        head.use_l1 = use_l1
        results.append(losses_on(device, head, counts))
    (expected, their_gradients, _, _), (losses, gradients, forward, backward) = results
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        scale = float(their_gradients[name].abs().max())
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-3, atol=1e-5 * scale + 1e-7, msg=name)
    for record in (forward, backward):
        assert not record.waits(), "\n".join(map(str, record.waits()))
        assert not record.dynamic(), "\n".join(map(str, record.dynamic()))
        assert not record.aicpu(), "\n".join(map(str, record.aicpu()))


def test_launches_do_not_depend_on_the_number_of_gts(record_property):
    counts = {}
    for n in (10, 30, 60, 120):
        head = new_head()
        losses_on("npu", head, (n,) * 8)  # priors and the like are made once
        record = losses_on("npu", head, (n,) * 8)[2]
        record_property(f"head.loss, 8 x {n} gts", record.counts())
        counts[n] = len(record.launches())
    assert len(set(counts.values())) == 1
    assert counts[30] <= {"A2": 115, "910A": 157}[SOC]
    assert len(record.strided()) <= 14


def test_a_wait_is_found_and_its_place_named(monkeypatch):
    """What this simulation is for: somebody adds one .item() to the loss."""
    from yolox_plugin.core import head as module

    masked_losses = module.masked_losses

    def careless(*args, **kwargs):
        losses, count = masked_losses(*args, **kwargs)
        return losses, count * (count.item() > 0)

    monkeypatch.setattr(module, "masked_losses", careless)
    record = losses_on("npu", new_head(), (5, 9))[2]
    [wait] = record.waits()
    assert wait.name == "_local_scalar_dense"
    assert wait.place.startswith("tests/npu_sim/test_training.py:")


def test_detections_are_those_of_the_cpu_by_one_copy_down_and_one_back(record_property):
    """And no operator of mmcv: the head that the seed rebuilds mmcv-full for."""
    results = []
    for device in ("cpu", "npu"):
        head = new_head().to(device).eval()
        with torch.no_grad():
            cls, box, obj = head([f.to(device) for f in features()])
            outputs = [level * 3 + 12 for level in cls], box, [level * 3 + 12 for level in obj]
            metas = [{"scale_factor": [1.0 + i] * 4} for i in range(3)]
            with recorded() as record:
                found = head.get_bboxes(*outputs, img_metas=metas, rescale=True)
        results.append([(boxes.cpu(), labels.cpu()) for boxes, labels in found])
    record_property("get_bboxes, 3 images", record.counts())
    assert sum(len(labels) for _, labels in results[0]) > 20
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-4)
    waiting = sorted(call.copy for call in record.waits())
    assert waiting == ["to device", "to host"], record.waits()


class Trainer:
    """Detector, optimizer and moving average of the standard nano config on a device."""

    def __init__(self, device):
        cfg = Config.fromfile(str(CONFIGS / "yolox_nano_8x8_300e_coco.py"))
        self.device = device
        self.model = build_detector({**cfg.model, "input_size": (96, 96), "random_size_range": (2, 4)})
        self.model.init_weights()
        self.model.to(device).train()
        self.model.start_epoch(Moment(seed=1, iteration=8))  # the image size changes on the way
        self.optimizer = build_optimizer(self.model, cfg.optimizer)
        self.hook = HOOKS.get("ExpMomentumEMAHook")(momentum=0.01)
        self.runner = SimpleNamespace(model=self.model, iter=0, logger=logging.getLogger("test"))
        self.hook.before_run(self.runner)
        self.log = DeferredLogBuffer()

    def step(self, seed):
        image, boxes, labels = batch(seed, (4, 0), 96)
        data = {
            "img": image.to(self.device), "gt_bboxes": [b.to(self.device) for b in boxes],
            "gt_labels": [label.to(self.device) for label in labels], "img_metas": [{"img_shape": (96, 96, 3)}] * 2,
        }  # fmt: skip
        with recorded() as record:
            outputs = self.model.train_step(data, self.optimizer)
            self.optimizer.zero_grad()
            outputs["loss"].backward()
            self.optimizer.step()
            self.hook.after_train_iter(self.runner)
            self.log.update(outputs["log_vars"], outputs["num_samples"])
        self.runner.iter += 1
        return record


def test_steps_of_a_whole_detector(record_property, monkeypatch):
    """Forward, loss, backward, SGD, moving average and logging: from the same weights, each step gives what it gives on
    the CPU, and none waits."""
    # The CPU's norms of a device: of a few pixels, the last bits of others show in the weights.
    monkeypatch.setattr(network, "_CPU_HAS_FMA", False)
    theirs, ours = Trainer("cpu"), Trainer("npu")
    for step in range(4):
        ours.model.load_state_dict(theirs.model.state_dict())
        ours.optimizer.load_state_dict(theirs.optimizer.state_dict())
        theirs.step(step)
        record = ours.step(step)
        assert not record.waits(), "\n".join(map(str, record.waits()))
        assert not record.dynamic(), "\n".join(map(str, record.dynamic()))
        for name, value in theirs.model.state_dict().items():
            scale = float(value.float().abs().max())
            torch.testing.assert_close(
                ours.model.state_dict()[name].cpu(), value, rtol=1e-3, atol=1e-4 * scale + 1e-6,
                msg=lambda m, n=name: f"{n}: {m}",
            )  # fmt: skip
    record_property("a whole step of YOLOX-nano", record.counts())
    with recorded() as record:
        ours.log.average(4)
    assert len(record.waits()) == 1  # all losses of all steps at once
    theirs.log.average(4)
    assert dict(ours.log.output) == pytest.approx(dict(theirs.log.output), rel=1e-4)


def test_kernels_are_not_compiled_for_every_shape():
    torch.npu.set_compile_mode(jit_compile=True)
    assert not torch.npu.is_jit_compile_false()
    yolox_plugin.parts.prepare_npu()
    assert torch.npu.is_jit_compile_false()
