"""The losses by masks, for accelerators, are those at the positives."""

import pytest
import torch
import torch.nn.functional as F
from scenes import batch, predictions

from yolox_ops import SimOTAParameters, box_iou
from yolox_plugin.core.losses import gathered_losses, masked_losses
from yolox_plugin.core.predictions import decode, flatten
from yolox_plugin.core.targets import assign

STRIDES = ((8, 8), (16, 16), (32, 32))


def square_iou(boxes, wanted):
    return (1 - box_iou(boxes, wanted, aligned=True) ** 2).sum()


def cross_entropy(logits, wanted):
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")


STANDARD = {
    "loss_cls": cross_entropy,
    "loss_bbox": square_iou,
    "loss_obj": cross_entropy,
    "loss_l1": lambda ours, wanted: (ours - wanted).abs().sum(),
}


def losses(levels, boxes, labels, masked, kinds=STANDARD, **options):
    flat = flatten(*levels, STRIDES, 0)
    decoded = decode(flat.box_preds, flat.priors)
    detached = (flat.cls_logits.detach(), flat.obj_logits.detach(), decoded.detach())
    found = assign(*detached, flat.centers, boxes, labels, SimOTAParameters(), bucketed=masked)
    if masked:
        return masked_losses(flat, decoded, found, use_l1=True, **options)
    return gathered_losses(flat, decoded, found, kinds)


@pytest.mark.parametrize("counts", [(5, 9, 2), (0, 12), (0, 0), (30,)], ids=lambda c: "-".join(map(str, c)))
def test_masked_losses_and_gradients_are_those_at_the_positives(counts):
    _, boxes, labels = batch(1, counts, 160)
    results = []
    for masked in (False, True):
        levels = predictions(2, boxes, labels, 160)
        values, count = losses(levels, boxes, labels, masked)
        leaves = [level for kind in levels for level in kind]
        total = sum(values.values())
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        results.append((values, count, [torch.zeros(()) if g is None else g for g in gradients]))
    (expected, number, theirs), (values, count, ours) = results
    assert count == number and (count > 0) == any(counts)
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value, rtol=1e-5, atol=1e-4, msg=name)
    for gradient, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, other.expand_as(gradient), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("eps", [0.0, 1e-16, 0.3])
@pytest.mark.parametrize("mode", ["linear", "square", "log"])
def test_masked_iou_losses_have_the_modes_of_mmdet(mode, eps):
    """The places without a gt, whose IoU is 0, add nothing, whatever the mode makes of 0."""
    _, boxes, labels = batch(1, (6, 3), 160)
    levels = predictions(2, boxes, labels, 160)
    values, count = losses(levels, boxes, labels, masked=True, iou_mode=mode, iou_eps=eps)
    leaves = [level for kind in levels for level in kind]

    def of_mmdet(ours, wanted):
        iou = box_iou(ours, wanted, aligned=True).clamp(min=eps)
        return {"linear": 1 - iou, "square": 1 - iou**2, "log": -iou.log()}[mode].sum()

    expected = losses(levels, boxes, labels, masked=False, kinds=STANDARD | {"loss_bbox": of_mmdet})[0]["loss_bbox"]
    assert count > 0
    torch.testing.assert_close(values["loss_bbox"], expected, rtol=1e-5, atol=1e-5)
    pair = [torch.autograd.grad(loss, leaves, allow_unused=True) for loss in (values["loss_bbox"], expected)]
    for gradient, other in zip(*pair, strict=True):
        if other is not None:
            torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5)


def test_an_infinite_box_at_a_positive_has_a_gradient_that_loss_scaling_notices():
    _, boxes, labels = batch(1, (6,), 160)
    levels = predictions(2, boxes, labels, 160)
    for level in levels[1]:
        level.data[:, 2:] = 100.0  # exp(100) has no float32
    values, count = losses(levels, boxes, labels, masked=True)
    assert count > 0
    gradients = torch.autograd.grad(values["loss_bbox"], levels[1])
    assert not all(gradient.isfinite().all() for gradient in gradients)
