"""The commands on MMDetection 2.28 alone: mmcv without its operators, and the figures of its own tools."""

import json
import subprocess
import sys
from pathlib import Path

import mmcv
import mmdet
import numpy as np
import pytest
import torch.multiprocessing as mp
from tiny import ENV, finished
from two_ranks import gather_on_a_rank

from yolox_plugin.run import evaluate as testing
from yolox_plugin.run import report
from yolox_plugin.run.mmdet2.config import load_config


def test_no_image_is_lost_or_doubled_between_ranks(tmp_path):
    totals = (0, 1, 5, 6)
    found = mp.Manager().dict()
    mp.spawn(gather_on_a_rank, (tmp_path / "store", totals, found), nprocs=2)
    assert found[0] == [list(range(total)) for total in totals]
    assert found[1] == [None for _ in totals]


@pytest.mark.slow
@pytest.mark.parametrize("plugin", ["on", "off"])
def test_without_the_operators_of_mmcv(script, tmp_path, plugin):
    """With mmcv 1.7.2 as it comes from pip, which `make test` lays beside mmcv-full; MMDetection's own head as well."""
    lite = Path(sys.prefix) / "mmcv-lite"
    assert (lite / "mmcv").is_dir(), "make test installs it there"
    assert not list((lite / "mmcv").glob("_ext*"))
    env = ENV | {"PYTHONPATH": str(lite), "YOLOX_PLUGIN": plugin}
    process = script("train_full_1p.sh", "--epochs=1", "--work-dir=run", environment=env)
    result = finished(process, tmp_path / "run")
    assert result["versions"]["mmcv"] == "1.7.2"
    tested = script("test_1p.sh", f"--pth-path={tmp_path / 'run/latest.pth'}", "--work-dir=test",
                    "--cfg-options", "model.test_cfg.score_thr=0.0", environment=env)  # fmt: skip
    finished(tested, tmp_path / "test")
    call = (
        "import yolox_plugin, torch as t; from mmcv.ops import roi_align as r; r(t.ones(1, 1, 8, 8), t.ones(1, 5), 2)"
    )
    other = subprocess.run([sys.executable, "-c", call], env=env, capture_output=True, text=True, check=False)
    assert "NotImplementedError: mmcv's operator roi_align_forward was called" in other.stderr
    assert "with mmcv-full==1.7.2" in other.stderr


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
    stock = Path(mmdet.__file__).parent / ".mim/tools/test.py"
    process = subprocess.run(
        [sys.executable, stock, config, checkpoint, "--eval", "bbox", "--out", tmp_path / "theirs.pkl",
         "--work-dir", tmp_path / "theirs"],
        env=ENV | {"YOLOX_PLUGIN": "off"}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    theirs = json.loads(next((tmp_path / "theirs").glob("eval_*.json")).read_text())["metric"]
    for name, stock_name in report.FIGURES.items():
        assert ours[name] == pytest.approx(theirs[f"bbox_{stock_name}"], abs=5e-4), name

    cfg = load_config(testing.parser().parse_args([*options, "--device=cpu"]))
    found = testing.host.Evaluation(cfg, checkpoint).detect()
    expected = mmcv.load(tmp_path / "theirs.pkl")
    assert sum(len(boxes) for boxes in expected[0]) > 5
    assert len(found) == len(expected) == 4
    for image, (mine, stocks) in enumerate(zip(found, expected, strict=True)):
        for label, (boxes, stock_boxes) in enumerate(zip(mine, stocks, strict=True)):
            np.testing.assert_allclose(boxes, stock_boxes, rtol=1e-4, atol=1e-3, err_msg=f"image {image} class {label}")
