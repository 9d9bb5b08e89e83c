"""What --performance says of a step: on CPUs, and how the steps that are measured are taken."""

import json

import pytest
import torch
from tiny import HOST

from yolox_plugin.core.checkpoint import newest_checkpoint
from yolox_plugin.run import report, where
from yolox_plugin.run import train as training

NOTHING = ("host_ms", "device_ms", "bound_by", "waits", "operators_called")


def test_operators_are_counted_without_views_and_allocations():
    weight = torch.ones(4, 4, requires_grad=True)
    other = torch.empty(4, 4, device="meta")
    with where.Operators("cpu") as operators:
        other.add_(1)  # on another device
        product = weight.t().reshape(4, 4) @ torch.empty(4, 2)
        assert operators.count == 1
        product.add_(1)
        torch._foreach_mul([weight.detach(), weight.detach()], 2.0)
        assert operators.count == 3
        product.sum().backward()
    assert operators.count > 4
    with where.Operators("meta") as operators:
        other.add_(1)
        weight.detach() + 1
    assert operators.count == 1


def test_on_cpus_the_wait_for_data_is_all_that_is_said(data, config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "LONG_WAIT", -1.0)
    options = [f"--data-path={data}", f"--config={config}", "--device=cpu", "--performance", "--iterations=3"]
    assert training.main([*options, f"--work-dir={tmp_path / 'run'}"]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    ms = result["step"].pop("ms")
    assert ms == pytest.approx(1e3 * result["batch_size"] / result["images_per_second"]["median"])
    assert result["step"] == {**dict.fromkeys(NOTHING), "not_measured": "the host is the device"}
    output = capsys.readouterr().out
    assert f"Time of a step : {ms:.0f} ms, waiting for data {result['data_wait']:.0%}\n" in output
    assert f"  more workers (--cfg-options {training.host.MORE_WORKERS})" in output


def test_a_step_in_words():
    step = {"ms": 412.4, "host_ms": 398.2, "device_ms": 401.0, "bound_by": "host", "waits": 0, "operators_called": 913}
    words = "412 ms, waiting for data 3%, host 398 ms, device 401 ms: "
    assert report.step_in_words(step, 0.03) == words + "bound by the host (waits 0, operators called 913)"
    unknown = report.step_in_words({**step, "bound_by": None, "waits": None}, 0.03)
    assert unknown == words + "what bounds it is not known (waits not measured, operators called 913)"
    assert report.step_in_words({**step, "ms": None}, None) == "not measured"


@pytest.mark.slow
@pytest.mark.parametrize("stop", [[], ["--iterations=6"]], ids=["whole", "stopped"])
def test_measured_steps_change_nothing_that_is_written(data, config, tmp_path, monkeypatch, stop):
    """Here with a loader that measures nothing, as a CPU has no events."""
    taken = []

    class Steps(where.Steps):
        def __iter__(self):
            for _ in range(len(self)):
                state = [parameter.clone() for parameter in network.parameters()] if taken else None
                yield self.batch
                taken.append(state)
            self.figures = {**self.figures, "waits": 5}

    def run(name, *options):
        nonlocal network
        common = [f"--data-path={data}", f"--config={config}", "--device=cpu", "--epochs=2"]
        assert training.main([*common, f"--work-dir={tmp_path / name}", "--performance", *stop, *options]) == 0
        files = sorted(path.name for path in (tmp_path / name).iterdir() if not path.name.startswith("20"))
        times = ("time", "data_time")
        log = tmp_path / name
        lines = training.host.read_log(log) if HOST == "mmdet2" else training.host.read_log(log, per_epoch=None)
        lines = [{key: line[key] for key in line if key not in times} for line in lines]
        result = json.loads((tmp_path / name / "result.json").read_text())
        return result["step"], files, lines, torch.load(newest_checkpoint(tmp_path / name))["state_dict"]

    network = None
    build = training.host.Training.__init__

    def built(self, *args):
        nonlocal network
        build(self, *args)
        network = self.model

    monkeypatch.setattr(training.host.Training, "__init__", built)
    unmeasured = run("unmeasured")
    monkeypatch.setattr(where, "DEVICES", ("cpu",))
    monkeypatch.setattr(where, "Steps", Steps)
    measured = run("measured")
    assert len(taken) == where.STEPS
    assert measured[0]["waits"] == 5
    assert measured[1:3] == unmeasured[1:3]
    assert all(torch.equal(value, unmeasured[3][name]) for name, value in measured[3].items())
    before, after = taken[1], taken[-1]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))  # those are whole steps
