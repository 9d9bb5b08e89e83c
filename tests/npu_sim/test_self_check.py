"""`python -m yolox_ops` on the simulated NPU: what it tells of the device, and of faults that are put in."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch_npu
from device import SOC

import yolox_ops
from yolox_ops.__main__ import main
from yolox_ops._device_report import NO_FALLBACK, cores

OPERATORS = ["box_iou", "simota_cost", "simota_assign", "batched_nms", "yolox_detect", "ema_update_",
             "batch_norm_silu"]  # fmt: skip
NAME = {"A2": "Ascend910B3", "910A": "Ascend910A"}[SOC]
TOPK = {"A2": "exact in float32; simota_assign uses it", "910A": "rounded in float32; simota_assign goes without"}[SOC]


def block(printed):
    """The rows to paste into a bug report, which stand between an empty line and the last one."""
    return dict(re.split(": +", line, maxsplit=1) for line in printed.split("\n\n")[1].splitlines()[:-1])


def before(monkeypatch, name, run):
    """Has an operator on the NPU run something first."""
    operator = getattr(yolox_ops, name)

    def changed(*args, **kwargs):
        first = args[0][0] if args else kwargs["scores"]
        if first.device.type == "npu":
            run(first)
        return operator(*args, **kwargs)

    monkeypatch.setattr(yolox_ops, name, changed)


def test_it_tells_of_the_device(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main() == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^npu: (\w+) agrees", printed, re.MULTILINE) == OPERATORS
    rows = block(printed)
    assert (rows["device"], rows["torch"], rows["torch_npu"]) == (NAME, torch.__version__, torch_npu.__version__)
    assert (rows["topk"], rows["fallbacks"]) == (TOPK, "none")
    assert rows["waits"] == "0 noticed by set_sync_debug_mode in simota_assign, box_iou, ema_update_"
    assert re.fullmatch(r"not measured \(.*libmsprofiler.so: cannot open.*\)", rows["AI CPU"])
    assert len({re.match(".*?: +", line).end() for line in printed.split("\n\n")[1].splitlines()[:-1]}) == 1
    assert printed.endswith("\nself-check: passed\n")
    assert not list(tmp_path.iterdir())  # the profiler's


@pytest.mark.parametrize("name", ["simota_assign", "box_iou", "ema_update_"])
def test_an_operator_that_waits_is_named(capsys, monkeypatch, name):
    before(monkeypatch, name, lambda tensor: tensor.sum().item())
    assert main() == 1
    printed = capsys.readouterr().out
    assert block(printed)["waits"] == f"FAILED: {name}: called a synchronizing NPU operation"
    assert printed.endswith("\nself-check: 1 FAILED\n")


def test_waits_are_not_measured_where_none_is_noticed(capsys, monkeypatch):
    monkeypatch.setattr(torch.npu, "set_sync_debug_mode", lambda mode: None)
    before(monkeypatch, "simota_assign", lambda tensor: tensor.sum().item())
    assert main() == 0
    assert block(capsys.readouterr().out)["waits"] == "not measured (set_sync_debug_mode lets item() pass)"


def test_an_operator_that_falls_back_is_named(capsys, monkeypatch):
    before(monkeypatch, "ema_update_", torch.special.airy_ai)
    assert main() == 1
    printed = capsys.readouterr().out
    assert "npu: ema_update_ FAILED: The operator 'aten::special_airy_ai.out' would execute" in printed
    assert block(printed)["fallbacks"] == "ema_update_"
    assert block(printed)["waits"] == "0 noticed by set_sync_debug_mode in simota_assign, box_iou"
    assert printed.endswith("\nself-check: 1 FAILED\n")


@pytest.mark.skipif(SOC == "910A", reason="its topk rounds always")
def test_a_topk_that_rounds_unnoticed_is_a_failure(capsys, monkeypatch):
    topk = torch.Tensor.topk

    def rounds_many(values, k, largest=True):
        many = values.device.type == "npu" and values.numel() > 1000
        return topk(values.bfloat16().float() if many else values, k, largest=largest)

    monkeypatch.setattr(torch.Tensor, "topk", rounds_many)
    assert main() == 1
    printed = capsys.readouterr().out
    assert block(printed)["topk"] == "FAILED: rounded in float32, which simota_assign does not notice"


HEADER = "Device_id,Name,Type,Accelerator Core,Start Time(us),Duration(us),Wait Time(us)"  # torch_npu 2.13's


@pytest.mark.parametrize(
    ("ran_on", "told"),
    [
        (["AI_VECTOR_CORE", "AI_CORE", "AI_VECTOR_CORE"], "0; AI_VECTOR_CORE 2, AI_CORE 1 kernels"),
        (["MIX_AIV", "AI_CPU", "AI_CPU"], "2: aclnnKernel1 1, aclnnKernel2 1; AI_CPU 2, MIX_AIV 1 kernels"),
        (["AI_CORE", "N/A"], "not measured: the profiler names no core for 1 of 2 kernels"),
    ],
)
def test_kernels_on_the_ai_cpu(tmp_path, ran_on, told):
    lines = [f"0,aclnnKernel{i},Kernel,{core},{i}.5,1.5,0.5" for i, core in enumerate(ran_on)]
    table = tmp_path / "kernel_details.csv"
    table.write_text("\n".join([HEADER, *lines, ""]))
    assert cores(table) == told


def test_a_table_without_cores_is_no_measurement(tmp_path):
    table = tmp_path / "kernel_details.csv"
    table.write_text("Name,Type\nKernel,Kernel\n")
    assert cores(table) == "not measured: the profiler names no core for 1 of 1 kernels"
    for empty in ("", f"{HEADER}\n"):
        table.write_text(empty)
        assert cores(table) == "not measured: the profiler names no kernels"
    table.write_text("\ufeffAccelerator Core\nAI_CORE\n")
    assert cores(table) == "0; AI_CORE 1 kernels"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "told"),
    [(None, "none"), ("0", f"not measured (special_airy_ai raised nothing under {NO_FALLBACK}=0)")],
)
def test_it_forbids_fallbacks_unless_the_user_says_otherwise(chosen, told):
    env = {key: value for key, value in os.environ.items() if key != NO_FALLBACK}
    env |= {"PYTHONPATH": str(Path(__file__).parent)} | ({NO_FALLBACK: chosen} if chosen else {})
    start = "import sys, device; device.install(); from yolox_ops.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", start]
    process = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    assert block(process.stdout)["fallbacks"] == told
