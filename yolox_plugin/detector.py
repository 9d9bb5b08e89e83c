"""MMDetection's YOLOX with multi-scale training, logging and mixed precision that wait for no device."""

import contextlib
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmcv.cnn.bricks import Swish
from mmcv.utils import IS_NPU_AVAILABLE
from mmdet.models.detectors.yolox import YOLOX as StockYOLOX
from torch import Tensor, nn

LOWER = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def _fuse_swish(network: nn.Module) -> None:
    """mmcv's Swish is x * sigmoid(x) in two steps that each keep a tensor for backward; torch has it as one."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is Swish:
                setattr(module, name, nn.SiLU())


class YOLOX(StockYOLOX):
    """The arguments, weights and losses of the stock class, and one argument more.

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
        _fuse_swish(self)
        self._seed = 0

    def start_epoch(self, seed: int, iteration: int) -> None:
        """Tells which random sizes to take, and from which iteration of the whole training on."""
        self._seed, self._progress_in_iter = seed, iteration

    def input_size_at(self, iteration: int) -> tuple[int, int]:
        """(height, width) of the images in an iteration, pixels: a function of it and of the seed alone.

        Every rank finds the same size without asking rank 0. Distribution and rhythm are the stock class's: the default
        size at first, then a multiple of `size_multiplier` for each `random_size_interval` iterations.
        """
        interval = iteration // self._random_size_interval
        height, width = self._default_input_size
        if interval == 0:
            return height, width
        low, high = self._random_size_range
        size = int(np.random.default_rng((self._seed, interval)).integers(low, high + 1))
        return self._size_multiplier * size, self._size_multiplier * int(width / height * size)

    # The runner tells the data set, which then leaves this to the device.
    converts_uint8 = True

    def forward_train(
        self,
        img: Tensor,
        img_metas: list[dict[str, Any]],
        gt_bboxes: list[Tensor],
        gt_labels: list[Tensor],
        gt_bboxes_ignore: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """See the stock class."""
        self._input_size = self.input_size_at(self._progress_in_iter)
        self._progress_in_iter += 1
        img, gt_bboxes = self._preprocess(img.float(), gt_bboxes)
        device = img.device.type
        if self.autocast == "float16" and device == "cpu":
            raise ValueError("autocast='float16' needs an accelerator; on a CPU use autocast='bfloat16'")
        if self._channels_last:
            img = img.contiguous(memory_format=torch.channels_last)
        # Without the option, whoever called may have chosen a precision: mmcv's fp16 does.
        with torch.autocast(device, self._lower) if self._lower else contextlib.nullcontext():
            # Not the stock class's own, which draws the next size.
            losses: dict[str, Tensor] = super(StockYOLOX, self).forward_train(
                img, img_metas, gt_bboxes, gt_labels, gt_bboxes_ignore
            )
        return losses

    def _parse_losses(self, losses: dict[str, Any]) -> tuple[Tensor, "OrderedDict[str, Tensor]"]:
        """The loss to derive, and what to log: tensors, that the log buffer reads when it is their time.

        MMDetection reduces each over the ranks and reads each from the device, in every iteration.
        """
        values: OrderedDict[str, Tensor] = OrderedDict()
        for name, value in losses.items():
            values[name] = sum(v.mean() for v in value) if isinstance(value, list) else value.mean()
        total = torch.stack([value for name, value in values.items() if "loss" in name]).sum()
        logged = torch.stack([*values.values(), total]).detach()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(logged.div_(dist.get_world_size()))
        return total, OrderedDict(zip([*values, "loss"], logged.unbind(), strict=True))
