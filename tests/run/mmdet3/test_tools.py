"""The commands on MMDetection 3 against its own tools."""

import re

import mmengine
import numpy as np
import pytest
import torch
from tiny import finished
from tiny3 import run

from yolox_plugin.run import evaluate as testing
from yolox_plugin.run import report


@pytest.mark.slow
def test_the_figures_are_those_of_plain_mmdet(script, learned, tmp_path):
    """MMDetection's own test.py without the plugin, on the same checkpoint and images: its detections as well."""
    data, config, checkpoint = learned
    options = [f"--data-path={data}", f"--config={config}", f"--pth-path={checkpoint}", "--work-dir=ours"]
    ours = finished(script("test_1p.sh", *options), tmp_path / "ours")
    assert ours["mAP"] > 0.1 and ours["amp"] == "float32"
    low = finished(script("test_1p.sh", *options[:-1], "--work-dir=low", "--amp=bfloat16"), tmp_path / "low")
    assert low["mAP"] == pytest.approx(ours["mAP"], abs=0.02)  # of four images, each with a few boxes
    assert low["amp"] == "bfloat16"
    output = run(
        "test", config, checkpoint, "--work-dir", tmp_path / "theirs", "--out", tmp_path / "theirs.pkl",
        YOLOX_PLUGIN="off", TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1",
    )  # fmt: skip
    theirs = dict(re.findall(r"coco/bbox_(\w+): (-?[\d.]+)", output))
    for name, stock_name in report.FIGURES.items():
        assert ours[name] == pytest.approx(float(theirs[stock_name]), abs=5e-4), name

    cfg = testing.host.load_config(testing.parser().parse_args([*options, "--device=cpu"]))
    found = [results for _, results in testing.host.Evaluation(cfg, checkpoint).pictures()]
    expected = mmengine.load(tmp_path / "theirs.pkl")
    assert len(found) == len(expected) == 4
    assert sum(len(boxes) for image in found for boxes in image) > 10
    for mine, stock in zip(found, expected, strict=True):
        instances = stock["pred_instances"]
        for label, boxes in enumerate(mine):
            chosen = instances["labels"] == label
            scored = torch.cat([instances["bboxes"], instances["scores"][:, None]], 1)[chosen]
            np.testing.assert_allclose(boxes, scored.numpy(), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_its_own_tools_take_the_config_of_a_run(script, tmp_path):
    """config.py in the work directory says all that the command line did, so that tools/test.py agrees."""
    finished(script("train_full_1p.sh", "--epochs=1", "--work_dir=run", "--batch_size=2"), tmp_path / "run")
    checkpoint = tmp_path / "run/epoch_1.pth"
    assert torch.load(checkpoint)["meta"]["LABELS"] == ["disc", "square", "triangle", "star", "ring"]
    output = run("test", tmp_path / "run/config.py", checkpoint, "--work-dir", tmp_path / "test")
    assert re.search(r"coco/bbox_mAP: |testing results of the whole dataset is empty", output)
