"""Builds the operators with CMake and Ninja against the torch that is already installed. Metadata: pyproject.toml.

Environment: MAX_JOBS limits the compile jobs, CXX names the compiler, YOLOX_OPS_SANITIZE=address builds with
AddressSanitizer and UndefinedBehaviorSanitizer, YOLOX_OPS_SANITIZE=thread with ThreadSanitizer (see the Makefile).
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MODULE_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
SANITIZERS = {"": "", "0": "", "1": "address", "address": "address", "thread": "thread"}
LIBRARIES = (f"_C{MODULE_SUFFIX}", "libyolox_ops.so")
NO_TORCH = (
    f"yolox-ops: {sys.executable} has no torch; install torch first, the operators are compiled against it"
    " (with uv, add --no-build-isolation)."
)
PROBE = """
import json, sys
from pathlib import Path
try:
    import torch
except ModuleNotFoundError as error:
    sys.exit(3 if error.name == "torch" else repr(error))
home = Path(torch.__file__).parent
openmp = [*home.glob("lib/libgomp*.so*"), *home.parent.glob("torch.libs/libgomp*.so*")]
print(json.dumps({
    "TORCH_VERSION": torch.__version__,
    "TORCH_INCLUDE_DIRS": f"{home / 'include'};{home / 'include/torch/csrc/api/include'}",
    "TORCH_LIBRARY_DIR": str(home / "lib"),
    "TORCH_OPENMP": str(openmp[0]) if openmp else "",
    "CXX11_ABI": str(int(torch.compiled_with_cxx11_abi())),
}))
"""


def installed_torch() -> dict[str, str]:
    """Asks the environment's own interpreter about its torch.

    pip's isolated build runs that interpreter too, only with PYTHONPATH (and no user site) in front of it; without
    those a child sees the environment as it is. A torch_npu that is installed beside torch must not load its driver
    for this.
    """
    hidden = ("PYTHONPATH", "PYTHONNOUSERSITE")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    env["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    child = subprocess.run([sys.executable, "-c", PROBE], env=env, stdout=subprocess.PIPE, text=True, check=False)
    if child.returncode == 3:
        sys.exit(NO_TORCH)
    if child.returncode:
        sys.exit("yolox-ops: the installed torch cannot be imported (error above); repair it first.")
    facts: dict[str, str] = json.loads(child.stdout.splitlines()[-1])
    if tuple(map(int, facts["TORCH_VERSION"].split(".")[:2])) < (2, 1):
        sys.exit(f"yolox-ops: needs torch 2.1 or newer, found {facts['TORCH_VERSION']}.")
    return facts


class CMakeBuild(build_ext):
    """Compiles in build/cmake-<torch>-<platform>, which is kept, so that a second build compiles only what changed."""

    def run(self) -> None:
        facts = installed_torch()
        import pybind11  # after the check for torch: its absence is the likelier and the more helpful message

        wanted = os.environ.get("YOLOX_OPS_SANITIZE", "")
        if wanted not in SANITIZERS:
            sys.exit(f"yolox-ops: YOLOX_OPS_SANITIZE must be one of address, thread, got {wanted!r}")
        sanitize = SANITIZERS[wanted]
        facts |= {
            "PYTHON_INCLUDE_DIRS": f"{sysconfig.get_path('include')};{pybind11.get_include()}",
            "MODULE_SUFFIX": MODULE_SUFFIX,
            "SANITIZE": sanitize,
        }
        tools = {name: shutil.which(name) for name in ("cmake", "ninja")}
        missing = [name for name, path in tools.items() if path is None]
        if missing:
            sys.exit(f"yolox-ops: {' and '.join(missing)} not found; pip install {' '.join(missing)}")

        tag = f"{facts['TORCH_VERSION']}-{sys.implementation.cache_tag}-{platform.machine()}"
        build = ROOT / "build" / f"cmake-{tag}{f'-{sanitize}' if sanitize else ''}"
        target = ROOT / "yolox_ops" if self.inplace else Path(self.build_lib).resolve() / "yolox_ops"
        options = [f"-DYOLOX_OPS_{name}={value}" for name, value in facts.items()]
        # Given anew each time: an isolated build has its tools in a folder that is gone afterwards.
        options += [
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}",
            f"-DCMAKE_INSTALL_PREFIX={target}",
        ]
        jobs = os.environ.get("MAX_JOBS")
        configure = [tools["cmake"], "-S", str(ROOT), "-B", str(build), *options]
        compile_ = [
            tools["cmake"], "--build", str(build), *(["--parallel", jobs] if jobs else []), "--target", "install",
        ]  # fmt: skip
        for command in (configure, compile_):
            self.announce(" ".join(command), level=2)
            if subprocess.run(command, check=False).returncode:
                if command is configure:  # which remembers the compiler: the next attempt looks for one again
                    shutil.rmtree(build, ignore_errors=True)
                sys.exit(f"yolox-ops: the build failed (errors above; build folder {build}).")

    # What setuptools records as built; `editable` installs want to know where each file would have gone.
    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_lib) / "yolox_ops" / name) for name in LIBRARIES]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {built: str(ROOT / "yolox_ops" / Path(built).name) for built in self.get_outputs()}


setup(ext_modules=[Extension("yolox_ops._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
