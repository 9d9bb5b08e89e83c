"""Numbers from a device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def read_together(values: Sequence[Tensor]) -> list[float]:
    """The numbers in tensors of one element each, by one read for each device and dtype among them."""
    places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, value in enumerate(values):
        places.setdefault((value.device, value.dtype), []).append(i)
    numbers = [0.0] * len(values)
    for indices in places.values():
        read = torch.stack([values[i].detach().view(()) for i in indices]).tolist()
        for i, number in zip(indices, read, strict=True):
            numbers[i] = number
    return numbers
