"""What the processes of one training tell each other, through their network alone, as machines may share no folder; and
in what their states differ."""

import datetime
import hashlib
import itertools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Tensors of a checkpoint, by its parts, as "state_dict", and their names there.
Parts = dict[str, dict[str, Tensor]]

timeout: datetime.timedelta | None = None  # of groups that are made here; torch's own if it is None


def limits() -> dict[str, Any]:
    """Options of a new group: torch 2.1 takes no None for its own time-out."""
    return {} if timeout is None else {"timeout": timeout}


_beside: list[Any] = []  # the default group that `cpu_group` has made one beside, and that


def rank_and_world_size() -> tuple[int, int]:
    """This process's number, and how many have joined."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def cpu_group() -> Any:
    """A group of all processes in which nothing has to pass through a device. All of them ask for it at one time."""
    if dist.get_backend() == "gloo":
        return dist.group.WORLD
    if not _beside or _beside[0] is not dist.group.WORLD:
        _beside[:] = [dist.group.WORLD, dist.new_group(backend="gloo", **limits())]
    return _beside[1]


def gathered(value: Any) -> list[Any]:
    """Every rank's value, by rank; on all of them."""
    if rank_and_world_size()[1] == 1:
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value, group=cpu_group())
    return found


def gather_in_turns(mine: list[Any], total: int) -> list[Any] | None:
    """What each rank has for the samples rank, rank + world size, ... of `total`, in their order, on rank 0; None on
    the others."""
    all_parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, all_parts, dst=0, group=cpu_group())
    if all_parts is None:
        return None
    # Samplers may fill up the last round with samples from the beginning.
    rounds = itertools.zip_longest(*all_parts)
    return [result for one_round in rounds for result in one_round if result is not None][:total]


def agreed(value: Any) -> Any:
    """Rank 0's, on every rank."""
    found = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0, group=cpu_group())
    return found[0]


class Agreement:
    """Numbers of which each rank says one in every iteration, and hears the largest of the iteration before, so that
    none waits for another; on CPUs, so that none waits for its device."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", **limits()) if rank_and_world_size()[1] > 1 else None
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
