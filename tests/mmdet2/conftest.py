"""A data set, pipelines and a model so small that whole training runs take seconds; all from MMDetection's registries,
so that YOLOX_PLUGIN_TRAINING=off runs the same tests on MMDetection's own classes, to see them fail."""

import gc
import hashlib
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmcv.runner import build_runner
from mmdet.datasets import PIPELINES, build_dataloader, build_dataset

import yolox_plugin  # noqa: F401  registers its classes
from yolox_plugin.run.demo_data import CLASSES, make_dataset

SIZE = 64
PIPELINE = [
    {"type": "Mosaic", "img_scale": (SIZE, SIZE), "pad_val": 114.0},
    {"type": "RandomAffine", "scaling_ratio_range": (0.5, 1.5), "border": (-SIZE // 2, -SIZE // 2)},
    {"type": "MixUp", "img_scale": (SIZE, SIZE), "ratio_range": (0.8, 1.6), "pad_val": 114.0},
    {"type": "YOLOXHSVRandomAug"},
    {"type": "RandomFlip", "flip_ratio": 0.5},
    {"type": "Resize", "img_scale": (SIZE, SIZE), "keep_ratio": False},
    {"type": "Blank"},
    {"type": "DefaultFormatBundle"},
    {"type": "Collect", "keys": ["img", "gt_bboxes", "gt_labels"]},
]


@PIPELINES.register_module(force=True)
class Blank:
    """Does nothing until it is told to, in the worker: shows which steps of the pipeline ran."""

    active = False

    def __call__(self, results):
        if self.active:
            results["img"] = np.zeros_like(results["img"])
        return results


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "data"
    make_dataset(root, train=12, val=2)
    return root


@pytest.fixture
def mixed_dataset(data_root):
    return build_dataset({
        "type": "MultiImageMixDataset",
        "pipeline": PIPELINE,
        "dataset": {
            "type": "CocoDataset",
            "classes": CLASSES,
            "ann_file": str(data_root / "annotations/instances_train2017.json"),
            "img_prefix": str(data_root / "train2017"),
            "filter_empty_gt": False,
            "pipeline": [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}],
        },
    })  # fmt: skip


class Recorder(torch.nn.Module):
    """A model that learns nothing and remembers what it was given: for each epoch, each batch's hash."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.bbox_head = SimpleNamespace(use_l1=False)
        self.epochs = {}
        self.runner = None

    def train_step(self, data, optimizer):
        image = data["img"].data[0]
        entry = {
            "hash": hashlib.sha256(image.numpy().tobytes()).hexdigest(),
            "blank": not image.any(),
            "l1": self.bbox_head.use_l1,
        }
        self.epochs.setdefault(self.runner.epoch, []).append(entry)
        return {"loss": self.weight.sum(), "log_vars": {"loss": 0.0}, "num_samples": len(image)}


@pytest.fixture
def run_epochs(tmp_path):
    """Runs epochs [start, max_epochs) of a data set through the registered runner; what the model saw, by epoch."""

    def run(dataset, *, max_epochs, start=0, seed=0, persistent_workers=False, hooks=(), workers=2, shuffle=False):
        model = Recorder()
        runner = build_runner(
            {"type": "EpochBasedRunner", "max_epochs": max_epochs},
            {
                "model": model,
                "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
                "work_dir": str(tmp_path),
                "logger": logging.getLogger("test"),
                "meta": {"seed": seed},
            },
        )
        model.runner = runner
        runner._epoch = start
        for hook in hooks:
            runner.register_hook_from_cfg(dict(hook))
        loader = build_dataloader(
            dataset, 2, workers, dist=False, shuffle=shuffle, seed=seed,
            persistent_workers=persistent_workers and workers > 0,
        )  # fmt: skip
        np.random.seed(seed)
        runner.run([loader], [("train", 1)])
        return model.epochs

    return run


def _private_bytes(pid):
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


@pytest.fixture
def private_bytes():
    """Memory that a process alone holds: what copy-on-write has cost it, beside its own."""
    gc.collect()
    gc.freeze()  # or collections in workers copy what other tests have left here
    yield _private_bytes
    gc.unfreeze()
