#!/bin/bash
# test_torch.sh VERSION...: installs the source archive for each of these versions of torch, which compiles the operators,
# and runs their tests, each in an environment of its own, .venv-torch-VERSION, which is kept. Then trains a few
# iterations, with mmcv without operators.
set -euo pipefail
cd "$(dirname "$0")/.."
# Neither the build for the other torch, in this folder, nor a GPU.
export PYTHONSAFEPATH=1 CUDA_VISIBLE_DEVICES=-1 MAX_JOBS=${MAX_JOBS:-$(nproc)}

prepare() {  # VERSION VENV
  local minor others= pip="$2/bin/python -m pip --disable-pip-version-check --quiet"
  minor=$(cut -d. -f2 <<<"$1")
  "${PYTHON:-python3}" -m venv --clear "$2"
  $pip install "torch==$1" "torchvision==0.$((minor + 15)).*"
  if [ "$minor" -lt 3 ]; then  # it knows no numpy 2, and newer OpenCVs no numpy 1
    others='s/^numpy==.*/numpy<2/; s/^(opencv-python-headless)==.*/\1<4.12/'
  fi
  $pip install -r <(sed -E "$others" requirements.txt)
  MMCV_WITH_OPS=0 $pip install --no-build-isolation --no-deps mmcv==1.7.2
  $pip install --no-deps mmdet==2.28.2
  cp requirements.txt "$2/requirements.installed"
}

for version; do
  venv=$PWD/.venv-torch-$version
  echo "== torch $version"
  cmp -s requirements.txt "$venv/requirements.installed" || prepare "$version" "$venv"
  rm -rf "$venv/archive"
  "$venv/bin/python" -c 'import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])' \
    "$venv/archive" >/dev/null
  PATH="$venv/bin:$PATH" "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-build-isolation \
    --no-deps --force-reinstall "$venv"/archive/*.tar.gz
  "$venv/bin/python" -m yolox_ops
  "$venv/bin/python" -m pytest tests/ops -m "not slow"
  rm -rf "$venv/run"
  [ -d "$venv/data" ] || "$venv/bin/python" -m yolox_plugin.run.demo_data "$venv/data"
  "$venv/bin/python" -m yolox_plugin.train --config=yolox_demo --data-path="$venv/data" --work-dir="$venv/run" \
    --device=cpu --batch-size=2 --performance --iterations=6
  "$venv/bin/python" -c 'import json, sys; result = json.load(open(sys.argv[1])); assert result["loss"] > 0, result' \
    "$venv/run/result.json"
done
