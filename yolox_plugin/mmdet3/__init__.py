"""What stands in for classes of MMDetection 3.x, mmengine and torch: their interfaces, over the arithmetic of
`yolox_plugin.core`."""

import mmengine.runner.runner
from mmdet.registry import DATASETS, MODELS, TASK_UTILS, TRANSFORMS
from mmdet.registry import HOOKS as MMDET_HOOKS
from mmengine.registry import HOOKS, LOOPS, MODEL_WRAPPERS, OPTIM_WRAPPERS, OPTIMIZERS

from ..core.sgd import SGD
from ..parts import Parts, is_on
from .assigner import SimOTAAssigner
from .batch import DetDataPreprocessor
from .checkpoints import CheckpointHook, allow_own_checkpoints, save_checkpoint
from .dataset import CocoDataset, MultiImageMixDataset
from .detector import YOLOX
from .ema import ExpMomentumEMA
from .head import YOLOXHead
from .hooks import RuntimeInfoHook, SyncNormHook, YOLOXModeSwitchHook
from .loop import EpochBasedTrainLoop
from .processes import MMDistributedDataParallel, init_dist
from .scaling import AmpOptimWrapper
from .sizes import BatchSyncRandomResize
from .transforms import MixUp, Mosaic, RandomAffine, YOLOXHSVRandomAug

RUNNER = mmengine.runner.runner  # which looks these names up itself

PARTS: Parts = {
    "ASSIGNER": [(TASK_UTILS, SimOTAAssigner)],
    "HEAD": [(MODELS, YOLOXHead)],
    "TRAINING": [
        (MODELS, YOLOX),
        (MODELS, DetDataPreprocessor),
        (MODELS, BatchSyncRandomResize),
        (MODELS, ExpMomentumEMA),
        (MMDET_HOOKS, YOLOXModeSwitchHook),
        (MMDET_HOOKS, SyncNormHook),
        (HOOKS, RuntimeInfoHook),
        (HOOKS, CheckpointHook),
        (RUNNER, save_checkpoint),
        (OPTIMIZERS, SGD),
        (OPTIM_WRAPPERS, AmpOptimWrapper),
        (LOOPS, EpochBasedTrainLoop),
        (RUNNER, EpochBasedTrainLoop),
        (MODEL_WRAPPERS, MMDistributedDataParallel),
        (RUNNER, MMDistributedDataParallel),
        (RUNNER, init_dist),
        (DATASETS, CocoDataset),
        (DATASETS, MultiImageMixDataset),
    ],
    "PIPELINE": [
        (TRANSFORMS, Mosaic),
        (TRANSFORMS, RandomAffine),
        (TRANSFORMS, MixUp),
        (TRANSFORMS, YOLOXHSVRandomAug),
    ],
}

if is_on("YOLOX_PLUGIN") and is_on("YOLOX_PLUGIN_TRAINING"):
    allow_own_checkpoints()
