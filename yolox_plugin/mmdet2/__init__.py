"""What stands in for classes of MMDetection 2.28.2, mmcv 1.x and torch: their interfaces, over the arithmetic of
`yolox_plugin.core`."""

import mmcv.device.npu.data_parallel
import mmcv.device.npu.distributed
import mmcv.parallel._functions
from mmcv.runner import HOOKS, OPTIMIZERS, RUNNERS
from mmdet.core.bbox.builder import BBOX_ASSIGNERS
from mmdet.datasets import DATASETS, PIPELINES, dataset_wrappers
from mmdet.models.builder import DETECTORS, HEADS

from ..core.sgd import SGD
from ..parts import Parts
from .assigner import SimOTAAssigner
from .dataset import CocoDataset, MultiImageMixDataset
from .detector import YOLOX
from .head import YOLOXHead
from .hooks import CheckpointHook, ExpMomentumEMAHook, SyncNormHook, YOLOXModeSwitchHook
from .runner import EpochBasedRunner
from .scatter import scatter_kwargs
from .streams import _get_stream
from .transforms import MixUp, Mosaic, RandomAffine, YOLOXHSVRandomAug

PARTS: Parts = {
    "ASSIGNER": [(BBOX_ASSIGNERS, SimOTAAssigner)],
    "HEAD": [(HEADS, YOLOXHead)],
    "TRAINING": [
        (DETECTORS, YOLOX),
        (HOOKS, ExpMomentumEMAHook),
        (HOOKS, YOLOXModeSwitchHook),
        (HOOKS, SyncNormHook),
        (HOOKS, CheckpointHook),
        (OPTIMIZERS, SGD),
        (RUNNERS, EpochBasedRunner),
        (DATASETS, CocoDataset),
        (DATASETS, MultiImageMixDataset),
        (dataset_wrappers, MultiImageMixDataset),  # where `build_dataset` finds it
        (mmcv.parallel._functions, _get_stream),  # where mmcv's `Scatter` finds it
        (mmcv.device.npu.data_parallel, scatter_kwargs),  # and its classes for NPUs
        (mmcv.device.npu.distributed, scatter_kwargs),
    ],
    "PIPELINE": [
        (PIPELINES, Mosaic),
        (PIPELINES, RandomAffine),
        (PIPELINES, MixUp),
        (PIPELINES, YOLOXHSVRandomAug),
    ],
}
