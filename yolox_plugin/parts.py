"""What is replaced in a host's registries, and what the user has switched off."""

import logging
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch

from .patches import is_patched

# Of places and what comes there. Registries are mmcv's or mmengine's, which have `module_dict` and `register_module` in
# common.
Parts = Mapping[str, Sequence[tuple[Any, Any]]]
# Packages whose classes are stock.
STOCK = ("mmcv", "mmdet", "mmengine", "torch")

# What `apply` has changed, for `revert`: a place, a name in it, and what was there.
_changed: list[tuple[Any, str, Any]] = []


def is_on(variable: str) -> bool:
    """Whether an environment variable leaves something switched on.

    Raises:
        ValueError: it is neither on nor off.
    """
    value = os.environ.get(variable, "on").lower()
    if value not in ("on", "off"):
        raise ValueError(f"{variable} must be on or off, got {value!r}")
    return value == "on"


def apply(parts: Parts) -> None:
    """Puts the plugin's classes and functions in the place of stock's, wherever those stand, and says so in one line of
    the log.

    Args:
        parts: by the name of its switch, `YOLOX_PLUGIN_<name>`: registries, or modules in which the host looks a name
            up, and what comes there. That has the name of what it replaces (`stock_of`): a class's first base that is
            not the plugin's, or what a function wraps.
    """
    plugin_on = is_on("YOLOX_PLUGIN")
    wanted = [pair for part, pairs in parts.items() if is_on(f"YOLOX_PLUGIN_{part}") and plugin_on for pair in pairs]
    replaced, left = [], []
    for place, replacement in wanted:
        name = replacement.__name__
        stock = stock_of(replacement)
        found = getattr(place, name) if isinstance(place, ModuleType) else place.module_dict.get(name)
        # Who has put a class of their own into MMDetection's module has made that the base of the plugin's.
        is_stock = stock.__module__.split(".")[0] in STOCK
        if is_stock and isinstance(stock, type) and is_patched(stock, replacement):
            left.append(f"{name} (somebody has patched it)")
        elif not is_stock or found not in (stock, replacement):
            left.append(f"{name} (registered is {found and f'{found.__module__}.{found.__qualname__}'})")
        else:
            replaced.append(name)
            if found is stock:
                _changed.append((place, name, stock))
                _put(place, name, replacement)
    if os.environ.get("RANK", "0") == "0":  # one rank speaks for all; a name may stand in several places
        names = ", ".join(dict.fromkeys(replaced)) or ("nothing" if left else "nothing (switched off)")
        _logger().info(
            f"replaced in MMDetection: {names}" + (f"; left: {', '.join(dict.fromkeys(left))}" if left else "")
        )


def revert() -> None:
    """Puts back what `apply` has replaced. What was built meanwhile stays as it is."""
    while _changed:
        _put(*_changed.pop())


def _put(place: Any, name: str, thing: Any) -> None:
    if isinstance(place, ModuleType):
        setattr(place, name, thing)
    else:
        place.register_module(name=name, module=thing, force=True)


def _logger() -> logging.Logger:
    """Not MMDetection's own: whoever touches that first decides its log file, and that must be the training script."""
    logger = logging.getLogger("yolox_plugin")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


def prepare_npu() -> None:
    """Ready-made kernels instead of compiling for every new shape, of which multi-scale training has many."""
    if hasattr(torch, "npu") and torch.npu.is_available() and is_on("YOLOX_PLUGIN"):
        torch.npu.set_compile_mode(jit_compile=False)


def stock_of(replacement: Any) -> Any:
    """What a class or function of the plugin replaces."""
    if not isinstance(replacement, type):
        return replacement.__wrapped__
    return next(base for base in replacement.__bases__ if base.__module__.partition(".")[0] != __package__)
