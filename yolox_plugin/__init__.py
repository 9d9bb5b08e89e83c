"""Puts the operators of yolox_ops to work in MMDetection 2.28.2. One line in any YOLOX config:

    custom_imports = dict(imports=["yolox_plugin"], allow_failed_imports=False)

Importing replaces classes under MMDetection's own names, so that the rest of the config and its checkpoints stay as
they are. `YOLOX_PLUGIN=off` leaves MMDetection untouched; `YOLOX_PLUGIN_ASSIGNER=off` and `YOLOX_PLUGIN_HEAD=off` leave
out one part (the head then asks the assigner image by image, as MMDetection's does).
"""

import os

from mmcv.utils import Registry, get_logger
from mmdet.core.bbox.builder import BBOX_ASSIGNERS
from mmdet.models.builder import HEADS

from .assigner import SimOTAAssigner
from .head import YOLOXHead

PARTS: dict[str, tuple[Registry, type]] = {
    "ASSIGNER": (BBOX_ASSIGNERS, SimOTAAssigner),
    "HEAD": (HEADS, YOLOXHead),
}


def _is_on(variable: str) -> bool:
    value = os.environ.get(variable, "on").lower()
    if value not in ("on", "off"):
        raise ValueError(f"{variable} must be on or off, got {value!r}")
    return value == "on"


def _replace_parts() -> None:
    plugin_on = _is_on("YOLOX_PLUGIN")
    wanted = [part for part in PARTS if _is_on(f"YOLOX_PLUGIN_{part}") and plugin_on]
    for part in wanted:
        registry, replacement = PARTS[part]
        registry.register_module(module=replacement, force=True)
    # Not MMDetection's own logger: whoever touches that first decides its log file, and that must be the training
    # script. One rank speaks for all.
    if os.environ.get("RANK", "0") == "0":
        names = ", ".join(PARTS[part][1].__name__ for part in wanted)
        get_logger("yolox_plugin").info(f"replaced in MMDetection: {names or 'nothing (switched off)'}")


_replace_parts()
