"""The config that commands are tried on, for the MMDetection that is here."""

import importlib
import json
import os
import sys
from pathlib import Path

from yolox_plugin.hosts import find_host

HOST = find_host()
small = importlib.import_module(f"tiny{HOST[-1]}")  # a config, and the names of options in it

ROOT = Path(__file__).resolve().parents[2]
ENV = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "-1"}
FINAL = ("Final Performance images/sec : ", "Accuracy : ", "ing Duration sec : ")


def sentence(status, error):
    """The one error of a command that has written nothing."""
    assert status == 2
    [line] = [line for line in error.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in error
    return line


def finished(process, work_dir):
    """The result of a complete run: its last lines and files are as they should be."""
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    for words in FINAL:
        assert words in process.stdout
    return json.loads((work_dir / "result.json").read_text())
