"""What a head predicts for a batch, all levels side by side, and the detections that follow from it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolox_ops import yolox_detect

from .targets import carry, remembered


class Predictions(NamedTuple):
    """Of B images with P priors each and C classes; float32 at least, as bfloat16 knows no pixel beyond 256."""

    cls_logits: Tensor  # [B, P, C]
    box_preds: Tensor  # [B, P, 4], not decoded
    obj_logits: Tensor  # [B, P]
    priors: Tensor  # [P, 4] (x, y, stride_w, stride_h), pixels: the corners of cells, from which decoding starts
    centers: Tensor  # [P, 4] (cx, cy, stride_w, stride_h), pixels: the cells' centers, which assignment looks at


def flatten(
    cls_scores: Sequence[Tensor],
    bbox_preds: Sequence[Tensor],
    objectnesses: Sequence[Tensor],
    strides: Sequence[tuple[int, int]],
    offset: float,
) -> Predictions:
    """The predictions of a head.

    Args:
        cls_scores, bbox_preds, objectnesses: for each level `[B, C, H, W]`, `[B, 4, H, W]` and `[B, 1, H, W]`.
        strides: for each level (w, h), pixels.
        offset: of a prior from the corner of its cell, in strides.
    """
    cls_logits, box_preds, obj_logits = (
        torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in levels], 1)
        for levels in (cls_scores, bbox_preds, objectnesses)
    )
    if cls_logits.dtype in (torch.float16, torch.bfloat16):
        cls_logits, box_preds, obj_logits = cls_logits.float(), box_preds.float(), obj_logits.float()
    sizes = tuple((level.shape[2], level.shape[3]) for level in cls_scores)
    grid = grid_priors(tuple(strides), offset, sizes, cls_logits.dtype, cls_logits.device)
    return Predictions(cls_logits, box_preds, obj_logits.squeeze(2), *grid)


@remembered  # they change with the image size, of which multi-scale training has about ten
def grid_priors(
    strides: tuple[tuple[int, int], ...],
    offset: float,
    sizes: tuple[tuple[int, int], ...],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """`Predictions.priors`, to the bit as mmdet's `MlvlPointGenerator`, and `centers`, of levels of these sizes (h, w)
    and strides (w, h); made on the host, as an Ascend 910A casts whole numbers on its AI CPU."""
    levels = []
    for (width, height), (rows, columns) in zip(strides, sizes, strict=True):
        x = ((torch.arange(columns) + offset) * width).to(dtype).expand(rows, columns)
        y = ((torch.arange(rows) + offset) * height).to(dtype)[:, None].expand(rows, columns)
        grid = torch.stack([x, y, torch.full_like(x, width), torch.full_like(y, height)], -1)
        levels.append(grid.view(-1, 4))
    priors = torch.cat(levels)
    centers = torch.cat([priors[:, :2] + priors[:, 2:] * 0.5, priors[:, 2:]], 1)
    return carry(priors, device), carry(centers, device)


def decode(box_preds: Tensor, priors: Tensor) -> Tensor:
    """Boxes `[B, P, 4]` (x1, y1, x2, y2) of predictions `[B, P, 4]` for priors `[P, 4]` (x, y, stride_w, stride_h), to
    the bit as mmdet's `YOLOXHead._bbox_decode`, in fewer steps."""
    corner, stride = priors[:, :2], priors[:, 2:]
    offset, log_size = torch.split(box_preds, 2, -1)
    center = offset * stride + corner
    size = log_size.exp() * stride
    return torch.cat([center.sub(size, alpha=0.5), center.add(size, alpha=0.5)], -1)  # a half is exact


def detect(
    predictions: Predictions,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    scale_factors: Tensor | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """For each image the detections `[N, 5]` (x1, y1, x2, y2, score) and their labels `[N]`, highest score first.

    Args:
        max_detections: an image's; 0 or less for all.
        scale_factors: `[B, 4]`, on the predictions' device: what boxes are divided by.
    """
    boxes = decode(predictions.box_preds, predictions.priors)
    if scale_factors is not None:
        boxes = boxes / scale_factors[:, None]
    most = len(predictions.priors)
    detections, labels, counts = yolox_detect(
        predictions.cls_logits,
        predictions.obj_logits,
        boxes,
        score_threshold,
        iou_threshold,
        min(max_detections, most) if max_detections > 0 else most,
    )
    return [(detections[i, :n], labels[i, :n]) for i, n in enumerate(counts.tolist())]
