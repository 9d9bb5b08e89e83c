"""Where the time of a training step goes on an accelerator: to the host or the device, waits, and operators."""

import contextlib
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

DEVICES = ("npu", "cuda")  # that work while the host goes on
WARM_UP, TIMED = 2, 5
STEPS = WARM_UP + TIMED + 2  # in which waits and operators are counted: less than ten, after which image sizes change
OUTLASTS = 1.1  # times as long as the host's calls, so that the device is what a step takes its time for
MEMORY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}


def unmeasured(reason: str) -> dict[str, Any]:
    """The figures of `Steps` where there are none."""
    names = ("host_ms", "device_ms", "bound_by", "waits", "operators_called")
    return {**dict.fromkeys(names), "not_measured": reason}


class Steps:
    """A loader of one batch, `STEPS` times, that measures what is done between one and the next: whole steps.

    `figures` are there when all have been taken:

    - host_ms: until the calls of a step have returned, without synchronizing but where they do; median.
    - device_ms: between events before and after the step; with the gaps, then, in which the device has nothing to do.
    - bound_by: "device" if that is more than `OUTLASTS` of the host's, else "host". None with waits: of them, the
      host's time has an unknown share.
    - waits: of the host for the device, as far as torch notices.
    - operators_called: on the device, without views and allocations; one may launch several kernels, an operator in C++
      counts once.
    - not_measured: why something is None, or None.

    Args:
        device: "npu" or "cuda".
    """

    def __init__(self, batch: Any, device: str) -> None:
        self.batch, self.device = batch, device
        self.figures = unmeasured("the steps have not been taken")

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[Any]:
        module = getattr(torch, self.device)
        host_times, device_times = [], []
        for _ in range(WARM_UP):
            yield self.batch
        for _ in range(TIMED):
            before, after = (module.Event(enable_timing=True) for _ in range(2))
            module.synchronize()
            before.record()
            start = time.perf_counter()
            yield self.batch
            host_times.append(1e3 * (time.perf_counter() - start))
            after.record()
            module.synchronize()
            device_times.append(before.elapsed_time(after))
        with noticed_waits(self.device) as one:
            torch.ones((), device=self.device).item()
        with noticed_waits(self.device) as waits:
            yield self.batch
        with Operators(self.device) as operators:
            yield self.batch
        host_ms, device_ms = median(host_times), median(device_times)
        count = len(waits) if one else None  # or nothing of it would look like no wait
        bound_by = "device" if device_ms > OUTLASTS * host_ms else "host" if count == 0 else None
        reasons = []
        if count is None:
            reasons.append(f"waits: torch.{self.device} did not tell of one that was put in")
        if bound_by is None:
            reasons.append("bound_by: the host's time may have waits for the device in it")
        self.figures = {
            "host_ms": host_ms,
            "device_ms": device_ms,
            "bound_by": bound_by,
            "waits": count,
            "operators_called": operators.count,
            "not_measured": "; ".join(reasons) or None,
        }


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators called on a device in a block, without those that handle memory and shapes alone."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.count = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func._schema.name.partition("::")[2] not in MEMORY:
            values, _ = tree_flatten((args, kwargs, result))
            self.count += any(isinstance(value, Tensor) and value.device.type == self.device for value in values)
        return result


@contextlib.contextmanager
def noticed_waits(device: str) -> Iterator[list[str]]:
    """Gives a list of the warnings of waits for the device in a block; it is filled at the end.

    CUDA warns through Python, torch_npu writes to standard error.
    """
    found: list[str] = []
    set_mode = getattr(getattr(torch, device), "set_sync_debug_mode", lambda mode: None)
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sys.stderr.flush()
        error = os.dup(2)
        os.dup2(file.fileno(), 2)
        set_mode("warn")
        try:
            yield found
        finally:
            set_mode("default")
            sys.stderr.flush()
            os.dup2(error, 2)
            os.close(error)
            file.seek(0)
            lines = file.read().decode(errors="replace").splitlines(keepends=True)
            texts = [*lines, *(str(warning.message) for warning in caught)]
            found += [text for text in texts if "called a synchronizing" in text]
            sys.stderr.writelines(line for line in lines if line not in found)
