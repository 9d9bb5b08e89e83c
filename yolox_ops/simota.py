"""SimOTA, YOLOX's dynamic label assignment (Ge et al., 2021), with the semantics of mmdet's `SimOTAAssigner`."""

from typing import NamedTuple

import torch
from torch import Tensor

from ._library import check_devices, register_fake


class SimOTAParameters(NamedTuple):
    """The parameters of `simota_assign`, which explains each, with MMDetection's defaults."""

    center_radius: float = 2.5
    candidate_topk: int = 10
    cls_weight: float = 1.0
    iou_weight: float = 3.0
    keep_every_gt: bool = False


DEFAULTS = SimOTAParameters()


def simota_cost(
    scores: Tensor,
    centers: Tensor,
    boxes: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    center_radius: float = DEFAULTS.center_radius,
    cls_weight: float = DEFAULTS.cls_weight,
    iou_weight: float = DEFAULTS.iou_weight,
) -> tuple[Tensor, Tensor]:
    """The SimOTA cost and IoU matrices of one image, a row for every prior.

    cost = cls_weight * sum over classes of BCE(sqrt(score), one-hot label) - iou_weight * log(IoU + 1e-7), and 1e5
    more where the prior is not in both the gt box and its centre region. A NaN IoU counts as 0, a NaN cost (a score
    outside [0, 1], for instance) as +inf.

    Args:
        scores: `[P, C]` in [0, 1], class probability times objectness.
        centers: `[P, 4]` (cx, cy, stride_w, stride_h) of the priors' cells, pixels.
        boxes: `[P, 4]` predicted (x1, y1, x2, y2), pixels.
        gt_boxes: `[G, 4]` (x1, y1, x2, y2), pixels.
        gt_labels: `[G]` int64 in [0, C).
        center_radius: half the side of the centre region, in strides.
        cls_weight, iou_weight: at least 0.

    Returns:
        cost and IoU, `[P, G]` float32 each; no gradient.

    Raises:
        ValueError: for a wrong shape, device, label or weight. TypeError: for a wrong dtype.
    """
    check_devices(scores=scores, centers=centers, boxes=boxes, gt_boxes=gt_boxes, gt_labels=gt_labels)
    with torch.no_grad():
        cost, iou = torch.ops.yolox_ops.simota_cost(
            scores, centers, boxes, gt_boxes, gt_labels, center_radius, cls_weight, iou_weight
        )
    return cost, iou


def simota_assign(
    scores: Tensor,
    centers: Tensor,
    boxes: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    num_gts: Tensor,
    center_radius: float = DEFAULTS.center_radius,
    candidate_topk: int = DEFAULTS.candidate_topk,
    cls_weight: float = DEFAULTS.cls_weight,
    iou_weight: float = DEFAULTS.iou_weight,
    keep_every_gt: bool = DEFAULTS.keep_every_gt,
) -> tuple[Tensor, Tensor]:
    """SimOTA for a batch.

    Candidates are the priors inside a gt box or a gt centre region. Each gt takes its k cheapest candidates, k being
    the sum of its `candidate_topk` largest IoUs, rounded down, at least 1. A prior that several gts take goes to the gt
    of least cost over all gts. Equal costs: the lowest prior index, the lowest gt index.

    Args:
        scores: `[B, P, C]` in [0, 1], class probability times objectness.
        centers: `[P, 4]` (cx, cy, stride_w, stride_h) of the priors' cells, pixels.
        boxes: `[B, P, 4]` predicted (x1, y1, x2, y2), pixels.
        gt_boxes: `[B, G, 4]` (x1, y1, x2, y2), pixels; rows from num_gts[b] on are padding and never read.
        gt_labels: `[B, G]` int64 in [0, C).
        num_gts: `[B]` int64 in [0, G].
        center_radius, cls_weight, iou_weight: see `simota_cost`.
        candidate_topk: at least 1.
        keep_every_gt: a gt that loses all its priors to cheaper gts (open-mmlab/mmdetection#8628) gets the cheapest one
            that nobody took and that lies in its own box or centre region; the lower gt index chooses first.

    Returns:
        gt_index `[B, P]` int64, -1 for background, and the IoU with that gt, `[B, P]` float32, 0 for background.
        No gradient.

    Raises:
        ValueError: for a wrong shape, device, label, count or weight. TypeError: for a wrong dtype.
    """
    check_devices(scores=scores, centers=centers, boxes=boxes, gt_boxes=gt_boxes, gt_labels=gt_labels, num_gts=num_gts)
    with torch.no_grad():
        gt_index, iou = torch.ops.yolox_ops.simota_assign(
            scores,
            centers,
            boxes,
            gt_boxes,
            gt_labels,
            num_gts,
            center_radius,
            candidate_topk,
            cls_weight,
            iou_weight,
            keep_every_gt,
        )
    return gt_index, iou


@register_fake("simota_cost")
def _(
    scores: Tensor,
    centers: Tensor,
    boxes: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    center_radius: float,
    cls_weight: float,
    iou_weight: float,
) -> tuple[Tensor, Tensor]:
    cost = scores.new_empty((scores.shape[0], gt_boxes.shape[0]), dtype=torch.float32)
    return cost, torch.empty_like(cost)


@register_fake("simota_assign")
def _(
    scores: Tensor,
    centers: Tensor,
    boxes: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    num_gts: Tensor,
    center_radius: float,
    candidate_topk: int,
    cls_weight: float,
    iou_weight: float,
    keep_every_gt: bool,
) -> tuple[Tensor, Tensor]:
    shape = scores.shape[:2]
    return scores.new_empty(shape, dtype=torch.int64), scores.new_empty(shape, dtype=torch.float32)
