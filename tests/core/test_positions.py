"""An epoch that goes on behind the samples that have been taken: with as many processes exactly, with others wholly.
Ranks here are calls, one after the other, that are given what the others would tell."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from yolox_plugin.core import positions
from yolox_plugin.core.positions import Begun, PlacedIndex, dealt, placed
from yolox_plugin.core.seeds import random_state


class Positions(Dataset):
    """Of each sample its index and position."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return torch.tensor([int(index), getattr(index, "position", -1)])


class Shared(Sampler):
    """As torch's DistributedSampler: every W-th of a permutation, which is made longer by its beginning."""

    def __init__(self, length, rank, world_size):
        self.length, self.rank, self.world_size = length, rank, world_size

    def __iter__(self):
        order = np.random.default_rng(7).permutation(self.length).tolist()
        order += order[: -len(order) % self.world_size]
        return iter(order[self.rank :: self.world_size])

    def __len__(self):
        return -(-self.length // self.world_size)


class Drawn(Sampler):
    """Draws its order from numpy when an epoch begins, as MMDetection's GroupSampler does."""

    def __iter__(self):
        return iter(np.random.permutation(50).tolist())

    def __len__(self):
        return 50


def loader_of(rank, world_size, batch_size, drop_last=False):
    return DataLoader(Positions(), batch_size, sampler=Shared(50, rank, world_size), drop_last=drop_last)


def epoch_of(loader, rank, world_size, begun=None, stop=None):
    """The batches from `begun` on, up to number `stop`; what has been taken then; and the number of the first."""
    with placed(loader, rank, world_size, begun) as order:
        batches, number = [], order.first
        for number, batch in enumerate(order.batches(loader), order.first):
            if number == stop:
                break
            batches.append(batch)
        return batches, order.taken(number if stop is None else stop), order


@pytest.fixture
def of_all(monkeypatch):
    """An epoch of each rank. Whether the order is kept they hear of those before them, which here say the same."""

    def epochs(world_size, batch_size, begun, stop=None, **options):
        loaders = [loader_of(rank, world_size, batch_size, **options) for rank in range(world_size)]
        said = []

        def gathered(value):
            if isinstance(value, bool):
                said.append(value)
                return said
            return orders

        orders = [list(loader.sampler) for loader in loaders]
        monkeypatch.setattr(positions, "gathered", gathered)
        return [epoch_of(loader, rank, world_size, begun, stop) for rank, loader in enumerate(loaders)]

    return epochs


def indices(batches):
    return [index for batch in batches for index, _ in batch.tolist()]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("stop", [1, 3, "last"])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_same_number_of_processes_goes_on_exactly(of_all, world_size, batch_size, stop, drop_last):
    whole = of_all(world_size, batch_size, None, drop_last=drop_last)
    length = len(whole[0][0])
    stop = length if stop == "last" else stop
    begun = Begun(
        stop, [taken for _, taken, _ in of_all(world_size, batch_size, None, stop, drop_last=drop_last)], None
    )
    resumed = of_all(world_size, batch_size, begun, drop_last=drop_last)
    for (all_batches, _, _), (rest, taken, order) in zip(whole, resumed, strict=True):
        assert order.kept and order.first == stop
        assert len(rest) == length - stop
        assert all(torch.equal(one, other) for one, other in zip(all_batches[stop:], rest, strict=True))
        assert taken.tolist() == indices(all_batches)[: len(taken)]


@pytest.mark.parametrize(("before", "after"), [((1, 4), (2, 4)), ((2, 4), (1, 4)), ((3, 2), (2, 4)), ((2, 4), (2, 3))])
@pytest.mark.parametrize("drop_last", [False, True])
def test_another_number_takes_what_nobody_has_taken(of_all, before, after, drop_last):
    stop = 3
    taken = [taken for _, taken, _ in of_all(*before, None, stop)]
    assert [len(part) for part in taken] == [stop * before[1]] * before[0]
    resumed = of_all(*after, Begun(stop, taken, None), drop_last=drop_last)
    seen = torch.cat(taken).tolist()
    rest = [indices(batches) for batches, _, _ in resumed]
    assert len({len(part) for part in rest}) == 1  # or the ranks would wait for each other
    new = [index for part in rest for index in part]
    assert set(seen).isdisjoint(new)  # none comes twice
    dropped = 50 // 2 % 3 * 2 if drop_last and after == (2, 3) else 0  # the order is kept, and so is what that drops
    assert len(set(seen) | set(new)) == 50 - dropped  # none is lost
    assert len(new) - len(set(new)) < after[0] * (after[1] if drop_last else 1)
    places = [place for batches, _, _ in resumed for batch in batches for _, place in batch.tolist()]
    assert min(places) == len(seen) and len(set(places)) == len(places)
    assert len({order.first + len(batches) for batches, _, order in resumed}) == 1


def test_another_number_can_be_stopped_again(of_all):
    """What it takes is then the rest of what it would have."""
    first = [taken for _, taken, _ in of_all(3, 2, None, 4)]
    whole = of_all(2, 3, Begun(4, first, None))
    stop = whole[0][2].first + 2
    second = [taken for _, taken, _ in of_all(2, 3, Begun(4, first, None), stop)]
    resumed = of_all(2, 3, Begun(stop, second, None))
    for (all_batches, _, _), (rest, _, order) in zip(whole, resumed, strict=True):
        assert order.first == stop
        assert all(torch.equal(one, other) for one, other in zip(all_batches[2:], rest, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_random_state_goes_on_as_well(workers):
    """For an order that is drawn from it when the epoch begins, and for a model that draws."""

    def epoch(begun=None, stop=None):
        np.random.seed(3)
        torch.manual_seed(3)
        loader = DataLoader(Positions(), 4, sampler=Drawn(), num_workers=workers)
        found = []
        with placed(loader, 0, 1, begun) as order:
            for number, batch in enumerate(order.batches(loader), order.first):
                if number == stop:
                    break
                found.append((batch.tolist(), np.random.random(), torch.rand(1).item()))
                state = random_state()
            return found, Begun(number, [order.taken(number)], state)

    whole, _ = epoch()
    begin, begun = epoch(stop=5)
    rest, _ = epoch(begun)
    assert begin + rest == whole
    assert len(rest) == len(whole) - 5


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_somebody_else_draws_is_none_of_the_epochs(workers):
    """As a hook does that looks at one: neither when the epoch begins, nor in its middle, nor where it goes on."""

    def loader():
        return DataLoader(Positions(), 4, sampler=Drawn(), num_workers=workers)

    def epoch(begun=None, looks=()):
        np.random.seed(3)
        torch.manual_seed(3)
        found, made = [], loader()
        with placed(made, 0, 1, begun) as order:
            if "before" in looks:
                state = np.random.get_state()
                assert next(iter(made)).shape == (4, 2)
                np.random.set_state(state)
            for number, batch in enumerate(order.batches(made), order.first):
                if number in looks:
                    assert next(iter(made)).shape == (4, 2)
                found.append(batch.tolist())
            return found, order.taken(4)

    whole, taken = epoch()
    looked, looked_taken = epoch(looks=("before", 1, 3))
    assert looked == whole and torch.equal(looked_taken, taken)
    begun = Begun(4, [taken], random_state())
    assert epoch(begun)[0] == epoch(begun, looks=(6,))[0] == whole[4:]


def test_a_loader_that_is_a_list():
    with placed([1, 2, 3, 4], 0, 1, Begun(3, [torch.empty(0)], None)) as order:
        assert list(order.batches([1, 2, 3, 4])) == [4]
    with placed([1, 2], 0, 1) as order:
        assert (list(order.batches([1, 2])), order.first, order.kept) == ([1, 2], 0, True)


def test_what_comes_several_times_by_intention():
    """As of a sampler that is aware of classes: what is left of that comes as often."""
    order = [0, 1, 0, 2, 0, 3, 0, 4] * 4
    batches = BatchSampler(order, 1, drop_last=False)
    rest, seen = dealt([order], [torch.tensor([0, 1]), torch.tensor([0, 2])], 0, 1, batches)
    assert Counter(rest) == Counter(order) - Counter(seen)


def test_batches_of_another_kind_and_another_number_of_processes():
    """A part of that length is left out, and it is said so."""

    class Own(BatchSampler):
        pass

    loader = DataLoader(Positions(), batch_sampler=Own(Shared(50, 0, 1), 4, drop_last=False))
    said: list[str] = []
    with placed(loader, 0, 1, Begun(3, [torch.empty(0)] * 2, None), said.append) as order:
        assert (order.first, order.kept) == (6, False)
        assert said == [
            "the epoch in whose middle the checkpoint was written was begun by another number of processes, or in other"
            " batches: what is left of it is 7 iterations here"
        ]
        assert len(list(order.batches(loader))) == 13 - 6


def test_workers_that_live_on_draw_as_new_ones():
    """An order that is drawn from torch's own generator, in the second epoch, with and without a first."""

    def epochs(numbers):
        loader = DataLoader(Positions(), 4, shuffle=True, num_workers=1, persistent_workers=True)
        for number in numbers:
            torch.manual_seed(number)
            with placed(loader, 0, 1) as order:
                found = indices(order.batches(loader)), torch.rand(1).item()
        return found

    assert epochs([1, 2]) == epochs([2])


class Numbered(Sampler):
    """Whose indices are numpy's, or no numbers at all."""

    def __init__(self, kind):
        self.kind = kind

    def __iter__(self):
        return map(self.kind, np.arange(20))

    def __len__(self):
        return 20


@pytest.mark.parametrize("kind", [np.int64, lambda index: (int(index),)], ids=["numpy", "tuples"])
def test_indices_of_other_kinds(kind):
    class Any(Positions):
        def __getitem__(self, index):
            return torch.tensor(int(index[0] if isinstance(index, tuple) else index))

    def epoch(begun=None, stop=None):
        loader = DataLoader(Any(), 4, sampler=Numbered(kind))
        found, number = [], 0
        with placed(loader, 0, 1, begun) as order:
            for number, batch in enumerate(order.batches(loader), order.first):
                if number == stop:
                    break
                found.append(batch.tolist())
            return found, Begun(number, [order.taken(number)], None)

    whole, _ = epoch()
    begin, begun = epoch(stop=2)
    rest, _ = epoch(begun)
    assert begin + rest == whole == [list(range(4 * i, 4 * i + 4)) for i in range(5)]


def test_nothing_is_left_of_it_behind_an_epoch():
    loader = loader_of(0, 1, 4)
    epoch_of(loader, 0, 1)
    assert isinstance(loader.batch_sampler.sampler, Shared)
    assert not any(isinstance(index, PlacedIndex) for batch in loader.batch_sampler for index in batch)
