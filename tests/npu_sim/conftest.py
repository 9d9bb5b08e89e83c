"""Collected only where torch_npu is installed: `make test-npu`, in an environment of its own."""

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

HAS_TORCH_NPU = importlib.util.find_spec("torch_npu") is not None
collect_ignore_glob = [] if HAS_TORCH_NPU else ["test_*.py"]

if HAS_TORCH_NPU:
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "plugin")]

    class NoOperators(types.ModuleType):
        """mmcv's compiled part and torchvision, which this torch has not: whoever calls them fails."""

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)

            def missing(*args: Any, **kwargs: Any) -> None:
                raise AssertionError(f"{self.__name__}.{name} was called: nothing here may need it")

            return missing

    for name in ("mmcv._ext", "torchvision"):
        sys.modules.setdefault(name, NoOperators(name))
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, loader=None)

    import device

    @pytest.fixture(scope="session", autouse=True)
    def simulation() -> None:
        """Every test runs on the simulated device."""
        assert device.install() > 900
