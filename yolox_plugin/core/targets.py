"""YOLOX's training targets for a whole batch. Needs torch and yolox_ops only."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from yolox_ops import SimOTAParameters, simota_assign

P = ParamSpec("P")
T = TypeVar("T")


class Assignment(NamedTuple):
    """Which gt each prior belongs to; B images, P priors, at most G gts an image."""

    gt_index: Tensor  # [B, P] int64, -1 for background
    iou: Tensor  # [B, P] with that gt, 0 for background
    gt_boxes: Tensor  # [B, G, 4] (x1, y1, x2, y2), pixels, padded with 0
    gt_labels: Tensor  # [B, G] int64, padded with 0


class Targets(NamedTuple):
    """What the losses compare with at the N positives of a batch with C classes."""

    positives: Tensor  # [N] int64, ascending, into the B * P priors of the batch laid end to end
    classes: Tensor  # [N, C]: the IoU with the gt at the gt's class, 0 elsewhere
    objectness: Tensor  # [B * P, 1]: 1 at the positives
    boxes: Tensor  # [N, 4] (x1, y1, x2, y2), pixels


def carry(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device, without waiting for either: only pinned memory is copied behind the host's back."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def remembered(make: Callable[P, T]) -> Callable[P, T]:
    """Keeps the last 32 results of a function that makes tensors, for training and evaluation alike."""
    kept: Any = functools.lru_cache(maxsize=32)(make)

    @functools.wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if type(torch.empty(0)) is not Tensor:  # under a mode such as that of fake tensors, which end with it
            return make(*args, **kwargs)
        with torch.inference_mode(False):  # training could not use a tensor that was made within it
            result: T = kept(*args, **kwargs)
            return result

    vars(call)["kept"] = kept  # for tests
    return call


@remembered
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of these values, carried to the device once."""
    return carry(torch.tensor(values, dtype=dtype), device)


def bucket(count: int) -> int:
    """The least power of two, from 8 on, that holds `count` gts: accelerators compile for each shape they see."""
    return max(8, 1 << (count - 1).bit_length())


def pad_to_bucket(gt_boxes: Sequence[Tensor], gt_labels: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes `[B, G, 4]`, labels `[B, G]` and numbers `[B]` of gts, G being the `bucket` of the most that an image has.

    One launch for the boxes, one for the labels, and a copy of the numbers that is not waited for.
    """
    lengths = [len(labels) for labels in gt_labels]
    size = bucket(max(lengths))

    def filled(gts: Sequence[Tensor], row: tuple[int, ...]) -> Tensor:
        none = constant((0,) * (size * math.prod(row)), gts[0].dtype, gts[0].device).view(size, *row)
        return torch.cat([part for own in gts for part in (own, none[len(own) :])]).view(len(gts), size, *row)

    return filled(gt_boxes, (4,)), filled(gt_labels, ()), carry(torch.tensor(lengths), gt_labels[0].device)


@torch.no_grad()
def assign(
    cls_logits: Tensor,
    obj_logits: Tensor,
    boxes: Tensor,
    centers: Tensor,
    gt_boxes: Sequence[Tensor],
    gt_labels: Sequence[Tensor],
    parameters: SimOTAParameters,
    bucketed: bool = False,
) -> Assignment:
    """SimOTA as in mmdet's `YOLOXHead._get_target_single`, all images in one operator call.

    Args:
        cls_logits: `[B, P, C]`. obj_logits: `[B, P]`. boxes: `[B, P, 4]` decoded (x1, y1, x2, y2), pixels.
        centers: `[P, 4]` (cx, cy, stride_w, stride_h) of the priors' cells, where decoding has the corners.
        gt_boxes: for each image `[G, 4]` (x1, y1, x2, y2), pixels; G may differ and be 0.
        gt_labels: for each image `[G]` in [0, C), of any dtype.
        parameters: see `yolox_ops.simota_assign`.
        bucketed: pad by `pad_to_bucket`, as accelerators want it.

    Raises:
        ValueError: for a wrong shape, device or label. TypeError: for a wrong dtype.
    """
    gt_boxes, gt_labels = [gt.to(boxes.dtype) for gt in gt_boxes], [labels.long() for labels in gt_labels]
    if bucketed:
        padded_boxes, padded_labels, num_gts = pad_to_bucket(gt_boxes, gt_labels)
    else:
        padded_boxes = pad_sequence(gt_boxes, batch_first=True)
        padded_labels = pad_sequence(gt_labels, batch_first=True)
        num_gts = torch.tensor([len(labels) for labels in gt_labels], device=boxes.device)
    gt_index, iou = simota_assign(
        cls_logits.sigmoid().mul_(obj_logits.sigmoid()[..., None]),
        centers,
        boxes,
        padded_boxes,
        padded_labels,
        num_gts,
        *parameters,
    )
    return Assignment(gt_index, iou, padded_boxes, padded_labels)


def assign_image(
    scores: Tensor, centers: Tensor, boxes: Tensor, gt_boxes: Tensor, gt_labels: Tensor, parameters: SimOTAParameters
) -> tuple[Tensor, Tensor, Tensor]:
    """What mmdet's `SimOTAAssigner` finds for one image: of each prior the number of its gt, from 1 on, or 0; the IoU
    with it, or -1e5; its label, or -1.

    Args:
        scores: `[P, C]`, class times objectness. centers: `[P, 4]` (cx, cy, stride_w, stride_h). boxes: `[P, 4]`.
        gt_boxes: `[G, 4]`. gt_labels: `[G]` in [0, C), of any dtype.

    Raises:
        ValueError, TypeError: see `yolox_ops.simota_assign`.
    """
    labels = gt_labels.long()
    counts = torch.tensor([len(gt_boxes)], device=gt_boxes.device)
    gt_index, iou = simota_assign(
        scores[None], _floating(centers), boxes[None], _floating(gt_boxes)[None], labels[None], counts, *parameters
    )
    gt_index, iou = gt_index[0], iou[0]
    positive = gt_index >= 0
    assigned = torch.full_like(gt_index, -1)
    assigned[positive] = labels[gt_index[positive]]
    # mmdet does not mark the overlap of background when there is no positive at all.
    overlaps = torch.where(positive, iou, -100000.0) if positive.any() else iou.to(boxes.dtype)
    return gt_index + 1, overlaps, assigned


def _floating(coordinates: Tensor) -> Tensor:
    return coordinates if coordinates.is_floating_point() else coordinates.float()


@torch.no_grad()
def gather_targets(assignment: Assignment, num_classes: int) -> Targets:
    """The targets of mmdet's `YOLOXHead._get_target_single` for all images; N depends on the assignment."""
    gt_index = assignment.gt_index.flatten()
    is_positive = gt_index >= 0
    positives = is_positive.nonzero()[:, 0]
    iou = assignment.iou.flatten()[positives].to(assignment.gt_boxes.dtype)
    image, gt = positives // assignment.gt_index.shape[1], gt_index[positives]
    classes = iou.new_zeros(len(positives), num_classes)
    classes.scatter_(1, assignment.gt_labels[image, gt][:, None], iou[:, None])
    objectness = is_positive.to(iou.dtype)[:, None]
    return Targets(positives, classes, objectness, assignment.gt_boxes[image, gt])
