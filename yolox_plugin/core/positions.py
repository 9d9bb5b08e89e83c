"""Where in an epoch a sample stands. What it draws depends on that alone, not on the worker that makes it."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler


class PlacedIndex(int):
    """An index of a data set that knows its position in the epoch, over all ranks. Data sets around others compute with
    indices: what RepeatDataset and ConcatDataset make of this one has the same position."""

    position: int

    def __new__(cls, index: int, position: int) -> "PlacedIndex":
        """Of the sample `index`, which comes as number `position`."""
        self = super().__new__(cls, index)
        self.position = position
        return self

    def __reduce__(self) -> Any:
        return PlacedIndex, (int(self), self.position)

    def __mod__(self, other: int) -> "PlacedIndex":
        return PlacedIndex(int(self) % other, self.position)

    def __sub__(self, other: int) -> "PlacedIndex":
        return PlacedIndex(int(self) - other, self.position)


class PlacedSampler(Sampler[Any]):
    """A sampler whose indices know their positions; for the rest it is the sampler itself."""

    def __init__(self, sampler: Any, rank: int, world_size: int) -> None:
        self._sampler, self._rank, self._world_size = sampler, rank, world_size

    def __iter__(self) -> Iterator[Any]:
        for number, index in enumerate(self._sampler):
            placed = isinstance(index, int)
            yield PlacedIndex(index, number * self._world_size + self._rank) if placed else index

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        if name == "_sampler":  # of a copy that has nothing yet
            raise AttributeError(name)
        return getattr(self._sampler, name)


@contextlib.contextmanager
def placed(loader: Any, rank: int, world_size: int) -> Iterator[None]:
    """Within it, the data set of a loader hears of each sample where it stands. A loader whose batch sampler has no
    `sampler` is left as it is."""
    batches: Any = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", None)
    if sampler is None:
        yield
        return
    batches.sampler = PlacedSampler(sampler, rank, world_size)
    try:
        yield
    finally:
        batches.sampler = sampler
