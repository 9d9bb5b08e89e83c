"""A batch on its way to the device: few copies, none of which anybody waits for."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .targets import carry

# Bytes from which a tensor travels alone: for smaller ones, gts and the like, a copy costs more than their bytes.
LARGE = 1 << 20
ALIGNMENT = 64  # bytes, of each tensor in a parcel


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _tensors(value)


def _replaced(batch: Any, arrived: dict[int, Tensor]) -> Any:
    if isinstance(batch, Tensor):
        return arrived[id(batch)]
    if isinstance(batch, dict):
        return type(batch)((key, _replaced(value, arrived)) for key, value in batch.items())
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_replaced(value, arrived) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(_replaced(value, arrived) for value in batch)
    return batch


def send(batch: Any, device: torch.device) -> Any:
    """The same nested dictionaries, lists and tuples with their tensors on the device; what is no tensor stays.

    Large tensors are copied one by one, all small ones in one parcel, of which they are views then. Copies are from
    pinned memory and nobody waits: the device's kernels come after them in its stream.
    """
    tensors = {id(tensor): tensor for tensor in _tensors(batch)}
    arrived: dict[int, Tensor] = {}
    small: list[Tensor] = []
    for key, tensor in tensors.items():
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            arrived[key] = tensor.to(device, non_blocking=True)
        elif tensor.numel() * tensor.element_size() >= LARGE:
            arrived[key] = carry(tensor.contiguous(), device)
        else:
            small.append(tensor)
    parcel: list[tuple[Tensor, int, int]] = []
    end = 0
    for tensor in small:
        size = tensor.numel() * tensor.element_size()
        parcel.append((tensor, end, size))
        end += -(-size // ALIGNMENT) * ALIGNMENT
    packed = torch.empty(end, dtype=torch.uint8, pin_memory=bool(end))
    for tensor, begin, size in parcel:
        packed[begin : begin + size].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    there = carry(packed, device)
    for tensor, begin, size in parcel:
        arrived[id(tensor)] = there[begin : begin + size].view(tensor.dtype).view(tensor.shape)
    return _replaced(batch, arrived)
