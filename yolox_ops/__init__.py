"""Native operators for training and evaluating YOLOX: SimOTA, box IoU, class-aware NMS, EMA, batch norm with SiLU."""

# ruff: noqa: E402  the compiled part has to be found before it is imported
from ._source_tree import compiled_part

__path__ += compiled_part()

from ._library import cpu_capability
from .boxes import box_iou
from .ema import ema_update_
from .mixup import mixup_blend
from .nms import batched_nms, yolox_detect
from .norm import batch_norm_silu
from .simota import SimOTAParameters, simota_assign, simota_cost

__all__ = [
    "SimOTAParameters",
    "batch_norm_silu",
    "batched_nms",
    "box_iou",
    "cpu_capability",
    "ema_update_",
    "mixup_blend",
    "simota_assign",
    "simota_cost",
    "yolox_detect",
]
