"""MMDetection's YOLOX with multi-scale training, logging and mixed precision that wait for no device."""

from collections import OrderedDict
from typing import Any

import torch
from mmdet.models.detectors.yolox import YOLOX as StockYOLOX
from mmdet.utils import get_device
from torch import Tensor

from ..core.forward import in_few_launches
from ..core.losses import parse
from ..core.schedule import input_size
from ..core.targets import constant
from ..detector import PreparedDetector
from ..protocol import Moment, TrainingPart


class YOLOX(PreparedDetector, StockYOLOX, TrainingPart):
    """The arguments, weights and losses of the stock class, and one argument more.

    Image sizes and logged values are the stock class's, too, until the plugin's runner calls `start_epoch`.

    Args:
        autocast: "float32", "bfloat16" or "float16": the precision of the convolutions in training. Losses, assignment
            and weights stay float32. float16 needs an accelerator, bfloat16 a device that has it, as an Ascend 910A has
            not. None leaves it to MMDetection: float32, but float16 on an NPU and where the config has `fp16`.
    """

    def __init__(self, *args: Any, autocast: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.autocast = autocast
        self._prepare(autocast, get_device())
        self._seed: int | None = None

    def start_epoch(self, moment: Moment) -> None:
        """Until `end_epoch`, image sizes are a function of the moment's seed and the iteration of the whole training,
        and the values to log are tensors on the device, which `DeferredLogBuffer` reads."""
        self._seed, self._progress_in_iter = moment.seed, moment.iteration
        if type(self)._random_resize is YOLOX._random_resize:
            self._input_size = self.input_size_at(moment.iteration)

    def end_epoch(self) -> None:
        """Ends what `start_epoch` began."""
        self._seed = None

    def input_size_at(self, iteration: int) -> tuple[int, int]:
        """(height, width) of the images in an iteration, pixels: a function of it and of `start_epoch`'s seed alone.

        Every rank finds the same size without asking rank 0. Distribution and rhythm are the stock class's: the default
        size at first, then a multiple of `size_multiplier` for each `random_size_interval` iterations.
        """
        interval = iteration // self._random_size_interval
        return input_size(
            self._seed or 0, interval, self._default_input_size, self._random_size_range, self._size_multiplier
        )

    def _random_resize(self, device: torch.device) -> tuple[int, int]:
        """The size of the next iterations; the stock class asks for it in the last one of an interval."""
        size: tuple[int, int] = (
            super()._random_resize(device) if self._seed is None else self.input_size_at(self._progress_in_iter + 1)
        )
        return size

    def _preprocess(self, img: Tensor, gt_bboxes: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        scales = tuple(own / default for own, default in zip(self._input_size, self._default_input_size, strict=True))
        if img.device.type == "npu" and scales != (1, 1):  # two launches instead of four for each image
            lengths = [len(boxes) for boxes in gt_bboxes]
            factors = constant((*scales[::-1], *scales[::-1]), gt_bboxes[0].dtype, img.device)
            gt_bboxes = list(torch.split(torch.cat(gt_bboxes) * factors, lengths))
            img, _ = super()._preprocess(img, [])
        else:
            img, gt_bboxes = super()._preprocess(img, gt_bboxes)
        return img, gt_bboxes

    def forward_train(
        self,
        img: Tensor,
        img_metas: list[dict[str, Any]],
        gt_bboxes: list[Tensor],
        gt_labels: list[Tensor],
        gt_bboxes_ignore: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """See the stock class; `img` may be uint8, too."""
        if img.dtype == torch.uint8:
            img = img.float()
        with self._precision.context(img.device.type), in_few_launches(self, img.device.type):
            losses: dict[str, Tensor] = super().forward_train(img, img_metas, gt_bboxes, gt_labels, gt_bboxes_ignore)
        return losses

    def extract_feat(self, img: Tensor) -> Any:
        """See the stock class; in the layout that is fastest."""
        return super().extract_feat(self._precision.laid_out(img))

    def _parse_losses(self, losses: dict[str, Any]) -> tuple[Tensor, "OrderedDict[str, Any]"]:
        """The loss to derive, and what to log: numbers, or tensors for the plugin's runner.

        MMDetection reduces each over the ranks and reads each from the device, in every iteration.
        """
        if self._seed is None:
            parsed: tuple[Tensor, OrderedDict[str, Any]] = super()._parse_losses(losses)
            return parsed
        total, logged = parse(losses)
        return total, OrderedDict(logged)
