"""MMDetection 3's random image sizes without a message between ranks."""

import torch
from mmdet.models.data_preprocessors import BatchSyncRandomResize as StockBatchSyncRandomResize
from mmdet.structures import DetDataSample
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from torch import Tensor

from ..core.schedule import input_size
from ..core.targets import constant
from ..protocol import Moment, TrainingPart


class BatchSyncRandomResize(StockBatchSyncRandomResize, TrainingPart):
    """The stock class. While the plugin's loop trains, the size is a function of the seed and the iteration, so that
    ranks agree without asking rank 0 and a resumed run goes on with the sizes that the first would have had.
    """

    _seed: int | None = None

    def start_epoch(self, moment: Moment) -> None:
        """Until `end_epoch`, sizes depend on this seed."""
        self._seed = moment.seed

    def end_epoch(self) -> None:
        """Ends what `start_epoch` began."""
        self._seed = None

    def forward(self, inputs: Tensor, data_samples: list[DetDataSample]) -> tuple[Tensor, list[DetDataSample]]:
        """See the stock class. The size keeps the ratio of this batch, where stock keeps that of the one before the
        size changed."""
        if self._seed is not None:
            height, width = inputs.shape[-2:]
            iteration = MessageHub.get_current_instance().get_info("iter")
            self._input_size = self.size_at(iteration, (height, width))
        if inputs.device.type == "npu" and _are_usual(data_samples):
            return self._resize_in_few_launches(inputs, data_samples)
        resized: tuple[Tensor, list[DetDataSample]] = super().forward(inputs, data_samples)
        return resized

    def _resize_in_few_launches(
        self, inputs: Tensor, data_samples: list[DetDataSample]
    ) -> tuple[Tensor, list[DetDataSample]]:
        """The stock class's results; that takes four launches for the boxes of each image."""
        without_gts = [
            DetDataSample(metainfo=sample.metainfo, gt_instances=InstanceData(bboxes=torch.empty(0, 4)))
            for sample in data_samples
        ]
        resized: Tensor = super().forward(inputs, without_gts)[0]
        height, width = (new / old for new, old in zip(resized.shape[-2:], inputs.shape[-2:], strict=True))
        if (height, width) != (1, 1):
            boxes = [part.bboxes for part in _gts(data_samples)]
            factors = constant((width, height, width, height), boxes[0].dtype, inputs.device)
            scaled = torch.split(torch.cat(boxes) * factors, [len(some) for some in boxes])
            for part, own in zip(_gts(data_samples), scaled, strict=True):
                part.bboxes = own
        for sample, other in zip(data_samples, without_gts, strict=True):
            sample.set_metainfo(other.metainfo)
        return resized, data_samples

    def size_at(self, iteration: int, default: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the images in an iteration of the whole training, pixels.

        Distribution and rhythm are the stock class's: the size that the images have, at first, then a multiple of
        `size_divisor` for each `interval` iterations.
        """
        interval = iteration // self._interval
        return input_size(self._seed or 0, interval, default, self._random_size_range, self._size_divisor)

    def _get_random_size(self, aspect_ratio: float, device: torch.device) -> tuple[int, int]:
        """The size after this iteration; `forward` finds its own if it has a seed."""
        size: tuple[int, int] = (
            super()._get_random_size(aspect_ratio, device) if self._seed is None else self._input_size
        )
        return size


def _are_usual(data_samples: list[DetDataSample]) -> bool:
    """Whether each image has gts, and all boxes are tensors of one floating dtype."""
    boxes = [part.get("bboxes") for part in _gts(data_samples)]
    return (
        bool(boxes)
        and all("gt_instances" in sample for sample in data_samples)
        and all(
            isinstance(some, Tensor) and some.is_floating_point() and some.dtype == boxes[0].dtype for some in boxes
        )
    )


def _gts(data_samples: list[DetDataSample]) -> list[InstanceData]:
    """All whose boxes are resized with the images."""
    kinds = ("gt_instances", "ignored_instances")
    return [sample.get(kind) for sample in data_samples for kind in kinds if kind in sample]
