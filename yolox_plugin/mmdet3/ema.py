"""MMDetection 3's ExpMomentumEMA in one operator call."""

import math
from typing import Any

import torch
from mmdet.models.layers.ema import ExpMomentumEMA as StockExpMomentumEMA
from torch import Tensor, nn

from yolox_ops import ema_update_

from ..core.flat import lay_together, merged
from ..patches import has_own


class ExpMomentumEMA(StockExpMomentumEMA):
    """The stock class. The number of steps is read from the device only when somebody has set it.

    On an NPU, where weights lie side by side (`core.sgd`), so do the model's statistics and the averages from then on.
    """

    avg_parameters: dict[str, Tensor]
    # The tensor that was read or changed here, torch's count of its changes, and its value.
    _known: tuple[Tensor, int, int] | None = None

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        lay_together([buffer for buffer in model.buffers() if buffer.device.type == "npu"])
        super().__init__(model, *args, **kwargs)
        sources = model.state_dict()
        averages = self.module.state_dict(keep_vars=True)
        on_npu = [name for name, average in averages.items() if average.device.type == "npu"]
        if on_npu:
            lay_together([averages[name] for name in sorted(on_npu, key=lambda name: sources[name].data_ptr())])
            # Stock's are views of where they lay before.
            self.avg_parameters = {name: averages[name].detach() for name in self.avg_parameters}

    def update_parameters(self, model: nn.Module) -> None:
        """See the stock class, whose own code asks what a subclass has put in the place of `avg_func`, and serves
        averages that lie on another device than the model."""
        steps = self._steps()
        sources = model.state_dict() if self.update_buffers else dict(model.named_parameters())
        averaged = {name: value for name, value in self.avg_parameters.items() if value.dtype.is_floating_point}
        if (
            steps == 0
            or has_own(self, ["avg_func"])
            or any(value.device != sources[name].device for name, value in averaged.items())
        ):
            super().update_parameters(model)
        else:
            if steps % self.interval == 0:
                momentum = (1 - self.momentum) * math.exp(-float(1 + steps) / self.gamma) + self.momentum
                with torch.no_grad():
                    averages = [value.detach() for value in averaged.values()]
                    values = [sources[name].detach() for name in averaged]
                    if values and values[0].device.type == "npu":
                        averages, values = merged(averages, values)
                    ema_update_(averages, values, momentum)
            if not self.update_buffers:
                for average, source in zip(self.module.buffers(), model.buffers(), strict=True):
                    average.data.copy_(source.data)
            self.steps += 1
        self._known = (self.steps, self.steps._version, steps + 1)

    def _steps(self) -> int:
        if self._known is None or self._known[0] is not self.steps or self._known[1] != self.steps._version:
            self._known = (self.steps, self.steps._version, int(self.steps))
        return self._known[2]
