"""Benchmarks as programs of their own, as most of what they import may be imported once only."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROGRAM = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
{{preparation}}
import {{name}}
sys.exit({{name}}.main(sys.argv[1:]))
"""


def run(name, *options, preparation=""):
    """Runs a benchmark after some lines of Python."""
    program = PROGRAM.format(preparation=preparation, name=name)
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, options)], capture_output=True, text=True, check=False
    )
