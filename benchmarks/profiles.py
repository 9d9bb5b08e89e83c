"""Where a step spends its time by kind of operator, and how much memory it holds at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

# Parts of operators' names, the first that fits.
KINDS = {
    "convolution": ("conv",),
    "norm, activation": ("batch_norm", "silu", "sigmoid", "aten::mul"),
    "pool": ("pool",),
    "cat, upsample": ("aten::cat", "upsample", "CatBackward"),
    "copies": ("copy", "clone", "contiguous", "aten::to", "aten::fill_", "aten::zero_"),
    "optimizer, EMA": ("_foreach", "ema_update", "sgd", "Optimizer", "aten::lerp"),
}
OTHER = "other"


def kind_of(operator: str) -> str:
    """Of KINDS, or OTHER."""
    return next((kind for kind, parts in KINDS.items() if any(part in operator for part in parts)), OTHER)


def of(call: Callable[[], Any], rows: int = 8) -> dict[str, Any]:
    """Milliseconds in operators, by kind and of the `rows` that take most of them, and the most MB of tensors that
    `call` held beyond those that were there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    kinds = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in events:
        kinds[kind_of(event.key)] += event.self_cpu_time_total / 1e3
    held = most = 0
    allocations = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(allocations, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return {
        "kinds": kinds,
        "operators": {event.key: [event.self_cpu_time_total / 1e3, event.count] for event in events[:rows]},
        "all": [sum(kinds.values()), sum(event.count for event in events)],
        "peak MB": most / 2**20,
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Of several sides: milliseconds and share of each kind, time over that of the convolutions, and memory."""
    totals = {name: sum(side["kinds"].values()) for name, side in found.items()}
    lines = [f"\n{'profile, ms':20}" + "".join(f"{name:>20}" for name in found)]
    for kind in (*KINDS, OTHER):
        times = {name: side["kinds"][kind] for name, side in found.items()}
        cells = [f"{ms:.1f} ({ms / totals[name]:.1%})" for name, ms in times.items()]
        lines.append(f"{kind:20}" + "".join(f"{cell:>20}" for cell in cells))
    over = [f"{totals[name] / max(side['kinds']['convolution'], 1e-9):.2f}x" for name, side in found.items()]
    lines.append(f"{'over convolutions':20}" + "".join(f"{cell:>20}" for cell in over))
    lines.append(f"{'peak memory, MB':20}" + "".join(f"{side['peak MB']:20.0f}" for side in found.values()))
    return "\n".join(lines)
