"""The cache of decoded images, which processes share without a lock."""

import multiprocessing
import os
import signal

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


def test_pixels_that_somebody_looks_at_stay_though_the_file_changes():
    cache = _cache(["a.jpg"])
    cache.put("a.jpg", STAMP, np.full((*SIZE, 3), 5, np.uint8))
    taken = cache.get("a.jpg", STAMP)
    cache.put("a.jpg", STAMP + 1, np.full((*SIZE, 3), 6, np.uint8))
    assert (taken == 5).all()
    assert cache.get("a.jpg", STAMP + 1) is None


def _on_disk(folder, names=("a.jpg", "b.jpg", "c.jpg")):
    return ImageCache(dict.fromkeys(names, SIZE), "disk", 1 << 22, str(folder))


def test_a_later_run_keeps_images_and_replaces_those_whose_files_have_changed(tmp_path):
    first = _on_disk(tmp_path)
    for name, level in (("a.jpg", 1), ("b.jpg", 2)):
        first.put(name, STAMP, np.full((*SIZE, 3), level, np.uint8))
    taken, beside = first.get("a.jpg", STAMP), _on_disk(tmp_path)
    beside.put("a.jpg", STAMP + 1, np.full((*SIZE, 3), 3, np.uint8))
    assert (taken == 1).all() and (beside.get("b.jpg", STAMP) == 2).all()
    del first, beside, taken
    later = _on_disk(tmp_path)
    later.put("a.jpg", STAMP, np.full((*SIZE, 3), 9, np.uint8))  # which is there
    assert (later.get("a.jpg", STAMP) == 1).all()
    assert later.get("b.jpg", STAMP + 1) is None
    later.put("b.jpg", STAMP + 1, np.full((*SIZE, 3), 4, np.uint8))
    assert (later.get("b.jpg", STAMP + 1) == 4).all() and later.get("b.jpg", STAMP) is None


class _Endless:
    shape = (*SIZE, 3)

    def __array__(self, dtype=None, copy=None):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_place_is_taken_again_after_its_writer_was_killed(tmp_path):
    cache = _on_disk(tmp_path)
    writer = multiprocessing.get_context("fork").Process(target=cache.put, args=("a.jpg", STAMP, _Endless()))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    whole = np.full((*SIZE, 3), 5, np.uint8)
    cache.put("a.jpg", STAMP, whole)
    assert cache.get("a.jpg", STAMP) is None  # for all that is known, the writer still writes
    del cache
    later = _on_disk(tmp_path)
    later.put("a.jpg", STAMP, whole)
    assert (later.get("a.jpg", STAMP) == 5).all()


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
