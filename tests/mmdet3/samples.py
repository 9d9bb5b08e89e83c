"""Detectors of MMDetection 3 on the plugin's classes or on stock's own, and what a data loader gives to them."""

from pathlib import Path
from unittest.mock import patch

import mmdet
import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from scenes import batch

from yolox_plugin.mmdet3 import PARTS
from yolox_plugin.parts import stock_of

CONFIGS = Path(mmdet.__file__).parent / ".mim/configs/yolox"


def build(cfg, *, stock):
    """A module of the plugin's classes or of MMDetection's own."""
    pairs = [pair for pairs in PARTS.values() for pair in pairs if stock]
    theirs = {place: {c.__name__: stock_of(c) for p, c in pairs if p is place} for place in (MODELS, TASK_UTILS)}
    with patch.dict(MODELS.module_dict, theirs[MODELS]), patch.dict(TASK_UTILS.module_dict, theirs[TASK_UTILS]):
        return MODELS.build({**cfg, "_scope_": "mmdet"})


def model_config(name, **changes):
    """The model of MMDetection's own config of a size, with other arguments of the detector."""
    return Config.fromfile(str(CONFIGS / f"yolox_{name}_8xb8-300e_coco.py")).model | changes


def head(*, stock, **changes):
    """The head of YOLOX-tiny, with its configs of training and tests."""
    cfg = model_config("tiny")
    return build({**cfg.bbox_head, "train_cfg": cfg.train_cfg, "test_cfg": cfg.test_cfg, **changes}, stock=stock)


def detector(*, stock=False, calm=False, sizes=(96, 192), interval=10, **changes):
    """YOLOX-tiny with the widths of YOLOX-nano, whose own convolutions are slow on a CPU. Batch norm over a few pixels
    of a few images makes of the last bit, in a step or two, another assignment: `calm` norm layers keep to their
    statistics, for whoever compares several steps."""
    cfg = model_config("tiny", **changes)
    cfg.backbone.widen_factor = 0.25
    cfg.neck |= {"in_channels": [64, 128, 256], "out_channels": 64}
    cfg.bbox_head |= {"in_channels": 64, "feat_channels": 64}
    cfg.data_preprocessor.batch_augments[0] |= {"random_size_range": sizes, "interval": interval}
    torch.manual_seed(0)
    model = build(cfg, stock=stock)
    model.init_weights()
    if calm:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval().train = lambda mode=True, module=module: module
    return model.train()


def instances(boxes, labels):
    """The gts of a batch."""
    return [InstanceData(bboxes=b.clone(), labels=c.clone()) for b, c in zip(boxes, labels, strict=True)]


def train_data(seed, gts=(3, 8), size=128):
    """A batch, collated."""
    image, boxes, labels = batch(seed, gts, size)
    meta = {"img_shape": (size, size), "pad_shape": (size, size), "batch_input_shape": (size, size)}
    samples = [DetDataSample(gt_instances=gt, metainfo=dict(meta)) for gt in instances(boxes, labels)]
    return {"inputs": list(image.byte()), "data_samples": samples}
