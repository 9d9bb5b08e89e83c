"""MMDetection's SimOTAAssigner on `yolox_ops.simota_assign`."""

import torch
from mmdet.core.bbox.assigners import AssignResult
from mmdet.core.bbox.assigners import SimOTAAssigner as StockSimOTAAssigner
from torch import Tensor

from yolox_ops import simota_assign


class SimOTAAssigner(StockSimOTAAssigner):
    """The same arguments and results as the stock class, for one image; nothing of size [priors, gts, classes]."""

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
        )
        gt_index, iou = gt_index[0], iou[0]
        positive = gt_index >= 0
        labels = torch.full_like(gt_index, -1)
        labels[positive] = gt_labels[gt_index[positive]]
        # Stock marks the overlap of background with -1e5, but not when there is no positive at all.
        overlaps = torch.where(positive, iou, -100000.0) if positive.any() else iou
        return AssignResult(len(gt_bboxes), gt_index + 1, overlaps, labels=labels)
