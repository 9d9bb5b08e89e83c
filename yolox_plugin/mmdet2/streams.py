"""The CUDA streams through which mmcv copies batches to a GPU."""

import functools

import torch
from torch.nn.parallel._functions import _get_stream as stock_get_stream

_stream_of = functools.cache(torch.cuda.Stream)


@functools.wraps(stock_get_stream)
def _get_stream(device: int) -> torch.cuda.Stream:
    """A stream of the GPU with this number, always the same. mmcv 1.x asks torch's own function by number, which takes
    a torch.device since torch 2.1, so that no batch reaches a GPU."""
    return _stream_of(device)
