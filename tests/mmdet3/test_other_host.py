"""Weights that were trained under MMDetection 2 go on under MMDetection 3."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.runner import load_checkpoint
from samples import build, model_config

NOT_THERE = 77
PROGRAM = f"""
import sys
try:
    import mmcv
except ImportError:
    sys.exit({NOT_THERE})
if not mmcv.__version__.startswith("1."):
    sys.exit({NOT_THERE})
import yolox_plugin
import torch
from pathlib import Path
from types import SimpleNamespace
import mmdet
from mmcv.runner import HOOKS
from mmdet.models import build_detector
cfg = mmcv.Config.fromfile(str(Path(mmdet.__file__).parent / ".mim/configs/yolox/yolox_s_8x8_300e_coco.py"))
torch.manual_seed(0)
model = build_detector(cfg.model).eval()
with torch.no_grad():
    outputs = model.bbox_head(model.extract_feat(torch.linspace(0, 255, 3 * 64 * 64).view(1, 3, 64, 64)))
HOOKS.get("ExpMomentumEMAHook")(momentum=0.1).before_run(SimpleNamespace(model=model, iter=0))
torch.save({{"state_dict": model.state_dict(), "outputs": outputs, "meta": {{"epoch": 300}}}}, sys.argv[1])
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of YOLOX-s under MMDetection 2, which is there where PYTHONPATH leads to MMDetection 3."""
    path = tmp_path_factory.mktemp("mmdet2") / "epoch_300.pth"
    folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    others = os.pathsep.join(folder for folder in folders if not (Path(folder) / "mmengine").is_dir())
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, path], env=os.environ | {"PYTHONPATH": others},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode == NOT_THERE:
        pytest.skip("MMDetection 2 is not there")
    assert result.returncode == 0, result.stderr
    return path


def test_weights_have_the_same_names_and_shapes(checkpoint):
    """All of them, and batch norm's statistics. Averages of them are something else: buffers of the model named ema_...
    on MMDetection 2, an `ema_state_dict` of its own on MMDetection 3."""
    weights = torch.load(checkpoint)["state_dict"]
    averages = {name for name in weights if name.startswith("ema_")}
    theirs = {name: value.shape for name, value in weights.items() if name not in averages}
    ours = {name: value.shape for name, value in build(model_config("s"), stock=False).state_dict().items()}
    assert list(ours) == list(theirs)
    assert ours == theirs
    assert averages == {f"ema_{name.replace('.', '_')}" for name in ours}


@torch.no_grad()
def test_a_checkpoint_of_mmdetection_2_gives_the_same_network(checkpoint):
    torch.manual_seed(1)
    model = build(model_config("s"), stock=False).eval()
    image = torch.linspace(0, 255, 3 * 64 * 64).view(1, 3, 64, 64)
    before = model.bbox_head(model.extract_feat(image))
    content = load_checkpoint(model, str(checkpoint), map_location="cpu")
    outputs = model.bbox_head(model.extract_feat(image))
    torch.testing.assert_close(outputs, content["outputs"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before[0][0], outputs[0][0], rtol=1e-4, atol=1e-5)
    saved = content["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
