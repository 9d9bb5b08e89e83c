"""One process or several on every device. MMDetection's `build_ddp` refuses CPUs, and its `build_dp` takes an
accelerator that is there, whatever it is told."""

import functools
from typing import Any

import mmdet.apis.test
import mmdet.apis.train
from mmcv.parallel import MMDataParallel, MMDistributedDataParallel
from mmdet.apis.test import collect_results_cpu as stock_collect_results_cpu
from mmdet.utils import build_ddp as stock_build_ddp
from mmdet.utils import build_dp as stock_build_dp
from torch import nn

from ..core.ranks import gather_in_turns


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
    """Lets MMDetection train on CPUs, in several processes and on several machines too, and under torch 2.1 and newer.

    Args:
        gradient_as_bucket_view: of DistributedDataParallel. Saves an NPU a launch for each gradient, which else is
            copied out of its bucket again. Not for optimizers that ask for a gradient's storage, as torch_npu's own.
    """
    # torch 2.1 dropped this attribute of DistributedDataParallel, which mmcv 1.7.2 reads in every evaluation.
    MMDistributedDataParallel._use_replicated_tensor_module = False
    # What train_detector calls.
    mmdet.apis.train.build_dp = build_dp
    mmdet.apis.train.build_ddp = functools.partial(build_ddp, gradient_as_bucket_view=gradient_as_bucket_view)
    # What `multi_gpu_test`, its evaluation, calls.
    mmdet.apis.test.collect_results_cpu = collect_results_cpu


@functools.wraps(stock_collect_results_cpu)
def collect_results_cpu(result_part: list[Any], size: int, tmpdir: str | None = None) -> list[Any] | None:
    """See MMDetection, which writes them to a folder that all machines have to share."""
    return gather_in_turns(result_part, size)
