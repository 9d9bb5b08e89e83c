"""What a checkpoint in the middle of an epoch holds, and what is said of one that holds something else."""

import itertools
import random

import numpy as np
import pytest
import torch

from yolox_plugin.core import mid_epoch
from yolox_plugin.core.checkpoint import read_checkpoint
from yolox_plugin.core.positions import Begun, Order
from yolox_plugin.core.seeds import random_state, restore_random_state, seed_everything


def draws():
    normal = random.gauss(0, 1), np.random.standard_normal(), torch.randn(2).tolist()
    return [random.random(), np.random.random(), torch.rand(3).tolist(), *normal]


def test_the_random_state_comes_back_from_a_file(tmp_path):
    """Which torch reads without its user's word; also where half of a pair of normal numbers has been drawn."""
    seed_everything(3, 0, 0, 0)
    draws()
    torch.save({"state_dict": {}, "meta": random_state()}, tmp_path / "1.pth")
    expected = draws()
    restore_random_state(read_checkpoint(tmp_path / "1.pth")["meta"])
    assert draws() == expected != draws()


def test_what_ranks_add_and_take():
    meta = mid_epoch.of_ranks({"state_dict": {"mean": torch.ones(2)}}, Order(None), 4)
    assert meta["mid_epoch"] == 4 and len(meta["ranks"]) == 1
    content = {"state_dict": {"mean": torch.zeros(2)}, "meta": {**meta, "epoch": 1}}
    said: list[str] = []
    begun = mid_epoch.take(content, said.append)
    assert isinstance(begun, Begun) and begun.batches == 4
    assert content["meta"] == {"epoch": 1}
    assert begun.random is not None and begun.random.keys() == random_state().keys()
    assert mid_epoch.of_ranks({"state_dict": {}}) == {}  # nothing in which one rank differs from itself
    assert mid_epoch.take({"state_dict": {}}, said.append) is None
    assert said == []


def test_a_rank_takes_its_own(monkeypatch):
    """And with another number of ranks, all take those of rank 0, which are the weights."""
    ranks = [{"parts": {"state_dict": {}}}, {"parts": {"state_dict": {"mean": torch.ones(2)}, "gone": {}}}]
    other = "the checkpoint is of 2 processes: these 3 all begin with what rank 0 had"
    for world_size, expected, sentences in ((2, 1.0, []), (3, 0.0, [other])):
        monkeypatch.setattr(mid_epoch, "rank_and_world_size", lambda n=world_size: (1, n))
        content = {"state_dict": {"mean": torch.zeros(2)}, "meta": {"ranks": list(ranks)}}
        said: list[str] = []
        assert mid_epoch.take(content, said.append) is None
        assert said == sentences
        assert content["state_dict"]["mean"].tolist() == [expected] * 2


@pytest.mark.parametrize("delay", [0, 1])
def test_the_clock_asks_once_for_each(monkeypatch, delay):
    """Also where what rank 0 asks for is heard one iteration later, as by several processes."""

    class Delayed:
        said = [0] * delay

        def exchange(self, number):
            self.said.append(number)
            return self.said.pop(0)

    clock = itertools.count()
    monkeypatch.setattr(mid_epoch.time, "monotonic", lambda: 10.0 * (next(clock) // 2))
    monkeypatch.setattr(mid_epoch, "Agreement", Delayed)
    timing = mid_epoch.Timing(None, minutes=1)
    timing.start()
    due = [i for i in range(1, 61) if timing.due(i, can_be_written=True)]
    assert len(due) >= 4 and all(later - earlier > 3 for earlier, later in itertools.pairwise(due))


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"ranks": "all"}, r"meta\['ranks'\] must be a list"),
        ({"ranks": [1]}, r"meta\['ranks'\] must be a list"),
        ({"ranks": [{}]}, r"meta\['ranks'\] must be a list"),
        ({"mid_epoch": -1}, r"meta\['mid_epoch'\] must be a whole number of 0 or more, got -1"),
        ({"mid_epoch": "3"}, r"got '3'"),
        ({"mid_epoch": 3, "ranks": [{"parts": {}}]}, "must have the samples taken"),
        ({"mid_epoch": 3, "ranks": [{"parts": {}, "taken": torch.zeros(1)}]}, "must have the samples taken"),
    ],
)
def test_what_is_no_such_checkpoint(meta, words):
    with pytest.raises(ValueError, match=words):
        mid_epoch.take({"state_dict": {}, "meta": meta}, print)
