"""Puts the operators of yolox_ops to work in MMDetection 2.28.2. One line in any YOLOX config:

    custom_imports = dict(imports=["yolox_plugin"], allow_failed_imports=False)

Importing replaces classes under MMDetection's own names, so that the rest of the config and its checkpoints stay as
they are; a class that somebody else has registered under such a name stays, and the log says so. `YOLOX_PLUGIN=off`
leaves MMDetection untouched. One part is left out by `YOLOX_PLUGIN_ASSIGNER=off`, `YOLOX_PLUGIN_HEAD=off` (the head
then asks the assigner image by image, as MMDetection's does) or `YOLOX_PLUGIN_TRAINING=off` (detector, hooks,
optimizer, runner and data sets, which count on each other) or `YOLOX_PLUGIN_PIPELINE=off` (augmentations).

The arithmetic is in `core`, MMDetection's interfaces in `mmdet2`, the commands in `run`.
"""

# ruff: noqa: E402  mmcv's operators have to be there before MMDetection imports them
try:
    import yolox_ops  # noqa: F401
except ImportError as error:
    # With this name, `python -m yolox_plugin.train` prints the one line and no traceback.
    raise ImportError(error.msg, name=__name__) from error

import importlib
from typing import Any

from .hosts import find_host
from .mmcv_ext import supply_missing_operators

_name = find_host()
supply_missing_operators()

from . import parts

_host = importlib.import_module(f".{_name}", __name__)
parts.apply(_host.PARTS)
parts.prepare_npu()


def __getattr__(name: str) -> Any:
    """`Detector`, which most who import the plugin do not want, and which needs it imported."""
    if name == "Detector":
        from .run.predictor import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
