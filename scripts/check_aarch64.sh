#!/bin/bash
# Cross-compiles the CPU kernels for aarch64 (Ascend hosts mostly are), with Debian's g++-aarch64-linux-gnu.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v aarch64-linux-gnu-g++ >/dev/null || {
  echo "aarch64-linux-gnu-g++ not found: apt-get install g++-aarch64-linux-gnu"
  exit 1
}
include=$(.venv/bin/python -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parent / "include")')
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for source in csrc/cpu/*.cpp; do
  echo "$source"
  aarch64-linux-gnu-g++ -std=c++17 -O3 -fPIC -fopenmp -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall \
    -Wextra -Wno-psabi -DCPU_CAPABILITY=default_ -DCPU_CAPABILITY_DEFAULT=1 -Icsrc -isystem "$include" \
    -isystem "$include/torch/csrc/api/include" -c "$source" -o "$out/$(basename "$source").o"
done
