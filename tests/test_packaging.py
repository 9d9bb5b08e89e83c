"""What a user sees of the build: the self-check, and errors that say what to do."""

import os
import re
import shutil
import subprocess
import venv
from pathlib import Path

import pytest
import setuptools
import torch

import yolox_ops
from yolox_ops import _C, reference
from yolox_ops.__main__ import main

ROOT = Path(__file__).parent.parent
OPERATORS = ("box_iou", "simota_cost", "simota_assign", "batched_nms", "yolox_detect", "ema_update_", "mixup_blend")


def test_self_check_passes(capsys):
    assert main() == 0
    printed = capsys.readouterr().out
    assert f"built for torch {_C.torch_version}" in printed
    assert f"in use: {yolox_ops.cpu_capability()}" in printed
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("cpu:")] == list(OPERATORS)
    assert printed.endswith("self-check: passed\n")


@pytest.mark.parametrize("name", OPERATORS)
def test_self_check_finds_a_wrong_operator(monkeypatch, capsys, name):
    right = getattr(yolox_ops, name)

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        if name == "ema_update_":
            args[0][0][0, 0] += 1
            return result
        first = result if isinstance(result, torch.Tensor) else result[0]
        changed = first + 1 if first.dtype != torch.int64 else first.flip(-1)
        return changed if isinstance(result, torch.Tensor) else (changed, *result[1:])

    monkeypatch.setattr(yolox_ops, name, wrong)
    assert main() == 1
    printed = capsys.readouterr().out
    assert re.search(rf"cpu: {name} FAILED: .*mismatch", printed, re.I)
    assert printed.endswith("self-check: 1 FAILED\n")


def test_the_reference_has_every_operator():
    for name in yolox_ops.__all__:
        assert name == "cpu_capability" or callable(getattr(reference, name))


def test_building_without_torch_says_so(tmp_path):
    """In a new environment; setuptools alone is let in, as pip's isolated build does it."""
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "yolox_ops"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    site = Path(setuptools.__file__).parent.parent
    (tmp_path / "build-env").mkdir()
    for path in site.iterdir():
        if path.name.startswith(("setuptools", "_distutils_hack", "pkg_resources", "wheel")):
            (tmp_path / "build-env" / path.name).symlink_to(path)
    venv.create(tmp_path / "venv")
    result = subprocess.run(
        [tmp_path / "venv/bin/python", "setup.py", "build"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "build-env")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert "has no torch; install torch first" in result.stderr
    assert not list(tmp_path.glob("**/*.so"))


def test_the_libraries_carry_no_path_of_the_build_machine():
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("binutils' readelf is not installed")
    for library in Path(yolox_ops.__file__).parent.glob("*.so"):
        dynamic = subprocess.run([readelf, "-d", library], capture_output=True, text=True, check=True).stdout
        paths = re.findall(r"(?:RUNPATH|RPATH).*\[(.*)\]", dynamic)
        assert all(part.startswith("$ORIGIN") for path in paths for part in path.split(":")), paths
