"""Whether MMDetection's own code stands where the plugin leaves it out."""

from collections.abc import Iterable
from typing import Any

KNOWN = ("mmcv", "mmdet", "mmengine", "torch", "yolox_plugin")


def has_own(thing: Any, names: Iterable[str]) -> bool:
    """Whether any of these methods of an object or a class comes from somebody else: a subclass, or a patch made at any
    time. What comes from somebody else is to be called, as the stock class would."""
    return any(_origin(getattr(thing, name)).partition(".")[0] not in KNOWN for name in names)


def _origin(method: Any) -> str:
    """The module that a function was written in. One that wraps another, by functools.wraps, bears the other's name."""
    function = getattr(method, "__func__", method)
    written_in = getattr(function, "__globals__", {}).get("__name__")
    return written_in or getattr(function, "__module__", None) or ""


def has_own_forward(module: Any) -> bool:
    """Whether a module computes something else than its class is known for. torch's own wrappers count as well."""
    return "forward" in vars(module) or has_own(module, ["forward"])


def is_patched(stock: type, replacement: type) -> bool:
    """Whether somebody has changed a method of `stock` that `replacement` has its own code for."""
    names = [name for name in vars(replacement) if callable(getattr(stock, name, None)) and not name.startswith("__")]
    calls = [name for name in ("__init__", "__call__", "__getitem__", "__len__") if name in vars(replacement)]
    return has_own(stock, [*names, *(name for name in calls if hasattr(stock, name))])
