"""Atomic access to int64 stamps in memory that processes share."""

import mmap
import multiprocessing
import sys

import numpy as np
import pytest

from yolox_ops import _C


def stamps(count=4):
    return np.zeros(count, np.int64)


def test_reads_and_writes_one_place():
    array = stamps()
    _C.store_release(array, 2, -(2**63))
    assert array.tolist() == [0, 0, -(2**63), 0]
    array[3] = 2**63 - 1
    assert [_C.load_acquire(array, i) for i in range(4)] == array.tolist()


def test_compare_exchange_writes_only_over_what_is_expected():
    array = stamps()
    assert _C.compare_exchange(array, 1, 0, 7)
    assert not _C.compare_exchange(array, 1, 0, 8)
    assert array.tolist() == [0, 7, 0, 0]


def test_other_buffers():
    memory = memoryview(bytearray(16)).cast("q")
    _C.store_release(memory, 1, 5)
    assert memory.tolist() == [0, 5]
    frozen = stamps()
    frozen.flags.writeable = False
    assert _C.load_acquire(frozen, 0) == 0  # reading needs no right to write


def _increment(shared, times):
    array = np.frombuffer(shared, np.int64)
    for _ in range(times):
        while not _C.compare_exchange(array, 0, seen := _C.load_acquire(array, 0), seen + 1):
            pass


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the memory is inherited")
def test_processes_lose_no_update():
    shared = mmap.mmap(-1, 8)
    workers = [multiprocessing.get_context("fork").Process(target=_increment, args=(shared, 20000)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert _C.load_acquire(np.frombuffer(shared, np.int64), 0) == 40000


def _read_only():
    array = stamps()
    array.flags.writeable = False
    return array


CALLS = {
    "load_acquire": (),
    "store_release": (1,),
    "compare_exchange": (0, 1),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("array", "index", "error", "message"),
    [
        (stamps(), 4, IndexError, r"index must be in \[0, 4\), got 4"),
        (stamps(), -1, IndexError, r"index must be in \[0, 4\), got -1"),
        (stamps(0), 0, IndexError, r"index must be in \[0, 0\), got 0"),
        (np.zeros(4, np.int32), 0, TypeError, "one-dimensional buffer of int64, got format 'i'"),
        (np.zeros(4, np.uint64), 0, TypeError, "one-dimensional buffer of int64, got format 'L'"),
        (np.zeros(4, np.float64), 0, TypeError, "one-dimensional buffer of int64, got format 'd'"),
        (np.zeros((2, 2), np.int64), 0, TypeError, "one-dimensional buffer of int64, got 2 dimensions"),
        (stamps(8)[::2], 1, TypeError, "contiguous.* got a stride of 16 bytes"),
        (np.zeros(33, np.uint8)[1:].view(np.int64), 0, TypeError, "stamps must be aligned to 8 bytes"),
        (memoryview(bytearray(33))[1:].cast("q"), 0, TypeError, "stamps must be aligned to 8 bytes"),
        ([0, 0], 0, TypeError, "incompatible function arguments"),
    ],
)
def test_bad_input(name, array, index, error, message):
    with pytest.raises(error, match=message):
        getattr(_C, name)(array, index, *CALLS[name])


@pytest.mark.parametrize("name", ["store_release", "compare_exchange"])
def test_read_only_buffers_are_refused(name):
    with pytest.raises(TypeError, match="stamps must be writable"):
        getattr(_C, name)(_read_only(), 0, *CALLS[name])


def test_no_buffer_is_kept():
    array = stamps()
    before = sys.getrefcount(array)
    _C.store_release(array, 0, 1)
    assert sys.getrefcount(array) == before
