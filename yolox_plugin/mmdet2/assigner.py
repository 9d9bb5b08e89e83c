"""MMDetection's SimOTAAssigner on `yolox_ops.simota_assign`."""

from typing import Any

import torch
from mmdet.core.bbox.assigners import AssignResult
from mmdet.core.bbox.assigners import SimOTAAssigner as StockSimOTAAssigner
from torch import Tensor

from yolox_ops import SimOTAParameters

from ..core.targets import assign_image
from ..patches import has_own

# What a subclass, or a patch, may put something else in the place of, and `simota_assign` does not ask.
PIECES = ("_assign", "get_in_gt_and_in_center_info", "dynamic_k_matching")


class SimOTAAssigner(StockSimOTAAssigner):
    """The same arguments and results as the stock class, for one image; nothing of size [priors, gts, classes].

    One argument more: `keep_every_gt=True` lets no gt go without a positive because others took all its priors
    (open-mmlab/mmdetection#8628); see `yolox_ops.simota_assign`. Off by default, as stock does not do it.
    """

    def __init__(self, *args: Any, keep_every_gt: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep_every_gt = keep_every_gt

    @property
    def parameters(self) -> SimOTAParameters:
        return SimOTAParameters(
            self.center_radius, self.candidate_topk, self.cls_weight, self.iou_weight, self.keep_every_gt
        )

    def assign(
        self,
        pred_scores: Tensor,
        priors: Tensor,
        decoded_bboxes: Tensor,
        gt_bboxes: Tensor,
        gt_labels: Tensor | None,
        gt_bboxes_ignore: Tensor | None = None,
        eps: float = 1e-7,
    ) -> AssignResult:
        """See the stock class, whose own code computes what the operator does not: another eps, gradients of the
        overlaps, no labels, boxes that are not [P, 4], and what a subclass has put in the place of a piece of it.
        Ignored boxes have no effect there either.

        Raises:
            ValueError: for labels outside of [0, classes), which stock notices only when a prior is near a gt.
        """
        wants_gradient = torch.is_grad_enabled() and (decoded_bboxes.requires_grad or gt_bboxes.requires_grad)
        unusual = eps != 1e-7 or decoded_bboxes.shape != (len(priors), 4)
        unusual = unusual or has_own(self, PIECES) or has_own(StockSimOTAAssigner, ["assign"])
        if unusual or wants_gradient or gt_labels is None:
            if self.keep_every_gt:
                raise ValueError(
                    "keep_every_gt=True needs eps=1e-7, labels, [P, 4] boxes, no gradient and stock's own methods"
                )
            return super().assign(
                pred_scores, priors, decoded_bboxes, gt_bboxes, gt_labels, gt_bboxes_ignore=gt_bboxes_ignore, eps=eps
            )
        found = assign_image(pred_scores, priors, decoded_bboxes, gt_bboxes, gt_labels, self.parameters)
        gt_inds, overlaps, labels = found
        return AssignResult(len(gt_bboxes), gt_inds, overlaps, labels=labels)


def is_plain(assigner: Any) -> bool:
    """Whether it assigns as `simota_assign` does: nobody has put anything in the place of a piece of it."""
    return (
        type(assigner) is SimOTAAssigner
        and not has_own(assigner, ["assign", *PIECES])
        and not has_own(StockSimOTAAssigner, ["assign"])
    )
