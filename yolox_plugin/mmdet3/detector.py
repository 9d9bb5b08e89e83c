"""MMDetection 3's YOLOX with logged values of all ranks that nobody waits for, and mixed precision on every device."""

from collections import OrderedDict
from typing import Any

import torch
from mmdet.models.detectors.yolox import YOLOX as StockYOLOX
from mmdet.structures import DetDataSample
from mmengine.device import get_device
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from ..core.forward import in_few_launches
from ..core.losses import parse
from ..detector import PreparedDetector
from ..protocol import Moment, TrainingPart


class YOLOX(PreparedDetector, StockYOLOX, TrainingPart):
    """The arguments, weights and losses of the stock class, and one argument more.

    Args:
        autocast: "float32", "bfloat16" or "float16": the precision of the convolutions in training. Losses, assignment
            and weights stay float32. float16 needs an accelerator, and mmengine's AmpOptimWrapper for its loss scale;
            bfloat16 a device that has it, as an Ascend 910A has not. None leaves it to the optimizer's wrapper;
            mmengine's AmpOptimWrapper refuses CPUs.
    """

    def __init__(self, *args: Any, autocast: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.autocast = autocast
        self._prepare(autocast, get_device())
        self._in_epoch = False
        # Each image, and each tensor of its gts, is copied by itself: three waits for the GPU an image if it is waited
        # for. CUDA has read pageable memory when such a copy returns; of other devices that is not sure.
        if torch.cuda.is_available() and isinstance(self.data_preprocessor, BaseDataPreprocessor):
            self.data_preprocessor._non_blocking = True

    def start_epoch(self, moment: Moment) -> None:
        """Until `end_epoch`, the values to log are the means over all ranks; stock's are the rank's own."""
        self._in_epoch = True

    def end_epoch(self) -> None:
        """Ends what `start_epoch` began."""
        self._in_epoch = False

    def loss(self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample]) -> dict[str, Any]:
        """See the stock class."""
        device = batch_inputs.device.type
        with self._precision.context(device), in_few_launches(self, device):
            losses: dict[str, Any] = super().loss(batch_inputs, batch_data_samples)
        return losses

    def extract_feat(self, batch_inputs: Tensor) -> Any:
        """See the stock class; in the layout that is fastest."""
        return super().extract_feat(self._precision.laid_out(batch_inputs))

    def parse_losses(self, losses: dict[str, Any]) -> tuple[Tensor, "OrderedDict[str, Tensor]"]:
        """See the stock class."""
        if not self._in_epoch:
            stock: tuple[Tensor, OrderedDict[str, Tensor]] = super().parse_losses(losses)
            return stock
        total, logged = parse(losses)
        return total, OrderedDict([("loss", logged.pop("loss")), *logged.items()])
