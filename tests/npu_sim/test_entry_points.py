"""`yolox_plugin.train` and `.test` with --device=npu, from the command's options to result.json."""

import json

import pytest
import torch
from device import SOC, recorded
from mmcv import Config
from mmcv.runner import build_optimizer
from mmdet.models import build_detector
from tiny2 import STANDARD, write_config

from yolox_plugin.run import evaluate as testing
from yolox_plugin.run import train as training
from yolox_plugin.run.demo_data import make_dataset

STEM = "backbone.stem.conv.conv.weight"


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["float32", None], ids=["float32", "default"])
def test_training_and_evaluation(tmp_path, amp, capsys):
    """mmcv's operators are not there (`device.NoOperators`): whatever called one would fail."""
    data = tmp_path / "data"
    make_dataset(data, train=8, val=3)
    config = write_config(tmp_path / "tiny.py", data, epochs=2)
    common = [f"--data-path={data}", f"--config={config}", "--device=npu"]
    options = [f"--amp={amp}"] if amp else []
    options += ["--cfg-options", "channels_last=True"]  # as the demo has it, for CPUs
    with recorded() as record:
        assert training.main([*common, *options, f"--work-dir={tmp_path / 'train'}"]) == 0
    assert len(record.launches()) > 1000  # it ran there
    trained = json.loads((tmp_path / "train/result.json").read_text())
    assert (trained["device"], trained["epochs"], trained["amp"]) == ("npu", 2, amp)
    assert trained["loss"] > 0
    assert trained["mAP"] is not None
    checkpoint = torch.load(tmp_path / "train/latest.pth", map_location="cpu")
    assert ("fp16" in checkpoint["meta"]) == (amp is None)  # the state of mmcv's loss scaler
    assert checkpoint["state_dict"][STEM].is_contiguous()  # an NPU has a layout of its own

    options = [f"--pth-path={tmp_path / 'train/latest.pth'}", f"--work-dir={tmp_path / 'test'}", "--batch-size=2"]
    with recorded() as record:
        assert testing.main([*common, *options, "--cfg-options", "model.test_cfg.score_thr=0.0"]) == 0
    assert len(record.launches()) > 100
    tested = json.loads((tmp_path / "test/result.json").read_text())
    assert (tested["device"], tested["images"]) == ("npu", 3)
    assert "Final Performance images/sec" in capsys.readouterr().out


@pytest.mark.slow
def test_a_cpu_beside_an_npu(tmp_path):
    """torch's DataParallel, of which mmcv's is made, would move the network to the NPU."""
    data = tmp_path / "data"
    make_dataset(data, train=8, val=3)
    config = write_config(tmp_path / "tiny.py", data, epochs=2)
    common = [f"--data-path={data}", f"--config={config}", "--device=cpu"]
    with recorded() as record:
        assert training.main([*common, "--amp=bfloat16", f"--work-dir={tmp_path / 'train'}"]) == 0
        checkpoint = tmp_path / "train/latest.pth"
        assert testing.main([*common, f"--pth-path={checkpoint}", f"--work-dir={tmp_path / 'test'}"]) == 0
    assert not record.calls
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("train", "test")]
    assert [result["device"] for result in results] == ["cpu", "cpu"]
    assert results[0]["loss"] > 0
    assert torch.load(checkpoint)["state_dict"][STEM].is_contiguous(memory_format=torch.channels_last)


def same(ours, theirs, where="checkpoint"):
    """Whether two checkpoints have the same bits, of whatever layout in memory."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours.cpu(), theirs.cpu()), where
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for key in ours:
            same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            same(*pair, f"{where}[{i}]")
    else:
        assert ours == theirs, where


@pytest.mark.slow
def test_a_resumed_training_in_float16_ends_with_the_same_bits(tmp_path):
    """Weights, averages, momenta, and the scale of the loss, which is read for checkpoints alone. The checkpoint has
    what one of a CPU has."""
    data = tmp_path / "data"
    make_dataset(data, train=8, val=3)
    config = write_config(tmp_path / "tiny.py", data, epochs=3)
    common = [f"--data-path={data}", f"--config={config}"]

    def run(name, *options):
        assert training.main([*common, f"--work-dir={tmp_path / name}", *options]) == 0
        return torch.load(tmp_path / name / "epoch_3.pth", map_location="cpu")

    def resume(checkpoint):
        return ["--cfg-options", f"resume_from={checkpoint}"]

    whole = run("whole", "--device=npu")
    resumed = run("resumed", "--device=npu", *resume(tmp_path / "whole/epoch_2.pth"))
    for part in ("state_dict", "optimizer"):
        same(resumed[part], whole[part], part)
    scales = [checkpoint["meta"]["fp16"]["loss_scaler"] for checkpoint in (whole, resumed)]
    assert scales[0] == scales[1]
    assert scales[0]["scale"] < 2**16  # the first steps overflow, and are left out
    network = build_detector(Config.fromfile(str(config)).model)
    unknown = network.load_state_dict(whole["state_dict"], strict=False)
    assert not unknown.missing_keys
    assert all(key.startswith("ema_") for key in unknown.unexpected_keys)
    optimizer = build_optimizer(network, Config.fromfile(str(config)).optimizer)
    optimizer.load_state_dict(whole["optimizer"])
    for parameter in network.parameters():
        momentum = optimizer.state[parameter]["momentum_buffer"]
        assert (momentum.shape, momentum.device.type) == (parameter.shape, "cpu")


@pytest.mark.skipif(SOC == "A2", reason="it has bfloat16")
def test_bfloat16_is_refused_before_anything_is_written(tmp_path, capsys):
    data = tmp_path / "data"
    make_dataset(data, train=8, val=3)
    config = write_config(tmp_path / "tiny.py", data, epochs=2)
    common = [f"--data-path={data}", f"--config={config}", "--device=npu", f"--work-dir={tmp_path / 'run'}"]
    assert training.main([*common, "--amp=bfloat16"]) == 2
    assert "error: --amp=bfloat16: this npu device has no bfloat16, use --amp=float16\n" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(SOC == "A2", reason="it has bfloat16")
def test_a_detector_refuses_bfloat16():
    """torch's autocast warns, and trains in float32."""
    cfg = Config.fromfile(str(STANDARD)).model
    detector = build_detector({**cfg, "autocast": "bfloat16"}).to("npu")
    image, boxes, labels = (torch.zeros(*shape, device="npu") for shape in ((1, 3, 64, 64), (0, 4), (0,)))
    with pytest.raises(ValueError, match=r"'bfloat16': this npu device has no bfloat16; use autocast='float16'"):
        detector.forward_train(image, [{}], [boxes], [labels.long()])
