"""A network for inference alone: its norms in its convolutions, in low precision by choice; for both hosts."""

from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .network import FusedConvModule, ends_in_norm_and_swish, is_own


class FoldedConvModule(ConvModule):
    """A `FusedConvModule` whose norm is in the convolution's weights."""

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        """See the base class.

        Raises:
            RuntimeError: for `norm=False`.
        """
        if not norm:
            raise RuntimeError("norm must be True for a block whose norm is folded into its convolution, got False")
        x = super().forward(x.to(self.conv.weight.dtype), activate=False)
        return F.silu(x, inplace=True) if activate else x


def fold(network: nn.Module) -> None:
    """Puts the norms of a quickened network in eval mode into its convolutions, whose last bits that changes.

    In every block that training has one operator for. All others stay as they are.
    """
    for block in network.modules():
        if type(block) is FusedConvModule and _is_foldable(block):
            block.conv = fuse_conv_bn_eval(block.conv, block.norm)
            setattr(block, block.norm_name, nn.Identity())
            block.__class__ = FoldedConvModule


def _is_foldable(block: ConvModule) -> bool:
    return (
        ends_in_norm_and_swish(block)
        and block.norm.running_mean is not None
        and type(block.conv) is nn.Conv2d
        and not (block.with_spectral_norm or is_own(block.conv))
    )


def lower(network: nn.Module, dtype: torch.dtype) -> None:
    """Lets the blocks of a network that are folded compute in `dtype`, and everything else that has weights in float32:
    boxes and scores, too, for which bfloat16 has too few digits.

    Raises:
        ValueError: none is folded, so that everything would be float32.
    """
    folded = [block.conv for block in network.modules() if type(block) is FoldedConvModule]
    if not folded:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{name} is for blocks whose norms can be folded, of which this network has none: use float32"
            " (YOLOX_PLUGIN_NETWORK=off leaves all blocks as they are)"
        )
    for conv in folded:
        conv.to(dtype)
    for module in network.modules():
        if all(module is not conv for conv in folded) and next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(_in_float32)


def _in_float32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)
