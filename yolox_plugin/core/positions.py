"""Where in an epoch a sample stands. What it draws depends on that alone, not on the worker that makes it; and an epoch
that a checkpoint was written in goes on behind the samples that have been taken."""

import contextlib
import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Sampler

from .ranks import gathered
from .seeds import restore_random_state, state_kept


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


class Begun(NamedTuple):
    """What a checkpoint tells of an epoch in whose middle it was written."""

    batches: int  # that each rank has taken
    taken: list[Tensor]  # by rank: the indices of their samples; empty where the loader has no torch.BatchSampler
    random: dict[str, Any] | None  # of this rank's main process; None for another number of ranks


class Order:
    """A rank's way through one epoch: `first` is the number of its first batch, not 0 if the epoch was begun before."""

    def __init__(self, begun: Begun | None) -> None:
        self.first = 0 if begun is None else begun.batches
        self.kept = True  # whether this is the rest of the order that was begun
        self._begun = begun
        self._sampler: PlacedSampler | None = None
        self._batch_size = 0  # of that sampler's
        self._goes_on = False  # behind what has been taken, without making it again

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Those that are still to be taken."""
        if getattr(loader, "_iterator", None) is not None and getattr(loader, "generator", None) is None:
            # A new iterator draws this, one that lives on does not, and a resumed training has new ones.
            torch.empty((), dtype=torch.int64).random_()
        if self._sampler is not None:
            self._sampler.begin()
        batches = iter(loader)
        if self._begun is not None and not self._goes_on:  # nobody but the loader knows what it has made
            for _ in range(self.first):
                next(batches, None)
            self._restore()
        return batches

    def taken(self, batches: int) -> Tensor:
        """The indices of the samples in this rank's batches before number `batches`, [N] int64; none where the order
        is not a torch.BatchSampler's."""
        if self._sampler is None:
            return torch.empty(0, dtype=torch.int64)
        return self._sampler.taken((batches - self.first) * self._batch_size)

    def _restore(self) -> None:
        if self._begun is not None and self._begun.random is not None:
            restore_random_state(self._begun.random)

    def place(self, batches: BatchSampler, rank: int, world_size: int) -> "PlacedSampler":
        """The sampler for these batches in this epoch."""
        begun, place = self._begun, PlacedSampler(batches.sampler, rank, world_size)
        self._goes_on = begun is not None and any(map(len, begun.taken))  # not if samples have no numbers
        if begun is not None and self._goes_on:
            with state_kept():
                torch.empty((), dtype=torch.int64).random_()  # as a loader does before it asks for the order
                whole = list(batches.sampler)
            mine = begun.taken[rank].tolist() if len(begun.taken) == world_size else []
            full = len(mine) % batches.batch_size == 0 or len(mine) == len(whole)
            self.kept = all(gathered(len(begun.taken) == world_size and full and mine == whole[: len(mine)]))
            if self.kept:
                rest, seen = whole[len(mine) :], mine
            else:
                rest, seen = dealt(gathered(whole), begun.taken, rank, world_size, batches)
            left = len(rest) // batches.batch_size if batches.drop_last else -(-len(rest) // batches.batch_size)
            self.first = max(len(batches) - left, 0)
            place.go_on(rest, seen if self.kept or rank == 0 else [], sum(map(len, begun.taken)), self._restore)
        self._sampler, self._batch_size = place, batches.batch_size
        return place


def dealt(
    orders: list[list[int]], taken: list[Tensor], rank: int, world_size: int, batches: BatchSampler
) -> tuple[list[int], list[int]]:
    """For an epoch that was begun by another number of ranks, or in other batches: the samples that this rank takes of
    those that nobody has taken, and those that somebody has. None comes twice, but for as many as make the lists of all
    ranks equally long; or as often as it still has to, where the sampler means it to come several times.

    Args:
        orders: by rank, what each would take of a whole epoch.
        taken: by rank, what has been.
    """
    seen = [index for of_rank in taken for index in of_rank.tolist()]
    wanted = [index for row in itertools.zip_longest(*orders) for index in row if index is not None]
    # As many as these fill up the last batches of ranks, in MMDetection's samplers those of two kinds of images.
    if len(wanted) - len(set(wanted)) < 2 * world_size * batches.batch_size:
        wanted, gone = list(dict.fromkeys(wanted)), Counter(dict.fromkeys(seen, 1))
    else:
        gone = Counter(seen)
    left = []
    for index in wanted:
        if gone[index] > 0:
            gone[index] -= 1
        else:
            left.append(index)
    if not left:
        return [], seen
    multiple = batches.batch_size if batches.drop_last else 1  # so that none is left out
    length = -(-len(left) // (world_size * multiple)) * multiple
    filled = list(itertools.islice(itertools.cycle(left), length * world_size))
    return filled[rank::world_size], seen


class PlacedSampler(Sampler[Any]):
    """A sampler whose indices know their positions; for the rest it is the sampler itself.

    The order of its first iterator after `begin` is the epoch's. Others are of hooks that draw a batch of their own.
    """

    def __init__(self, sampler: Any, rank: int, world_size: int) -> None:
        self._sampler, self._rank, self._world_size = sampler, rank, world_size
        self._taken, self._before, self._offset = array("q"), 0, 0
        self._rest: list[int] | None = None
        self._begins = False

    def begin(self) -> None:
        """The epoch's iterator comes next."""
        self._begins = True

    def go_on(self, rest: list[int], taken: list[int], offset: int, restore: Any) -> None:
        """Gives `rest` instead of the sampler's own order, from position `offset` on, behind what this rank has `taken`
        before.

        Args:
            restore: is called when the first is asked for.
        """
        self._rest, self._taken, self._before, self._offset = rest, array("q", taken), len(taken), offset
        self._restore = restore

    def taken(self, count: int) -> Tensor:
        """What was taken before, and the first `count` of what was given since."""
        return torch.tensor(self._taken[: self._before + count], dtype=torch.int64)

    def __iter__(self) -> Iterator[Any]:
        if not self._begins:
            return self._placed(self._sampler, 0)
        self._begins = False
        return self._epoch()

    def _epoch(self) -> Iterator[Any]:
        if self._rest is not None:
            self._restore()
        for index in self._placed(self._sampler if self._rest is None else self._rest, self._offset):
            if isinstance(index, PlacedIndex):
                self._taken.append(index)
            yield index

    def _placed(self, order: Iterable[Any], offset: int) -> Iterator[Any]:
        for number, index in enumerate(order):
            placed = isinstance(index, (int, np.integer))
            yield PlacedIndex(index, offset + number * self._world_size + self._rank) if placed else index

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        if name == "_sampler":  # of a copy that has nothing yet
            raise AttributeError(name)
        return getattr(self._sampler, name)


@contextlib.contextmanager
def placed(
    loader: Any, rank: int, world_size: int, begun: Begun | None = None, tell: Callable[[str], None] = print
) -> Iterator[Order]:
    """Within it, the data set of a loader hears of each sample where it stands, and an epoch that was `begun` before
    goes on. A loader whose batch sampler has no `sampler` is left as it is.

    Args:
        tell: is given a sentence if the order that was begun cannot go on, but another one does.
    """
    batches: Any = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", None)
    order = Order(begun)
    if sampler is None:
        yield order
        return
    plain = type(batches) is BatchSampler  # others may put samples into batches in another order
    if begun is not None and not plain and len(begun.taken) != world_size:
        order.kept, order.first = False, -(-begun.batches * len(begun.taken) // world_size)
    batches.sampler = order.place(batches, rank, world_size) if plain else PlacedSampler(sampler, rank, world_size)
    if begun is not None and not order.kept:
        tell(
            "the epoch in whose middle the checkpoint was written was begun by another number of processes, or in"
            f" other batches: what is left of it is {len(loader) - order.first} iterations here"
        )
    try:
        yield order
    finally:
        batches.sampler = sampler
