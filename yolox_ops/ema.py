"""Exponential moving average of weights."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ._library import check_devices, register_fake


def ema_update_(average: Iterable[Tensor], value: Iterable[Tensor], momentum: float) -> None:
    """`average = (1 - momentum) * average + momentum * value`, in place, as `mmdet.core.ExpMomentumEMAHook`.

    Args:
        average: floating-point tensors of any shape and strides, changed in place.
        value: as many tensors, of the same shapes, dtypes and devices.
        momentum: in [0, 1].

    Raises:
        ValueError: for lists or shapes that differ, or a momentum out of range. TypeError: for a wrong dtype.
    """
    average, value = list(average), list(value)
    if len({tensor.device for tensor in (*average, *value)}) > 1:  # hundreds of tensors: named only when needed
        lists = (("average", average), ("value", value))
        check_devices(**{f"{name}[{i}]": tensor for name, tensors in lists for i, tensor in enumerate(tensors)})
    if not average and not value:  # without a tensor there is no device to dispatch to
        return
    with torch.no_grad():
        torch.ops.yolox_ops.ema_update_(average, value, momentum)


@register_fake("ema_update_")
def _(average: list[Tensor], value: list[Tensor], momentum: float) -> None:
    return None
