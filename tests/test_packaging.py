"""What a user sees of the build: the self-check, and errors that say what to do."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import setuptools
import torch

import yolox_ops
from yolox_ops import _C, reference
from yolox_ops.__main__ import main

ROOT = Path(__file__).parent.parent
OPERATORS = (
    "box_iou", "simota_cost", "simota_assign", "batched_nms", "yolox_detect", "ema_update_", "batch_norm_silu",
    "mixup_blend",
)  # fmt: skip


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


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_self_check_ends_quietly_when_nobody_reads_on(unbuffered):
    """As in `python -m yolox_ops | head -1`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "yolox_ops"], cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()
    assert "BrokenPipeError" not in process.stderr.read()
    assert process.wait() == 128 + signal.SIGPIPE


def test_the_reference_has_every_operator():
    assert {*yolox_ops.__all__} == {*OPERATORS, "SimOTAParameters", "cpu_capability"}
    for name in OPERATORS:
        assert callable(getattr(reference, name))


@pytest.fixture
def sources(tmp_path):
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "yolox_ops"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def configure(folder, version, *options):
    facts = {"TORCH_VERSION": version, "TORCH_INCLUDE_DIRS": "/include", "TORCH_LIBRARY_DIR": "/lib", "CXX11_ABI": "1",
             "PYTHON_INCLUDE_DIRS": "/include", "MODULE_SUFFIX": ".so"}  # fmt: skip
    defined = [f"-DYOLOX_OPS_{name}={value}" for name, value in facts.items()]
    return subprocess.run(
        [shutil.which("cmake", path=PATH), "-S", ROOT, "-B", folder, "-G", "Ninja", *defined, *options],
        env=os.environ | {"PATH": PATH}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def old_compiler(tmp_path):
    """A compiler that knows no standard but C++14."""
    path = tmp_path / "old-c++"
    path.write_text('#!/bin/bash\n[[ " $* " =~ " -std="(c|gnu)"++"(1[4-9]|2)[0-9a-z]*" " ]] && exit 1\nexec c++ "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("version", "standard"), [("2.1.0", 17), ("2.13.0+cpu", 17), ("2.14.1", 20)])
def test_the_language_is_what_this_torch_needs(tmp_path, old_compiler, version, standard):
    process = configure(tmp_path / "build", version)
    assert process.returncode == 0, process.stderr
    commands = json.loads((tmp_path / "build/compile_commands.json").read_text())
    assert all(f" -std=c++{standard} " in entry["command"] for entry in commands)
    process = configure(tmp_path / "old", version, f"-DCMAKE_CXX_COMPILER={old_compiler}")
    assert process.returncode != 0
    message = " ".join(process.stderr.split())
    assert f"yolox-ops: torch {version} needs a compiler with C++{standard}, and {old_compiler} (GNU" in message
    assert "has not: install g++ 11 or newer and name it with CXX=" in message
    assert process.stderr.count("CMake Error") == 1


def test_another_compiler_may_be_named_after_one_failed(sources, old_compiler):
    """CMake would keep to the first, and to what it found out about it."""
    env = os.environ | {"PATH": PATH, "CXX": str(old_compiler)}
    command = [sys.executable, "setup.py", "build_ext"]
    process = subprocess.run(command, cwd=sources, env=env, capture_output=True, text=True, check=False)
    assert process.returncode != 0
    assert "needs a compiler with C++" in process.stderr
    assert not list((sources / "build").iterdir())


def test_building_without_torch_says_so(sources, tmp_path):
    """In a new environment; setuptools alone is let in, as pip's isolated build does it."""
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
