"""`yolox_plugin.train` and `.test` with --device=npu, from the command's options to result.json."""

import json

import pytest
import torch
from device import recorded
from tiny2 import write_config

from yolox_plugin.run import evaluate as testing
from yolox_plugin.run import train as training
from yolox_plugin.run.demo_data import make_dataset


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["float32", None], ids=["float32", "default"])
def test_training_and_evaluation(tmp_path, amp, capsys):
    """mmcv's operators are not there (`device.NoOperators`): whatever called one would fail."""
    data = tmp_path / "data"
    make_dataset(data, train=8, val=3)
    config = write_config(tmp_path / "tiny.py", data, epochs=2)
    common = [f"--data-path={data}", f"--config={config}", "--device=npu"]
    options = [f"--amp={amp}"] if amp else []
    with recorded() as record:
        assert training.main([*common, *options, f"--work-dir={tmp_path / 'train'}"]) == 0
    assert len(record.launches()) > 1000  # it ran there
    trained = json.loads((tmp_path / "train/result.json").read_text())
    assert (trained["device"], trained["epochs"], trained["amp"]) == ("npu", 2, amp)
    assert trained["loss"] > 0
    assert trained["mAP"] is not None
    scaled = "fp16" in torch.load(tmp_path / "train/latest.pth")["meta"]  # the state of mmcv's loss scaler
    assert scaled == (amp is None)

    options = [f"--pth-path={tmp_path / 'train/latest.pth'}", f"--work-dir={tmp_path / 'test'}", "--batch-size=2"]
    with recorded() as record:
        assert testing.main([*common, *options, "--cfg-options", "model.test_cfg.score_thr=0.0"]) == 0
    assert len(record.launches()) > 100
    tested = json.loads((tmp_path / "test/result.json").read_text())
    assert (tested["device"], tested["images"]) == ("npu", 3)
    assert "Final Performance images/sec" in capsys.readouterr().out
