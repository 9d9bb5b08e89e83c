"""MMDetection's SimOTAAssigner on `yolox_ops.simota_assign`."""

from typing import Any

import torch
from mmdet.core.bbox.assigners import AssignResult
from mmdet.core.bbox.assigners import SimOTAAssigner as StockSimOTAAssigner
from torch import Tensor

from yolox_ops import simota_assign


class SimOTAAssigner(StockSimOTAAssigner):
    """The same arguments and results as the stock class, for one image; nothing of size [priors, gts, classes].

    One argument more: `keep_every_gt=True` lets no gt go without a positive because others took all its priors
    (open-mmlab/mmdetection#8628); see `yolox_ops.simota_assign`. Off by default, as stock does not do it.
    """

    def __init__(self, *args: Any, keep_every_gt: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep_every_gt = keep_every_gt

    def assign(
        self,
        pred_scores: Tensor,
        priors: Tensor,
        decoded_bboxes: Tensor,
        gt_bboxes: Tensor,
        gt_labels: Tensor,
        gt_bboxes_ignore: Tensor | None = None,
        eps: float = 1e-7,
    ) -> AssignResult:
        """See the stock class. Ignored boxes have no effect there either."""
        if eps != 1e-7:
            raise ValueError(f"eps must be 1e-7, as YOLOXHead leaves it, got {eps}")
        counts = torch.tensor([len(gt_bboxes)], device=gt_bboxes.device)
        gt_index, iou = simota_assign(
            pred_scores[None],
            priors,
            decoded_bboxes[None],
            gt_bboxes[None],
            gt_labels[None],
            counts,
            center_radius=self.center_radius,
            candidate_topk=self.candidate_topk,
            cls_weight=self.cls_weight,
            iou_weight=self.iou_weight,
            keep_every_gt=self.keep_every_gt,
        )
        gt_index, iou = gt_index[0], iou[0]
        positive = gt_index >= 0
        labels = torch.full_like(gt_index, -1)
        labels[positive] = gt_labels[gt_index[positive]]
        # Stock marks the overlap of background with -1e5, but not when there is no positive at all.
        overlaps = torch.where(positive, iou, -100000.0) if positive.any() else iou
        return AssignResult(len(gt_bboxes), gt_index + 1, overlaps, labels=labels)
