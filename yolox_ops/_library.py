"""Loads the operators, after checking that they were built for the torch that is here."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import _C

_META = torch.library.Library("yolox_ops", "IMPL", "Meta")  # type: ignore[no-untyped-call]
_CHOICES = ("default", "avx2", "avx512")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _load() -> None:
    if _minor(torch.__version__) != _minor(_C.torch_version):
        raise ImportError(
            f"yolox_ops was built for torch {_C.torch_version} and this is torch {torch.__version__}: rebuild it"
            " (pip install --force-reinstall --no-deps . in the source folder)"
        )
    wanted = os.environ.get("YOLOX_OPS_CPU_CAPABILITY")
    if wanted is not None and wanted not in _CHOICES:
        raise ValueError(f"YOLOX_OPS_CPU_CAPABILITY must be one of {', '.join(_CHOICES)}, got {wanted!r}")
    torch.ops.load_library(Path(_C.__file__).with_name("libyolox_ops.so"))  # type: ignore[no-untyped-call]
    if wanted is not None and wanted != cpu_capability():
        raise ImportError(f"YOLOX_OPS_CPU_CAPABILITY={wanted}, but this CPU offers {cpu_capability()} at most")


def cpu_capability() -> str:
    """The instruction set that the CPU kernels use in this process: default, avx2 or avx512."""
    return str(torch.ops.yolox_ops.cpu_capability())


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`torch.library.register_fake` for one of our operators: impl_abstract in torch 2.2 and 2.3, absent in 2.1."""
    register = getattr(torch.library, "register_fake", None) or getattr(torch.library, "impl_abstract", None)
    if register is None:
        return torch.library.impl(_META, name)
    return register(f"yolox_ops::{name}")  # type: ignore[no-any-return]


def check_devices(**tensors: torch.Tensor) -> None:
    """Raises ValueError unless all tensors are on the device of the first."""
    device = next(iter(tensors.values())).device
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(f"{name} must be on {device}, got {tensor.device}")


_load()
