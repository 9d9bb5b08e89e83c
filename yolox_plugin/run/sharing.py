"""The checkpoint that several machines go on from: the newest that one of them has, which the others are sent."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from ..core.checkpoint import MID_EPOCH, newest_checkpoint, read_newest, write_whole
from ..core.ranks import gathered, limits
from . import machines
from .machines import Machine
from .messages import InputError, warn

CHUNK = 2**24  # bytes sent at a time


class Offer(NamedTuple):
    """A machine's newest checkpoint."""

    epoch: int
    iteration: int
    rank: int  # of the process that reads it
    machine: Machine
    path: Path
    size: int
    linked: bool  # whether latest.pth points to it


def newest_of_all(work_dir: Path) -> Path | None:
    """The newest checkpoint of all machines, as it is on this one, in `work_dir`.

    Raises:
        InputError: on all of them, if one cannot read its own, or not write what it is sent.
    """
    offers = gathered(machines.together(lambda: offer_of(work_dir) if machines.leads() else None))
    found: list[Offer] = [offer for offer in offers if offer is not None]
    if not found:
        return None
    best = max(found, key=lambda offer: (offer.epoch, offer.iteration, -offer.rank))
    path = best.path if best.rank == dist.get_rank() else work_dir / best.path.name
    digests = gathered(digest_of(path, best.size) if machines.leads() else None)
    lacking = [rank for rank, digest in enumerate(digests) if digest not in (None, digests[best.rank])]
    if lacking:
        group = dist.new_group([best.rank, *lacking], backend="gloo", **limits())
        machines.together(lambda: hand_over(best, path, lacking, group))
    leader = dist.get_rank() - int(os.environ["LOCAL_RANK"])
    own: Path = gathered(path)[leader]
    return own


def offer_of(work_dir: Path) -> Offer | None:
    """What this machine has. Raises InputError if nothing of that can be read."""
    newest = newest_checkpoint(work_dir)
    if newest is None:
        return None
    try:
        path, content = read_newest(newest.resolve(), warn)
    except ValueError as error:
        raise InputError(str(error)) from error
    meta = content.get("meta") or {}
    return Offer(
        meta.get("epoch", 0), meta.get("iter", 0), dist.get_rank(), machines.here(), path, path.stat().st_size,
        linked=newest.is_symlink(),
    )  # fmt: skip


def digest_of(path: Path, size: int) -> str:
    """Of what is there; of something else, or nothing, an empty one."""
    return machines.hash_of(path) if path.is_file() and path.stat().st_size == size else ""


def hand_over(offer: Offer, path: Path, lacking: list[int], group: Any) -> None:
    """Sends the file, on the process that has it, or writes it to `path`, on one of those that lack it."""
    if dist.get_rank() == offer.rank:
        for _ in chunks(offer, path, group):
            pass
    elif dist.get_rank() in lacking:
        arriving = chunks(offer, None, group)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name != MID_EPOCH and path.exists():  # of this training or of another
                kept = path.with_name(f"{path.name}.{time.strftime('%Y%m%d_%H%M%S')}")
                path.replace(kept)
                warn(f"{path} was another one than {offer.machine} has: it is {kept.name} now")
            write_whole(path.parent, path.name, lambda part: write_chunks(part, arriving), link=offer.linked)
        except OSError as error:
            raise InputError(f"--work-dir {path.parent}: {error}") from error
        finally:
            for _ in arriving:  # it is sent to the end in any case
                pass
        print(f"{path}, {offer.size / 1e6:.1f} MB, has come from {offer.machine}", flush=True)


def write_chunks(part: Path, arriving: Iterator[Any]) -> None:
    """Writes them one after another to a file."""
    with part.open("wb") as file:
        for chunk in arriving:
            file.write(chunk)


def chunks(offer: Offer, path: Path | None, group: Any) -> Iterator[Any]:
    """The bytes of a file, on every process of the group; one of them has it at `path`."""
    with path.open("rb") if path else contextlib.nullcontext() as file:
        for begin in range(0, offer.size, CHUNK):
            chunk: Any = np.empty(min(CHUNK, offer.size - begin), np.uint8)
            if file is not None:
                file.readinto(chunk)
            dist.broadcast(torch.from_numpy(chunk), src=offer.rank, group=group)
            yield chunk
