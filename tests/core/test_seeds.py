"""What samples draw: a function of where they stand, and nobody else's."""

import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from yolox_plugin.core.positions import PlacedIndex, PlacedSampler, placed
from yolox_plugin.core.seeds import seed_everything, seed_sample, state_kept


def drawn():
    """The next numbers of each generator."""
    return (
        tuple(random.getrandbits(64) for _ in range(4)),
        tuple(np.random.randint(0, 2**62, 4).tolist()),
        tuple(torch.randint(2**62, (4,)).tolist()),
    )


def test_no_two_samples_share_draws():
    """Nor does one share them with a process, whose four numbers might begin as the sample's three."""
    numbers = [set(), set(), set()]
    samples = [*itertools.product((0, 1, 2**32, 2**40), (0, 1, 2), (0, 1, 2, 7, 2**33))]
    processes = [*itertools.product((0, 1, 2**32), (0, 1, 2), (0, 1, 2, 7), (0, 1, 2))]
    for sample in samples:
        seed_sample(*sample)
        for kind, of_kind in zip(numbers, drawn(), strict=True):
            kind.update(of_kind)
    for process in processes:
        seed_everything(*process)
        for kind, of_kind in zip(numbers, drawn(), strict=True):
            kind.update(of_kind)
    assert [len(kind) for kind in numbers] == [4 * (len(samples) + len(processes))] * 3


def test_the_streams_of_neighbours_are_independent():
    """Of 4,000 samples in a row, the first numbers are uniform, and no pair of neighbours goes together."""
    first = []
    for position in range(4000):
        seed_sample(0, 0, position)
        first.append([random.random(), np.random.rand(), torch.rand(()).item()])
    first = np.array(first)
    for column in range(3):
        counts = np.histogram(first[:, column], 20, (0, 1))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 50  # chi-squared, 19 degrees of freedom: 1 of 10,000 is above
    together = np.corrcoef(np.hstack([first[:-1], first[1:]]).T) - np.eye(6)
    assert abs(together).max() < 0.07  # 4.4 standard deviations


def test_the_same_sample_draws_the_same():
    for draw_before in (0, 5):
        seed_everything(1, 2, 3, 4)
        for _ in range(draw_before):
            drawn()
        seed_sample(5, 6, 7)
        found = drawn()
        seed_sample(5, 6, 7)
        assert drawn() == found


def test_state_is_kept_after_an_error_too():
    expected = []
    for _ in range(2):
        seed_everything(1, 2, 3, 4)
        with pytest.raises(KeyError), state_kept():
            seed_sample(5, 6, 7)
            drawn()
            raise KeyError
        expected.append(drawn())
    seed_everything(1, 2, 3, 4)
    assert expected == [drawn()] * 2


def test_an_index_keeps_its_position():
    index = PlacedIndex(7, 3)
    for found, value in ((index, 7), (index % 4, 3), (index - 2, 5), (pickle.loads(pickle.dumps(index)), 7)):
        assert (found, found.position) == (value, 3)
    assert [10, 20][PlacedIndex(1, 0)] == 20 and np.arange(3)[PlacedIndex(2, 0)] == 2


def test_positions_are_those_of_all_ranks():
    ranks = [[(i, i.position) for i in PlacedSampler(range(10 + rank, 20, 2), rank, 2)] for rank in range(2)]
    assert sorted(position for rank in ranks for _, position in rank) == list(range(10))
    assert all(index == position + 10 for rank in ranks for index, position in rank)


def test_a_loader_is_left_as_it_was():
    loader = DataLoader(range(4), sampler=range(4))
    before = loader.batch_sampler.sampler
    with pytest.raises(KeyError), placed(loader, 0, 1):
        assert loader.batch_sampler.sampler is not before and len(loader) == 4
        raise KeyError
    assert loader.batch_sampler.sampler is before
    odd = DataLoader(range(4), batch_sampler=[[0, 1], [2, 3]])
    with placed(odd, 0, 1):
        assert [batch.tolist() for batch in odd] == [[0, 1], [2, 3]]
