"""MMDetection 3's SimOTAAssigner on `yolox_ops.simota_assign`."""

from typing import Any

import torch
from mmdet.models.task_modules.assigners import AssignResult, BboxOverlaps2D
from mmdet.models.task_modules.assigners import SimOTAAssigner as StockSimOTAAssigner
from mmengine.structures import InstanceData
from torch import Tensor

from yolox_ops import SimOTAParameters

from ..core.targets import assign_image
from ..patches import has_own

# What a subclass, or a patch, may put something else in the place of, and `simota_assign` does not ask.
PIECES = ("get_in_gt_and_in_center_info", "dynamic_k_matching")


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
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        **kwargs: Any,
    ) -> AssignResult:
        """See the stock class, whose own code computes what the operator does not: gradients of the overlaps, boxes
        that are not [P, 4] tensors, overlaps of a config's own kind, and what a subclass has put in the place of a
        piece of it. Ignored boxes have no effect there either.

        Raises:
            ValueError: for labels outside of [0, classes), which stock notices only when a prior is near a gt.
        """
        boxes, gt_boxes = pred_instances.bboxes, gt_instances.bboxes
        priors = pred_instances.priors
        unusual = not isinstance(boxes, Tensor) or not isinstance(gt_boxes, Tensor) or boxes.shape != (len(priors), 4)
        unusual = unusual or not is_plain(self)
        if unusual or (torch.is_grad_enabled() and (boxes.requires_grad or gt_boxes.requires_grad)):
            if self.keep_every_gt:
                raise ValueError("keep_every_gt=True needs [P, 4] boxes, no gradient and stock's own methods")
            return super().assign(pred_instances, gt_instances, gt_instances_ignore, **kwargs)
        # The root of these squares, which the operator takes, is the given root again, to the bit.
        scores = pred_instances.scores.square()
        found = assign_image(scores, priors, boxes, gt_boxes, gt_instances.labels, self.parameters)
        gt_inds, overlaps, labels = found
        return AssignResult(len(gt_boxes), gt_inds, overlaps, labels=labels)


def is_plain(assigner: Any) -> bool:
    """Whether it assigns as `simota_assign` does: nobody has put anything in the place of a piece of it."""
    return (
        type(assigner) is SimOTAAssigner
        and type(assigner.iou_calculator) is BboxOverlaps2D
        and not has_own(assigner, ["assign", *PIECES])
        and not has_own(StockSimOTAAssigner, ["assign"])
    )
