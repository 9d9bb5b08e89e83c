"""A network's forward pass on an NPU in fewer launches: weights are cast together, batches counted together."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .flat import joined, merged, runs, spanned

# Weights of one cast. Their gradients are joined in one launch, and the data-parallel wrapper may send those of a part
# of the network while another part's are being computed.
TOGETHER = 32


class _CastTogether(torch.autograd.Function):
    """Casts weights that lie side by side by one launch, and their gradients back by two."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.shapes = [weight.shape for weight in weights]
        ctx.dtype = weights[0].dtype
        ctx.offsets = [weight.storage_offset() - weights[0].storage_offset() for weight in weights]
        cast = spanned(weights).to(dtype)
        return tuple(
            cast[begin : begin + weight.numel()].view(weight.shape)
            for begin, weight in zip(ctx.offsets, weights, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        known = next(gradient for gradient in gradients if gradient is not None)
        filled = [
            known.new_zeros(shape) if gradient is None else gradient.contiguous()
            for gradient, shape in zip(gradients, ctx.shapes, strict=True)
        ]
        flat = joined(filled, block_of=ctx.dtype).to(ctx.dtype)
        places = zip(ctx.offsets, ctx.shapes, strict=True)
        return None, *(flat[begin : begin + shape.numel()].view(shape) for begin, shape in places)


def _autocast_dtype() -> torch.dtype | None:
    """Of the convolutions on an NPU where this is called; None without autocast. torch itself can tell from 2.4 on."""
    from torch_npu import npu

    return npu.get_autocast_dtype() if npu.is_autocast_enabled() else None


@contextlib.contextmanager
def in_few_launches(network: nn.Module, device: str) -> Iterator[None]:
    """In which to call a network that trains on an NPU; on other devices nothing is done.

    For as long, convolutions find their weights cast already, if autocast is on, and norm layers no count of batches,
    which is added to at the end. Parameters and buffers are the network's own before and after.
    """
    if device != "npu":
        yield
        return
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    counting = [norm for norm in norms if norm.num_batches_tracked is not None and norm.momentum is not None]
    counters = [norm._buffers["num_batches_tracked"] for norm in counting]
    hidden: list[tuple[dict[str, Any], str, Tensor]] = []

    def put(place: dict[str, Any], name: str, thing: Tensor | None) -> None:
        hidden.append((place, name, place[name]))
        place[name] = thing

    try:
        dtype = _autocast_dtype()
        if dtype is not None:
            places: dict[Tensor, list[tuple[dict[str, Any], str]]] = {}  # several, of a weight that layers share
            for module in convolutions:
                for name, weight in module._parameters.items():
                    if weight is not None and weight.dtype == torch.float32 and weight.requires_grad:
                        places.setdefault(weight, []).append((module._parameters, name))
            for run in runs(list(places)):
                for begin in range(0, len(run), TOGETHER):
                    together = [own for (own,) in run[begin : begin + TOGETHER]]
                    casts: tuple[Tensor, ...] = _CastTogether.apply(dtype, *together)  # type: ignore[no-untyped-call]
                    for own, cast in zip(together, casts, strict=True):
                        for place in places[own]:
                            put(*place, cast)
        for norm in counting:
            put(norm._buffers, "num_batches_tracked", None)
        yield
    finally:
        for place, name, thing in reversed(hidden):
            place[name] = thing
    if counters:
        torch._foreach_add_(merged([counter for counter in counters if counter is not None])[0], 1)
