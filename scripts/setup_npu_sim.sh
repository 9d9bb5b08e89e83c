#!/bin/bash
# setup_npu_sim.sh [old]: creates .venv-npu for the tests on a simulated NPU: the real torch_npu over a fake CANN
# runtime, in an environment of its own, as torch_npu wants a torch of exactly its version. "old": .venv-npu-old, with
# the oldest that is supported. Exit status 77: the wheel is not to be had here.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
torch=2.13.0 torch_npu=2.13.0 venv=.venv-npu others=
if [ "${1:-}" = old ]; then
  torch=2.1.0 torch_npu=2.1.0.post17 venv=.venv-npu-old
  others='s/^numpy==.*/numpy<2/; s/^(opencv-python-headless)==.*/\1<4.12/'  # torch older than 2.3 knows no numpy 2
fi
pip="$venv/bin/python -m pip --disable-pip-version-check --quiet"
export PATH="$PWD/$venv/bin:$PATH" TORCH_DEVICE_BACKEND_AUTOLOAD=0 MAX_JOBS=${MAX_JOBS:-$(nproc)}
say() { echo "[simulated NPU] $*"; }

if ! cmp -s requirements.txt $venv/requirements.installed; then
  say "torch, torch_npu and libraries (a minute) ..."
  "$python" -m venv $venv
  # --no-deps: its requirements name a torch of other builds.
  if ! $pip download --no-deps --dest $venv/wheels torch-npu==$torch_npu; then
    say "pip has no torch-npu $torch_npu for this machine and Python"
    exit 77
  fi
  $pip install torch==$torch decorator attrs psutil -r <(sed -E "$others" requirements.txt)
  $pip install --no-deps "$venv"/wheels/*.whl
  MMCV_WITH_OPS=0 $pip install --no-build-isolation --no-deps mmcv==1.7.2
  $pip install --no-deps mmdet==2.28.2
  cp requirements.txt $venv/requirements.installed
fi
# In a folder of its own, which comes first on PYTHONPATH where it is wanted.
[ -d $venv/mmdet3/mmdet ] ||
  $pip install --no-deps --target $venv/mmdet3 mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0
say "fake CANN runtime and this project's operators (a minute on 2 cores when new) ..."
$venv/bin/python tests/npu_sim/fake_cann.py $venv/fake_cann
$pip install --no-build-isolation --no-deps --force-reinstall .
