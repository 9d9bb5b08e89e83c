"""The library as loaded: each instruction set gives the same bits; a misfit is refused with what to do."""

import os
import subprocess
import sys

import pytest

from yolox_ops import _C, cpu_capability

OUTPUTS = """
import hashlib, sys, torch
import yolox_ops as o
g = torch.Generator().manual_seed(1)
xy = torch.rand(500, 2, generator=g) * 600
boxes = torch.cat([xy, xy + torch.rand(500, 2, generator=g) * 99], 1)
priors = torch.cat([xy, torch.full((500, 2), 16.0)], 1)
scores, labels = torch.rand(500, 21, generator=g), torch.randint(21, (500,), generator=g)
case = (scores, priors, boxes, boxes[:20] + 3, labels[:20])
average = [boxes.clone()]
image = (torch.rand(60, 50, 3, generator=g) * 255).to(torch.uint8)
o.ema_update_(average, [priors], 0.3)
results = [
    o.box_iou(boxes, boxes), o.box_iou(boxes, boxes, "giou"), *o.simota_cost(*case),
    *o.simota_assign(scores[None], priors, boxes[None], case[3][None], case[4][None], torch.tensor([20])),
    o.batched_nms(boxes, scores[:, 0], labels, 0.5), *average,
    *(o.mixup_blend(image, image[:40], (70, 50), (91, 65), (3, 5), True, 114, ipp) for ipp in (False, True)),
]
print(o.cpu_capability(), hashlib.sha256(b"".join(r.numpy().tobytes() for r in results)).hexdigest())
"""


def run(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True, check=False
    )


def test_each_capability_gives_the_same_bits():
    offered = _C.cpu_capabilities[: _C.cpu_capabilities.index(cpu_capability()) + 1]
    assert offered
    outputs = {name: run(OUTPUTS, YOLOX_OPS_CPU_CAPABILITY=name).stdout.split() for name in offered}
    assert [output[0] for output in outputs.values()] == list(offered)
    assert len({output[1] for output in outputs.values()}) == 1, outputs


def test_unknown_capability_is_refused():
    result = run("import yolox_ops", YOLOX_OPS_CPU_CAPABILITY="sse9")
    assert result.returncode != 0
    assert "must be one of default, avx2, avx512, got 'sse9'" in result.stderr


def test_another_torch_minor_version_is_refused():
    result = run("import torch; torch.__version__ = '2.0.1'; import yolox_ops")
    assert result.returncode != 0
    assert "ImportError" in result.stderr and "rebuild" in result.stderr and _C.torch_version in result.stderr


@pytest.mark.parametrize("name", ["torch_version", "compiler"])
def test_build_facts(name):
    assert getattr(_C, name)
