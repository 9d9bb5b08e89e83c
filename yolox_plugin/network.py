"""The network's parts of which there is a faster form, for both hosts."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import Swish
from mmdet.models.backbones.csp_darknet import SPPBottleneck
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .parts import is_on
from .patches import has_own


class FusedSwish(Swish):
    """mmcv's Swish is x * sigmoid(x) in two steps that each keep a tensor for backward; torch has it as one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class ChainedSPP(SPPBottleneck):
    """mmdet's SPPBottleneck with each pool taken of the one before: 9 of 5 by another 5, and so on. The outputs are
    stock's. Where equal values tie for a maximum, the gradient may go to another of them than with stock.
    """

    def forward(self, x: Tensor) -> Tensor:
        sizes = [_chainable(pool) for pool in self.poolings]
        steps = [size - before for before, size in itertools.pairwise([1, *sizes])]
        if 0 in sizes or min(steps, default=0) < 0 or has_own(SPPBottleneck, ["forward"]) or _are_all_heard():
            stock: Tensor = super().forward(x)
            return stock
        x = self.conv1(x)
        pooled = [x]
        for step in steps:  # between odd sizes, so it is even
            pooled.append(F.max_pool2d(pooled[-1], step + 1, 1, step // 2) if step else pooled[-1])
        out: Tensor = self.conv2(torch.cat(pooled, 1))
        return out


def _are_all_heard() -> bool:
    """Whether somebody listens to all modules that there are."""
    return bool(_has_any_global_hook())  # type: ignore[no-untyped-call]


def _chainable(pool: nn.Module) -> int:
    """The size of a pool that takes the maximum around each place and that nobody listens to, else 0."""
    size: Any = getattr(pool, "kernel_size", None)
    plain = (
        type(pool) is nn.MaxPool2d
        and isinstance(size, int)
        and size % 2 == 1
        and (pool.stride, pool.padding, pool.dilation) == (1, size // 2, 1)
        and not (pool.ceil_mode or pool.return_indices)
        and not (pool._forward_hooks or pool._forward_pre_hooks or pool._backward_hooks or pool._backward_pre_hooks)
        and not has_own(pool, ["forward"])
    )
    return int(size) if plain else 0


def quicken(network: nn.Module) -> None:
    """Gives the parts of a network that is built their faster form, unless `YOLOX_PLUGIN_NETWORK` is off.

    They stay the same modules, with whatever hooks they have, and with the names of their parameters.
    """
    if not is_on("YOLOX_PLUGIN_NETWORK"):
        return
    for module in network.modules():
        if type(module) is Swish:
            module.__class__ = FusedSwish
        elif type(module) is SPPBottleneck and not has_own(module, ["forward"]):
            module.__class__ = ChainedSPP
