"""Exponential moving average of weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._library import check_devices, register_fake


def ema_update_(average: Sequence[Tensor], value: Sequence[Tensor], momentum: float) -> None:
    """`average = (1 - momentum) * average + momentum * value`, in place, as `mmdet.core.ExpMomentumEMAHook`.

    Args:
        average: floating-point tensors of any shape and strides, changed in place.
        value: as many tensors, of the same shapes, dtypes and devices.
        momentum: in [0, 1].

    Raises:
        ValueError: for lists or shapes that differ, or a momentum out of range. TypeError: for a wrong dtype.
    """
    for a, v in zip(average, value, strict=False):  # the operator compares the lengths
        check_devices(average=a, value=v)
    with torch.no_grad():
        torch.ops.yolox_ops.ema_update_(average, value, momentum)


@register_fake("ema_update_")
def _(average: list[Tensor], value: list[Tensor], momentum: float) -> None:
    return None
