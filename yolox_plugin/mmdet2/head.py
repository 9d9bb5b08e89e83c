"""MMDetection's YOLOXHead with targets and post-processing for the whole batch at once."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmcv import ConfigDict
from mmcv.runner import force_fp32
from mmdet.core import MlvlPointGenerator, reduce_mean
from mmdet.core.bbox.samplers import PseudoSampler
from mmdet.models.dense_heads import YOLOXHead as StockYOLOXHead
from mmdet.models.losses import CrossEntropyLoss, IoULoss, L1Loss
from torch import Tensor

from ..core.losses import gathered_losses, masked_losses
from ..core.predictions import Predictions, decode, detect, flatten
from ..core.targets import assign, carry, constant
from ..patches import has_own
from .assigner import is_plain

_PREDICTIONS = ("cls_scores", "bbox_preds", "objectnesses")
# What a subclass may put something else in the place of, or a patch: the code for whole batches does not ask them.
_LOSS_PIECES = ("_bbox_decode", "_get_target_single", "_get_l1_target")
_DETECTION_PIECES = ("_bbox_decode", "_bboxes_nms")


class YOLOXHead(StockYOLOXHead):
    """Layers, weights, losses and results of the stock class. See there for the arguments of each method.

    Losses and detections are at least float32, whatever the network's precision. What a subclass or a config has put in
    the place of a piece of the stock class (assigner, sampler, priors, decoding, targets, NMS) is asked by the stock
    class's own code.
    """

    @force_fp32(apply_to=_PREDICTIONS)  # type: ignore[untyped-decorator]
    def loss(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        objectnesses: list[Tensor],
        gt_bboxes: list[Tensor],
        gt_labels: list[Tensor],
        img_metas: list[dict[str, Any]],
        gt_bboxes_ignore: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        # Somebody's own assigner, a subclass included, decides for itself.
        if (
            is_plain(self.assigner)
            and type(self.sampler) is PseudoSampler
            and not has_own(self.sampler, ["sample"])
            and type(self.prior_generator) is MlvlPointGenerator
            and not has_own(self, _LOSS_PIECES)
            and not has_own(StockYOLOXHead, ["loss"])
        ):
            with torch.autocast(cls_scores[0].device.type, enabled=False):
                losses = self._batch_loss(
                    self._flatten(cls_scores, bbox_preds, objectnesses),
                    gt_bboxes,
                    gt_labels,
                    static_shapes=cls_scores[0].device.type != "cpu",
                )
        else:
            losses = super().loss(
                cls_scores, bbox_preds, objectnesses, gt_bboxes, gt_labels, img_metas, gt_bboxes_ignore
            )
        if not dist.is_available() or not dist.is_initialized() or all(loss.requires_grad for loss in losses.values()):
            return losses
        # The loss of no boxes is a constant 0 in MMDetection. Every parameter needs a gradient on every rank, or
        # DistributedDataParallel waits for it; an empty slice is 0 and its gradient is 0 even at infinite predictions.
        nothing = sum(level[:0].sum() for levels in (cls_scores, bbox_preds, objectnesses) for level in levels)
        return {name: loss if loss.requires_grad else loss + nothing for name, loss in losses.items()}

    def _batch_loss(
        self, predictions: Predictions, gt_bboxes: list[Tensor], gt_labels: list[Tensor], static_shapes: bool
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
            gt_bboxes,
            gt_labels,
            self.assigner.parameters,
            bucketed=static_shapes,
        )
        if static_shapes:
            losses, count = masked_losses(
                predictions, boxes, assignment, self.loss_bbox.mode, self.loss_bbox.eps, self.use_l1
            )
            weights = constant(
                tuple(float(getattr(self, name).loss_weight) for name in losses), count.dtype, count.device
            )
            scaled = torch.stack(list(losses.values())) * (weights / reduce_mean(count).clamp(min=1.0))
            return dict(zip(losses, scaled.unbind(), strict=True))
        names = ("loss_cls", "loss_bbox", "loss_obj", *(["loss_l1"] if self.use_l1 else []))
        losses, count = gathered_losses(predictions, boxes, assignment, {name: getattr(self, name) for name in names})
        num_total_samples = reduce_mean(count).clamp(min=1.0)
        return {name: loss / num_total_samples for name, loss in losses.items()}

    def _has_standard_losses(self) -> bool:
        """Whether the losses are of the kinds that `masked_losses` knows, with whatever weights."""

        def is_bce(loss: Any) -> bool:
            return (
                type(loss) is CrossEntropyLoss and loss.use_sigmoid and loss.class_weight is loss.ignore_index is None
            )

        return (
            is_bce(self.loss_cls)
            and is_bce(self.loss_obj)
            and type(self.loss_bbox) is IoULoss
            and type(self.loss_l1) is L1Loss
            and all(loss.reduction == "sum" for loss in (self.loss_cls, self.loss_obj, self.loss_bbox, self.loss_l1))
        )

    @force_fp32(apply_to=_PREDICTIONS)  # type: ignore[untyped-decorator]
    def get_bboxes(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        objectnesses: list[Tensor],
        img_metas: list[dict[str, Any]] | None = None,
        cfg: ConfigDict | None = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> list[tuple[Tensor, Tensor]]:
        cfg = self.test_cfg if cfg is None else cfg
        # Soft-NMS, class-agnostic NMS and the like stay with mmcv; gradients and what exporters trace with stock.
        if (
            not {"type", "iou_threshold", "max_num", "split_thr"}.issuperset(cfg.nms)
            or cfg.nms.get("type", "nms") != "nms"
            or type(self.prior_generator) is not MlvlPointGenerator
            or has_own(self, _DETECTION_PIECES)
            or has_own(StockYOLOXHead, ["get_bboxes"])
            or torch._C._get_tracing_state() is not None
            or not 0 <= cfg.nms.get("iou_threshold", 0) <= 1
            or (torch.is_grad_enabled() and any(t.requires_grad for t in (*cls_scores, *bbox_preds, *objectnesses)))
        ):
            stock: list[tuple[Tensor, Tensor]] = super().get_bboxes(
                cls_scores, bbox_preds, objectnesses, img_metas, cfg, rescale, with_nms
            )
            return stock
        factors = None
        if rescale:
            assert img_metas is not None
            scales = np.array([meta["scale_factor"] for meta in img_metas])
            factors = torch.tensor(scales, dtype=torch.promote_types(bbox_preds[0].dtype, torch.float32))
            factors = carry(factors, bbox_preds[0].device)
        return detect(
            self._flatten(cls_scores, bbox_preds, objectnesses),
            cfg.score_thr,
            cfg.nms["iou_threshold"],
            cfg.nms.get("max_num", -1),
            factors,
        )

    def _flatten(self, cls_scores: list[Tensor], bbox_preds: list[Tensor], objectnesses: list[Tensor]) -> Predictions:
        generator = self.prior_generator
        return flatten(cls_scores, bbox_preds, objectnesses, generator.strides, generator.offset)
