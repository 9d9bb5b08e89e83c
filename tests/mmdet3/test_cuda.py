"""The plugin's classes for MMDetection 3 on a GPU beside MMDetection's own."""

import pytest
import torch
from gpu import counted_waits, needs_gpu, no_waits, on_gpu
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from samples import detector, head, instances, train_data
from scenes import batch, predictions
from tiny3 import run, write_config

from yolox_plugin.mmdet3.ema import ExpMomentumEMA
from yolox_plugin.protocol import Moment, TrainingPart
from yolox_plugin.run.demo_data import make_dataset

pytestmark = needs_gpu
SIZE = 320
COUNTS = [(0,), (1,), (10,), (200,), (10, 30), (0, 25, 1), (0, 0)]
IDS = {"ids": lambda gts: "-".join(map(str, gts))}


@pytest.fixture
def heads():
    return [head(stock=stock).cuda() for stock in (True, False)]


def scene(gts):
    _, boxes, labels = batch(3, gts, SIZE)
    metas = [{"scale_factor": (1.5 * (i + 1), 1.25 * (i + 1))} for i in range(len(gts))]
    levels, boxes, labels = on_gpu((predictions(4, boxes, labels, SIZE), boxes, labels))
    return levels, instances(boxes, labels), metas


def losses_and_gradients(head, levels, gt, metas):
    leaves = [[tensor.detach().requires_grad_() for tensor in level] for level in levels]
    losses = head.loss_by_feat(*leaves, gt, metas)
    return losses, torch.autograd.grad(sum(losses.values()), [tensor for level in leaves for tensor in level])


@pytest.mark.parametrize("use_l1", [False, True])
@pytest.mark.parametrize("lower", [None, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gts", COUNTS, **IDS)
def test_losses_and_their_gradients(heads, gts, lower, use_l1):
    """Under autocast, of float32's: what stock 3 computes in half types is its own."""
    levels, gt, metas = scene(gts)
    if lower:
        levels = [[tensor.to(lower) for tensor in level] for level in levels]
    stock, ours = heads
    stock.use_l1 = ours.use_l1 = use_l1
    wide = [[tensor.float() for tensor in level] for level in levels]
    theirs, their_gradients = losses_and_gradients(stock, wide, gt, metas)
    with torch.autocast("cuda", lower, enabled=lower is not None):
        found, gradients = losses_and_gradients(ours, levels, gt, metas)
    assert list(found) == list(theirs) == ["loss_cls", "loss_bbox", "loss_obj", *(["loss_l1"] if use_l1 else [])]
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-6)
    assert [g.dtype for g in gradients] == [lower or torch.float32] * 9
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if lower is None else {"rtol": 1e-2, "atol": 1e-5}
    torch.testing.assert_close(list(gradients), [g.to(lower or g.dtype) for g in their_gradients], **tolerance)


@pytest.mark.parametrize("use_l1", [False, True])
def test_losses_wait_for_nothing(heads, use_l1):
    """Of mmdet's, each gt does."""
    levels, gt, metas = scene((10, 30, 0))
    for each in heads:
        each.use_l1 = use_l1
        losses_and_gradients(each, levels, gt, metas)  # what is remembered is made once
    with no_waits():
        losses_and_gradients(heads[1], levels, gt, metas)
    with counted_waits() as waits:
        losses_and_gradients(heads[0], levels, gt, metas)
    assert len(waits) > 40


@pytest.mark.parametrize("gts", COUNTS, **IDS)
@torch.no_grad()
def test_detections(heads, gts):
    levels, _, metas = scene(gts)
    theirs, ours = (each.predict_by_feat(*levels, metas, rescale=True) for each in heads)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.bboxes.is_cuda
        assert torch.equal(mine.labels, other.labels)
        torch.testing.assert_close(mine.bboxes, other.bboxes, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(mine.scores, other.scores, rtol=1e-5, atol=1e-5)
    assert not any(gts) or max(map(len, ours)) > 0


SGD = {"type": "SGD", "lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_steps_of_a_whole_detector_wait_for_nothing(autocast):
    """From a loader's batch on the CPU to the moving average."""
    model = detector(autocast=autocast).cuda()
    for part in model.modules():
        if isinstance(part, TrainingPart):
            part.start_epoch(Moment(seed=1))
    wrapper = build_optim_wrapper(model, {
        "type": "OptimWrapper", "optimizer": SGD, "paramwise_cfg": {"norm_decay_mult": 0.0, "bias_decay_mult": 0.0},
    })  # fmt: skip
    average = ExpMomentumEMA(model, momentum=0.01, update_buffers=True)

    def step(seed):
        MessageHub.get_current_instance().update_info("iter", seed + 7)  # the image size changes on the way
        outputs = model.train_step(train_data(seed, (4, 0)), wrapper)
        average.update_parameters(model)
        return outputs

    for seed in range(3):
        step(seed)
    with no_waits():
        found = [step(seed) for seed in range(3, 6)]
    assert all(value.isfinite() for outputs in found for value in outputs.values())


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["float32", "float16", "bfloat16"])
def test_training_resume_and_evaluation(tmp_path, amp):
    """Through MMDetection's own tools."""
    changes = ["--cfg-options", "model.test_cfg.score_thr=0.0", f"model.autocast={amp}"]
    options = ["--amp", *changes] if amp == "float16" else changes
    root, work = tmp_path / "data", tmp_path / "work"
    make_dataset(root, train=12, val=2)
    config = write_config(tmp_path / "tiny.py", root, epochs=3)
    printed = run("train", config, "--work-dir", work, *options, CUDA_VISIBLE_DEVICES="0")
    assert "bbox_mAP" in printed
    (work / "epoch_3.pth").unlink()
    (work / "last_checkpoint").write_text(str(work / "epoch_2.pth"))
    printed = run("train", config, "--work-dir", work, "--resume", *options, CUDA_VISIBLE_DEVICES="0")
    assert "resumed epoch: 2" in printed
    arguments = config, work / "epoch_3.pth", "--work-dir", tmp_path / "test", *changes
    printed = run("test", *arguments, CUDA_VISIBLE_DEVICES="0")
    assert "bbox_mAP" in printed
