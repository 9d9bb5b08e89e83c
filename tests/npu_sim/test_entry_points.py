"""`yolox_plugin.train` and `.test` with --device=npu, from the command's options to result.json."""

import json
import os
import time

import numpy as np
import pytest
import torch
from device import SOC, recorded
from mmcv import Config
from mmcv.runner import build_optimizer
from mmdet.models import build_detector
from same import same
from tiny2 import STANDARD, write_config

from yolox_plugin import Detector
from yolox_plugin.run import evaluate as testing
from yolox_plugin.run import train as training
from yolox_plugin.run import where
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

    everything = write_config(tmp_path / "all.py", data, epochs=2, more='model["test_cfg"] = dict(score_thr=0.0)')
    image = next((data / "val2017").iterdir())
    with recorded() as record:
        found = Detector(tmp_path / "train/latest.pth", str(everything), device="npu")(image)
    assert len(record.launches()) > 100
    expected = Detector(tmp_path / "train/latest.pth", str(everything), device="cpu")(image)
    assert len(found.scores) > 10
    np.testing.assert_allclose(found.scores[:10], expected.scores[:10], rtol=1e-3)
    assert list(found.names[:10]) == list(expected.names[:10])


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
    # And in the middle of the second of three epochs, which have three iterations each.
    cut = [*common, "--device=npu", f"--work-dir={tmp_path / 'cut'}", "--iterations=5", "--checkpoint-iterations=5"]
    assert training.main(cut) == 0
    goes_on = run("goes on", "--device=npu", *resume(tmp_path / "cut/mid_epoch.pth"))
    for part in ("state_dict", "optimizer"):
        same(resumed[part], whole[part], part)
        same(goes_on[part], whole[part], part)
    scales = [checkpoint["meta"]["fp16"]["loss_scaler"] for checkpoint in (whole, resumed, goes_on)]
    assert scales[0] == scales[1] == scales[2]
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


@pytest.mark.slow
def test_performance_tells_where_the_time_of_a_step_goes(tmp_path, capfd):
    """The device's time is the host's here, where the host is the device. Log and checkpoint are those of a training
    without measuring."""
    data = tmp_path / "data"
    make_dataset(data, train=8, val=3)
    config = write_config(tmp_path / "tiny.py", data, epochs=3)
    common = [f"--data-path={data}", f"--config={config}", "--device=npu", "--epochs=2"]

    def run(name, *options):
        assert training.main([*common, f"--work-dir={tmp_path / name}", *options]) == 0
        log = training.host.read_log(tmp_path / name)
        lines = [{key: line[key] for key in ("epoch", "iter", "lr", "loss", "loss_cls")} for line in log]
        checkpoint = torch.load(tmp_path / name / "epoch_2.pth", map_location="cpu")
        return json.loads((tmp_path / name / "result.json").read_text())["step"], lines, checkpoint

    step, log, checkpoint = run("measured", "--performance")
    assert step["ms"] > 0
    assert step["device_ms"] == pytest.approx(step["host_ms"], rel=0.1)
    assert (step["bound_by"], step["waits"], step["not_measured"]) == ("host", 0, None)
    assert step["operators_called"] > 500
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("Time of a step : "))
    assert line.endswith(f": bound by the host (waits 0, operators called {step['operators_called']})")

    unmeasured = run("unmeasured", "--cfg-options", "evaluation=None")
    assert unmeasured[:2] == (None, log)
    for part in ("state_dict", "optimizer"):
        same(checkpoint[part], unmeasured[2][part], part)


def test_what_a_step_is_found_to_do(monkeypatch, capfd):
    ones = torch.ones(4, device="npu")

    def figures(work):
        steps = where.Steps("batch", "npu")
        for batch in steps:
            assert batch == "batch"
            time.sleep(0.01)
            work()
        return steps.figures

    quiet = figures(lambda: torch.relu(ones.view(2, 2)).add_(torch.empty_like(ones).view(2, 2)))
    assert quiet["host_ms"] > 10
    assert quiet["device_ms"] > 10
    del quiet["host_ms"], quiet["device_ms"]
    assert quiet == {"bound_by": "host", "waits": 0, "operators_called": 2, "not_measured": None}

    def loud():
        os.write(2, b"something else\n")
        torch.npu.current_stream().synchronize()
        ones.sum().item()

    waiting = figures(loud)
    assert (waiting["bound_by"], waiting["waits"], waiting["operators_called"]) == (None, 2, 2)
    assert waiting["not_measured"] == "bound_by: the host's time may have waits for the device in it"
    error = capfd.readouterr().err
    assert error.count("something else\n") == where.STEPS
    assert "called a synchronizing" not in error
    ones.sum().item()
    assert "called a synchronizing" not in capfd.readouterr().err  # the mode is off again

    with monkeypatch.context() as patch:
        patch.setattr(torch.npu.Event, "elapsed_time", lambda *events: 1000.0)
        assert figures(loud)["bound_by"] == "device"
    monkeypatch.setattr(torch.npu, "set_sync_debug_mode", lambda mode: None)
    untold = figures(loud)
    assert (untold["bound_by"], untold["waits"]) == (None, None)  # and not 0
    assert untold["not_measured"].startswith("waits: torch.npu did not tell of one that was put in; bound_by: ")


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
