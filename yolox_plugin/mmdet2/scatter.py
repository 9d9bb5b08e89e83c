"""The way of a batch from the loader to an NPU."""

import functools
from typing import Any

import torch
from mmcv.device.scatter_gather import scatter_kwargs as stock_scatter_kwargs

from ..core.batch import send


@functools.wraps(stock_scatter_kwargs)
def scatter_kwargs(inputs: Any, kwargs: Any, target_devices: list[int], dim: int = 0) -> Any:
    """mmcv's function, which copies an image and each image's boxes and labels one by one, and waits for the device
    before each."""
    if target_devices == [-1]:
        return stock_scatter_kwargs(inputs, kwargs, target_devices, dim)
    return send(stock_scatter_kwargs(inputs, kwargs, [-1], dim), torch.device("npu"))
