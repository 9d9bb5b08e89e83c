"""Batch norm and activation."""

import torch
from torch import Tensor

from ._library import check_devices, register_fake


def batch_norm_silu(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`silu(batch_norm(...))` of `torch.nn.functional`, with the arguments of its `batch_norm`. Differentiable.

    Keeps its input alone for the gradient, where torch's two keep what is between them too. Sums are taken in float64,
    of half types a few values at a time in float32, and are the same for any number of threads. Between batch norm and
    SiLU nothing is rounded to a half type, and bfloat16 takes SiLU's exponential to 13 bits. Autocast changes nothing.

    Args:
        input: `[N, C, H, W]`, float16, bfloat16, float32 or float64, of any strides. The result lies as it does:
            contiguous or channels_last.
        running_mean: `[C]`, of the dtype of `input` or, beside a half type, float32. When training it is changed in
            place to `(1 - momentum) * running_mean + momentum * mean`, unless it is None; else it is the mean.
        running_var: likewise; takes the variance with N*H*W - 1 as divisor.
        weight: `[C]`, likewise, or None for 1.
        bias: `[C]`, likewise, or None for 0.
        training: whether mean and variance are those of `input`.
        momentum: in [0, 1].
        eps: is added to the variance; 0 or more.

    Returns:
        `[N, C, H, W]` of the dtype of `input`. A NaN or infinite value in a channel makes all of it NaN when training.

    Raises:
        ValueError: for a wrong shape, device or number, one value in each channel when training, or one running
            statistic without the other. TypeError: for a wrong dtype.
    """
    given = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    check_devices(input=input, **{name: tensor for name, tensor in given.items() if tensor is not None})
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.yolox_ops.batch_norm_silu(
        input, weight, bias, running_mean, running_var, training, momentum, eps
    )
    return result[0]


def _statistics(input: Tensor) -> Tensor:
    return input.new_empty(input.shape[1], dtype=torch.promote_types(input.dtype, torch.float32))


def _laid_as(input: Tensor) -> Tensor:
    # The kernels' rule for strides that are neither: ATen's suggest_memory_format.
    channels_last = torch._prims_common.suggest_memory_format(input) == torch.channels_last
    return torch.empty_like(input, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@register_fake("batch_norm_silu")
def _(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _laid_as(input), _statistics(input), _statistics(input)


@register_fake("batch_norm_silu_backward")
def _(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = input.new_empty(input.shape[1])
    grad_weight = channels if weight is None else torch.empty_like(weight)
    grad_bias = channels.clone() if bias is None else torch.empty_like(bias)
    return _laid_as(input), grad_weight, grad_bias
