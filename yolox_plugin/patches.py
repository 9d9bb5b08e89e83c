"""Whether MMDetection's own code stands where the plugin leaves it out."""

from collections.abc import Iterable
from typing import Any

KNOWN = ("mmcv", "mmdet", "mmengine", "torch", "yolox_plugin")


def has_own(thing: Any, names: Iterable[str]) -> bool:
    """Whether any of these methods of an object or a class comes from somebody else: a subclass, or a patch made at any
    time. What comes from somebody else is to be called, as the stock class would."""
    modules = (getattr(getattr(thing, name), "__module__", None) or "" for name in names)
    return any(module.partition(".")[0] not in KNOWN for module in modules)


def is_patched(stock: type, replacement: type) -> bool:
    """Whether somebody has changed a method of `stock` that `replacement` has its own code for."""
    names = [name for name in vars(replacement) if callable(getattr(stock, name, None)) and not name.startswith("__")]
    calls = [name for name in ("__init__", "__call__", "__getitem__", "__len__") if name in vars(replacement)]
    return has_own(stock, [*names, *(name for name in calls if hasattr(stock, name))])
