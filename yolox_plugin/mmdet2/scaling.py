"""mmcv's hook of float16 with loss scaling, for which the host waits in no step."""

from typing import Any

import torch
from mmcv.runner import BaseRunner, Fp16OptimizerHook

from ..patches import has_own


class DeferredFp16OptimizerHook(Fp16OptimizerHook):
    """In the place of mmcv's hook on an NPU, with the same settings, and the same state in checkpoints. mmcv's asks the
    device five times a step: for overflows, for the scale and for its growth."""

    def __init__(self, hook: Fp16OptimizerHook) -> None:
        self.__dict__.update(vars(hook))
        from ..core.scaling import DeviceGradScaler

        self.loss_scaler = DeviceGradScaler.like(hook.loss_scaler.state_dict())

    @staticmethod
    def serves(hook: Any) -> bool:
        """Whether a hook is mmcv's own and scales by what it finds, and torch has a scaler for every device."""
        return (
            hasattr(torch.amp, "GradScaler")
            and type(hook) is Fp16OptimizerHook
            and not has_own(hook, ["before_run", "after_train_iter", "clip_grads"])
            and bool(hook.loss_scaler.state_dict().get("dynamic"))  # nothing, if it is not enabled
        )

    def after_train_iter(self, runner: BaseRunner) -> None:
        """See the stock class."""
        runner.model.zero_grad()
        runner.optimizer.zero_grad()
        self.loss_scaler.backward(runner.outputs["loss"])
        if self.grad_clip is not None:
            self.loss_scaler.unscale_(runner.optimizer)
            norm = self.clip_grads(runner.model.parameters())
            if norm is not None:
                runner.log_buffer.update({"grad_norm": norm.detach()}, runner.outputs["num_samples"])
        self.loss_scaler.step(runner.optimizer)
        self.loss_scaler.update(self._scale_update_param)

    def save_state(self, meta: dict[str, Any]) -> None:
        """Puts the scale, read from the device, where mmcv's hook has it in every iteration: in a checkpoint's meta."""
        meta.setdefault("fp16", {})["loss_scaler"] = self.loss_scaler.state_dict()
