"""The benchmarks of steps and samples on MMDetection 3: what they write, and that they tell when the sides differ."""

import json

import pytest
from outputs import printed
from programs import run

pytestmark = pytest.mark.slow
STAGES = ("data wait", "forward", "assignment", "losses", "backward", "optimizer", "EMA", "logging")


def train_bench(*options, preparation=""):
    tiny = ("--config", "yolox_tiny_8xb8-300e_coco", "--batch", 1, "--rounds", 1, "--gts", 10, "--threads", 1)
    return run("train_bench", *tiny, *options, preparation=preparation)


def pipeline_bench(*options, preparation=""):
    few = ("--samples", 4, "--images", 6, "--workers", 1)
    return run("pipeline_bench", *few, *options, preparation=preparation)


def test_steps_with_json_and_chart(tmp_path):
    result = train_bench("--json", tmp_path / "t.json", "--plot", tmp_path / "t.png")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "parity: assignments, losses and gradients agree" in result.stdout
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((tmp_path / "t.json").read_text())
    assert printed(result).startswith(f"mmdet {data['machine']['mmdet']}, ")
    assert data["machine"]["mmdet"].startswith("3.") and data["machine"]["size"] == 640
    [found] = data["results"]
    for name in ("mmdet", "mmdet bfloat16", "plugin", "plugin bfloat16"):
        side = found["sides"][name]
        assert tuple(side["stages"]) == STAGES
        assert all(seconds > 0 for seconds in side["stages"].values())
        assert side["step"] == pytest.approx(sum(side["stages"].values()))
        assert side["head loss"] < side["step"] and side["network alone"] > 0


def test_steps_of_several_numbers_of_gts_agree():
    """Nothing of the steps that were timed, nor of the network alone, is left in the next comparison."""
    result = train_bench("--gts", 3, 10)
    assert result.returncode == 0, result.stdout + result.stderr


def test_another_loss_is_a_mismatch():
    replace = (
        "from yolox_plugin.core import head; right = head.gathered_losses\n"
        "def wrong(*args):\n"
        "    losses, count = right(*args)\n"
        "    return losses | {'loss_obj': losses['loss_obj'] * 1.01}, count\n"
        "head.gathered_losses = wrong"
    )
    result = train_bench(preparation=replace)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "MISMATCH at 10 gts: plugin: loss_obj is" in result.stdout
    assert "plugin: loss_bbox" not in result.stdout
    assert "plugin: gradient of bbox_head.multi_level_conv_obj.0.weight differs" in result.stdout
    assert "DIFFER" in result.stdout


@pytest.mark.parametrize("bench", [train_bench, pipeline_bench])
def test_the_plugin_is_no_side_of_mmdetection(bench):
    result = bench(preparation="from yolox_plugin import parts; parts.revert = lambda: None")
    assert result.returncode == 1
    assert "WrongSide: the side mmdet has yolox_plugin.mmdet3." in result.stderr


def test_samples_with_json_and_chart(tmp_path):
    result = pipeline_bench("--json", tmp_path / "p.json", "--plot", tmp_path / "p.png")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "parity: 4 samples are equal, bit by bit" in result.stdout
    assert "target plugin: >= 2.5x mmdet" in result.stdout
    assert "target plugin, cache=ram: >= 5x mmdet" in result.stdout
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((tmp_path / "p.json").read_text())
    assert printed(result).startswith(f"mmdet {data['machine']['mmdet']}, ")
    assert data["machine"]["mmdet"].startswith("3.")
    for name in ("mmdet", "plugin", "plugin, cache=ram"):
        side = data["sides"][name]
        seen = {stage for stage, ms in side["stages"].items() if ms > 0}
        assert seen == set(side["stages"]) - ({"read, decode"} if name == "plugin, cache=ram" else set())
        assert side["images a second"]["1"] > 0


def test_another_blend_is_a_mismatch():
    replace = (
        "from yolox_plugin.core import mixup as p; right = p.mixup_blend;"
        " p.mixup_blend = lambda image, *a: right(image ^ 1, *a)"
    )
    result = pipeline_bench(preparation=replace)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "MISMATCH of plugin, seed" in result.stdout
    assert "inputs, (3, 640, 640) and (3, 640, 640)" in result.stdout


def test_a_config_of_mmdetection_2_is_not_there():
    result = train_bench("--config", "yolox_m_8x8_300e_coco")
    assert result.returncode == 2
    assert "--config must be one of yolox_l_8xb8-300e_coco, " in result.stderr
