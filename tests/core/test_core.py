"""The arithmetic that every host shares knows none of them."""

import subprocess
import sys
from pathlib import Path

import yolox_plugin.core

MODULES = sorted(path.stem for path in Path(yolox_plugin.core.__file__).parent.glob("*.py") if path.stem != "__init__")

# The package itself looks for a host when it is imported, so that an empty one stands in its place.
PROGRAM = """
import importlib, sys, types
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mmcv", "mmdet", "mmengine"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
package = types.ModuleType("yolox_plugin")
package.__path__ = [sys.argv[1]]
sys.modules["yolox_plugin"] = package
for module in sys.argv[2:]:
    importlib.import_module(f"yolox_plugin.core.{module}")
print(*sys.modules)
"""


def test_it_comes_without_mmcv_and_mmdet():
    package = Path(yolox_plugin.core.__file__).parents[1]
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, package, *MODULES], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    ours = {name for name in process.stdout.split() if name.startswith("yolox_plugin.")}
    assert MODULES and {f"yolox_plugin.core.{module}" for module in MODULES} <= ours
    assert not [name for name in ours if not name.startswith("yolox_plugin.core")]
