"""MMDetection's own runner on real images: the standard config with and without the plugin, and the demo."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import mmdet
import pytest

from yolox_plugin.run.demo_data import CLASSES, make_dataset

STANDARD = Path(mmdet.__file__).parent / ".mim/configs/yolox/yolox_m_8x8_300e_coco.py"
TRAIN = Path(mmdet.__file__).parent / ".mim/tools/train.py"


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_demo_data_is_deterministic_and_true(tmp_path):
    for name in ("a", "b"):
        make_dataset(tmp_path / name, train=6, val=3)
    make_dataset(tmp_path / "c", train=6, val=3, seed=1)
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")
    labels = json.loads((tmp_path / "a/annotations/instances_train2017.json").read_text())
    assert [c["name"] for c in labels["categories"]] == list(CLASSES)
    assert len(labels["images"]) == 6
    sizes = {}
    for image in labels["images"]:
        pixels = cv2.imread(str(tmp_path / "a/train2017" / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        sizes[image["id"]] = (image["width"], image["height"])
    assert len(set(sizes.values())) > 1
    for thing in labels["annotations"]:
        x, y, w, h = thing["bbox"]
        width, height = sizes[thing["image_id"]]
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
        assert 0 < thing["area"] <= w * h
    with pytest.raises(FileExistsError, match="is there already"):
        make_dataset(tmp_path / "a")


def train_standard(root, work_dir, plugin):
    """An epoch of the standard YOLOX-M config with the plugin's one line, at its own 640 x 640, two images a step.

    Without the training part, which draws other random numbers for the same seed, so that the images are the same.
    """
    config = work_dir.with_suffix(".py")
    config.write_text(
        f'_base_ = "{STANDARD}"\ncustom_imports = dict(imports=["yolox_plugin"], allow_failed_imports=False)\n'
    )
    options = [
        "data.samples_per_gpu=2", "data.workers_per_gpu=1", "runner.max_epochs=1", "log_config.interval=1",
        f"data.train.dataset.ann_file={root}/annotations/instances_train2017.json",
        f"data.train.dataset.img_prefix={root}/train2017/", f"data.train.dataset.classes={list(CLASSES)}",
    ]  # fmt: skip
    result = subprocess.run(
        [sys.executable, TRAIN, config, "--no-validate", "--seed", "0", "--deterministic", "--work-dir", work_dir,
         "--cfg-options", *(option.replace(" ", "") for option in options)],
        env=os.environ | {"YOLOX_PLUGIN": plugin, "YOLOX_PLUGIN_TRAINING": "off", "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert ("nothing (switched off)" in result.stderr) == (plugin == "off")
    log = next(work_dir.glob("*.log.json"))
    return [json.loads(line) for line in log.read_text().splitlines() if '"loss"' in line]


@pytest.mark.slow
def test_ten_iterations_of_the_standard_config(tmp_path):
    make_dataset(tmp_path / "data", train=20, val=1)
    theirs, ours = (train_standard(tmp_path / "data", tmp_path / plugin, plugin) for plugin in ("off", "on"))
    assert len(theirs) == len(ours) >= 10
    for their, our in zip(theirs, ours, strict=True):
        assert our.keys() == their.keys()
        for name in ("loss_cls", "loss_bbox", "loss_obj", "loss", "lr"):
            assert our[name] == pytest.approx(their[name], rel=1e-3, abs=1e-4), (our["iter"], name)


@pytest.mark.slow
def test_the_demo_in_small(tmp_path):
    make_dataset(tmp_path / "data", train=16, val=8)
    command = [
        sys.executable, "-m", "yolox_plugin.demo", "--data-path", tmp_path / "data", "--work-dir", tmp_path / "run",
        "--epochs", "2",
    ]  # fmt: skip
    first, again = (subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr[-3000:]
    summary = re.search(r"^demo: mAP (\S+), AP50 (\S+), (\S+) images/s in training, trained in", first.stdout, re.M)
    assert summary, first.stdout[-2000:]
    assert float(summary[1]) < 0.3  # two epochs teach it next to nothing
    assert float(summary[3]) > 0
    for name in ("latest.pth", "curves.png", "detections.png"):
        assert str(tmp_path / "run" / name) in first.stdout
        assert (tmp_path / "run" / name).stat().st_size > 1000
    log = [json.loads(line) for line in next((tmp_path / "run").glob("*.log.json")).read_text().splitlines()]
    assert [line["epoch"] for line in log if line.get("mode") == "val"] == [1, 2]
