"""A network for inference alone: its norms in its convolutions, in low precision by choice; for both hosts."""

from typing import Any

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .network import FusedConvModule, ends_in_norm_and_swish, is_known, is_own
from .patches import has_own_forward


class FoldedConvModule(ConvModule):
    """A `FusedConvModule` whose norm is in the convolution's weights, and whose activation works in place."""

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        """See the base class.

        Raises:
            RuntimeError: for `norm=False`.
        """
        if not norm:
            raise RuntimeError("norm must be True for a block whose norm is folded into its convolution, got False")
        dtype = self.conv.weight.dtype
        # Exporters would write down a cast to the same type.
        out: Tensor = super().forward(x if x.dtype == dtype else x.to(dtype), activate)
        return out


def fold(network: nn.Module) -> None:
    """Puts the norms of a quickened network in eval mode into its convolutions, whose last bits that changes.

    In every block that training has one operator for and that stands in what YOLOX is made of: other modules may use a
    block's convolution by itself. All other blocks stay as they are.
    """
    if type(network) is FusedConvModule and _is_foldable(network):
        network.conv = fuse_conv_bn_eval(network.conv, network.norm)
        setattr(network, network.norm_name, nn.Identity())
        network.activate = nn.SiLU(inplace=True)
        network.__class__ = FoldedConvModule
    elif is_known(network):
        for child in network.children():
            fold(child)


def _is_foldable(block: ConvModule) -> bool:
    return (
        ends_in_norm_and_swish(block)
        and not (block.norm.training or block.norm.running_mean is None)
        and type(block.conv) is nn.Conv2d
        and not (block.with_spectral_norm or is_own(block.conv) or has_own_forward(block))
    )


def lower(network: nn.Module, dtype: torch.dtype) -> None:
    """Lets the blocks of a network that are folded compute in `dtype`, and everything else that has weights in float32:
    boxes and scores, too, for which bfloat16 has too few digits.

    Raises:
        ValueError: none is folded, so that everything would be float32, or the network is not in float32.
    """
    folded = [block.conv for block in network.modules() if type(block) is FoldedConvModule]
    name = str(dtype).removeprefix("torch.")
    if not folded:
        raise ValueError(
            f"{name} is for blocks whose norms can be folded, of which this network has none: use float32"
            " (YOLOX_PLUGIN_NETWORK=off leaves all blocks as they are)"
        )
    if other := {value.dtype for value in network.parameters()} - {torch.float32}:
        raise ValueError(f"{name} is for a network with weights in float32, got {', '.join(map(str, other))}")
    for conv in folded:
        conv.to(dtype)
    for module in network.modules():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if own and all(module is not conv for conv in folded):
            module.register_forward_pre_hook(_in_float32, with_kwargs=True)


def _in_float32(module: nn.Module, args: Any, options: Any) -> Any:
    return tuple(map(_float, args)), {name: _float(value) for name, value in options.items()}


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
