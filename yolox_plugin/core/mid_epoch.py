"""Checkpoints in the middle of an epoch: when one is written, and what it holds beside what an epoch's does."""

import signal
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .positions import Begun, Order
from .ranks import Agreement, Parts, differences, gathered, rank_and_world_size
from .seeds import random_state

# Of what a rank wants, the larger counts: nothing, a checkpoint, or as its number says a signal's, one and an end.
_NOTHING, _CHECKPOINT = 0, 1


class Stopped(Exception):
    """The training has been told to end, and has written a checkpoint."""

    def __init__(self, number: int) -> None:
        """Of the signal with this number."""
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number  # as a shell tells of whoever was ended by it


class Timing:
    """When the next checkpoint in the middle of an epoch is due; the same on all ranks."""

    def __init__(self, iterations: int | None, minutes: float | None) -> None:
        """Every so many iterations, minutes, or never but after a signal.

        Raises:
            ValueError: for a number that is not larger than 0.
        """
        for name, value in (("iterations", iterations), ("minutes", minutes)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be larger than 0, got {value!r}")
        self._iterations, self._minutes = iterations, minutes
        self._agreement: Agreement | None = None
        self._written = time.monotonic()
        self._wanted = _NOTHING
        self._asked = False  # by rank 0, since the last one

    def start(self) -> None:
        """Begins to count."""
        self._agreement, self._written = Agreement(), time.monotonic()

    def due(self, iteration: int, can_be_written: bool) -> int:
        """0 if none is after this iteration, which the whole training counts from 1; else 1, or a signal's number if
        the training is to end with it.

        Args:
            can_be_written: what is due waits until it can be, for the end of an accumulation of gradients.
        """
        assert self._agreement is not None, "start comes first"
        by_clock = self._minutes is not None and time.monotonic() - self._written > 60 * self._minutes
        asks = by_clock and not self._asked and rank_and_world_size()[0] == 0
        self._asked = self._asked or asks
        wanted = max(heard(), _CHECKPOINT if asks else _NOTHING)
        self._wanted = max(self._wanted, self._agreement.exchange(wanted))
        if self._iterations is not None and iteration % self._iterations == 0:
            self._wanted = max(self._wanted, _CHECKPOINT)
        if not can_be_written:
            return _NOTHING
        due, self._wanted = self._wanted, _NOTHING
        if due:
            self._written, self._asked = time.monotonic(), False
        return due


_heard = 0


def heard() -> int:
    """The number of the signal that has asked this process to end, or 0."""
    return _heard


def hear(number: int) -> None:
    """Ends the training at the next iteration, as a signal of this number does."""
    global _heard
    _heard = number


def of_ranks(parts: Parts, order: Order | None = None, batches: int = 0) -> dict[str, Any]:
    """What all ranks together add to a checkpoint's meta; every rank must ask for it.

    Args:
        parts: tensors of the checkpoint in which the ranks may differ, as this one has them.
        order: that of the epoch, in whose middle the checkpoint is, after so many batches.
    """
    ranks: list[dict[str, Any]] = [{"parts": found} for found in differences(parts)]
    if order is None:
        return {"ranks": ranks} if any(any(rank["parts"].values()) for rank in ranks) else {}
    own = gathered((random_state(), order.taken(batches)))
    for rank, (random, taken) in zip(ranks, own, strict=True):
        rank |= {"random": random, "taken": taken}
    return {"ranks": ranks, "mid_epoch": batches}


def check(meta: dict[str, Any]) -> None:
    """Raises ValueError for a checkpoint's meta whose "ranks" and "mid_epoch" are not as `of_ranks` makes them."""
    ranks, batches = meta.get("ranks", []), meta.get("mid_epoch", 0)
    if not isinstance(ranks, list) or not all(isinstance(r, dict) and isinstance(r.get("parts"), dict) for r in ranks):
        raise ValueError("meta['ranks'] must be a list of what each rank has, as this plugin writes it")
    if type(batches) is not int or batches < 0:
        raise ValueError(f"meta['mid_epoch'] must be a whole number of 0 or more, got {batches!r:.60}")
    own = [rank.get("taken") for rank in ranks] if "mid_epoch" in meta else []
    if not all(isinstance(taken, Tensor) and taken.dim() == 1 and not taken.is_floating_point() for taken in own):
        raise ValueError("meta['ranks'] must have the samples taken, as this plugin writes them")


def take(content: dict[str, Any], tell: Callable[[str], None]) -> Begun | None:
    """Takes what a checkpoint holds for this rank, into its parts, out of its meta; by all ranks alike.

    Args:
        tell: is given a sentence about a checkpoint of another number of ranks.

    Returns:
        The epoch in whose middle it was written.

    Raises:
        ValueError: see `check`.
    """
    meta = content.get("meta") or {}
    check(meta)
    ranks, batches = meta.pop("ranks", []), meta.pop("mid_epoch", None)
    rank, world_size = rank_and_world_size()
    mine = ranks[rank] if len(ranks) == world_size else None
    if mine is not None:
        for part, tensors in mine["parts"].items():
            if part in content:
                content[part].update(tensors)
    elif ranks:
        tell(f"the checkpoint is of {len(ranks)} processes: these {world_size} all begin with what rank 0 had")
    if batches is None:
        return None
    taken: list[Tensor] = [other["taken"].cpu() for other in ranks]
    return Begun(batches, taken, mine and mine["random"])
