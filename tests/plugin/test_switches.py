"""What importing the plugin replaces, and how to keep it from doing so."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import yolox_plugin
from mmcv.runner import HOOKS, OPTIMIZERS, RUNNERS
from mmdet.core.bbox.builder import BBOX_ASSIGNERS
from mmdet.datasets import DATASETS, PIPELINES, dataset_wrappers
from mmdet.models import DETECTORS, HEADS
parts = {
    "assigner": [BBOX_ASSIGNERS.get("SimOTAAssigner")],
    "head": [HEADS.get("YOLOXHead")],
    "training": [
        DETECTORS.get("YOLOX"), OPTIMIZERS.get("SGD"), RUNNERS.get("EpochBasedRunner"), DATASETS.get("CocoDataset"),
        DATASETS.get("MultiImageMixDataset"), dataset_wrappers.MultiImageMixDataset,
        *map(HOOKS.get, ("ExpMomentumEMAHook", "YOLOXModeSwitchHook", "SyncNormHook")),
    ],
    "pipeline": [*map(PIPELINES.get, ("Mosaic", "RandomAffine", "MixUp", "YOLOXHSVRandomAug"))],
}
print(*(part for part, classes in parts.items() for c in classes if c.__module__.startswith("yolox_plugin")))
"""
TRAINING = " ".join(9 * ["training"])
PIPELINE = " ".join(4 * ["pipeline"])
PIPELINE_NAMES = "Mosaic, RandomAffine, MixUp, YOLOXHSVRandomAug"
TRAINING_NAMES = (
    "YOLOX, ExpMomentumEMAHook, YOLOXModeSwitchHook, SyncNormHook, SGD, EpochBasedRunner, CocoDataset,"
    " MultiImageMixDataset"
)


def run(**env):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("env", "classes", "message"),
    [
        ({}, f"assigner head {TRAINING} {PIPELINE}", f"SimOTAAssigner, YOLOXHead, {TRAINING_NAMES}, {PIPELINE_NAMES}"),
        ({"YOLOX_PLUGIN": "off"}, "", "nothing (switched off)"),
        (
            {"YOLOX_PLUGIN_HEAD": "off", "YOLOX_PLUGIN_PIPELINE": "off"},
            f"assigner {TRAINING}",
            f"SimOTAAssigner, {TRAINING_NAMES}",
        ),
        (
            {"YOLOX_PLUGIN_ASSIGNER": "off"},
            f"head {TRAINING} {PIPELINE}",
            f"YOLOXHead, {TRAINING_NAMES}, {PIPELINE_NAMES}",
        ),
        (
            {"YOLOX_PLUGIN_TRAINING": "off"},
            f"assigner head {PIPELINE}",
            f"SimOTAAssigner, YOLOXHead, {PIPELINE_NAMES}",
        ),
    ],
    ids=str,
)
def test_parts(env, classes, message):
    result = run(**env)
    assert result.stdout.strip() == classes, result.stderr
    lines = [line for line in result.stderr.splitlines() if "yolox_plugin" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f"replaced in MMDetection: {message}")


def test_only_one_rank_speaks():
    result = run(RANK="3")
    assert result.stdout.strip() == f"assigner head {TRAINING} {PIPELINE}"
    assert "yolox_plugin" not in result.stderr


def test_a_typing_error_is_refused():
    result = run(YOLOX_PLUGIN="of")
    assert result.returncode != 0
    assert "YOLOX_PLUGIN must be on or off, got 'of'" in result.stderr
