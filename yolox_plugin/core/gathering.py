"""What the processes of a group hand each other, through their network alone: machines may share no folder."""

import itertools
from typing import Any

import torch.distributed as dist

_beside: list[Any] = []  # the default group that `cpu_group` has made one beside, and that


def cpu_group() -> Any:
    """A group of all processes in which nothing has to pass through a device. All of them ask for it at one time."""
    if dist.get_backend() == "gloo":
        return dist.group.WORLD
    if not _beside or _beside[0] is not dist.group.WORLD:
        _beside[:] = [dist.group.WORLD, dist.new_group(backend="gloo")]
    return _beside[1]


def everyone(value: Any) -> list[Any]:
    """Each rank's value, on every rank."""
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
