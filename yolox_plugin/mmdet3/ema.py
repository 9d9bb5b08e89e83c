"""MMDetection 3's ExpMomentumEMA in one operator call."""

import math

import torch
from mmdet.models.layers.ema import ExpMomentumEMA as StockExpMomentumEMA
from torch import Tensor, nn

from yolox_ops import ema_update_

from ..patches import has_own


class ExpMomentumEMA(StockExpMomentumEMA):
    """The stock class. The number of steps is read from the device only when somebody has set it."""

    # The tensor that was read or changed here, torch's count of its changes, and its value.
    _known: tuple[Tensor, int, int] | None = None

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
                    values = [sources[name].detach() for name in averaged]
                    ema_update_([value.detach() for value in averaged.values()], values, momentum)
            if not self.update_buffers:
                for average, source in zip(self.module.buffers(), model.buffers(), strict=True):
                    average.data.copy_(source.data)
            self.steps += 1
        self._known = (self.steps, self.steps._version, steps + 1)

    def _steps(self) -> int:
        if self._known is None or self._known[0] is not self.steps or self._known[1] != self.steps._version:
            self._known = (self.steps, self.steps._version, int(self.steps))
        return self._known[2]
