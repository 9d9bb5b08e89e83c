#!/bin/bash
# Creates .venv with pinned dependencies and builds yolox-ops into it. Each step is skipped when its result is there.
# mmcv comes without its operators, which YOLOX does without; `setup_env.sh full` adds mmcv-full, which tests want, and
# compiles it. MMDetection 3 lies in a folder of its own, which comes first on PYTHONPATH where it is wanted; `setup_env.sh
# onedl` adds the one that onedl maintains, in the same way.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=.venv
steps=7
[ "${1:-}" = full ] && steps=8
[ "${1:-}" = onedl ] && steps=9
mkdir -p "$venv/logs"

# step NUMBER TITLE CHECK COMMAND: the check says whether there is anything to do
step() {
  local log="$venv/logs/step$1.log" start=$SECONDS
  if eval "$3" >/dev/null 2>&1; then
    echo "[$1/$steps] $2: already there"
    return
  fi
  echo "[$1/$steps] $2 ..."
  eval "$4" >"$log" 2>&1 &
  local job=$!
  while kill -0 $job 2>/dev/null; do
    sleep 1
    (((SECONDS - start) % 20 == 19)) && echo "      $((SECONDS - start)) s: $(tail -n 1 "$log" | cut -c1-100)"
  done
  if ! wait $job; then
    tail -n 20 "$log"
    echo "setup failed in step $1 ($2). The whole log is in $log; mend the cause and run the same command again."
    exit 1
  fi
  echo "      done in $((SECONDS - start)) s"
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
  { echo "Python 3.10 or newer is needed, found: $("$python" --version 2>&1). Name one with PYTHON=..."; exit 1; }
command -v c++ >/dev/null || { echo "A C++ compiler is needed: install g++ (Debian: apt install g++)."; exit 1; }

pip="$venv/bin/python -m pip --disable-pip-version-check"
export PATH="$PWD/$venv/bin:$PATH" MAX_JOBS=${MAX_JOBS:-$(nproc)}
step 1 "virtual environment" "$venv/bin/python -m pip --version" "'$python' -m venv $venv"
step 2 "torch and torchvision (some gigabytes)" \
  "$venv/bin/python -c 'import torch, torchvision; assert torch.__version__.startswith(\"2.11.0\")'" \
  "$pip install torch==2.11.0 torchvision==0.26.0"
step 3 "tools and libraries" "cmp requirements.txt $venv/logs/requirements.installed" \
  "$pip install -r requirements.txt && cp requirements.txt $venv/logs/requirements.installed"
step 4 "mmcv" \
  "$venv/bin/python -c 'import mmcv; assert mmcv.__version__ == \"1.7.2\"'" \
  "MMCV_WITH_OPS=0 $pip install --no-build-isolation --no-deps mmcv==1.7.2"
step 5 "mmdet" "$venv/bin/python -c 'from importlib.metadata import version; assert version(\"mmdet\") == \"2.28.2\"'" \
  "$pip install --no-deps mmdet==2.28.2"
step 6 "MMDetection 3" "[ -d $venv/mmdet3/mmdet ]" \
  "$pip install --no-deps --target $venv/mmdet3 mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0"
step 7 "compiling the operators (a minute on 2 cores)" "false" \
  "$pip install -v --no-build-isolation --no-deps -e ."
[ $steps = 7 ] && exit
# Without pip's cache: it does not know which torch a wheel of mmcv-full was compiled against. -v for the progress. Without
# debug information, which takes 4 minutes in 10 and changes no code. The package without operators moves aside, for the
# tests that want it.
step 8 "compiling mmcv-full (6 minutes on 2 cores)" \
  "[ -d $venv/mmcv-lite/mmcv ] && $venv/bin/python -c 'import mmcv, mmcv.ops; assert mmcv.__version__ == \"1.7.2\"'" \
  "CFLAGS=-g0 MMCV_WITH_OPS=1 $pip wheel -v --no-build-isolation --no-deps --no-cache-dir -w $venv/wheels mmcv-full==1.7.2 &&
   MMCV_WITH_OPS=0 $pip install --no-build-isolation --no-deps --upgrade --target $venv/mmcv-lite mmcv==1.7.2 &&
   $pip uninstall -y mmcv && $pip install --no-deps --force-reinstall $venv/wheels/mmcv_full-1.7.2-*.whl"
[ $steps = 8 ] && exit
# Beside the MMDetection, imaug and what that imports. mmengine looks for MMDetection's configs in the distribution named
# mmdet, which without the copy would be the 2.28.2 of .venv.
step 9 "MMDetection 3 of onedl" "[ -d $venv/onedl/mmdet-3.5.1.dist-info ]" \
  "MMCV_WITH_OPS=0 $pip install --no-deps --target $venv/onedl onedl-mmengine==0.10.12 onedl-mmcv==2.3.6 \
     onedl-mmdetection==3.5.1 imaug==0.4.3 scikit-image==0.26.0 imageio==2.38.1 lazy-loader==0.6 &&
   cp -r $venv/onedl/onedl_mmdetection-3.5.1.dist-info $venv/onedl/mmdet-3.5.1.dist-info"
