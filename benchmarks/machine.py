"""What a reader has to know of the machine that gave a figure."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

# Flags of /proc/cpuinfo, the widest first.
INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2", "sve": "SVE"}


def facts() -> dict[str, Any]:
    """Processor, cores that this process may use, widest instructions, versions and the day, for JSON."""
    try:
        lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    except OSError:
        lines = []
    fields = {name.strip(): value.strip() for name, value in lines}
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": next((name for flag, name in INSTRUCTIONS.items() if flag in flags), platform.machine()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def caption(machine: dict[str, Any]) -> str:
    """The machine in half a line, for charts and tables."""
    version = machine["torch"].split("+")[0]
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['instructions']}, torch {version}, {machine['date']}"
