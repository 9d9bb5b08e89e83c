"""Loss scaling for float16 on an NPU, for which the host waits in no step."""

import math
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState, _refresh_per_optimizer_state  # torch 2.3 and newer

from .flat import gradients_together, runs
from .sgd import SGD


class DeviceGradScaler(GradScaler):
    """torch.amp.GradScaler whose decisions are taken on the device; its state is read for checkpoints alone.

    torch_npu's own scaler reads every step whether gradients overflowed, and how long they have not. torch's grows and
    shrinks the scale by an operator that an Ascend 910A has not, and that some versions of CANN refuse. Here nothing is
    read where the optimizer leaves out a step by itself, as `core.sgd.SGD` does.

    The arithmetic of an Ascend 910A has no infinities: it saturates and raises a flag, which is the sign of an overflow
    there.
    """

    _scale: Tensor | None
    _growth_tracker: Tensor | None
    _per_optimizer_states: dict[int, dict[str, Any]]

    def __init__(self, **settings: Any) -> None:
        super().__init__("npu", **settings)
        import torch_npu

        self._torch_npu = torch_npu
        self._saturates = not torch_npu.npu.utils.is_support_inf_nan()
        self._cleared = False  # the flag, since the last update: gradients may be added up over several losses

    @classmethod
    def like(cls, state: dict[str, Any]) -> "DeviceGradScaler":
        """With the scale and the settings in the `state_dict` of another scaler."""
        names = ("growth_factor", "backoff_factor", "growth_interval")
        return cls(init_scale=state["scale"], **{name: state[name] for name in names})

    def scale(self, outputs: Any) -> Any:
        """See the stock class."""
        self._clear_flag()
        return super().scale(outputs)

    def backward(self, loss: Tensor) -> None:
        """`scale(loss).backward()`, to the bit, by a backward pass that starts from the scale instead of 1."""
        self._clear_flag()
        if self._scale is None:
            self._lazy_init_scale_growth_tracker(loss.device)
        torch.autograd.backward(loss, self._scale)

    def _clear_flag(self) -> None:
        if self._saturates and not self._cleared:
            self._cleared = True
            self._torch_npu.npu_clear_float_status(torch.zeros(8, device="npu"))

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """See the stock class, which takes the reciprocal in float64: on the AI CPU."""
        state = self._per_optimizer_states[id(optimizer)]
        if not self._enabled or self._scale is None or state["stage"] is not OptState.READY:
            super().unscale_(optimizer)
            return
        found_inf = torch.zeros((), device=self._scale.device)
        state["found_inf_per_device"] = self._unscale_grads_(optimizer, self._scale.reciprocal(), found_inf, False)
        state["stage"] = OptState.UNSCALED

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """See the stock class."""
        state = self._per_optimizer_states[id(optimizer)]
        usual = self._enabled and state["stage"] is not OptState.STEPPED
        if not (usual and isinstance(optimizer, SGD) and optimizer.takes_found_inf()):
            return super().step(optimizer, *args, **kwargs)
        if state["stage"] is OptState.READY:
            self.unscale_(optimizer)
        [optimizer.found_inf] = state["found_inf_per_device"].values()
        try:
            return optimizer.step(*args, **kwargs)
        finally:
            optimizer.found_inf = None
            state["stage"] = OptState.STEPPED

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        with_gradients = [parameter for parameter in parameters if parameter.grad is not None]
        pieces = [gradients_together([parameter for (parameter,) in run]) for run in runs(with_gradients)]
        if not self._saturates:
            torch._amp_foreach_non_finite_check_and_unscale_(pieces, found_inf, inv_scale)
            return {found_inf.device: found_inf}
        found_inf.copy_(self._torch_npu.npu_get_float_status(torch.zeros(8, device="npu"))[0] != 0)
        if dist.is_available() and dist.is_initialized():  # infinities spread through the gradients' sum, flags do not
            dist.all_reduce(found_inf, dist.ReduceOp.MAX)
        torch._foreach_mul_(pieces, inv_scale)
        return {found_inf.device: found_inf}

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """See the stock class."""
        self._cleared = False
        states = self._per_optimizer_states.values()
        found = [flag for state in states for flag in state["found_inf_per_device"].values()]
        if new_scale is not None or not self._enabled or len(found) != 1:
            super().update(new_scale)
            return
        assert self._scale is not None and self._growth_tracker is not None
        overflowed = found[0] > 0
        steps = self._growth_tracker + 1
        grows = steps == self._growth_interval
        larger = self._scale * self._growth_factor
        grown = torch.where(grows & (larger < math.inf), larger, self._scale)
        self._scale = torch.where(overflowed, self._scale * self._backoff_factor, grown)
        self._growth_tracker = steps.masked_fill_(overflowed | grows, 0)
        self._per_optimizer_states = defaultdict(_refresh_per_optimizer_state)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with what torch_npu's scaler wants of a checkpoint."""
        return {**super().state_dict(), "dynamic": True}
