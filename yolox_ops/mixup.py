"""The picture that MixUp makes of two images."""

import torch
from torch import Tensor

from ._library import check_devices, register_fake


def mixup_blend(
    image: Tensor,
    partner: Tensor,
    canvas: tuple[int, int],
    scaled: tuple[int, int],
    offset: tuple[int, int] = (0, 0),
    flip: bool = False,
    pad: int = 114,
    ipp: bool = False,
) -> Tensor:
    """The mean of an image and a part of another one, as `mmdet.datasets.pipelines.MixUp`, on the CPU.

    The partner lies in the upper left corner of a canvas, which is enlarged or reduced as `cv2.resize` does in float64,
    perhaps flipped, and cut to the size of the image; levels are rounded down. Where the canvas ends, the partner is
    black.

    Args:
        image: uint8 [H, W, 3].
        partner: uint8 [h, w, 3], not larger than the canvas.
        canvas: its height and width, pixels.
        scaled: its height and width after the change, pixels.
        offset: (y, x) of the part, pixels of the changed and flipped canvas.
        flip: whether left and right are exchanged.
        pad: level of the canvas outside the partner.
        ipp: whether with the bits of Intel's IPP, which `cv2.resize` uses where `cv2.ipp.useIPP()`; else of OpenCV
            itself. They differ in the last bits of float64, which may move a level across a whole number.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: for shapes, sizes or a level out of range. TypeError: for a wrong dtype.
    """
    check_devices(image=image, partner=partner)
    result: Tensor = torch.ops.yolox_ops.mixup_blend(image, partner, canvas, scaled, offset, flip, pad, ipp)
    return result


@register_fake("mixup_blend")
def _(
    image: Tensor,
    partner: Tensor,
    canvas: list[int],
    scaled: list[int],
    offset: list[int],
    flip: bool,
    pad: int,
    ipp: bool,
) -> Tensor:
    return torch.empty_like(image, memory_format=torch.contiguous_format)
