"""What a runner gives to a detector, and a small one, for the tests of head and detector."""

from pathlib import Path
from unittest.mock import patch

import mmdet
import torch
from mmcv import Config
from mmdet.core.bbox.assigners.sim_ota_assigner import SimOTAAssigner as StockAssigner
from mmdet.core.bbox.builder import BBOX_ASSIGNERS
from mmdet.models import DETECTORS, build_detector
from mmdet.models.dense_heads.yolox_head import YOLOXHead as StockHead
from mmdet.models.detectors.yolox import YOLOX as StockYOLOX
from scenes import batch

import yolox_plugin  # noqa: F401  registers its classes

CONFIGS = Path(mmdet.__file__).parent / ".mim/configs/yolox"


def build(cfg, *, stock):
    """A detector of the plugin's classes or of MMDetection's own."""
    classes = {"YOLOX": StockYOLOX, "YOLOXHead": StockHead} if stock else {}
    with (
        patch.dict(DETECTORS.module_dict, classes),
        patch.dict(BBOX_ASSIGNERS.module_dict, {"SimOTAAssigner": StockAssigner} if stock else {}),
    ):
        return build_detector(cfg)


def nano(*, stock=False, calm=False, **changes):
    """A small detector. Batch norm over a few pixels of a few images makes of the last bit, in a step or two, another
    assignment: `calm` norm layers keep to their statistics, for whoever compares several steps."""
    cfg = Config.fromfile(str(CONFIGS / "yolox_nano_8x8_300e_coco.py")).model
    torch.manual_seed(0)
    model = build({**cfg, "input_size": (128, 128), "random_size_range": (3, 6), **changes}, stock=stock)
    model.init_weights()
    if calm:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval().train = lambda mode=True, module=module: module
    return model.train()


def train_data(seed, gts=(3, 8), size=128):
    """What a runner gives to `train_step`, collated."""
    image, boxes, labels = batch(seed, gts, size)
    metas = [{"img_shape": (size, size, 3)}] * len(gts)
    return {"img": image, "img_metas": metas, "gt_bboxes": boxes, "gt_labels": labels}
