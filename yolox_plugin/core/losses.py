"""YOLOX's losses for a whole batch in shapes that depend on no result. Needs torch and yolox_ops only."""

import torch
import torch.nn.functional as F
from torch import Tensor

from yolox_ops import box_iou

from .targets import Assignment, constant


def masked_losses(
    cls_logits: Tensor,
    box_preds: Tensor,
    obj_logits: Tensor,
    boxes: Tensor,
    priors: Tensor,
    assignment: Assignment,
    iou_mode: str = "square",
    iou_eps: float = 1e-16,
    use_l1: bool = False,
) -> tuple[dict[str, Tensor], Tensor]:
    """The loss sums of mmdet's `YOLOXHead.loss`, over all priors with a mask instead of over the positives.

    Nothing here waits for the device or has a shape that depends on a result, which is what an accelerator wants. On a
    CPU, gathering the positives is faster.

    Args:
        cls_logits: `[B, P, C]`. box_preds: `[B, P, 4]`, not decoded. obj_logits: `[B, P]`.
        boxes: `[B, P, 4]` decoded (x1, y1, x2, y2), pixels. priors: `[P, 4]` (x, y, stride_w, stride_h).
        assignment: from `targets.assign`.
        iou_mode, iou_eps: mmdet's `IoULoss(mode, eps)`.
        use_l1: add `loss_l1`.

    Returns:
        The sums by mmdet's names, with neither loss weights nor division by the number of positives, and that number.
    """
    gt_index, iou, gt_boxes, gt_labels = assignment
    positive = gt_index >= 0
    mask = positive.to(cls_logits.dtype)
    row = gt_index.clamp(min=0)
    labels = gt_labels.gather(1, row)
    wanted = gt_boxes.gather(1, row[..., None].expand(-1, -1, 4))
    classes = constant(tuple(range(cls_logits.shape[2])), labels.dtype, labels.device)
    target = (classes == labels[..., None]) * iou[..., None].to(mask.dtype)
    # What does not count is replaced before the loss, not multiplied by 0 after it: 0 * inf is NaN.
    inside = positive[..., None]
    overlap = box_iou(torch.where(inside, boxes, wanted).flatten(0, 1), wanted.flatten(0, 1), aligned=True)
    if iou_mode == "square":  # (1 - IoU^2), where clamping at mmdet's eps makes no difference
        box_loss = torch.addcmul(constant((1,), overlap.dtype, overlap.device), overlap, overlap, value=-1)
    else:
        overlap = overlap.clamp(min=iou_eps)
        box_loss = 1 - overlap if iou_mode == "linear" else -overlap.log()
    losses = {
        "loss_cls": F.binary_cross_entropy_with_logits(cls_logits, target, weight=mask[..., None], reduction="sum"),
        "loss_bbox": torch.dot(box_loss, mask.flatten()),
        "loss_obj": F.binary_cross_entropy_with_logits(obj_logits, mask, reduction="sum"),
    }
    if use_l1:
        center, size = (wanted[..., :2] + wanted[..., 2:]) / 2, wanted[..., 2:] - wanted[..., :2]
        offsets = torch.cat([(center - priors[:, :2]) / priors[:, 2:], torch.log(size / priors[:, 2:] + 1e-8)], -1)
        losses["loss_l1"] = (box_preds - offsets).masked_fill(~inside, 0).abs().sum()
    return losses, mask.sum()
