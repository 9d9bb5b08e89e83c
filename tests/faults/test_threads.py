"""Operators that several threads call at once, on the same inputs. Run under ThreadSanitizer too."""

import importlib.util
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

DIGESTS = Path(__file__).parents[1] / "ops" / "digests.py"


def every_call():
    """Of every operator, in all dtypes and layouts, by name."""
    spec = importlib.util.spec_from_file_location("digests", DIGESTS)
    digests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(digests)
    return dict(digests.calls())


@pytest.mark.parametrize("inner", [1, 2])
def test_threads_that_call_at_once_get_what_one_gets(inner):
    """Each of them with so many threads of its own."""
    calls = every_call()
    expected = {name: [t.clone() for t in call()] for name, call in calls.items()}

    def call_all(seed):
        torch.set_num_threads(inner)  # OpenMP keeps it for each thread
        names = random.Random(seed).sample(list(calls), len(calls))
        different = [name for name in names if not all(map(torch.equal, calls[name](), expected[name]))]
        return different

    with ThreadPoolExecutor(4) as pool:
        assert [name for found in pool.map(call_all, range(8)) for name in found] == []
