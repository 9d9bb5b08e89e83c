"""YOLOX's training targets for a whole batch. Needs torch and yolox_ops only."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from yolox_ops import simota_assign


class Targets(NamedTuple):
    """What the losses compare with; N positives in a batch of B images with P priors and C classes."""

    positives: Tensor  # [N] int64, ascending, into the B * P priors of the batch laid end to end
    classes: Tensor  # [N, C]: the IoU with the gt at the gt's class, 0 elsewhere
    objectness: Tensor  # [B * P, 1]: 1 at the positives
    boxes: Tensor  # [N, 4] (x1, y1, x2, y2), pixels


@torch.no_grad()
def simota_targets(
    cls_logits: Tensor,
    obj_logits: Tensor,
    boxes: Tensor,
    priors: Tensor,
    gt_boxes: Sequence[Tensor],
    gt_labels: Sequence[Tensor],
    center_radius: float = 2.5,
    candidate_topk: int = 10,
    cls_weight: float = 1.0,
    iou_weight: float = 3.0,
) -> Targets:
    """The targets of mmdet's `YOLOXHead._get_target_single`, all images in one operator call.

    Args:
        cls_logits: `[B, P, C]`. obj_logits: `[B, P]`. boxes: `[B, P, 4]` decoded (x1, y1, x2, y2), pixels.
        priors: `[P, 4]` (x, y, stride_w, stride_h) without offset, as they are for decoding; assignment looks at the
            middle of the cell.
        gt_boxes: for each image `[G, 4]` (x1, y1, x2, y2), pixels; G may differ and be 0.
        gt_labels: for each image `[G]` int64 in [0, C).
        center_radius, candidate_topk, cls_weight, iou_weight: see `yolox_ops.simota_assign`.

    Raises:
        ValueError: for a wrong shape, device or label. TypeError: for a wrong dtype.
    """
    num_priors, num_classes = cls_logits.shape[1:]
    counts = torch.tensor([len(labels) for labels in gt_labels], device=boxes.device)
    padded_boxes = pad_sequence([gt.to(boxes.dtype) for gt in gt_boxes], batch_first=True)
    padded_labels = pad_sequence(list(gt_labels), batch_first=True)
    centers = torch.cat([priors[:, :2] + priors[:, 2:] * 0.5, priors[:, 2:]], 1)
    scores = cls_logits.sigmoid().mul_(obj_logits.sigmoid()[..., None])
    gt_index, iou = simota_assign(
        scores,
        centers,
        boxes,
        padded_boxes,
        padded_labels,
        counts,
        center_radius,
        candidate_topk,
        cls_weight,
        iou_weight,
    )
    gt_index = gt_index.flatten()
    is_positive = gt_index >= 0
    positives = is_positive.nonzero()[:, 0]
    image, gt = positives // num_priors, gt_index[positives]
    classes = cls_logits.new_zeros(len(positives), num_classes)
    classes.scatter_(1, padded_labels[image, gt][:, None], iou.flatten()[positives][:, None].to(classes.dtype))
    objectness = is_positive.to(obj_logits.dtype)[:, None]
    return Targets(positives, classes, objectness, padded_boxes[image, gt])
