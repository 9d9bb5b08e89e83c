"""The network's parts of which there is a faster form, for both hosts."""

import itertools
import platform
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import Swish
from mmdet.models.backbones.csp_darknet import SPPBottleneck
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from yolox_ops import batch_norm_silu, cpu_capability

from .parts import is_on
from .patches import has_own, has_own_forward


class FusedSwish(Swish):
    """mmcv's Swish is x * sigmoid(x) in two steps that each keep a tensor for backward; torch has it as one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class FusedConvModule(ConvModule):
    """mmcv's ConvModule, whose batch norm and Swish are one operator on CPUs."""

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        if activate and norm and x.device.type == "cpu" and x.dim() == 4 and _is_one_operator(self):
            return _norm_and_swish(self.norm, super().forward(x, activate=False, norm=False))
        stock: Tensor = super().forward(x, activate, norm)
        return stock


# What the operator computes with is slow on other processors.
_IS_AARCH64 = platform.machine() in ("aarch64", "arm64")
_CPU_HAS_FMA = cpu_capability() != "default" or _IS_AARCH64


def _is_one_operator(block: ConvModule) -> bool:
    """Whether the norm and the activation of a block are one operator on this CPU."""
    return _CPU_HAS_FMA and ends_in_norm_and_swish(block)


def ends_in_norm_and_swish(block: ConvModule) -> bool:
    """Whether a block ends in a batch norm and a Swish that are torch's and mmcv's own and that nobody listens to."""
    return (
        block.order == ("conv", "norm", "act")
        and block.with_norm
        and block.with_activation
        and type(block.norm) is nn.BatchNorm2d
        and type(block.activate) in (FusedSwish, Swish, nn.SiLU)
        and not (is_own(block.norm) or is_own(block.activate) or has_own(ConvModule, ["forward"]))
        and getattr(block, "efficient_conv_bn_eval_forward", None) is None
        and not (_are_all_heard() or torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]
    )


def _norm_and_swish(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """As `nn.BatchNorm2d.forward` calls torch's batch norm."""
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    kept = norm.track_running_stats or not norm.training
    mean, var = (norm.running_mean, norm.running_var) if kept else (None, None)
    training = norm.training or (norm.running_mean is None and norm.running_var is None)
    return batch_norm_silu(x, mean, var, norm.weight, norm.bias, training, momentum, norm.eps)


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


def is_own(module: nn.Module) -> bool:
    """Whether somebody listens to a module, or has given it a forward of their own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or has_own_forward(module)


def _chainable(pool: nn.Module) -> int:
    """The size of a pool that takes the maximum around each place and that nobody listens to, else 0."""
    size: Any = getattr(pool, "kernel_size", None)
    plain = (
        type(pool) is nn.MaxPool2d
        and isinstance(size, int)
        and size % 2 == 1
        and (pool.stride, pool.padding, pool.dilation) == (1, size // 2, 1)
        and not (pool.ceil_mode or pool.return_indices)
        and not is_own(pool)
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
        elif type(module) is ConvModule and not has_own_forward(module):
            module.__class__ = FusedConvModule
        elif type(module) is SPPBottleneck and not has_own_forward(module):
            module.__class__ = ChainedSPP


# The modules that YOLOX is made of, of MMDetection's, mmcv's and the plugin's: they take tensors of any strides, as all
# of torch's do, and call their blocks as a whole. Others may ask for a view of what they get.
_KNOWN = {
    "BatchSyncRandomResize", "ChainedSPP", "ConvModule", "CSPDarknet", "CSPLayer", "DarknetBottleneck",
    "DepthwiseSeparableConvModule", "DetDataPreprocessor", "Focus", "FoldedConvModule", "FusedConvModule", "FusedSwish",
    "SPPBottleneck", "Swish", "YOLOX", "YOLOXHead", "YOLOXPAFPN",
}  # fmt: skip


def is_known(module: nn.Module) -> bool:
    """Whether a module is torch's, or one that YOLOX is made of."""
    kind = type(module)
    root = kind.__module__.partition(".")[0]
    known = root in ("mmcv", "mmengine", "mmdet", "yolox_plugin") and kind.__name__ in _KNOWN
    return root == "torch" or known or kind.__module__.startswith("mmdet.models.losses")


def takes_any_layout(network: nn.Module) -> bool:
    """Whether all of a network takes tensors of any strides."""
    return all(map(is_known, network.modules()))


def is_best_in_channels_last(network: nn.Module) -> bool:
    """Whether a network that has been quickened, or folded, is as exact and faster in channels_last on this CPU in
    float32.

    Convolutions are faster in it (not measured on aarch64). torch's own batch norm sums less exactly in it, so that
    every norm that is left has to be in a block that is one operator.
    """
    fused = sum(type(module) is FusedConvModule and _is_one_operator(module) for module in network.modules())
    norms = sum(isinstance(module, nn.modules.batchnorm._NormBase) for module in network.modules())
    return fused == norms and takes_any_layout(network) and not _IS_AARCH64
