"""YOLOX's losses for a whole batch: at the positives, or in shapes that depend on no result."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .predictions import Predictions
from .targets import Assignment, constant, gather_targets

Loss = Callable[[Tensor, Tensor], Tensor]


def l1_targets(boxes: Tensor, priors: Tensor) -> Tensor:
    """What `box_preds` would be for boxes (x1, y1, x2, y2), as mmdet's `YOLOXHead._get_l1_target` has it."""
    center, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    return torch.cat([(center - priors[..., :2]) / priors[..., 2:], torch.log(size / priors[..., 2:] + 1e-8)], -1)


def gathered_losses(
    predictions: Predictions, boxes: Tensor, assignment: Assignment, losses: Mapping[str, Loss]
) -> tuple[dict[str, Tensor], Tensor]:
    """The losses of mmdet's `YOLOXHead.loss`, not yet divided by the number of positives, and that number.

    Args:
        boxes: `[B, P, 4]` decoded (x1, y1, x2, y2), pixels.
        assignment: from `targets.assign`.
        losses: of predictions and targets, by mmdet's names: "loss_cls", "loss_bbox", "loss_obj" and, where it is
            wanted, "loss_l1".
    """
    targets = gather_targets(assignment, predictions.cls_logits.shape[2])
    positives = targets.positives
    found = {
        "loss_cls": losses["loss_cls"](predictions.cls_logits.flatten(0, 1)[positives], targets.classes),
        "loss_bbox": losses["loss_bbox"](boxes.flatten(0, 1)[positives], targets.boxes),
        "loss_obj": losses["loss_obj"](predictions.obj_logits.view(-1, 1), targets.objectness),
    }
    if "loss_l1" in losses:
        wanted = l1_targets(targets.boxes, predictions.priors[positives % len(predictions.priors)])
        found["loss_l1"] = losses["loss_l1"](predictions.box_preds.flatten(0, 1)[positives], wanted)
    return found, torch.tensor(len(positives), dtype=torch.float, device=boxes.device)


class KnownIoU(torch.autograd.Function):
    """`yolox_ops.box_iou` of aligned boxes `[N, 4]`, of which the values `[N]` are known; only derived here."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, others: Tensor, iou: Tensor) -> Tensor:
        ctx.save_for_backward(boxes, others)
        return iou.view_as(iou)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        boxes, others = ctx.saved_tensors
        return torch.ops.yolox_ops.box_iou_backward(grad, boxes, others, "iou", True, 1e-6)[0], None, None


def masked_losses(
    predictions: Predictions,
    boxes: Tensor,
    assignment: Assignment,
    iou_mode: str = "square",
    iou_eps: float = 1e-16,
    use_l1: bool = False,
) -> tuple[dict[str, Tensor], Tensor]:
    """The sums of mmdet's standard losses, over all priors with a mask instead of over the positives.

    Nothing here waits for the device or has a shape that depends on a result, which is what an accelerator wants. On a
    CPU, gathering the positives is faster. The IoU of a positive is the assignment's, so a box with a NaN or infinite
    side counts as one that does not overlap; its gradient is NaN, as ever.

    Args:
        boxes: `[B, P, 4]` decoded (x1, y1, x2, y2), pixels.
        assignment: from `targets.assign`.
        iou_mode, iou_eps: mmdet's `IoULoss(mode, eps)`.
        use_l1: add `loss_l1`.

    Returns:
        The sums by mmdet's names, with neither loss weights nor division by the number of positives, and that number.
    """
    cls_logits, box_preds, obj_logits, priors, _ = predictions
    gt_index, gt_boxes, gt_labels = assignment.gt_index, assignment.gt_boxes, assignment.gt_labels
    iou = assignment.iou.to(boxes.dtype)
    positive = gt_index >= 0
    mask = positive.to(cls_logits.dtype)
    # Rows of the gts of all images laid end to end: an accelerator copies those faster than it gathers image by image.
    most = gt_labels.shape[1]
    first = constant(tuple(range(0, gt_labels.numel(), most)), gt_index.dtype, gt_index.device)
    row = (gt_index + first[:, None]).clamp_(min=0).flatten()
    labels = gt_labels.flatten().index_select(0, row).view(gt_index.shape)
    wanted = gt_boxes.flatten(0, 1).index_select(0, row)
    classes = constant(tuple(range(cls_logits.shape[2])), labels.dtype, labels.device)
    target = (classes == labels[..., None]) * iou[..., None]
    # What does not count is replaced before the loss, not multiplied by 0 after it: 0 * inf is NaN.
    inside = positive[..., None]
    own = torch.where(inside, boxes, wanted.view_as(boxes)).flatten(0, 1)
    overlap: Tensor = KnownIoU.apply(own, wanted, iou.flatten())  # type: ignore[no-untyped-call]
    if iou_mode == "square" and iou_eps <= 1e-6:  # (1 - IoU^2), where clamping makes no difference
        box_loss = torch.addcmul(constant((1,), overlap.dtype, overlap.device), overlap, overlap, value=-1)
    else:
        overlap = torch.where(positive.flatten(), overlap.clamp(min=iou_eps), 1.0)  # 0 * -log(0) would be NaN
        box_loss = -overlap.log() if iou_mode == "log" else 1 - (overlap if iou_mode == "linear" else overlap**2)
    losses = {
        "loss_cls": F.binary_cross_entropy_with_logits(cls_logits, target, weight=mask[..., None], reduction="sum"),
        "loss_bbox": torch.dot(box_loss, mask.flatten()),
        "loss_obj": F.binary_cross_entropy_with_logits(obj_logits, mask, reduction="sum"),
    }
    if use_l1:
        losses["loss_l1"] = (box_preds - l1_targets(wanted.view_as(boxes), priors)).masked_fill(~inside, 0).abs().sum()
    return losses, mask.sum()


def _mean(value: Any) -> Any:
    return value.mean() if value.dim() else value


def parse(losses: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to derive, and what to log, on the device: the mean over the ranks of each value, and of their sum.

    Args:
        losses: tensors or lists of tensors. Of those with "loss" in their names the sum is derived.

    Raises:
        TypeError: for anything else.
    """
    values: dict[str, Tensor] = {}
    for name, value in losses.items():
        if not isinstance(value, (Tensor, list)):
            raise TypeError(f"{name} is not a tensor or list of tensors")
        values[name] = sum(_mean(v) for v in value) if isinstance(value, list) else _mean(value)
    total = torch.stack([value for name, value in values.items() if "loss" in name]).sum()
    logged = torch.stack([*values.values(), total]).detach()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(logged.div_(dist.get_world_size()))
    return total, dict(zip([*values, "loss"], logged.unbind(), strict=True))
