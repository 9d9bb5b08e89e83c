"""mmengine's mixed precision with loss scaling, for which the host waits in no step on an NPU."""

from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper as StockAmpOptimWrapper
from mmengine.optim.optimizer.amp_optimizer_wrapper import GradScaler

from ..core.sgd import SGD


class AmpOptimWrapper(StockAmpOptimWrapper):
    """The stock class, with the same settings, and the same state in checkpoints. On an NPU, stock's scaler asks the
    device three times a step whether gradients have overflowed."""

    loss_scaler: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        on_npu = any(parameter.device.type == "npu" for parameter in parameters)
        # torch_npu's own optimizers keep gradients where its scaler alone finds them.
        if on_npu and isinstance(self.optimizer, SGD) and _is_replaceable(self.loss_scaler):
            from ..core.scaling import DeviceGradScaler

            self.loss_scaler = DeviceGradScaler.like(self.loss_scaler.state_dict())


def _is_replaceable(scaler: Any) -> bool:
    """Whether it is mmengine's for NPUs and scales by what it finds, and torch has a scaler for every device."""
    return (
        hasattr(torch.amp, "GradScaler")
        and type(scaler) is GradScaler
        and bool(scaler.state_dict().get("dynamic"))  # nothing, if it is not enabled
    )
