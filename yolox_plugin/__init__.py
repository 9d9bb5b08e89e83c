"""Puts the operators of yolox_ops to work in MMDetection 2.28.2. One line in any YOLOX config:

    custom_imports = dict(imports=["yolox_plugin"], allow_failed_imports=False)

Importing replaces classes under MMDetection's own names, so that the rest of the config and its checkpoints stay as
they are. `YOLOX_PLUGIN=off` leaves MMDetection untouched. One part is left out by `YOLOX_PLUGIN_ASSIGNER=off`,
`YOLOX_PLUGIN_HEAD=off` (the head then asks the assigner image by image, as MMDetection's does) or
`YOLOX_PLUGIN_TRAINING=off` (detector, hooks, optimizer, runner and data sets, which count on each other) or
`YOLOX_PLUGIN_PIPELINE=off` (augmentations).
"""

# ruff: noqa: E402  mmcv's operators have to be there before MMDetection imports them
import os

from .mmcv_ext import supply_missing_operators

supply_missing_operators()

from mmcv.runner import HOOKS, OPTIMIZERS, RUNNERS
from mmcv.utils import IS_NPU_AVAILABLE, Registry, get_logger
from mmdet.core.bbox.builder import BBOX_ASSIGNERS
from mmdet.datasets import DATASETS, PIPELINES, dataset_wrappers
from mmdet.models.builder import DETECTORS, HEADS

from .assigner import SimOTAAssigner
from .dataset import CocoDataset, MultiImageMixDataset
from .detector import YOLOX
from .head import YOLOXHead
from .hooks import ExpMomentumEMAHook, SyncNormHook, YOLOXModeSwitchHook
from .optimizer import SGD
from .pipelines import MixUp, Mosaic, RandomAffine, YOLOXHSVRandomAug
from .runner import EpochBasedRunner

PARTS: dict[str, list[tuple[Registry, type]]] = {
    "ASSIGNER": [(BBOX_ASSIGNERS, SimOTAAssigner)],
    "HEAD": [(HEADS, YOLOXHead)],
    "TRAINING": [
        (DETECTORS, YOLOX),
        (HOOKS, ExpMomentumEMAHook),
        (HOOKS, YOLOXModeSwitchHook),
        (HOOKS, SyncNormHook),
        (OPTIMIZERS, SGD),
        (RUNNERS, EpochBasedRunner),
        (DATASETS, CocoDataset),
        (DATASETS, MultiImageMixDataset),
    ],
    "PIPELINE": [
        (PIPELINES, Mosaic),
        (PIPELINES, RandomAffine),
        (PIPELINES, MixUp),
        (PIPELINES, YOLOXHSVRandomAug),
    ],
}


def _is_on(variable: str) -> bool:
    value = os.environ.get(variable, "on").lower()
    if value not in ("on", "off"):
        raise ValueError(f"{variable} must be on or off, got {value!r}")
    return value == "on"


def _replace_parts() -> None:
    plugin_on = _is_on("YOLOX_PLUGIN")
    wanted = [pair for part, pairs in PARTS.items() if _is_on(f"YOLOX_PLUGIN_{part}") and plugin_on for pair in pairs]
    for registry, replacement in wanted:
        registry.register_module(module=replacement, force=True)
        if replacement is MultiImageMixDataset:  # build_dataset looks this one up in its module
            dataset_wrappers.MultiImageMixDataset = replacement
    # Not MMDetection's own logger: whoever touches that first decides its log file, and that must be the training
    # script. One rank speaks for all.
    if os.environ.get("RANK", "0") == "0":
        names = ", ".join(replacement.__name__ for _, replacement in wanted)
        get_logger("yolox_plugin").info(f"replaced in MMDetection: {names or 'nothing (switched off)'}")


def _prepare_npu() -> None:
    """Ready-made kernels instead of compiling for every new shape, of which multi-scale training has many."""
    if IS_NPU_AVAILABLE and _is_on("YOLOX_PLUGIN"):
        import torch_npu

        torch_npu.npu.set_compile_mode(jit_compile=False)


_replace_parts()
_prepare_npu()
