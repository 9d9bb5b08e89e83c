"""Several processes on CPUs. mmengine's functions ask CUDA for a device of each."""

import datetime
import functools
from typing import Any

import mmengine.evaluator.metric
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import collect_results as stock_collect_results
from mmengine.dist import init_dist as stock_init_dist
from mmengine.model import MMDistributedDataParallel as StockDistributedDataParallel
from torch import nn

from ..core.ranks import gather_in_turns


class MMDistributedDataParallel(StockDistributedDataParallel):
    """The stock class, for modules on CPUs as well."""

    def __init__(self, module: nn.Module, *args: Any, device_ids: list[Any] | None = None, **kwargs: Any) -> None:
        on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
        super().__init__(module, *args, device_ids=None if on_cpu else device_ids, **kwargs)


@functools.wraps(stock_init_dist)
def init_dist(launcher: str, backend: str = "nccl", init_backend: str = "torch", **kwargs: Any) -> None:
    """See mmengine. Where the only devices are CPUs, they talk through gloo, whatever `backend` says."""
    if launcher != "pytorch" or init_backend != "torch" or get_device() != "cpu":
        stock_init_dist(launcher, backend, init_backend, **kwargs)
        return
    if "timeout" in kwargs:
        kwargs["timeout"] = datetime.timedelta(seconds=kwargs["timeout"])
    dist.init_process_group("gloo", **kwargs)


@functools.wraps(stock_collect_results)
def collect_results(results: list[Any], size: int, device: str = "cpu", tmpdir: str | None = None) -> list[Any] | None:
    """See mmengine, which writes them to a folder that all machines have to share. One that is named is used."""
    if device != "cpu" or tmpdir is not None or not dist.is_initialized():
        found: list[Any] | None = stock_collect_results(results, size, device, tmpdir)
        return found
    return gather_in_turns(results, size)


def share_no_folder() -> None:
    """Lets mmengine's metrics collect what the processes of several machines have found."""
    mmengine.evaluator.metric.collect_results = collect_results
