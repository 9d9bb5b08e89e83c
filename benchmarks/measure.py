"""Interleaved timing, and the memory that a call takes on top of what is there."""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from limits import synchronize


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles over `samples` samples of `inner` calls each."""

    median: float
    low: float
    high: float
    samples: int
    inner: int

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        return (self.high - self.low) / self.median


def interleaved(runs: dict[str, Callable[[], Any]], device: torch.device, budget: float) -> dict[str, Timing]:
    """Times each call for about `budget` seconds, at least 5 samples and at most 60, taking turns all the way, so that
    a machine that slows down slows them all."""
    inner, samples = {}, {}
    for name, run in runs.items():
        run()
        seconds = sample(run, 1, device)
        inner[name] = max(1, min(1000, math.ceil(0.002 / seconds)))
        seconds = sample(run, inner[name], device)
        samples[name] = max(5, min(60, int(budget / seconds / inner[name])))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    rounds = max(samples.values())
    for turn in range(1, rounds + 1):
        for name, run in runs.items():
            if len(taken[name]) < samples[name] * turn // rounds:
                taken[name].append(sample(run, inner[name], device))
    result = {}
    for name, values in taken.items():
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        result[name] = Timing(median, low, high, samples[name], inner[name])
    return result


def sample(run: Callable[[], Any], inner: int, device: torch.device) -> float:
    """Seconds of one call, averaged over `inner` calls."""
    if inner > 1:
        run()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(inner):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / inner


def extra_bytes(run: Callable[[], Any], device: torch.device) -> int | None:
    """Most memory, its result included, that the call held at once beyond what was there before.

    On the CPU it is the kernel's high-water mark of the resident set, so it sees C++ scratch space as well as tensors.
    None where the system does not let us reset that mark.
    """
    if device.type != "cpu":
        module = getattr(torch, device.type)
        module.reset_peak_memory_stats()
        before = module.memory_allocated()
        run()
        return int(module.max_memory_allocated() - before)
    try:
        # Freed memory that the allocator keeps would be reused unseen: hand it back first.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        run()
        return max(0, status("VmHWM") - before)
    except (OSError, AttributeError, KeyError):
        return None


def status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0]: int(line[1]) * 1024 for line in lines if line[-1] == "kB"}[field + ":"]
