"""torch's SGD, in as few launches as the hyperparameters allow."""

from collections.abc import Callable
from typing import Any

import torch


class SGD(torch.optim.SGD):
    """The arguments, state and checkpoints of torch.optim.SGD.

    MMDetection's `paramwise_cfg` makes a group of every parameter, and torch steps group by group: hundreds of small
    launches. A step here puts groups of equal hyperparameters together, for torch's fused kernel where there is one (CPU
    and CUDA, torch 2.4 and newer), else for its foreach kernels.
    """

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        merged: dict[tuple[Any, ...], dict[str, Any]] = {}
        for group in self.param_groups:
            for device in {p.device.type for p in group["params"]}:
                parameters = [p for p in group["params"] if p.device.type == device]
                settings = {key: value for key, value in group.items() if key not in ("params", "initial_lr", "fused")}
                key = (device, *sorted(settings.items()))
                merged.setdefault(key, {**settings, **_implementation(device), "params": []})["params"] += parameters
        groups = self.param_groups
        self.param_groups = list(merged.values())
        try:
            return super().step(closure)  # type: ignore[no-any-return,arg-type]
        finally:
            self.param_groups = groups


def _implementation(device: str) -> dict[str, bool]:
    has_fused = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4)
    return {"fused": True, "foreach": False} if has_fused and device in ("cpu", "cuda") else {"foreach": True}
