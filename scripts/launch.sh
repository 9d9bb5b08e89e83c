#!/bin/bash
# What the scripts beside this one share: python -m yolox_plugin.ENTRY with their options, then the user's own.
# The Python is $PYTHON, or python3 if that has torch, or the one that `make demo` set up.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && ! python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
  python=$here/.venv/bin/python
  [ -x "$python" ] || { echo "error: python3 has no torch: install torch and yolox-ops, or run make demo" >&2; exit 2; }
fi
run() {
  exec "$python" -m "yolox_plugin.$1" "${@:2}"
}
