"""Tensors that lie side by side in one piece of memory, so that one kernel serves all of them.

On an NPU a launch costs more than the arithmetic of most of a network's tensors, and a foreach operator takes 16 to 48
of them a launch (an Ascend 910A: one). They stay tensors of their own, for modules, checkpoints and users alike.
"""

import functools
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

ALIGNMENT = 32  # bytes; kernels of an NPU move blocks of that size


def _room(tensor: Tensor, dtype: torch.dtype | None = None) -> int:
    """Elements from the beginning of a tensor to that of the next, as if it was of `dtype`."""
    block = ALIGNMENT // (dtype or tensor.dtype).itemsize
    return -(-tensor.numel() // block) * block


@torch.no_grad()
def lay_together(tensors: Sequence[Tensor]) -> None:
    """Moves the contents of contiguous tensors to one piece of memory for each dtype and device, in their order; others
    stay where they are. Each is padded with zeros to `ALIGNMENT`."""

    def kind(tensor: Tensor) -> tuple[str, str]:
        return str(tensor.dtype), str(tensor.device)

    movable = sorted((tensor for tensor in tensors if tensor.is_contiguous()), key=kind)  # which keeps their order
    for _, group in groupby(movable, kind):
        together = list(group)
        whole = together[0].new_zeros(sum(map(_room, together)))
        begin = 0
        for tensor in together:
            piece = whole[begin : begin + tensor.numel()].view(tensor.shape)
            tensor.data = piece.copy_(tensor.data)
            begin += _room(tensor)


def _follows(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether each tensor lies in its list's memory right behind the one before it, all with the same room."""
    return all(
        a.is_contiguous()
        and b.is_contiguous()
        and a.dtype == b.dtype
        and a.numel() == before[0].numel()
        and _room(a) == _room(before[0])
        and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
        and a.storage_offset() + _room(a) == b.storage_offset()
        for a, b in zip(before, after, strict=True)
    )


def runs(*lists: Sequence[Tensor]) -> Iterator[list[tuple[Tensor, ...]]]:
    """Tuples of tensors, one of each list, in runs that lie side by side in every list alike; without empty ones."""
    filled = [tensors for tensors in zip(*lists, strict=True) if tensors[0].numel()]
    together = sorted(filled, key=lambda tensors: tensors[0].data_ptr())
    run: list[tuple[Tensor, ...]] = []
    for tensors in together:
        if run and not _follows(run[-1], tensors):
            yield run
            run = []
        run.append(tensors)
    if run:
        yield run


def spanned(tensors: Sequence[Tensor]) -> Tensor:
    """A run's tensors of one list as one, `[N]`, padding included."""
    first, last = tensors[0].detach(), tensors[-1]
    if len(tensors) == 1 and not first.is_contiguous():
        return first
    return first.as_strided((last.storage_offset() + last.numel() - first.storage_offset(),), (1,))


def merged(*lists: Sequence[Tensor]) -> list[list[Tensor]]:
    """The same elements of each list in as few tensors as possible."""
    wholes = [[spanned(tensors) for tensors in zip(*run, strict=True)] for run in runs(*lists)]
    return [list(tensors) for tensors in zip(*wholes, strict=True)] if wholes else [[] for _ in lists]


def joined(tensors: Sequence[Tensor], block_of: torch.dtype | None = None) -> Tensor:
    """Contiguous tensors one behind the other, with their padding, as `lay_together` would have them: `[N]`. Those that
    lie so already are copied in one piece, or not at all.

    Args:
        block_of: pad as for this dtype.
    """
    pieces: list[list[Tensor]] = []
    for tensor in tensors:
        if pieces and block_of is None and _follows([pieces[-1][-1]], [tensor]):
            pieces[-1].append(tensor)
        else:
            pieces.append([tensor])
    parts = []
    for piece in pieces:
        parts.append(spanned(piece).reshape(-1))
        room = _room(piece[-1], block_of) - piece[-1].numel()
        if room and piece is not pieces[-1]:
            parts.append(_zeros(room, piece[-1].dtype, piece[-1].device))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


@functools.lru_cache(maxsize=64)
def _zeros(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(count, dtype=dtype, device=device)


def gradients_together(parameters: Sequence[Tensor]) -> Tensor:
    """The gradients of parameters that lie side by side as one tensor `[N]`, of which they are parts from then on."""
    whole = joined([parameter.grad for parameter in parameters if parameter.grad is not None])
    begin = parameters[0].storage_offset()
    for parameter in parameters:
        place = parameter.storage_offset() - begin
        parameter.grad = whole[place : place + parameter.numel()].view(parameter.shape)
    return whole
