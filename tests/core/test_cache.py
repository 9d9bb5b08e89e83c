"""The cache of decoded images, which processes share without a lock."""

import multiprocessing
import os

import numpy as np

from yolox_plugin.core.cache import ImageCache

SIZE, STAMP = (32, 32), 7


def _cache(names):
    return ImageCache(dict.fromkeys(names, SIZE), "ram", 1 << 22, "")


def test_no_image_is_there_before_its_pixels_are():
    cache, found = _cache(["a.jpg"]), []

    class Pixels:
        shape = (*SIZE, 3)

        def __array__(self, dtype=None, copy=None):  # called when they are copied
            cache.put("a.jpg", STAMP, np.ones(self.shape, np.uint8))  # not kept: somebody is writing
            found.append(cache.get("a.jpg", STAMP) is not None)
            return np.full(self.shape, 5, np.uint8)

    cache.put("a.jpg", STAMP, Pixels())
    assert found == [False]
    assert (cache.get("a.jpg", STAMP) == 5).all()


def _take_turns(cache, names, own):
    """Puts every second image, as soon as the one before it, of the other process, is there."""
    for i, name in enumerate(names):
        pixels = np.full((*SIZE, 3), i % 255 + 1, np.uint8)  # none is 0, as memory is that nobody has written
        if i % 2 == own:
            cache.put(name, STAMP, pixels)
        else:
            while (found := cache.get(name, STAMP)) is None:
                os.sched_yield()
            assert np.array_equal(found, pixels), f"half of image {i}"


def test_processes_find_whole_images():
    names = [f"{i}.jpg" for i in range(1000)]
    cache = _cache(names)
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_take_turns, args=(cache, names, own)) for own in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        worker.kill()  # if it waits for an image that the other one never put
    assert [worker.exitcode for worker in workers] == [0, 0]
