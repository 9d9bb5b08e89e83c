"""MMDetection 3's YOLOXHead with targets and post-processing for the whole batch at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.dense_heads import YOLOXHead as StockYOLOXHead
from mmdet.models.losses import CrossEntropyLoss, IoULoss, L1Loss
from mmdet.models.task_modules.prior_generators import MlvlPointGenerator
from mmdet.models.task_modules.samplers import PseudoSampler
from mmdet.utils import reduce_mean
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from ..core.head import BatchHead, connected, is_followed, is_usual_nms
from ..core.predictions import detect
from ..core.targets import carry
from ..patches import has_own
from .assigner import is_plain

# What a subclass may put something else in the place of, or a patch: the code for whole batches does not ask them.
_LOSS_PIECES = ("_bbox_decode", "_get_targets_single", "_get_l1_target")
_DETECTION_PIECES = ("_bbox_decode", "_bbox_post_process")


class YOLOXHead(StockYOLOXHead, BatchHead):
    """Layers, weights, losses and results of the stock class. See there for the arguments of each method.

    Losses and detections are at least float32, whatever the network's precision: stock 3 decodes in bfloat16 under
    autocast, where no pixel beyond 256 can be told from its neighbour. What a subclass or a config has put in the place
    of a piece of the stock class (assigner, sampler, priors, decoding, targets, NMS) is asked by the stock class's own
    code.
    """

    loss_kinds = (CrossEntropyLoss, IoULoss, L1Loss)
    mean_over_ranks = staticmethod(reduce_mean)

    def loss_by_feat(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        objectnesses: Sequence[Tensor],
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict[str, Any]],
        batch_gt_instances_ignore: Sequence[InstanceData] | None = None,
    ) -> dict[str, Tensor]:
        # Somebody's own assigner, a subclass included, decides for itself.
        if (
            is_plain(self.assigner)
            and type(self.sampler) is PseudoSampler
            and not has_own(self.sampler, ["sample"])
            and type(self.prior_generator) is MlvlPointGenerator
            and not has_own(self, _LOSS_PIECES)
            and not has_own(StockYOLOXHead, ["loss_by_feat"])
            and all(isinstance(gt.bboxes, Tensor) for gt in batch_gt_instances)
        ):
            boxes, labels = [gt.bboxes for gt in batch_gt_instances], [gt.labels for gt in batch_gt_instances]
            losses = self._losses(cls_scores, bbox_preds, objectnesses, boxes, labels)
            return connected(losses, cls_scores, bbox_preds, objectnesses)
        stock: dict[str, Tensor] = super().loss_by_feat(
            cls_scores, bbox_preds, objectnesses, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        )
        return stock

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        objectnesses: list[Tensor] | None,
        batch_img_metas: list[dict[str, Any]] | None = None,
        cfg: ConfigDict | None = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> list[InstanceData]:
        cfg = self.test_cfg if cfg is None else cfg
        assert objectnesses is not None and batch_img_metas is not None
        if (
            not with_nms
            or not is_usual_nms(cfg.nms)
            or type(self.prior_generator) is not MlvlPointGenerator
            or has_own(self, _DETECTION_PIECES)
            or has_own(StockYOLOXHead, ["predict_by_feat"])
            or is_followed(cls_scores, bbox_preds, objectnesses)
        ):
            stock: list[InstanceData] = super().predict_by_feat(
                cls_scores, bbox_preds, objectnesses, batch_img_metas, cfg, rescale, with_nms
            )
            return stock
        factors = None
        if rescale:
            scales = np.array([[*meta["scale_factor"], *meta["scale_factor"]] for meta in batch_img_metas])  # (w, h)
            factors = torch.tensor(scales, dtype=torch.promote_types(bbox_preds[0].dtype, torch.float32))
            factors = carry(factors, bbox_preds[0].device)
        with torch.autocast(bbox_preds[0].device.type, enabled=False):
            found = detect(
                self._flatten(cls_scores, bbox_preds, objectnesses),
                cfg.score_thr,
                cfg.nms["iou_threshold"],
                cfg.nms.get("max_num", -1),
                factors,
            )
        return [InstanceData(bboxes=boxes[:, :4], scores=boxes[:, 4], labels=labels) for boxes, labels in found]
