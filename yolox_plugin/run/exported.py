"""A detector as what an ONNX file has of it: images in, boxes and scores out, in operators of ONNX alone."""

from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.models.dense_heads import YOLOXHead
from mmdet.models.detectors import YOLOX
from torch import Tensor, nn

from yolox_ops import batched_nms

from ..core.head import is_usual_nms
from ..core.predictions import decode, flatten
from ..patches import has_own
from .messages import InputError


class Thresholds(NamedTuple):
    """Of a detector's suppression."""

    score: float  # of this or more
    iou: float
    max_detections: int  # of an image; 0 for all


def thresholds_of(model: Any) -> Thresholds | None:
    """What a YOLOX's test_cfg asks for; None if that is more than ONNX's suppression does, as soft-NMS."""
    cfg = model.bbox_head.test_cfg
    if not cfg or not is_usual_nms(cfg.nms):
        return None
    return Thresholds(cfg.score_thr, cfg.nms["iou_threshold"], max(cfg.nms.get("max_num", 0), 0))


class Exported(nn.Module):
    """What is exported of a YOLOX.

    Args:
        model: a YOLOX of either host, prepared for inference on the CPU.
        size: (height, width) of its images, pixels.
        thresholds: for `detections`.
        suppresses: whether `forward` returns them as well.

    Raises:
        InputError: the model is something else.
    """

    priors: Tensor

    def __init__(
        self, model: Any, size: tuple[int, int], thresholds: Thresholds | None = None, suppresses: bool = False
    ) -> None:
        super().__init__()
        head = getattr(model, "bbox_head", None)
        if not (isinstance(model, YOLOX) and isinstance(head, YOLOXHead)) or has_own(head, ["_bbox_decode"]):
            raise InputError(
                "only MMDetection's YOLOX with its own head is exported: the config's model is"
                f" {type(model).__name__} with {type(head).__name__}"
            )
        self.model, self.thresholds, self.suppresses = model, thresholds, suppresses
        # While a network is traced, sizes are no numbers: what follows from them is made before.
        with torch.no_grad():
            levels = head(model.extract_feat(torch.zeros(1, 3, *size)))
        self.channels = [int(level[0].shape[1]) for level in levels]
        self.cells = [level.shape[2] * level.shape[3] for level in levels[0]]
        generator, (cls_scores, bbox_preds, objectnesses) = head.prior_generator, levels
        flat = flatten(cls_scores, bbox_preds, objectnesses, generator.strides, generator.offset)
        self.register_buffer("priors", flat.priors, persistent=False)
        self.eval()  # or torch's exporter puts everything back into the mode for training

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Boxes `[N, P, 4]` (x1, y1, x2, y2), pixels, and scores `[N, P, C]`, class times objectness, for images
        `[N, 3, H, W]`; `detections` as well if they are wanted."""
        levels = self.model.bbox_head(self.model.extract_feat(images))
        cls_logits, box_preds, obj_logits = map(self._joined, levels, self.channels)
        boxes = decode(box_preds, self.priors)
        scores = cls_logits.sigmoid() * obj_logits.sigmoid()
        return (boxes, scores, self.detections(boxes, scores)) if self.suppresses else (boxes, scores)

    def _joined(self, levels: Any, channels: int) -> Tensor:
        """Levels `[N, channels, h, w]` as `[N, P, channels]`."""
        parts = [level.reshape(-1, channels, cells) for level, cells in zip(levels, self.cells, strict=True)]
        return torch.cat(parts, 2).transpose(1, 2)

    def detections(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """What MMDetection's post-processing leaves of `forward`'s: `[N, D, 6]` (x1, y1, x2, y2, score, class), highest
        score first; rows of zeros are none. D is the most that an image may have."""
        assert self.thresholds is not None
        priors, classes = len(self.priors), self.channels[0]
        most = min(self.thresholds.max_detections or priors, priors)
        best, labels = scores.max(2)  # of a prior, MMDetection keeps the best class alone
        is_label = labels[:, None] == torch.arange(classes)[:, None]
        by_class = torch.where(is_label, best[:, None], torch.tensor(-1.0))
        found = _Suppression.apply(boxes, by_class, most, self.thresholds)  # type: ignore[no-untyped-call]
        places = found[:, 0] * priors + found[:, 2]
        flat = best.reshape(-1)
        kept = (flat * 0).scatter(0, places, flat.gather(0, places)).reshape(-1, priors)
        highest, order = kept.topk(most)
        rows = torch.cat([boxes, kept[..., None], labels[..., None].to(boxes.dtype)], 2)
        rows = rows.gather(1, torch.cat([order[..., None]] * 6, 2))
        return torch.where(highest[..., None] > 0, rows, torch.tensor(0.0))


class _Suppression(torch.autograd.Function):
    """ONNX's NonMaxSuppression, which torch has not: `[M, 3]` (image, class, prior) of boxes `[N, P, 4]` and scores
    `[N, C, P]`."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, most: int, thresholds: Thresholds) -> Tensor:
        found = []
        for image in range(len(boxes)):
            best, labels = scores[image].max(0)
            places = (best >= thresholds.score).nonzero()[:, 0]
            kept = batched_nms(boxes[image][places], best[places], labels[places], thresholds.iou)
            places = places[kept]  # all, as `detections` cuts an image's; `most` is ONNX's for each class
            found.append(torch.stack([torch.full_like(places, image), labels[places], places], 1))
        return torch.cat(found)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, most: int, thresholds: Thresholds) -> Any:
        # ONNX asks for scores above the threshold, MMDetection for those at it, too.
        below = np.nextafter(np.float32(thresholds.score), np.float32(-1))
        limits = (torch.tensor([most]), torch.tensor([thresholds.iou]), torch.tensor([float(below)]))
        return g.op("NonMaxSuppression", boxes, scores, *(g.op("Constant", value_t=limit) for limit in limits))
