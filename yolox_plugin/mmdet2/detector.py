"""MMDetection's YOLOX with multi-scale training, logging and mixed precision that wait for no device."""

import contextlib
from collections import OrderedDict
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmcv.cnn.bricks import Swish
from mmcv.utils import IS_NPU_AVAILABLE
from mmdet.models.detectors.yolox import YOLOX as StockYOLOX
from torch import Tensor

from ..core.schedule import input_size
from ..protocol import Moment, TrainingPart

LOWER = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class FusedSwish(Swish):
    """mmcv's Swish is x * sigmoid(x) in two steps that each keep a tensor for backward; torch has it as one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class YOLOX(StockYOLOX, TrainingPart):
    """The arguments, weights and losses of the stock class, and one argument more.

    Image sizes and logged values are the stock class's, too, until the plugin's runner calls `start_epoch`.

    Args:
        autocast: "float32", "bfloat16" or "float16": the precision of the convolutions in training. Losses, assignment
            and weights stay float32. float16 needs an accelerator. None leaves it to MMDetection: float32, but float16
            on an NPU and where the config has `fp16`.
    """

    def __init__(self, *args: Any, autocast: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if autocast not in (None, "float32", *LOWER):
            raise ValueError(f"autocast must be None, 'float32', 'bfloat16' or 'float16', got {autocast!r}")
        self.autocast = autocast
        self._lower = LOWER.get(autocast or "")
        # The layout in which CPUs and GPUs have their fastest low-precision convolutions; an NPU has its own. Not for
        # float32: the CPU's batch norm sums less exactly in it.
        self._channels_last = self._lower is not None and not IS_NPU_AVAILABLE
        if self._channels_last:
            self.to(memory_format=torch.channels_last)
        for module in self.modules():
            if type(module) is Swish:  # it stays the same module, with whatever hooks it has
                module.__class__ = FusedSwish
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
        img, gt_bboxes = super()._preprocess(img, gt_bboxes)
        return img.contiguous(memory_format=torch.channels_last) if self._channels_last else img, gt_bboxes

    def forward_train(
        self,
        img: Tensor,
        img_metas: list[dict[str, Any]],
        gt_bboxes: list[Tensor],
        gt_labels: list[Tensor],
        gt_bboxes_ignore: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """See the stock class; `img` may be uint8, too."""
        device = img.device.type
        if self.autocast == "float16" and device == "cpu":
            raise ValueError("autocast='float16' needs an accelerator; on a CPU use autocast='bfloat16'")
        if img.dtype == torch.uint8:
            img = img.float()
        # Without the option, whoever called may have chosen a precision: mmcv's fp16 does.
        with torch.autocast(device, self._lower) if self._lower else contextlib.nullcontext():
            losses: dict[str, Tensor] = super().forward_train(img, img_metas, gt_bboxes, gt_labels, gt_bboxes_ignore)
        return losses

    def _parse_losses(self, losses: dict[str, Any]) -> tuple[Tensor, "OrderedDict[str, Any]"]:
        """The loss to derive, and what to log: numbers, or tensors for the plugin's runner.

        MMDetection reduces each over the ranks and reads each from the device, in every iteration.
        """
        if self._seed is None:
            parsed: tuple[Tensor, OrderedDict[str, Any]] = super()._parse_losses(losses)
            return parsed
        values: OrderedDict[str, Tensor] = OrderedDict()
        for name, value in losses.items():
            if not isinstance(value, (Tensor, list)):
                raise TypeError(f"{name} is not a tensor or list of tensors")
            values[name] = sum(v.mean() for v in value) if isinstance(value, list) else value.mean()
        total = torch.stack([value for name, value in values.items() if "loss" in name]).sum()
        logged = torch.stack([*values.values(), total]).detach()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(logged.div_(dist.get_world_size()))
        return total, OrderedDict(zip([*values, "loss"], logged.unbind(), strict=True))
