"""What stands in for classes of MMDetection 3.x, mmengine and torch: their interfaces, over the arithmetic of
`yolox_plugin.core`."""

from types import ModuleType

from mmdet.registry import DATASETS, TRANSFORMS

from ..parts import Parts
from .dataset import MultiImageMixDataset
from .transforms import MixUp, Mosaic, RandomAffine, YOLOXHSVRandomAug

PARTS: Parts = {
    "TRAINING": [(DATASETS, MultiImageMixDataset)],
    "PIPELINE": [
        (TRANSFORMS, Mosaic),
        (TRANSFORMS, RandomAffine),
        (TRANSFORMS, MixUp),
        (TRANSFORMS, YOLOXHSVRandomAug),
    ],
}
NAMED_IN: dict[type, ModuleType] = {}
