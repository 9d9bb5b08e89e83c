"""torch's SGD, in as few launches as the hyperparameters allow."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class SGD(torch.optim.SGD):
    """The arguments, state and checkpoints of torch.optim.SGD.

    MMDetection's `paramwise_cfg` makes a group of every parameter, and torch steps group by group: hundreds of small
    launches. A step here puts groups of equal hyperparameters together, for torch's fused kernel where there is one
    (CPU and CUDA, torch 2.4 and newer), else for its foreach kernels.
    """

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        merged: dict[tuple[Any, ...], dict[str, Any]] = {}
        for group in self.param_groups:
            settings = {key: value for key, value in group.items() if key not in ("params", "initial_lr", "fused")}
            for parameter in group["params"]:
                fused = self._can_fuse(parameter)
                key = (fused, *sorted(settings.items()))
                if key not in merged:
                    merged[key] = {**settings, "fused": fused, "foreach": not fused, "params": []}
                merged[key]["params"].append(parameter)
        groups = self.param_groups
        self.param_groups = list(merged.values())
        try:
            return super().step(closure)  # type: ignore[no-any-return]
        finally:
            self.param_groups = groups

    def _can_fuse(self, parameter: Tensor) -> bool:
        """The CPU's fused kernel walks through memory and takes no notice of strides: a gradient, or a momentum from a
        checkpoint, that is laid out otherwise than its parameter would be added to the wrong elements."""
        if parameter.device.type not in ("cpu", "cuda") or not _HAS_FUSED:
            return False
        others = (parameter.grad, self.state[parameter].get("momentum_buffer") if parameter in self.state else None)
        return all(other is None or other.stride() == parameter.stride() for other in others)


_HAS_FUSED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4)
