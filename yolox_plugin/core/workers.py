"""What the main process tells data-loading workers, which live for many epochs."""

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .seeds import seed_everything, seed_sample, state_kept

MOST_STEPS = 1024  # of a pipeline, for which there is room


class Announcements:
    """The epoch and the steps to leave out, in memory that workers share with the process that started them."""

    def __init__(self) -> None:
        self._left_out = _shared(torch.zeros(MOST_STEPS, dtype=torch.bool))
        self._moment = _shared(torch.full((3,), -1))
        self._unreadable = _shared(torch.zeros(1, dtype=torch.int64))
        self._followed: list[int] = []

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy: what its workers hear comes through memory of its own."""
        self.__dict__.update(state)
        _shared(self._left_out)
        _shared(self._moment)
        _shared(self._unreadable)

    def start_epoch(self, seed: int, epoch: int, rank: int) -> None:
        """From now on each sample draws from (seed, epoch, its position), and one that does not know its position from
        what its worker draws from (seed, epoch, rank, worker)."""
        self._moment.copy_(torch.tensor([seed, epoch, rank]))

    def end_epoch(self) -> None:
        """Workers that start from now on draw as the host has seeded them."""
        self._moment.fill_(-1)

    def count_unreadable(self) -> None:
        """One more sample has been left out, as an image could not be read."""
        self._unreadable += 1

    @property
    def unreadable(self) -> int:
        """How many have been, by all workers; one that two count at the same time may be missing."""
        return int(self._unreadable)

    def leave_out(self, steps: Sequence[bool]) -> None:
        """Says of each step of the pipeline whether it is left out.

        Raises:
            ValueError: for more steps than there is room for.
        """
        if len(steps) > MOST_STEPS:
            raise ValueError(f"pipeline must have at most {MOST_STEPS} steps, got {len(steps)}")
        self._left_out[: len(steps)] = torch.tensor(steps, dtype=torch.bool)

    def left_out(self) -> list[bool]:
        """For a worker: of each step, and of as many more as there is room for, whether it is left out."""
        found: list[bool] = self._left_out.tolist()
        return found

    def follow(self, worker: int, position: int | None = None) -> None:
        """In a worker, before each sample: seeds it for the sample at this position, or if another epoch has begun."""
        seed, epoch, rank = moment = self._moment.tolist()
        if not self._followed:
            # A collection would write to every object that came with the fork, and so copy all of them.
            gc.freeze()
            _keep_quiet_when_nobody_reads()
        if epoch >= 0 and position is not None:
            seed_sample(seed, epoch, position)
        elif epoch >= 0 and moment != self._followed:
            seed_everything(seed, epoch, rank, worker=worker + 1)
        self._followed = moment

    @contextlib.contextmanager
    def followed_here(self, position: int | None) -> Iterator[None]:
        """In the main process, around each sample: the same draws as in a worker, and none of the others'."""
        seed, epoch, _ = self._moment.tolist()
        if epoch < 0 or position is None:  # the host has seeded this process
            yield
            return
        with state_kept():
            seed_sample(seed, epoch, position)
            yield


def _keep_quiet_when_nobody_reads() -> None:
    """In a worker. Tensors are handed over by a thread of multiprocessing's, which would print a traceback when the
    other process goes in the middle, as after Ctrl-C. An error of the worker's own does not come this way: it is sent.
    """
    report = sys.excepthook

    def report_others(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, ConnectionError | EOFError):
            report(kind, error, trace)

    sys.excepthook = report_others


def _shared(tensor: Tensor) -> Tensor:
    shared: Tensor = tensor.share_memory_()  # type: ignore[no-untyped-call]
    return shared
