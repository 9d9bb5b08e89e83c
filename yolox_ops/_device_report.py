"""What only a device itself can tell: the end of `python -m yolox_ops`, to be pasted into a bug report."""

import contextlib
import csv
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.utils import collect_env

from . import _C

# Under it torch_npu refuses, by name, every operator that it would otherwise take to the host and back.
NO_FALLBACK = "TORCH_NPU_FALLBACK_CPU_DISABLE"
Operators = Mapping[str, Callable[[], object]]


def build() -> str:
    """What these operators are: their version, and what they were built with and for."""
    try:
        ours = version("yolox-ops")
    except PackageNotFoundError:  # built in a source tree
        ours = "not installed"
    return f"{ours}, built for torch {_C.torch_version} with {_C.compiler}"


def _line(error: Exception) -> str:
    return str(error).split("\n")[0]  # torch_npu adds its log


def _cann(package: str) -> str:
    """The version of a part of CANN, as torch_npu knows it."""
    import torch_npu

    ask = getattr(torch_npu.npu.utils, "get_cann_version", None)  # which older ones have not
    return (ask(package) if ask else "") or "unknown"


def topk(device: str) -> str:
    """Whether torch.topk returns the float32 values it was given, and whether `simota_assign` knows.

    float16 can hardly tell the lower half of the values apart, and has none of the upper half. A device may choose its
    way by their number: once as many as csrc/npu/topk.h asks with, once as many as `simota_assign` has.
    """
    exact = True
    for size, k in ((8, 8), (32768, 10)):
        values = torch.cat([1 + torch.arange(size) / 2**22, 70000.5 + torch.arange(size) / 8])
        for largest in (False, True):
            found = values.to(device).topk(k, largest=largest).values.cpu()
            exact &= torch.equal(found, values.topk(k, largest=largest).values)
    probe = torch.full((16,), 70000.5, device=device)  # as in csrc/npu/topk.h
    trusted = device != "npu" or torch.equal(probe.topk(8).values, probe[:8])
    if trusted and not exact:
        return "FAILED: rounded in float32, which simota_assign does not notice"
    return f"{'exact' if exact else 'rounded'} in float32; simota_assign {'uses it' if trusted else 'goes without'}"


def fallbacks(failed: Mapping[str, str]) -> str:
    """The operators that failed because torch_npu has no kernel for a part of them."""
    try:
        torch.special.airy_ai(torch.ones(1, device="npu"))  # which has no NPU kernel
    except RuntimeError as error:
        if NO_FALLBACK not in str(error):
            raise
        return ", ".join(name for name, message in failed.items() if NO_FALLBACK in message) or "none"
    return f"not measured (special_airy_ai raised nothing under {NO_FALLBACK}={os.environ.get(NO_FALLBACK)})"


def waits(device: str, operators: Operators) -> str:
    """The operators under the device's own watch, which has to notice a wait that is certain."""
    module = getattr(torch, device)

    def noticed(run: Callable[[], object]) -> str | None:
        module.synchronize()
        module.set_sync_debug_mode("error")
        try:
            run()
        except RuntimeError as error:  # what this mode raises
            return _line(error)
        finally:
            module.set_sync_debug_mode("default")
        return None

    if noticed(torch.ones(1, device=device).item) is None:
        return "not measured (set_sync_debug_mode lets item() pass)"
    found = {name: message for name, run in operators.items() if (message := noticed(run)) is not None}
    if found:
        return f"FAILED: {'; '.join(f'{name}: {message}' for name, message in found.items())}"
    return f"0 noticed by set_sync_debug_mode in {', '.join(operators)}"


def ai_cpu(operators: Operators) -> str:
    """The kernels of the operators that ran on the AI CPU of an NPU, by torch_npu's profiler.

    No hardware has run this yet: the names in the table are those of torch_npu 2.13 and of CANN's documentation.
    """
    from torch_npu import profiler

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        # Level 1 is the first that tells the cores. The profiler raises nothing: it prints, also from its processes.
        with (
            log.open("w") as output,
            contextlib.redirect_stdout(output),
            profiler.profile(
                activities=[profiler.ProfilerActivity.NPU],
                on_trace_ready=profiler.tensorboard_trace_handler(folder),
                experimental_config=profiler._ExperimentalConfig(profiler_level=profiler.ProfilerLevel.Level1),
            ),
        ):
            for run in operators.values():
                run()
        tables = list(Path(folder).glob("*/ASCEND_PROFILER_OUTPUT/kernel_details.csv"))
        if not tables:
            errors = [line.split("profiler.py: ")[-1] for line in log.read_text().splitlines() if "[ERROR]" in line]
            return f"not measured ({errors[0] if errors else 'the profiler wrote no kernel_details.csv'})"
        return f"{cores(tables[0])} of {', '.join(operators)}"


def cores(table: Path) -> str:
    """What a profiler's kernel_details.csv says of the cores that kernels ran on."""
    with table.open(newline="", encoding="utf-8-sig") as file:
        kernels = [(row.get("Accelerator Core", "N/A"), row.get("Name", "unnamed")) for row in csv.DictReader(file)]
    if not kernels:
        return "not measured: the profiler names no kernels"
    found = Counter(core for core, _ in kernels)
    if "N/A" in found:
        return f"not measured: the profiler names no core for {found['N/A']} of {len(kernels)} kernels"
    slow = Counter(name for core, name in kernels if core == "AI_CPU")
    counts = ", ".join(f"{core} {count}" for core, count in found.most_common())
    names = f": {', '.join(f'{name} {count}' for name, count in slow.items())}" if slow else ""
    return f"{slow.total()}{names}; {counts} kernels"


def report(device: str, operators: Operators, failed: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names and values, each measured when it is asked for; FAILED begins the value of what is not as it should be.

    Args:
        device: cuda or npu.
        operators: calls of those that train, which must not wait, by name.
        failed: errors of those that do not agree with their reference, by name.
    """
    rows: dict[str, Callable[[], str]] = {"device": getattr(torch, device).get_device_name}
    if device == "npu":
        import torch_npu

        rows["SOC version"] = lambda: str(torch_npu.npu.get_soc_version())
        rows["driver"] = lambda: _cann("DRIVER")
        rows["CANN"] = lambda: _cann("CANN")
        rows["torch_npu"] = lambda: torch_npu.__version__
    else:
        driver = collect_env.get_nvidia_driver_version  # asks nvidia-smi
        rows["driver"] = lambda: driver(collect_env.run) or "unknown"  # type: ignore[no-untyped-call]
        rows["CUDA"] = lambda: str(torch.version.cuda)
    rows["torch"] = lambda: torch.__version__
    rows["yolox_ops"] = build
    rows["topk"] = lambda: topk(device)
    rows["waits"] = lambda: waits(device, operators)
    if device == "npu":
        rows["fallbacks"] = lambda: fallbacks(failed)
        rows["AI CPU"] = lambda: ai_cpu(operators)
    for name, measure in rows.items():
        try:
            yield name, measure()
        except (RuntimeError, UnicodeDecodeError) as error:  # of the device; the latter of CANN's own version files
            yield name, f"not measured ({_line(error)})"
