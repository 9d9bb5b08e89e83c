"""What the processes of one training tell each other, and in what their states differ."""

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Tensors of a checkpoint, by its parts, as "state_dict", and their names there.
Parts = dict[str, dict[str, Tensor]]


def rank_and_world_size() -> tuple[int, int]:
    """This process's number, and how many have joined."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(value: Any) -> list[Any]:
    """Every rank's value, by rank; on all of them."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return [value]
    found: list[Any] = [None] * world_size
    dist.all_gather_object(found, value)
    return found


def agreed(value: Any) -> Any:
    """Rank 0's, on every rank."""
    found = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    return found[0]


class Agreement:
    """Numbers of which each rank says one in every iteration, and hears the largest of the iteration before, so that
    none waits for another; on CPUs, so that none waits for its device."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if rank_and_world_size()[1] > 1 else None
        self._said: Tensor | None = None
        self._work: Any = None

    def exchange(self, number: int) -> int:
        """Says `number`; a single process hears itself at once."""
        if self._group is None:
            return number
        heard = self._heard()
        self._said = torch.tensor(number)
        self._work = dist.all_reduce(self._said, dist.ReduceOp.MAX, self._group, async_op=True)
        return heard

    def _heard(self) -> int:
        if self._said is None:
            return 0
        self._work.wait()
        return int(self._said)


def differences(parts: Parts) -> list[Parts]:
    """By rank, on all of them, what each has that differs from rank 0's: statistics of norms, for instance."""
    if rank_and_world_size()[1] == 1:
        return [{}]
    digests = {(part, name): _digest(value) for part, tensors in parts.items() for name, value in tensors.items()}
    first = agreed(digests)
    mine: Parts = {part: {} for part in parts}
    for part, name in digests:
        if digests[part, name] != first.get((part, name)):
            mine[part][name] = parts[part][name].detach().cpu()
    return gathered(mine)


def _digest(tensor: Tensor) -> bytes:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(content.data, digest_size=16).digest()
