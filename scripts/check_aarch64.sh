#!/bin/bash
# Cross-compiles the CPU kernels and the stamps for aarch64 (Ascend hosts mostly are), with Debian's
# g++-aarch64-linux-gnu and the headers of .venv. test_aarch64.sh also runs them.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v aarch64-linux-gnu-g++ >/dev/null || {
  echo "aarch64-linux-gnu-g++ not found: apt-get install g++-aarch64-linux-gnu"
  exit 1
}
mapfile -t facts < <(.venv/bin/python -c '
import sysconfig, pybind11, torch
home = torch.__path__[0]
print(torch.__version__)
print(f"{home}/include;{home}/include/torch/csrc/api/include")
print(sysconfig.get_path("include") + ";" + pybind11.get_include())')
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# Nothing is linked with torch, whose libraries here are for another processor.
.venv/bin/cmake -S . -B "$out" -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" --toolchain scripts/aarch64.cmake \
  -DYOLOX_OPS_TORCH_VERSION="${facts[0]}" -DYOLOX_OPS_TORCH_INCLUDE_DIRS="${facts[1]}" \
  -DYOLOX_OPS_TORCH_LIBRARY_DIR="$out" -DYOLOX_OPS_CXX11_ABI=1 -DYOLOX_OPS_PYTHON_INCLUDE_DIRS="${facts[2]}" \
  -DYOLOX_OPS_MODULE_SUFFIX=.so
.venv/bin/cmake --build "$out" --target cpu_default build_info CMakeFiles/yolox_ops.dir/csrc/cpu/capability.cpp.o
