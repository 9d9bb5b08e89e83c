"""Box overlaps."""

import torch
from torch import Tensor

from ._library import check_devices, register_fake


def box_iou(boxes1: Tensor, boxes2: Tensor, mode: str = "iou", aligned: bool = False, eps: float = 1e-6) -> Tensor:
    """Overlap of boxes (x1, y1, x2, y2), as `mmdet.core.bbox_overlaps`. Differentiable.

    Args:
        boxes1: `[M, 4]`, float16, bfloat16, float32 or float64. Half types are computed in float32 and rounded once;
            under autocast they are cast to float32.
        boxes2: `[N, 4]` of the same dtype; `[M, 4]` when aligned.
        mode: "iou", "iof" (over the area of boxes1) or "giou".
        aligned: pair box i with box i instead of with every box.
        eps: least value of the divisor, in square pixels.

    Returns:
        `[M, N]`, or `[M]` when aligned. A NaN coordinate gives NaN.

    Raises:
        ValueError: for a wrong shape, device, mode or negative eps. TypeError: for a wrong dtype.
    """
    check_devices(boxes1=boxes1, boxes2=boxes2)
    result: Tensor = torch.ops.yolox_ops.box_iou(boxes1, boxes2, mode, aligned, eps)
    return result


@register_fake("box_iou")
def _(boxes1: Tensor, boxes2: Tensor, mode: str, aligned: bool, eps: float) -> Tensor:
    return boxes1.new_empty((boxes1.shape[0],) if aligned else (boxes1.shape[0], boxes2.shape[0]))


@register_fake("box_iou_backward")
def _(grad: Tensor, boxes1: Tensor, boxes2: Tensor, mode: str, aligned: bool, eps: float) -> tuple[Tensor, Tensor]:
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)
