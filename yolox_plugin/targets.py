"""YOLOX's training targets for a whole batch. Needs torch and yolox_ops only."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from yolox_ops import simota_assign


class Assignment(NamedTuple):
    """Which gt each prior belongs to; B images, P priors, at most G gts an image."""

    gt_index: Tensor  # [B, P] int64, -1 for background
    iou: Tensor  # [B, P] with that gt, 0 for background
    gt_boxes: Tensor  # [B, G, 4] (x1, y1, x2, y2), pixels, padded with 0
    gt_labels: Tensor  # [B, G] int64, padded with 0


class Targets(NamedTuple):
    """What the losses compare with at the N positives of a batch with C classes."""

    positives: Tensor  # [N] int64, ascending, into the B * P priors of the batch laid end to end
    classes: Tensor  # [N, C]: the IoU with the gt at the gt's class, 0 elsewhere
    objectness: Tensor  # [B * P, 1]: 1 at the positives
    boxes: Tensor  # [N, 4] (x1, y1, x2, y2), pixels


def bucket(count: int) -> int:
    """The least power of two, from 8 on, that holds `count` gts: accelerators compile for each shape they see."""
    return max(8, 1 << (count - 1).bit_length())


@torch.no_grad()
def assign(
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
    keep_every_gt: bool = False,
    bucketed: bool = False,
) -> Assignment:
    """SimOTA as in mmdet's `YOLOXHead._get_target_single`, all images in one operator call.

    Args:
        cls_logits: `[B, P, C]`. obj_logits: `[B, P]`. boxes: `[B, P, 4]` decoded (x1, y1, x2, y2), pixels.
        priors: `[P, 4]` (x, y, stride_w, stride_h) without offset, as they are for decoding; assignment looks at the
            middle of the cell.
        gt_boxes: for each image `[G, 4]` (x1, y1, x2, y2), pixels; G may differ and be 0.
        gt_labels: for each image `[G]` int64 in [0, C).
        center_radius, candidate_topk, cls_weight, iou_weight, keep_every_gt: see `yolox_ops.simota_assign`.
        bucketed: pad to `bucket` many gts, not to the most that an image has.

    Raises:
        ValueError: for a wrong shape, device or label. TypeError: for a wrong dtype.
    """
    lengths = [len(labels) for labels in gt_labels]
    padded_boxes = pad_sequence([gt.to(boxes.dtype) for gt in gt_boxes], batch_first=True)
    padded_labels = pad_sequence(list(gt_labels), batch_first=True)
    if bucketed:
        missing = bucket(max(lengths)) - max(lengths)
        padded_boxes = torch.nn.functional.pad(padded_boxes, (0, 0, 0, missing))
        padded_labels = torch.nn.functional.pad(padded_labels, (0, missing))
    centers = torch.cat([priors[:, :2] + priors[:, 2:] * 0.5, priors[:, 2:]], 1)
    gt_index, iou = simota_assign(
        cls_logits.sigmoid().mul_(obj_logits.sigmoid()[..., None]),
        centers,
        boxes,
        padded_boxes,
        padded_labels,
        torch.tensor(lengths, device=boxes.device),
        center_radius,
        candidate_topk,
        cls_weight,
        iou_weight,
        keep_every_gt,
    )
    return Assignment(gt_index, iou, padded_boxes, padded_labels)


@torch.no_grad()
def gather_targets(assignment: Assignment, num_classes: int) -> Targets:
    """The targets of mmdet's `YOLOXHead._get_target_single` for all images; N depends on the assignment."""
    gt_index = assignment.gt_index.flatten()
    is_positive = gt_index >= 0
    positives = is_positive.nonzero()[:, 0]
    iou = assignment.iou.flatten()[positives].to(assignment.gt_boxes.dtype)
    image, gt = positives // assignment.gt_index.shape[1], gt_index[positives]
    classes = iou.new_zeros(len(positives), num_classes)
    classes.scatter_(1, assignment.gt_labels[image, gt][:, None], iou[:, None])
    objectness = is_positive.to(iou.dtype)[:, None]
    return Targets(positives, classes, objectness, assignment.gt_boxes[image, gt])
