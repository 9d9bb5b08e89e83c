"""Batches as MMDetection's pipeline would give them, and a small detector, for the tests of head and detector."""

from pathlib import Path

import mmdet
import torch
from mmcv import Config
from mmdet.models import build_detector

import yolox_plugin  # noqa: F401  registers its classes

CONFIGS = Path(mmdet.__file__).parent / ".mim/configs/yolox"


def batch(seed, gts, size):
    """An image batch with as many gts as `gts` says for each image.

    None is so thin that it runs out of priors in box and centre: beyond those, costs carry +1e5, many are equal in
    float32, and which of them torch.topk takes is open. The operator tests cover that.
    """
    g = torch.Generator().manual_seed(seed)
    boxes, labels = [], []
    for count in gts:
        center = torch.rand(count, 2, generator=g) * size
        extent = torch.rand(count, 2, generator=g) ** 2 * size / 2 + 28
        boxes.append(torch.cat([center - extent / 2, center + extent / 2], 1))
        labels.append(torch.randint(80, (count,), generator=g))
    # Contrast of large parts, as photographs have it: bfloat16 loses white noise behind a few layers.
    parts = torch.rand(len(gts), 3, 20, 20, generator=g) * 255
    return torch.nn.functional.interpolate(parts, size=(size, size), mode="bilinear"), boxes, labels


def nano(**changes):
    cfg = Config.fromfile(str(CONFIGS / "yolox_nano_8x8_300e_coco.py")).model
    torch.manual_seed(0)
    model = build_detector({**cfg, "input_size": (128, 128), "random_size_range": (3, 6), **changes})
    model.init_weights()
    return model.train()
