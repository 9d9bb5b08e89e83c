"""The same data set of the plugin's classes and of MMDetection's own."""

import copy

import numpy as np
import torch
from mmdet.datasets import CocoDataset
from mmdet.datasets import MultiImageMixDataset as StockMultiImageMixDataset
from mmdet.registry import TRANSFORMS

from yolox_plugin.mmdet3 import PARTS
from yolox_plugin.mmdet3.dataset import MultiImageMixDataset

# MMDetection's classes by the names that the plugin's have as well.
STOCK = {ours.__name__: ours.__bases__[0] for _, ours in PARTS["PIPELINE"]}


def standard(size=(96, 96), mosaic=None, affine=None, mixup=None, hsv=None, flip=None):
    """The standard config's pipeline at another size (width, height), with options of its steps changed."""
    border = (-size[0] // 2, -size[1] // 2)
    return [
        {"type": "Mosaic", "img_scale": size, "pad_val": 114.0, **(mosaic or {})},
        {"type": "RandomAffine", "scaling_ratio_range": (0.1, 2), "border": border, **(affine or {})},
        {"type": "MixUp", "img_scale": size, "ratio_range": (0.8, 1.6), "pad_val": 114.0, **(mixup or {})},
        {"type": "YOLOXHSVRandomAug", **(hsv or {})},
        {"type": "RandomFlip", "prob": 0.5, **(flip or {})},
        {"type": "Resize", "scale": size, "keep_ratio": True},
        {"type": "Pad", "pad_to_square": True, "pad_val": {"img": (114.0, 114.0, 114.0)}},
        {"type": "FilterAnnotations", "min_gt_bbox_wh": (1, 1), "keep_empty": False},
        {"type": "PackDetInputs"},
    ]


def inner(root, load=None, annotate=None, **changes):
    """Images and boxes."""
    return CocoDataset(**{
        "ann_file": str(root / "annotations.json"), "data_prefix": {"img": str(root)},
        "metainfo": {"classes": ("0", "1", "2")},
        "pipeline": [{"type": "LoadImageFromFile", **(load or {})}, {"type": "LoadAnnotations", **(annotate or {})}],
        **changes,
    })  # fmt: skip


def copied(data):
    """A config, from which MMDetection takes what it has read, as a copy."""
    return copy.deepcopy(data) if isinstance(data, dict) else data


def build(data, steps, **options):
    """The plugin's classes around the data set `data`, or around what it is the config of."""
    return MultiImageMixDataset(copied(data), copy.deepcopy(steps), **options)


def build_stock(data, steps, **options):
    """MMDetection's own classes throughout."""
    mixed = StockMultiImageMixDataset(copied(data), copy.deepcopy(steps), **options)
    mixed.pipeline = [build_stock_step(step) for step in steps]
    assert not any(type(step).__module__.startswith("yolox_plugin") for step in mixed.pipeline)
    return mixed


def build_stock_step(step):
    """One step of a pipeline from its config."""
    options = {key: value for key, value in step.items() if key != "type"}
    return STOCK[step["type"]](**options) if step["type"] in STOCK else TRANSFORMS.build(step)


def draw(dataset, index, seed):
    """A sample, and what is drawn after it: that shows how much was drawn."""
    np.random.seed(seed)
    return dataset[index], np.random.random()


def same(ours, theirs):
    """Compares two packed samples that were drawn; returns the numbers of objects and of crowds."""
    (ours, draw_after_ours), (theirs, draw_after_theirs) = ours, theirs
    assert draw_after_ours == draw_after_theirs
    assert ours.keys() == theirs.keys()
    a, b = ours["inputs"], theirs["inputs"]
    assert a.shape == b.shape
    assert a.dtype == b.dtype == torch.uint8
    assert torch.equal(a, b), f"{(a != b).sum()} levels differ, at most by {(a.int() - b.int()).abs().max()}"
    a, b = ours["data_samples"], theirs["data_samples"]
    assert a.metainfo == b.metainfo
    for kind in ("gt_instances", "ignored_instances"):
        mine, stock = getattr(a, kind), getattr(b, kind)
        assert type(mine.bboxes) is type(stock.bboxes)
        assert mine.bboxes.dtype == stock.bboxes.dtype == torch.float32
        boxes = [getattr(boxes, "tensor", boxes) for boxes in (mine.bboxes, stock.bboxes)]
        assert torch.equal(*boxes), boxes
        assert mine.labels.dtype == stock.labels.dtype
        assert torch.equal(mine.labels, stock.labels)
    return len(a.gt_instances), len(a.ignored_instances)
