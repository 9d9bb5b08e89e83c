"""Mixing a partner's image and boxes into an image's."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy import random

from yolox_ops import mixup_blend

from .affine import clip
from .images import Array
from .mosaic import Resize


class Draw(NamedTuple):
    """What is random in a mixture."""

    factor: float  # that the partner's canvas is scaled with
    is_flipped: bool
    offset: tuple[int, int]  # (y, x) of the part of that canvas that is mixed in, pixels


def draw_offset(canvas: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(y, x) in a `canvas` (height, width) of a part of `size`; 0 where it is no larger. In the order of MMDetection's
    draws."""
    y = random.randint(0, canvas[0] - size[0]) if canvas[0] > size[0] else 0
    x = random.randint(0, canvas[1] - size[1]) if canvas[1] > size[1] else 0
    return y, x


def fitted(image: Array, canvas: tuple[int, int], resize: Resize) -> tuple[Array, float]:
    """The image as large as a `canvas` (height, width) has room for, and its scale."""
    height, width = image.shape[:2]
    scale = min(canvas[0] / height, canvas[1] / width)
    size = (int(width * scale), int(height * scale))
    return (image if size == (width, height) else resize(image, size)), scale


def blend(image: Array, partner: Array, canvas: tuple[int, int], draw: Draw, pad_val: int, beyond: int = 0) -> Array:
    """The mean of an image and of a part of the partner's scaled canvas; see `yolox_ops.mixup_blend`.

    Args:
        image, partner: [height, width, 3] uint8, the partner `fitted` to the canvas.
        pad_val: of the canvas where the partner is not; negative for MMDetection's rounding where it has no float.
        beyond: the level of what is beyond the canvas, if that is smaller than the image.
    """
    first, second = (torch.from_numpy(np.ascontiguousarray(part)) for part in (image, partner))
    scaled = scaled_canvas(canvas, draw.factor)
    mixed: Array = mixup_blend(
        first, second, canvas, scaled, draw.offset, draw.is_flipped, pad_val, cv2.ipp.useIPP()
    ).numpy()
    if beyond:  # where the operator has mixed with 0
        height, width = scaled
        for strip in (np.s_[height:], np.s_[:height, width:]):
            mixed[strip] = (image[strip].astype(np.uint16) + beyond) // 2
    return mixed


def scaled_canvas(canvas: tuple[int, int], factor: float) -> tuple[int, int]:
    """(height, width), pixels."""
    return int(canvas[0] * factor), int(canvas[1] * factor)


def move_boxes(
    boxes: Array, scale: float, canvas: tuple[int, int], draw: Draw, size: tuple[int, int], clips: bool
) -> tuple[Array, Array]:
    """The partner's boxes (x1, y1, x2, y2) in its scaled canvas, and in the mixture of `size` (height, width).

    Args:
        scale: of the partner in the scaled canvas.
        clips: whether boxes are cut to the canvas and to the mixture.
    """
    height, width = scaled_canvas(canvas, draw.factor)
    y, x = draw.offset
    scaled = boxes.copy()
    scaled *= scale
    if clips:
        clip(scaled, width, height)
    if draw.is_flipped:
        scaled[:, 0::2] = width - scaled[:, 0::2][:, ::-1]
    moved = scaled - np.array([x, y, x, y], scaled.dtype)
    if clips:
        clip(moved, size[1], size[0])
    return scaled, moved
