"""The README's commands, as a user has them: after `pip install .` and after `pip install -e .`, in the clone's own
folder and elsewhere."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

import yolox_ops

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("t*_[18]p*.sh"))
# The path of the running tests must not help.
ENV = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"CUDA_VISIBLE_DEVICES": "-1"}


def call(*command, cwd, env=ENV):
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=1800, check=False)


def succeed(*command, cwd, env=ENV):
    process = call(*command, cwd=cwd, env=env)
    assert process.returncode == 0, (command, process.stdout[-2000:] + process.stderr[-4000:])
    return process.stdout


def environment(folder):
    """A virtual environment with everything of the running one, but not this project. Its Python."""
    venv.create(folder)
    python = folder / "bin/python"
    site = next((folder / "lib").glob("python3*/site-packages"))
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # editable installs in there do not count
    return python


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The sources without anything built."""
    folder = tmp_path_factory.mktemp("clone") / "yolox-ops"
    built = (".*", "build", "dist", "data", "work_dirs", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*built))
    return folder


def test_the_source_archive_has_all_that_is_compiled_and_nothing_built(clone, tmp_path):
    """scripts/test_torch.sh compiles it."""
    succeed(sys.executable, "-c", "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])",
            tmp_path, cwd=shutil.copytree(clone, tmp_path / "clone"))  # fmt: skip
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    for pattern in ("csrc/**/*.cpp", "csrc/**/*.h", "yolox_*/**/*.py", "yolox_ops/*.pyi", "CMakeLists.txt", "setup.py"):
        wanted = {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)}
        assert wanted and wanted <= names, wanted - names
    assert not [name for name in names if name.endswith(".so")]


@pytest.fixture(scope="module")
def installed(made_once):
    """A Python after `pip install .`, which compiles nothing anew."""

    def install(folder):
        python = environment(folder / "venv")
        path = os.pathsep.join([str(Path(sys.executable).parent), ENV["PATH"]])
        succeed(python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", ".",
                cwd=ROOT, env=ENV | {"PATH": path})  # fmt: skip

    return made_once("installed", install) / "venv/bin/python"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make = "from pathlib import Path; from tiny2 import *; from yolox_plugin.run.demo_data import make_dataset as m; "
    make += "m(Path('coco2017'), train=16, val=4); write_config(Path('tiny.py'), Path('coco2017').resolve(), epochs=20)"
    env = ENV | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests/mmdet2"), str(ROOT)])}
    succeed(sys.executable, "-c", make, cwd=folder, env=env)
    return folder


@pytest.mark.slow
def test_commands_start(installed, clone):
    """In a clone beside which they are installed, whose sources must not be taken for them."""
    assert succeed(installed, "-m", "yolox_ops", cwd=clone).endswith("self-check: passed\n")
    for module in ("train", "test", "predict", "look", "demo"):
        assert "usage: " in succeed(installed, "-m", f"yolox_plugin.{module}", "--help", cwd=clone)
    for script in ("train_full_1p.sh", "test_1p.sh"):
        assert "usage: " in succeed(
            "bash", f"scripts/{script}", "--help", cwd=clone, env=ENV | {"PYTHON": str(installed)}
        )


@pytest.mark.slow
def test_an_editable_installation_starts_elsewhere(tmp_path):
    """The running one, of which other tests start the commands."""
    assert succeed(sys.executable, "-m", "yolox_ops", cwd=tmp_path).endswith("self-check: passed\n")


@pytest.mark.slow
def test_the_readme_s_lines_run_in_the_clone(installed, clone, data):
    """Line by line; with a small config and fewer devices, which later options choose."""
    lines = re.findall(r"^ {4}(bash scripts/.*?)(?:  +#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {Path(line.split()[1]).name for line in lines} <= set(SCRIPTS) and len(lines) >= 5
    small = [f"--data_path={data / 'coco2017'}", f"--config={data / 'tiny.py'}", "--device=cpu", "--batch_size=2"]
    lines.sort(key=lambda line: "test_" in line)  # a checkpoint first
    for number, line in enumerate(lines):
        command = [*line.split(), *small, *(["--devices=2"] if "8p" in line else [])]
        if "test_" in line:
            command += [f"--pth_path={clone}/work_dirs/0/latest.pth", "--work_dir=work_dirs/test"]
        else:
            command += ["--iterations=2" if "performance" in line else "--epochs=1", f"--work_dir=work_dirs/{number}"]
        succeed(*command, cwd=clone, env=ENV | {"PYTHON": str(installed)})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_full_1p.sh", "train_performance_8p.sh"])
def test_scripts_do_not_search_the_current_folder(installed, tmp_path, data, name):
    (tmp_path / "mmdet.py").write_text("raise RuntimeError('of the current folder')")
    small = [f"--data_path={data / 'coco2017'}", f"--config={data / 'tiny.py'}", "--device=cpu", "--batch_size=2"]
    options = ["--devices=2", "--iterations=2"] if "8p" in name else ["--help"]
    env = ENV | {"PYTHON": str(installed)}
    succeed("bash", ROOT / "scripts" / name, *small, *options, cwd=tmp_path, env=env)


@pytest.fixture
def nothing_installed(tmp_path):
    return environment(tmp_path / "venv")


@pytest.mark.parametrize("module", ["yolox_ops", "yolox_plugin.train"])
def test_a_clone_without_operators_says_what_to_do(nothing_installed, clone, module):
    process = call(nothing_installed, "-m", module, "--help", cwd=clone)
    assert process.returncode == 1
    message = (
        f"{clone} is a source tree without built operators, and none are installed for this Python:"
        " run `pip install -e .` there"
    )
    [line] = process.stderr.splitlines()
    assert message in line


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_say_what_is_not_installed(nothing_installed, clone, script):
    process = call("bash", f"scripts/{script}", cwd=clone, env=ENV | {"PYTHON": str(nothing_installed)})
    assert process.returncode == 2
    assert process.stderr == (
        f"error: {nothing_installed} has no yolox-ops: run {nothing_installed} -m pip install {clone}\n"
    )


def test_a_script_without_its_python(clone):
    process = call("bash", "scripts/test_1p.sh", cwd=clone, env=ENV | {"PYTHON": "/no/python"})
    assert (process.returncode, process.stderr) == (2, "error: PYTHON=/no/python is not there\n")


def test_a_clone_of_another_version_says_so(clone, nothing_installed, tmp_path):
    """Its Python files with operators of another version would fail in stranger ways."""
    site = next((tmp_path / "venv/lib").glob("python3*/site-packages"))
    shutil.copytree(Path(yolox_ops.__file__).parent, site / "yolox_ops")
    copy = shutil.copytree(clone, tmp_path / "clone")
    assert succeed(nothing_installed, "-m", "yolox_ops", cwd=copy).endswith("self-check: passed\n")
    with (copy / "yolox_ops/nms.py").open("a") as file:
        file.write("# newer\n")
    process = call(nothing_installed, "-m", "yolox_ops", cwd=copy)
    assert process.returncode == 1
    [line] = process.stderr.splitlines()
    assert (
        f"those in {site / 'yolox_ops'} belong to another version (nms.py differs): run `pip install .` there" in line
    )
