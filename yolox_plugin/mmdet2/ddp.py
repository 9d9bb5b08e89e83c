"""One process or several on every device. MMDetection's `build_ddp` refuses CPUs, and its `build_dp` takes an
accelerator that is there, whatever it is told."""

import functools
from typing import Any

import mmdet.apis.train
import torch.distributed as dist
from mmcv.parallel import MMDataParallel, MMDistributedDataParallel
from mmdet.utils import build_ddp as stock_build_ddp
from mmdet.utils import build_dp as stock_build_dp
from torch import nn


class CPUDataParallel(MMDataParallel):
    """mmcv's class as it is where there is no accelerator: torch's, which it is made of, moves a network to any."""

    def __init__(self, module: nn.Module, dim: int = 0) -> None:
        nn.Module.__init__(self)
        self.module, self.dim = module, dim
        self.device_ids: list[int] = []


class CPUDistributedDataParallel(MMDistributedDataParallel):
    """mmcv's class for processes without a device of their own, where it hands the model DataContainers."""

    def train_step(self, *inputs: Any, **kwargs: Any) -> Any:
        """See the stock class."""
        [arguments], [options] = self.scatter(inputs, kwargs, [-1])
        return super().train_step(*arguments, **options)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """See the stock class."""
        [arguments], [options] = self.scatter(inputs, kwargs, [-1])
        return super().forward(*arguments, **options)


def build_dp(model: nn.Module, device: str = "cuda", dim: int = 0, *args: Any, **kwargs: Any) -> nn.Module:
    """MMDetection's function, for CPUs beside an accelerator as well."""
    if device == "cpu":
        return CPUDataParallel(model, dim)
    wrapped: nn.Module = stock_build_dp(model, device, dim, *args, **kwargs)
    return wrapped


def build_ddp(model: nn.Module, device: str = "cuda", *args: Any, **kwargs: Any) -> nn.Module:
    """MMDetection's function, for CPUs as well."""
    if device == "cpu":
        kwargs.pop("device_ids", None)
        return CPUDistributedDataParallel(model, **kwargs)
    wrapped: nn.Module = stock_build_ddp(model, device, *args, **kwargs)
    return wrapped


def prepare_parallel(gradient_as_bucket_view: bool = False) -> None:
    """Lets MMDetection train on CPUs, in several processes too, and under torch 2.1 and newer.

    Args:
        gradient_as_bucket_view: of DistributedDataParallel. Saves an NPU a launch for each gradient, which else is
            copied out of its bucket again. Not for optimizers that ask for a gradient's storage, as torch_npu's own.
    """
    # torch 2.1 dropped this attribute of DistributedDataParallel, which mmcv 1.7.2 reads in every evaluation.
    MMDistributedDataParallel._use_replicated_tensor_module = False
    # What train_detector calls.
    mmdet.apis.train.build_dp = build_dp
    mmdet.apis.train.build_ddp = functools.partial(build_ddp, gradient_as_bucket_view=gradient_as_bucket_view)


def gather_results(mine: list[Any], total: int) -> list[Any]:
    """Merges what each rank found for the samples rank, rank + world_size, ... of `total`; whole on rank 0 only."""
    # Through gloo, so that nothing has to pass through a device.
    group = dist.new_group(backend="gloo")
    everyone: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, everyone, dst=0, group=group)
    if everyone is None:
        return []
    # Samplers fill up the last round with samples from the beginning.
    return [result for one_round in zip(*everyone, strict=True) for result in one_round][:total]
