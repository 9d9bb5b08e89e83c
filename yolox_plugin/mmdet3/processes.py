"""Several processes on CPUs. mmengine's functions ask CUDA for a device of each."""

import datetime
import functools
from typing import Any

import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import init_dist as stock_init_dist
from mmengine.model import MMDistributedDataParallel as StockDistributedDataParallel
from torch import nn


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
