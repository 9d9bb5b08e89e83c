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

from ..core.head import BatchHead, connected, is_followed, is_usual_nms
from ..core.predictions import detect
from ..core.targets import carry
from ..patches import has_own
from .assigner import is_plain

_PREDICTIONS = ("cls_scores", "bbox_preds", "objectnesses")
# What a subclass may put something else in the place of, or a patch: the code for whole batches does not ask them.
_LOSS_PIECES = ("_bbox_decode", "_get_target_single", "_get_l1_target")
_DETECTION_PIECES = ("_bbox_decode", "_bboxes_nms")


class YOLOXHead(StockYOLOXHead, BatchHead):
    """Layers, weights, losses and results of the stock class. See there for the arguments of each method.

    Losses and detections are at least float32, whatever the network's precision. What a subclass or a config has put in
    the place of a piece of the stock class (assigner, sampler, priors, decoding, targets, NMS) is asked by the stock
    class's own code.
    """

    loss_kinds = (CrossEntropyLoss, IoULoss, L1Loss)
    mean_over_ranks = staticmethod(reduce_mean)

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
            losses = self._losses(cls_scores, bbox_preds, objectnesses, gt_bboxes, gt_labels)
        else:
            losses = super().loss(
                cls_scores, bbox_preds, objectnesses, gt_bboxes, gt_labels, img_metas, gt_bboxes_ignore
            )
        is_alone = not dist.is_available() or not dist.is_initialized()
        return losses if is_alone else connected(losses, cls_scores, bbox_preds, objectnesses)

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
        if (
            not is_usual_nms(cfg.nms)
            or type(self.prior_generator) is not MlvlPointGenerator
            or has_own(self, _DETECTION_PIECES)
            or has_own(StockYOLOXHead, ["get_bboxes"])
            or is_followed(cls_scores, bbox_preds, objectnesses)
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
