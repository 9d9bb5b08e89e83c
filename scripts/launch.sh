#!/bin/bash
# What the scripts beside this one share: python -m yolox_plugin.ENTRY with their options, then the user's own.
# The Python is $PYTHON, or python3 if that has torch, or the one that `make demo` set up.
# The current folder is not searched for modules, whatever lies there; Python 3.10 does not know PYTHONSAFEPATH, so it is
# taken off the path as well.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONSAFEPATH=1
has() {
  "$1" -c 'import importlib.util, sys
sys.path[:] = filter(None, sys.path)
sys.exit(importlib.util.find_spec(sys.argv[1]) is None)' "$2"
}
python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && ! has python3 torch; then
  python=$here/.venv/bin/python
  [ -x "$python" ] || { echo "error: python3 has no torch: install torch and yolox-ops, or run make demo" >&2; exit 2; }
fi
command -v "$python" >/dev/null || { echo "error: PYTHON=$python is not there" >&2; exit 2; }
has "$python" yolox_plugin || {
  echo "error: $python has no yolox-ops: run $python -m pip install $here" >&2
  exit 2
}
# Where torch_npu is: what Huawei advises for trainings of many small kernels, as far as the user has not set it.
# TASK_QUEUE_ENABLE=2 moves more of a launch to a second thread, where kernels are ready-made, as yolox_plugin has it.
# CPU_AFFINITY_CONF=1 gives each NPU's process its share of the machine's cores; in a container or under taskset, which
# allow some of them, that would be the wrong ones. PYTORCH_NPU_ALLOC_CONF=expandable_segments:True is left to the user:
# it is for trainings that run out of memory, shuts out the allocator's other options, and wants Ascend HDK 23.0.0.
if has "$python" torch_npu; then
  wanted=(TASK_QUEUE_ENABLE=2)
  if "$python" -c 'import os, sys; sys.exit(len(os.sched_getaffinity(0)) < os.cpu_count())'; then
    wanted+=(CPU_AFFINITY_CONF=1)
  fi
  added=
  for setting in "${wanted[@]}"; do
    name=${setting%=*}
    [ -n "${!name+set}" ] || { export "$setting" && added+=" $setting"; }
  done
  [ -z "$added" ] ||
    echo "set for NPUs:$added; what you set stays, torch_npu's own are TASK_QUEUE_ENABLE=1 CPU_AFFINITY_CONF=0" >&2
fi
run() {
  exec "$python" -c 'import runpy, sys
sys.path[:] = filter(None, sys.path)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)' "yolox_plugin.$1" "${@:2}"
}
