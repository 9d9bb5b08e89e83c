"""What importing the plugin replaces, and how to keep it from doing so."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import yolox_plugin
from mmdet.core.bbox.builder import BBOX_ASSIGNERS
from mmdet.models import HEADS
print(*(c.__module__.split(".")[0] for c in (BBOX_ASSIGNERS.get("SimOTAAssigner"), HEADS.get("YOLOXHead"))))
"""


def run(**env):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("env", "classes", "message"),
    [
        ({}, "yolox_plugin yolox_plugin", "replaced in MMDetection: SimOTAAssigner, YOLOXHead"),
        ({"YOLOX_PLUGIN": "off"}, "mmdet mmdet", "replaced in MMDetection: nothing (switched off)"),
        ({"YOLOX_PLUGIN_HEAD": "off"}, "yolox_plugin mmdet", "replaced in MMDetection: SimOTAAssigner"),
        ({"YOLOX_PLUGIN_ASSIGNER": "off"}, "mmdet yolox_plugin", "replaced in MMDetection: YOLOXHead"),
    ],
    ids=str,
)
def test_parts(env, classes, message):
    result = run(**env)
    assert result.stdout.strip() == classes, result.stderr
    lines = [line for line in result.stderr.splitlines() if "yolox_plugin" in line]
    assert len(lines) == 1
    assert lines[0].endswith(message)


def test_only_one_rank_speaks():
    result = run(RANK="3")
    assert result.stdout.strip() == "yolox_plugin yolox_plugin"
    assert "yolox_plugin" not in result.stderr


def test_a_typing_error_is_refused():
    result = run(YOLOX_PLUGIN="of")
    assert result.returncode != 0
    assert "YOLOX_PLUGIN must be on or off, got 'of'" in result.stderr
