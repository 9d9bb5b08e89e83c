"""The benchmark tells agreement from disagreement, and writes what it is asked to write."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mmcv import Config
from mmdet import __file__ as mmdet_file
from mmdet.models import build_detector

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PROGRAM = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
{{preparation}}
import {{name}}
sys.exit({{name}}.main(sys.argv[1:]))
"""


def run(name, *options, preparation=""):
    program = PROGRAM.format(preparation=preparation, name=name)
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, options)], capture_output=True, text=True, check=False
    )


def bench(*options, preparation=""):
    return run("ops_bench", "--quick", *options, preparation=preparation)


def train_bench(*options, preparation=""):
    nano = ("--config", "yolox_nano_8x8_300e_coco", "--batch", 1, "--rounds", 2, "--gts", 40)
    return run("train_bench", *nano, *options, preparation=preparation)


@pytest.mark.slow
def test_json_and_chart(tmp_path):
    result = bench("--only", "box_iou", "--json", tmp_path / "b.json", "--plot", tmp_path / "b.png")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((tmp_path / "b.json").read_text())
    assert data["machine"]["threads"] == 2
    case = next(case for case in data["cases"] if case["case"] == "8400x40")
    assert {"reference", "mmdet", "torchvision"} <= case["verdicts"].keys()
    assert {"yolox_ops", "mmdet", "torchvision"} <= case["timings"].keys()
    assert all(timing["median"] > 0 for timing in case["timings"].values())
    assert max(case["limits"].values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operator", "wrong"),
    [
        ("box_iou", "lambda *a: right(*a) + 1e-3"),
        ("simota_assign", "lambda *a: (right(*a)[0].roll(1), right(*a)[1])"),
        ("batched_nms", "lambda *a: right(*a)[1:]"),
        ("yolox_detect", "lambda *a: (right(*a)[0] + 1, *right(*a)[1:])"),
        ("ema_update_", "lambda a, v, m: right(a, v, m + 0.01)"),
    ],
)
def test_a_wrong_operator_is_a_mismatch(operator, wrong):
    replace = f"import yolox_ops; right = yolox_ops.{operator}; yolox_ops.{operator} = {wrong}"
    result = bench("--only", operator, preparation=replace)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"MISMATCH {operator}" in result.stdout
    assert "DIFFER" in result.stdout


@pytest.mark.slow
def test_works_without_the_peers():
    hide = "sys.modules.update(dict.fromkeys(('mmdet', 'mmcv', 'torchvision')))"
    result = bench("--only", "batched_nms", preparation=hide)
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("mmdet", "mmcv", "torchvision"):
        assert f"missing: {name}" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--threads", 0), "--threads must be at least 1, got 0"),
        (("--json", "/no/such/folder/b.json"), "the folder of /no/such/folder/b.json does not exist"),
        (("--device", "xpu"), "--device xpu: this build has backends for cpu, npu, cuda only"),
    ],
)
def test_bad_options(options, message):
    result = bench(*options)
    assert result.returncode == 2
    assert message in result.stderr


def test_the_shapes_of_yolox_m_are_those_of_mmdet():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from cases import yolox_m_shapes
    finally:
        sys.path.remove(str(BENCHMARKS))
    config = Path(mmdet_file).parent / ".mim/configs/yolox/yolox_m_8x8_300e_coco.py"
    state = build_detector(Config.fromfile(str(config)).model).state_dict().values()
    assert sorted(yolox_m_shapes()) == sorted(tuple(t.shape) for t in state if t.is_floating_point())


@pytest.mark.slow
def test_steps_with_json_chart_and_profile(tmp_path):
    result = train_bench("--json", tmp_path / "t.json", "--plot", tmp_path / "t.png", "--profile")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "parity: losses and gradients agree" in result.stdout
    assert "| plugin bfloat16 | ms | share | calls |" in result.stdout
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    [found] = json.loads((tmp_path / "t.json").read_text())["results"]
    assert found["gts"] == 40
    for name in ("mmdet", "plugin", "plugin bfloat16"):
        side = found["sides"][name]
        assert side["step"] > sum(side["stages"].values()) * 0.5 > 0


@pytest.mark.slow
def test_a_step_with_another_assignment_is_a_mismatch():
    replace = (
        "import yolox_ops; right = yolox_ops.simota_assign;"
        " yolox_ops.simota_assign = lambda *a: (right(*a)[0].roll(1, 1), right(*a)[1])"
    )
    result = train_bench(preparation=replace)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "priors have another gt" in result.stdout
    assert "DIFFER" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rounds", 0), "--rounds must be at least 1, got 0"),
        (("--gts", -1), "--gts must be at least 0, got -1"),
        (("--config", "yolox_xl"), "--config must be one of"),
    ],
)
def test_bad_options_of_the_step_benchmark(options, message):
    result = train_bench(*options)
    assert result.returncode == 2
    assert message in result.stderr


def pipeline_bench(*options, preparation=""):
    few = ("--samples", 4, "--images", 6, "--workers", 1)
    return run("pipeline_bench", *few, *options, preparation=preparation)


@pytest.mark.slow
def test_samples_with_json_and_chart(tmp_path):
    result = pipeline_bench("--json", tmp_path / "p.json", "--plot", tmp_path / "p.png")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "parity: 4 samples are equal, bit by bit" in result.stdout
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((tmp_path / "p.json").read_text())
    for name in ("mmdet", "plugin", "plugin, cache=ram"):
        side = data["sides"][name]
        assert sum(side["stages"].values()) > 0
        assert side["images a second"]["1"] > 0
    assert data["sides"]["plugin, cache=ram"]["stages"]["read, decode"] == 0
    assert data["sides"]["mmdet"]["stages"]["read, decode"] > 0


@pytest.mark.slow
def test_another_blend_is_a_mismatch():
    replace = (
        "from yolox_plugin import pipelines as p; right = p.mixup_blend;"
        " p.mixup_blend = lambda image, *a: right(image ^ 1, *a)"
    )
    result = pipeline_bench(preparation=replace)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "MISMATCH of plugin, seed" in result.stdout
    assert "DIFFER" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--samples", 1), "--samples must be at least 2, got 1"),
        (("--workers", 0), "--workers must be at least 1, got 0"),
        (("--plot", "/no/such/folder/b.png"), "the folder of /no/such/folder/b.png does not exist"),
    ],
)
def test_bad_options_of_the_pipeline_benchmark(options, message):
    result = pipeline_bench(*options)
    assert result.returncode == 2
    assert message in result.stderr
