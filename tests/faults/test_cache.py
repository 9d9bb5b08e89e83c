"""Processes that read and write one cache at random, and are killed while they do: nobody may see half an image."""

import itertools
import mmap
import multiprocessing
import random
import time

import numpy as np
import pytest

from yolox_ops import _C
from yolox_plugin.core.cache import BUSY, ImageCache

FORK = multiprocessing.get_context("fork")
SIZES = [(1, 1), (3, 5), (64, 64), (97, 211), (240, 320)]
NAMES = [f"{i}.jpg" for i in range(40)]
SHAPES = dict(zip(NAMES, itertools.cycle(SIZES), strict=False))
STAMPS = (5, 2**62, 2**63 - 1)  # states of a file


def image(name, stamp):
    """Its pixels tell its name, its stamp and where they are."""
    height, width = SHAPES[name]
    first = (NAMES.index(name) * 31 + STAMPS.index(stamp) * 101) % 256
    return ((np.arange(height * width * 3) * 7 + first) % 256).astype(np.uint8).reshape(height, width, 3)


IMAGES = {(name, stamp): image(name, stamp) for name in NAMES for stamp in STAMPS}


class Hasty(ImageCache):
    """Says that pixels are there before they are."""

    def put(self, name, stamp, pixels):
        place = self._place(name)
        _C.store_release(self._stamps, place, stamp)
        self._pixels(place)[:] = pixels


class Rewriting(ImageCache):
    """Writes over what somebody may look at."""

    def put(self, name, stamp, pixels):
        place = self._place(name)
        before = _C.load_acquire(self._stamps, place)
        if before in (BUSY, stamp) or not _C.compare_exchange(self._stamps, place, before, BUSY):
            return
        self._pixels(place)[:] = pixels
        _C.store_release(self._stamps, place, stamp)


def read_and_write(cache, found, seed, steps):
    """Looks at images, at once and again later, and puts those that are not there; writes down the torn ones."""
    rng, taken = random.Random(seed), []
    for _ in range(steps):
        name, stamp = rng.choice(NAMES), rng.choice(STAMPS)
        pixels = cache.get(name, stamp)
        if pixels is None:
            cache.put(name, stamp, IMAGES[name, stamp])
        else:
            taken.append((name, stamp, pixels))
            found[0] += 1
        for name, stamp, pixels in (*taken[-1:], *taken[:1]):
            if not np.array_equal(pixels, IMAGES[name, stamp]):
                found[1] += 1
        if len(taken) > 20:
            taken.pop(0)


def make(kind, folder, cls=ImageCache):
    return cls(SHAPES, kind, 1 << 24, str(folder))


def stress(cache_of, rounds, steps, kills):
    """Rounds of processes, of which `kills` in each are stopped at any time; images found, and torn ones among them."""
    rng, total = random.Random(rounds), np.zeros(2, np.int64)
    for round_ in range(rounds):
        cache = cache_of()
        found = [np.frombuffer(mmap.mmap(-1, 16), np.int64) for _ in range(4)]
        workers = [
            FORK.Process(target=read_and_write, args=(cache, numbers, 100 * round_ + i, steps))
            for i, numbers in enumerate(found)
        ]
        for worker in workers:
            worker.start()
        for worker in workers[:kills]:
            time.sleep(rng.random() * 0.05)
            worker.kill()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers[kills:]] == [0] * (len(workers) - kills)
        for name, stamp in IMAGES:  # a process that comes later
            pixels = cache.get(name, stamp)
            total += (pixels is not None, pixels is not None and not np.array_equal(pixels, IMAGES[name, stamp]))
        total += sum(found)
    return total.tolist()


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_nobody_sees_half_an_image(kind, tmp_path):
    """In the memory or the file of all rounds, and in those of one."""
    shared = make(kind, tmp_path / "shared")
    read, torn = stress(lambda: shared, 10, 2000, 2)
    assert read > 10_000 and torn == 0
    read, torn = stress(lambda: make(kind, tmp_path / "later"), 20, 500, 3)
    assert read > 1000 and torn == 0


def test_places_of_killed_writers_come_back(tmp_path):
    stress(lambda: make("disk", tmp_path), 20, 10**6, 4)  # all are killed
    cache = make("disk", tmp_path)
    for name in NAMES:
        cache.put(name, STAMPS[0], IMAGES[name, STAMPS[0]])
        assert np.array_equal(cache.get(name, STAMPS[0]), IMAGES[name, STAMPS[0]])


@pytest.mark.parametrize("cls", [Hasty, Rewriting])
def test_the_test_finds_half_images(cls, tmp_path):
    cache = make("ram", tmp_path, cls)
    assert stress(lambda: cache, 5, 2000, 0)[1] > 0
