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

from yolox_ops import yolox_detect

from ..core.losses import masked_losses
from ..core.targets import assign, carry, constant, decode, gather_targets, remembered
from ..patches import has_own
from .assigner import is_plain

_PREDICTIONS = ("cls_scores", "bbox_preds", "objectnesses")
# What a subclass may put something else in the place of, or a patch: the code for whole batches does not ask them.
_LOSS_PIECES = ("_bbox_decode", "_get_target_single", "_get_l1_target")
_DETECTION_PIECES = ("_bbox_decode", "_bboxes_nms")


@remembered  # they change with the image size, of which multi-scale training has about ten
def _priors(
    strides: tuple[tuple[int, int], ...],
    offset: float,
    sizes: tuple[tuple[int, ...], ...],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Priors (x, y, stride_w, stride_h), which are the corners of cells, and the cells' centers (cx, cy, stride_w,
    stride_h), `[P, 4]` each, of levels of these sizes."""
    generator = MlvlPointGenerator(strides, offset)
    priors = torch.cat(generator.grid_priors(sizes, dtype, device, with_stride=True))
    # Assignment looks at the center of a cell, decoding starts from its corner.
    return priors, torch.cat([priors[:, :2] + priors[:, 2:] * 0.5, priors[:, 2:]], 1)


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
                    *self._flatten(cls_scores, bbox_preds, objectnesses),
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
        self,
        cls_logits: Tensor,
        box_preds: Tensor,
        obj_logits: Tensor,
        priors: Tensor,
        centers: Tensor,
        gt_bboxes: list[Tensor],
        gt_labels: list[Tensor],
        static_shapes: bool,
    ) -> dict[str, Tensor]:
        """The losses from flattened predictions; by masks if `static_shapes`, else at the positives alone."""
        boxes = decode(box_preds, priors)
        # An accelerator waits for nothing if shapes are static; losses of a config's own choice are asked as they are.
        static_shapes = static_shapes and self._has_standard_losses()
        assignment = assign(
            cls_logits.detach(),
            obj_logits.detach(),
            boxes.detach(),
            centers,
            gt_bboxes,
            gt_labels,
            self.assigner.parameters,
            bucketed=static_shapes,
        )
        if static_shapes:
            losses, count = masked_losses(
                cls_logits,
                box_preds,
                obj_logits,
                boxes,
                priors,
                assignment,
                self.loss_bbox.mode,
                self.loss_bbox.eps,
                self.use_l1,
            )
            weights = constant(
                tuple(float(getattr(self, name).loss_weight) for name in losses), count.dtype, count.device
            )
            scaled = torch.stack(list(losses.values())) * (weights / reduce_mean(count).clamp(min=1.0))
            losses = dict(zip(losses, scaled.unbind(), strict=True))
        else:
            targets = gather_targets(assignment, self.num_classes)
            positives = targets.positives
            count = torch.tensor(len(positives), dtype=torch.float, device=boxes.device)
            losses = {
                "loss_cls": self.loss_cls(cls_logits.flatten(0, 1)[positives], targets.classes),
                "loss_bbox": self.loss_bbox(boxes.flatten(0, 1)[positives], targets.boxes),
                "loss_obj": self.loss_obj(obj_logits.view(-1, 1), targets.objectness),
            }
            if self.use_l1:
                l1_targets = self._get_l1_target(
                    torch.empty_like(targets.boxes), targets.boxes, priors[positives % len(priors)]
                )
                losses["loss_l1"] = self.loss_l1(box_preds.flatten(0, 1)[positives], l1_targets)
            num_total_samples = reduce_mean(count).clamp(min=1.0)
            losses = {name: loss / num_total_samples for name, loss in losses.items()}
        return losses

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
        cls_logits, box_preds, obj_logits, priors, _ = self._flatten(cls_scores, bbox_preds, objectnesses)
        boxes = decode(box_preds, priors)
        if rescale:
            assert img_metas is not None
            factors = torch.tensor(np.array([meta["scale_factor"] for meta in img_metas]), dtype=boxes.dtype)
            boxes = boxes / carry(factors, boxes.device)[:, None]
        max_num = cfg.nms.get("max_num", -1)
        detections, labels, counts = yolox_detect(
            cls_logits,
            obj_logits,
            boxes,
            cfg.score_thr,
            cfg.nms["iou_threshold"],
            min(max_num, len(priors)) if max_num > 0 else len(priors),
        )
        return [(detections[i, :n], labels[i, :n]) for i, n in enumerate(counts.tolist())]

    def _flatten(
        self, cls_scores: list[Tensor], bbox_preds: list[Tensor], objectnesses: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All levels side by side: class logits [B, P, C], box predictions [B, P, 4], objectness logits [B, P], priors
        and their cells' centers [P, 4]. In float32 at least: bfloat16 knows no pixel beyond 256."""
        cls_logits, box_preds, obj_logits = (
            torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in levels], 1)
            for levels in (cls_scores, bbox_preds, objectnesses)
        )
        if cls_logits.dtype in (torch.float16, torch.bfloat16):
            cls_logits, box_preds, obj_logits = cls_logits.float(), box_preds.float(), obj_logits.float()
        sizes = tuple(tuple(level.shape[2:]) for level in cls_scores)
        generator = self.prior_generator
        priors = _priors(tuple(generator.strides), generator.offset, sizes, cls_logits.dtype, cls_logits.device)
        return cls_logits, box_preds, obj_logits.squeeze(2), *priors
