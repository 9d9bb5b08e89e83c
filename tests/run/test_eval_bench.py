"""The benchmark of evaluation, on whichever MMDetection is here."""

import json

import pytest
from programs import run as bench


@pytest.mark.slow
def test_the_benchmark_of_evaluation_compares_what_it_times(learned, tmp_path):
    data, config, checkpoint = learned
    options = [f"--data-path={data}", f"--config={config}", f"--pth-path={checkpoint}", "--rounds=1", "--threads=1"]
    result = bench("eval_bench", *options, f"--json={tmp_path / 'e.json'}")
    assert result.returncode == 0, result.stdout + result.stderr
    sides = json.loads((tmp_path / "e.json").read_text())["sides"]
    assert list(sides) == ["mmdet", "plugin", "plugin bfloat16"]
    for side in sides.values():
        assert side["mAP"] > 0.1 and side["ms an image"] > side["network"] > 0 and side["peak MB"] > 0
        assert side["kinds"]["convolution"] > 0
    wrong = (
        "from yolox_plugin import inference as i; import copy;"
        " i.fuse_conv_bn_eval = lambda conv, norm: copy.deepcopy(conv)"
    )
    result = bench("eval_bench", *options, preparation=wrong)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "MISMATCH: plugin: mAP is" in result.stdout and "DIFFER" in result.stdout
    for more in ("--amp=bfloat16", "--devices=2", f"--json={tmp_path}"):
        assert bench("eval_bench", *options, more).returncode == 2
