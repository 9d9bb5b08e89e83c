"""What tests share: random training situations, folders that take long to fill, and small disks."""

import fcntl
import importlib.util
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from yolox_ops.reference import grid_centers

Situation = dict[str, Tensor]

# Of the two hosts' tests, those for the other one cannot even be imported. MMDetection 3 alone has a registry.py.
_mmdet = importlib.util.find_spec("mmdet")
_is_mmdet3 = _mmdet is not None and Path(str(_mmdet.origin)).with_name("registry.py").is_file()
_other = "mmdet2" if _is_mmdet3 else "mmdet3"
collect_ignore = [_other, f"run/{_other}"]

# All tests but those of `make test-gpu` are about the CPU, on a machine with a GPU as well. torch has not looked yet.
if os.environ.get("YOLOX_TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    collect_ignore += ["ops/test_cuda.py", "mmdet2/test_cuda.py", "mmdet3/test_cuda.py"]


def _situation(
    seed: int, gts: int = 8, size: int = 160, classes: int = 80, kind: str = "trained", batch: int = 1
) -> Situation:
    """The arguments of simota_assign: all priors of a square image, predictions of a trained or an untrained net."""
    g = torch.Generator().manual_seed(seed)
    centers = grid_centers(size)
    n = len(centers)
    gt_center = torch.rand(batch, gts, 2, generator=g) * size
    extent = torch.rand(batch, gts, 2, generator=g) ** 2 * size / 2 + 3
    gt_boxes = torch.cat([gt_center - extent / 2, gt_center + extent / 2], -1)
    gt_labels = torch.randint(classes, (batch, gts), generator=g)
    scores = torch.rand(batch, n, classes, generator=g) * 0.02
    half = centers[:, 2:] * (0.5 + torch.rand(batch, n, 2, generator=g))
    boxes = torch.cat([centers[:, :2] - half, centers[:, :2] + half], -1)
    if kind == "trained" and gts:
        nearest = torch.cdist(centers[None, :, :2].expand(batch, -1, -1), gt_center).argmin(-1)
        picked = gt_boxes.gather(1, nearest[..., None].expand(-1, -1, 4))
        boxes = picked + torch.randn(batch, n, 4, generator=g) * 4
        label = gt_labels.gather(1, nearest)
        scores.scatter_(2, label[..., None], torch.rand(batch, n, 1, generator=g))
    if kind == "strange":
        values = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e18, -3e38, 0.0, 1.0, -1.0])
        for tensor in (scores, boxes, gt_boxes):
            flat = tensor.view(-1)
            where = torch.randint(max(flat.numel(), 1), (flat.numel() // 50,), generator=g)
            flat[where] = values[torch.randint(len(values), where.shape, generator=g)]
    if kind == "ties":
        scores.fill_(0.25)
        boxes = boxes[:, :1].expand(-1, n, -1)
    return {
        "scores": scores,
        "centers": centers,
        "boxes": boxes,
        "gt_boxes": gt_boxes,
        "gt_labels": gt_labels,
        "num_gts": torch.full((batch,), gts),
    }


@pytest.fixture(scope="session")
def situation() -> Callable[..., Situation]:
    return _situation


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """A folder of this name that takes long to fill: the first process of a test run does, the others wait for it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = shared / f"made-{name}", shared / f"made-{name}.done"
        with (shared / f"made-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                folder.mkdir(exist_ok=True)
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture
def disk() -> Iterator[Callable[[Path, str], Path]]:
    """Makes a file system of its own of a size such as "64k", which may become full, or not writable."""
    made = []

    def mount(path: Path, size: str) -> Path:
        path.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=False).returncode:
            pytest.skip("mounting a file system needs root")
        made.append(path)
        return path

    yield mount
    for path in made:
        subprocess.run(["umount", "-l", path], check=True)
