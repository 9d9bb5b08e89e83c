"""What the heads of both hosts do for a whole batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .losses import gathered_losses, masked_losses
from .predictions import Predictions, decode, flatten
from .targets import assign, constant

Levels = Sequence[Tensor]


class BatchHead:
    """Beside mmdet's `YOLOXHead`, whose modules and attributes it reads."""

    # mmdet's CrossEntropyLoss, IoULoss and L1Loss, and its mean of a tensor over the ranks.
    loss_kinds: tuple[type, type, type]
    mean_over_ranks: Callable[[Tensor], Tensor]
    # Of mmdet's head.
    assigner: Any
    prior_generator: Any
    use_l1: bool

    def _flatten(self, cls_scores: Levels, bbox_preds: Levels, objectnesses: Levels) -> Predictions:
        generator = self.prior_generator
        return flatten(cls_scores, bbox_preds, objectnesses, generator.strides, generator.offset)

    def _losses(
        self,
        cls_scores: Levels,
        bbox_preds: Levels,
        objectnesses: Levels,
        gt_boxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        device = cls_scores[0].device.type
        with torch.autocast(device, enabled=False):
            flat = self._flatten(cls_scores, bbox_preds, objectnesses)
            return self._batch_loss(flat, gt_boxes, gt_labels, static_shapes=device != "cpu")

    def _batch_loss(
        self, predictions: Predictions, gt_boxes: Sequence[Tensor], gt_labels: Sequence[Tensor], static_shapes: bool
    ) -> dict[str, Tensor]:
        """The losses; by masks if `static_shapes`, else at the positives alone."""
        boxes = decode(predictions.box_preds, predictions.priors)
        # An accelerator waits for nothing if shapes are static; losses of a config's own choice are asked as they are.
        static_shapes = static_shapes and self._has_standard_losses()
        assignment = assign(
            predictions.cls_logits.detach(),
            predictions.obj_logits.detach(),
            boxes.detach(),
            predictions.centers,
            gt_boxes,
            gt_labels,
            self.assigner.parameters,
            bucketed=static_shapes,
        )
        modules = self._loss_modules()
        if not static_shapes:
            losses, count = gathered_losses(predictions, boxes, assignment, modules)
            num_total_samples = self.mean_over_ranks(count).clamp(min=1.0)
            return {name: loss / num_total_samples for name, loss in losses.items()}
        of_boxes = modules["loss_bbox"]
        losses, count = masked_losses(predictions, boxes, assignment, of_boxes.mode, of_boxes.eps, self.use_l1)
        weights = constant(tuple(float(modules[name].loss_weight) for name in losses), count.dtype, count.device)
        scaled = torch.stack(list(losses.values())) * (weights / self.mean_over_ranks(count).clamp(min=1.0))
        return dict(zip(losses, scaled.unbind(), strict=True))

    def _loss_modules(self) -> dict[str, Any]:
        names = ("loss_cls", "loss_bbox", "loss_obj", *(["loss_l1"] if self.use_l1 else []))
        return {name: getattr(self, name) for name in names}

    def _has_standard_losses(self) -> bool:
        """Whether the losses are of the kinds that `masked_losses` knows, with whatever weights."""
        cross_entropy, iou, l1 = self.loss_kinds
        kinds = {"loss_cls": cross_entropy, "loss_obj": cross_entropy, "loss_bbox": iou, "loss_l1": l1}
        modules = self._loss_modules()
        if any(type(loss) is not kinds[name] for name, loss in modules.items()):
            return False
        classifiers = (modules["loss_cls"], modules["loss_obj"])
        return all(loss.reduction == "sum" for loss in modules.values()) and all(
            loss.use_sigmoid and loss.class_weight is loss.ignore_index is None for loss in classifiers
        )


def connected(losses: dict[str, Tensor], *predictions: Levels) -> dict[str, Tensor]:
    """The losses, of which those that are constants depend on the predictions.

    The loss of no boxes is a constant 0. Every parameter needs a gradient on every rank, or DistributedDataParallel
    waits for it; an empty slice is 0 and its gradient is 0 even at infinite predictions.
    """
    if all(loss.requires_grad for loss in losses.values()):
        return losses
    nothing = sum(level[:0].sum() for levels in predictions for level in levels)
    return {name: loss if loss.requires_grad else loss + nothing for name, loss in losses.items()}


def is_usual_nms(nms: Any) -> bool:
    """Whether `yolox_ops.yolox_detect` does what this config asks mmcv's NMS for. Soft-NMS, class-agnostic NMS and the
    like stay with mmcv."""
    return (
        {"type", "iou_threshold", "max_num", "split_thr"}.issuperset(nms)
        and nms.get("type", "nms") == "nms"
        and 0 <= nms.get("iou_threshold", 0) <= 1
    )


def is_followed(*predictions: Levels) -> bool:
    """Whether gradients of detections may be asked for, or an exporter traces them."""
    return torch._C._get_tracing_state() is not None or (
        torch.is_grad_enabled() and any(level.requires_grad for levels in predictions for level in levels)
    )
