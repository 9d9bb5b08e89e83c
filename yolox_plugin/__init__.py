"""Puts the operators of yolox_ops to work in MMDetection 2.28.2. One line in any YOLOX config:

    custom_imports = dict(imports=["yolox_plugin"], allow_failed_imports=False)

Importing replaces classes under MMDetection's own names, so that the rest of the config and its checkpoints stay as
they are; a class that somebody else has registered under such a name stays, and the log says so. `YOLOX_PLUGIN=off`
leaves MMDetection untouched. One part is left out by `YOLOX_PLUGIN_ASSIGNER=off`, `YOLOX_PLUGIN_HEAD=off` (the head
then asks the assigner image by image, as MMDetection's does) or `YOLOX_PLUGIN_TRAINING=off` (detector, hooks,
optimizer, runner and data sets, which count on each other) or `YOLOX_PLUGIN_PIPELINE=off` (augmentations).
"""

# ruff: noqa: E402  mmcv's operators have to be there before MMDetection imports them
import os

try:
    import yolox_ops  # noqa: F401
except ImportError as error:
    # With this name, `python -m yolox_plugin.train` prints the one line and no traceback.
    raise ImportError(error.msg, name=__name__) from error

from .mmcv_ext import check_versions, supply_missing_operators

check_versions()
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
from .patches import is_patched
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
    replaced, left = [], []
    for registry, replacement in wanted:
        name, stock = replacement.__name__, replacement.__bases__[0]
        found = registry.module_dict.get(name)
        # Who has put a class of their own into MMDetection's module has made that the base of the plugin's.
        is_stock = stock.__module__.split(".")[0] in ("mmcv", "mmdet", "torch")
        if is_stock and is_patched(stock, replacement):
            left.append(f"{name} (somebody has patched it)")
            continue
        if is_stock and found in (stock, replacement):
            registry.register_module(module=replacement, force=True)
            replaced.append(name)
        else:
            left.append(f"{name} (registered is {found and f'{found.__module__}.{found.__qualname__}'})")
        # build_dataset looks this one up in its module.
        if is_stock and replacement is MultiImageMixDataset and dataset_wrappers.MultiImageMixDataset is stock:
            dataset_wrappers.MultiImageMixDataset = replacement
    # Not MMDetection's own logger: whoever touches that first decides its log file, and that must be the training
    # script. One rank speaks for all.
    if os.environ.get("RANK", "0") == "0":
        names = ", ".join(replaced) or ("nothing" if left else "nothing (switched off)")
        message = f"replaced in MMDetection: {names}" + (f"; left: {', '.join(left)}" if left else "")
        get_logger("yolox_plugin").info(message)


def _prepare_npu() -> None:
    """Ready-made kernels instead of compiling for every new shape, of which multi-scale training has many."""
    if IS_NPU_AVAILABLE and _is_on("YOLOX_PLUGIN"):
        import torch_npu

        torch_npu.npu.set_compile_mode(jit_compile=False)


_replace_parts()
_prepare_npu()
