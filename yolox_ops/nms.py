"""Class-aware non-maximum suppression, alone and as the end of YOLOX's post-processing."""

import torch
from torch import Tensor

from ._library import check_devices, register_fake


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression within each class, as `torchvision.ops.batched_nms` but by class id, not by shifted boxes.

    Args:
        boxes: `[N, 4]` (x1, y1, x2, y2), floating point; half types are computed in float32.
        scores: `[N]`, floating point. Equal scores keep their order; a NaN ranks first, as in `torch.sort`.
        labels: `[N]` int64, any values.
        iou_threshold: in [0, 1]; a box goes when its IoU with a kept one of its class is greater.

    Returns:
        Indices kept, int64, highest score first.

    Raises:
        ValueError: for a wrong shape, device or threshold. TypeError: for a wrong dtype.
    """
    check_devices(boxes=boxes, scores=scores, labels=labels)
    keep: Tensor = torch.ops.yolox_ops.batched_nms(boxes, scores, labels, iou_threshold)
    return keep


def yolox_detect(
    cls_logits: Tensor,
    obj_logits: Tensor,
    boxes: Tensor,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Threshold, class-aware NMS and cut for a batch, as `mmdet` `YOLOXHead.get_bboxes` after decoding.

    Args:
        cls_logits: `[B, P, C]`, floating point. The label is the first class of the largest logit.
        obj_logits: `[B, P]`. The score is sigmoid(largest class logit) * sigmoid(objectness).
        boxes: `[B, P, 4]` (x1, y1, x2, y2).
        score_threshold: scores at or above it stay; a NaN score goes.
        iou_threshold: in [0, 1].
        max_detections: D, detections at most in an image.

    Returns:
        detections `[B, D, 5]` (x1, y1, x2, y2, score; float32, or float64 for such boxes) padded with 0,
        labels `[B, D]` int64 padded with -1, and counts `[B]` int64, on the CPU whatever the device, where they are
        needed to cut the others.

    Raises:
        ValueError: for a wrong shape, device, threshold or max_detections. TypeError: for a wrong dtype.
    """
    check_devices(cls_logits=cls_logits, obj_logits=obj_logits, boxes=boxes)
    detections, labels, counts = torch.ops.yolox_ops.yolox_detect(
        cls_logits, obj_logits, boxes, score_threshold, iou_threshold, max_detections
    )
    return detections, labels, counts


@register_fake("batched_nms")
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    return labels.new_empty(torch.library.get_ctx().new_dynamic_size())


@register_fake("yolox_detect")
def _(
    cls_logits: Tensor,
    obj_logits: Tensor,
    boxes: Tensor,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch = boxes.shape[0]
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    return (
        boxes.new_empty((batch, max_detections, 5), dtype=dtype),
        boxes.new_empty((batch, max_detections), dtype=torch.int64),
        # torch 2.1 asks with meta tensors, and takes nothing else back.
        boxes.new_empty((batch,), dtype=torch.int64, device="meta" if boxes.device.type == "meta" else "cpu"),
    )
