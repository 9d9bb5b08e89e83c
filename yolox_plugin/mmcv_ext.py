"""A stand-in for mmcv's compiled part where it is installed without, so that nobody compiles mmcv for YOLOX.

MMDetection imports all of mmcv's operators; of these, YOLOX calls NMS alone.
"""

import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

import torch
from torch import Tensor

from yolox_ops import batched_nms


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """mmcv's nms: indices kept, highest score first. See `yolox_ops.batched_nms`."""
    if offset != 0:
        raise NotImplementedError(f"offset must be 0, got {offset}: {_REMEDY}")
    labels = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
    return batched_nms(boxes, scores, labels, iou_threshold)


class _Operators(types.ModuleType):
    """Has every operator that anybody asks for; calling another than `nms` is an error."""

    nms = staticmethod(_nms)

    # Of mmcv's report on the environment.
    @staticmethod
    def get_compiler_version() -> str:
        return "none: mmcv without operators"

    get_compiling_cuda_version = get_compiler_version

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise NotImplementedError(f"mmcv's operator {name} was called: {_REMEDY}")

        return missing


_NAME = "mmcv._ext"
_REMEDY = (
    "the installed mmcv has no compiled operators, and yolox_plugin supplies only what YOLOX needs;"
    " pip uninstall mmcv mmcv-lite onedl-mmcv, then compile them in 10 to 20 minutes: MMCV_WITH_OPS=1 pip install"
    " --no-build-isolation --no-cache-dir with mmcv-full==1.7.2, or for MMDetection 3 mmcv==2.1.0 or onedl-mmcv==2.3.6"
)


def supply_missing_operators() -> bool:
    """Takes the place of `mmcv._ext` if it is absent; whether it was. mmcv-full, even a broken one, is left alone."""
    if _NAME in sys.modules or importlib.util.find_spec(_NAME) is not None:
        return False
    module = _Operators(_NAME)
    module.__spec__ = importlib.machinery.ModuleSpec(_NAME, loader=None)
    sys.modules[_NAME] = module
    return True
