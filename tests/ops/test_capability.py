"""The library as loaded: each instruction set gives the same bits; a misfit is refused with what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from yolox_ops import _C, cpu_capability

DIGESTS = Path(__file__).with_name("digests.py")
OPERATORS = (
    "box_iou", "simota_cost", "simota_assign", "batched_nms", "yolox_detect", "ema_update_", "batch_norm_silu",
    "mixup_blend",
)  # fmt: skip


def run(*arguments, **env):
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | env, capture_output=True, text=True, check=False
    )


def capabilities():
    """Pairs of our instruction set and ATen's: the same ones, and the least with the best."""
    ours = _C.cpu_capabilities[: _C.cpu_capabilities.index(cpu_capability()) + 1]
    atens = [name for name in ("default", "avx2", "avx512") if name in ours]
    atens = atens[: atens.index(aten) + 1] if (aten := torch.backends.cpu.get_cpu_capability().lower()) in atens else []
    return [*zip(ours, atens, strict=False), (ours[0], atens[-1]), (ours[-1], atens[0])] if atens else []


@pytest.mark.slow
@pytest.mark.skipif(len(capabilities()) < 2, reason="this machine has one instruction set")
def test_each_capability_gives_the_same_bits():
    """Ours and ATen's, which our operators call for what they do not do themselves, and with any number of threads."""
    first = None
    for ours, aten in capabilities():
        result = run(DIGESTS, YOLOX_OPS_CPU_CAPABILITY=ours, ATEN_CPU_CAPABILITY=aten)
        assert result.returncode == 0, result.stderr
        capability, digests = json.loads(result.stdout).values()
        assert capability == ours
        assert {name.split()[0] for name in digests} == set(OPERATORS)
        assert not [name for name, digest in digests.items() if "threads" in digest]
        first = first or digests
        assert not [name for name, digest in digests.items() if digest != first[name]], (ours, aten)


def test_unknown_capability_is_refused():
    result = run("-c", "import yolox_ops", YOLOX_OPS_CPU_CAPABILITY="sse9")
    assert result.returncode != 0
    assert "must be one of default, avx2, avx512, got 'sse9'" in result.stderr


def test_another_torch_minor_version_is_refused():
    result = run("-c", "import torch; torch.__version__ = '2.0.1'; import yolox_ops")
    assert result.returncode != 0
    assert "ImportError" in result.stderr and "rebuild" in result.stderr and _C.torch_version in result.stderr


@pytest.mark.parametrize("name", ["torch_version", "compiler"])
def test_build_facts(name):
    assert getattr(_C, name)
