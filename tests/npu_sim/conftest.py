"""Collected only where torch_npu is installed: `make test-npu`, in an environment of its own. Files whose names end
in 3 are for MMDetection 3, all others for 2.28.2."""

import importlib.util

import pytest

HAS_TORCH_NPU = importlib.util.find_spec("torch_npu") is not None
IS_MMDET3 = importlib.util.find_spec("mmengine") is not None
collect_ignore_glob = ["test_*[!3].py" if IS_MMDET3 else "test_*3.py"] if HAS_TORCH_NPU else ["test_*.py"]

if HAS_TORCH_NPU:
    import device
    import torch

    from yolox_ops import simota_assign

    @pytest.fixture(scope="session", autouse=True)
    def simulation() -> None:
        """Every test runs on the simulated device, of which the operators have asked what they ask once."""
        assert device.install() > 900
        boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]], device="npu")
        one, centers = torch.ones(1, 1, device="npu"), torch.tensor([[4.0, 4.0, 8.0, 8.0]], device="npu")
        simota_assign(one[None], centers, boxes, boxes, one.long() - 1, one[0].long())

    def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
        """What the tests counted, seen without asking for it."""
        terminalreporter.section("on the simulated device: counts, not speed")
        for report in terminalreporter.getreports("passed"):
            for name, counts in report.user_properties:
                terminalreporter.line(f"{name:28}" + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
