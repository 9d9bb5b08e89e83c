"""The precision of a network's convolutions, for both hosts."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .inference import fold, lower
from .network import FusedSwish, is_best_in_channels_last, takes_any_layout  # noqa: F401  models saved whole look for the former here

LOWER = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def has_bfloat16(device: str) -> bool:
    """Whether the kind of device that is here computes in bfloat16, which an Ascend 910A does not."""
    asked = getattr(getattr(torch, device, None), "is_bf16_supported", None)  # which torch.cuda and torch.npu have
    return asked is None or bool(asked())


class Precision:
    """What a detector's argument `autocast` asks for: "float32", "bfloat16" or "float16" for the convolutions in
    training, or None for what the host does.

    Raises:
        ValueError: for anything else.
    """

    _is_last = False  # of those in models that were saved whole before

    def __init__(self, autocast: str | None) -> None:
        if autocast not in (None, "float32", *LOWER):
            raise ValueError(f"autocast must be None, 'float32', 'bfloat16' or 'float16', got {autocast!r}")
        self._lower = LOWER.get(autocast or "")

    def prepare(self, network: nn.Module, device: str) -> None:
        """To be called for a network that is built and quickened, with the device that it will be used on.

        Lays its weights out in the order in which CPUs and GPUs have their fastest convolutions: in low precision, and
        in float32 on CPUs where that is as exact. An NPU has an order of its own.
        """
        low = self._lower is not None and device != "npu" and takes_any_layout(network)
        self._is_last = low or (device == "cpu" and is_best_in_channels_last(network))
        self._lay_out(network, torch.channels_last)

    def prepare_for_inference(self, network: nn.Module, device: str) -> None:
        """Like `prepare`, for a network that has its weights and will not be trained.

        Raises:
            ValueError: see `check` and `lower`.
        """
        self.check(device)
        network.eval()
        fold(network)
        if self._lower is not None:
            lower(network, self._lower)
        self.prepare(network, device)

    def _lay_out(self, network: nn.Module, layout: torch.memory_format) -> None:
        if self._is_last:
            network.to(memory_format=layout)  # type: ignore[call-overload]

    @contextlib.contextmanager
    def in_stock_layout(self, network: nn.Module) -> Iterator[None]:
        """In which to draw weights: random numbers fill a tensor in the order of its memory."""
        self._lay_out(network, torch.contiguous_format)
        yield
        self._lay_out(network, torch.channels_last)

    def laid_out(self, img: Tensor) -> Tensor:
        """The images in the layout of the network's weights. Exporters that trace know no layouts."""
        last = self._is_last and img.device.type != "npu" and torch._C._get_tracing_state() is None
        return img.contiguous(memory_format=torch.channels_last) if last else img

    def check(self, device: str) -> None:
        """Whether the kind of device has this precision.

        Raises:
            ValueError: for float16 on a CPU, and for bfloat16 on a device without, where torch would take float32.
        """
        if self._lower is torch.float16 and device == "cpu":
            raise ValueError("autocast='float16' needs an accelerator; on a CPU use autocast='bfloat16'")
        if self._lower is torch.bfloat16 and not has_bfloat16(device):
            raise ValueError(f"autocast='bfloat16': this {device} device has no bfloat16; use autocast='float16'")

    def context(self, device: str) -> contextlib.AbstractContextManager[Any]:
        """In which to train.

        Raises:
            ValueError: see `check`.
        """
        self.check(device)
        # Without the option, whoever called may have chosen a precision.
        return torch.autocast(device, self._lower) if self._lower else contextlib.nullcontext()
