"""Decoded images that all workers of a data set share."""

import fcntl
import hashlib
import logging
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from yolox_ops import _C

from .images import Array

KINDS = ("ram", "disk")
HEADER = 64  # bytes
# Stamps of a place that has no image, or to which somebody is writing. An image's own stamp is positive, or negative
# where it was left by others, before anybody who has the cache now, and not asked for since.
EMPTY, BUSY = 0, -(2**63)
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class ImageCache:
    """Each image file has its place in one mapping, and a stamp that says which state of the file is there. The stamp
    is written after the pixels, atomically, so a reader never takes half an image. It looks at them where they are, for
    as long as it likes: what somebody may have taken is not written to again while anybody has the cache, though the
    file changes.

    Args:
        shapes: (height, width) of every image by the name of its file.
        kind: "ram" or "disk".
        limit: bytes; None for half of the memory that is available, shared among the processes of this machine, or nine
            tenths of the free disk.
        folder: for "disk".
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], kind: str, limit: int | None, folder: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"cache must be one of {', '.join(KINDS)}, got {kind!r}")
        if limit is not None and limit < 1:
            raise ValueError(f"cache_bytes must be 1 or more, got {limit}")
        names = [os.path.abspath(name) for name in shapes]
        keys = np.array([_digest(name) for name in names], np.int64)
        self._places = keys.argsort()
        self._keys = keys[self._places]
        self._shapes, self._kind = np.array([*shapes.values()], np.int64).reshape(-1, 2), kind
        begin = HEADER + 8 * len(shapes)
        # Sizes that an annotation file makes up must not overflow; for them there is no room in any case.
        areas = np.minimum(self._shapes.astype(np.float64).prod(1), 2.0**40).astype(np.int64)
        self._ends = begin + (areas * 3).cumsum()
        needed = int(self._ends[-1]) if names else begin
        path = Path(folder, f"{_digest(*names, *self._shapes.flat):016x}.images")
        if kind == "disk":
            path.parent.mkdir(parents=True, exist_ok=True)
        if limit is None:
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            limit = _available_memory() // 2 // processes if kind == "ram" else _available_disk(path) * 9 // 10
        self._count = int(np.searchsorted(self._ends, limit, side="right"))
        length = int(self._ends[self._count - 1]) if self._count else begin
        mapped = mmap.mmap(-1, length) if kind == "ram" else _map_file(path, length, len(shapes))
        self._bytes = np.frombuffer(mapped, np.uint8)
        self._stamps = np.frombuffer(mapped, np.int64, len(shapes), HEADER)
        if os.environ.get("RANK", "0") == "0":
            text = f"cache={kind!r}: room for {self._count} of {len(shapes)} decoded images, {length / 1e9:.1f} GB"
            if self._count < len(shapes):
                text += f"; all of them need {needed / 1e9:.1f} GB, cache_bytes is {limit}"
            logging.getLogger("yolox_plugin").info(text)

    def __getstate__(self) -> None:
        raise TypeError(f"cache={self._kind!r} needs workers that are forked, as by mp_start_method='fork'")

    def _place(self, name: str) -> int | None:
        """Of an image that there is room for."""
        key = _digest(os.path.abspath(name))
        found = int(self._keys.searchsorted(key))
        if found == len(self._keys) or self._keys[found] != key or self._places[found] >= self._count:
            return None
        return int(self._places[found])

    def _pixels(self, place: int) -> Array:
        height, width = self._shapes[place]
        end = int(self._ends[place])
        return self._bytes[end - 3 * height * width : end].reshape(height, width, 3)

    def get(self, name: str, stamp: int) -> Array | None:
        """The pixels, not to be written to; None if they are not here, or of a file with another stamp."""
        place = self._place(name)
        if place is None:
            return None
        if _C.load_acquire(self._stamps, place) == -stamp:
            _C.compare_exchange(self._stamps, place, -stamp, stamp)  # or somebody else does
        return self._pixels(place) if _C.load_acquire(self._stamps, place) == stamp else None

    def put(self, name: str, stamp: int, pixels: Array) -> None:
        """Keeps the pixels, if there is room, they have the shape that the annotations say, and nobody has put others
        here or is writing."""
        place = self._place(name)
        if place is None or pixels.shape != (*self._shapes[place], 3):
            return
        before = _C.load_acquire(self._stamps, place)
        if before > 0 or before in (BUSY, -stamp) or not _C.compare_exchange(self._stamps, place, before, BUSY):
            return
        self._pixels(place)[:] = pixels
        _C.store_release(self._stamps, place, stamp)


def file_stamp(name: str) -> int:
    """Another one for another file, and when the file changes; positive."""
    found = os.stat(name)
    return _digest(os.path.abspath(name), found.st_ino, found.st_mtime_ns, found.st_size) or 1


def _digest(*parts: object) -> int:
    """The same in every process, in [0, 2^63)."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(os.fsencode(str(part)) + b"\0")
    return int.from_bytes(digest.digest(), "little") >> 1


def _available_memory() -> int:
    """Bytes: what the machine has left, or the container."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return max(min([int(lines["MemAvailable"].split()[0]) * 1024, *_left_in_cgroups()]), 0)


def _left_in_cgroups() -> Iterator[int]:
    """Bytes that each control group around this process has left, of version 1 and 2."""
    for line in OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.exists() else ():
        _, controllers, own = line.split(":", 2)
        if not controllers:
            top, most, used = CGROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top, most, used = CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = top / own.strip("/")
        # In a container the group has its name outside of it, but its files lie at the top.
        for level in {top, group, *(parent for parent in group.parents if top in parent.parents)}:
            if (level / most).exists() and (limit := (level / most).read_text().strip()) != "max":
                yield int(limit) - int((level / used).read_text())


def _available_disk(path: Path) -> int:
    """Bytes for this file, with those that it has already."""
    return shutil.disk_usage(path.parent).free + (path.stat().st_size if path.exists() else 0)


def _locked_alone(file: int) -> bool:
    """Locks an open file as its only user; if that is not so, as one of them."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(file, fcntl.LOCK_SH)
        return False
    return True


def _map_file(path: Path, length: int, count: int) -> mmap.mmap:
    """Maps the file with `count` stamps; a new one, unless it was made since this machine started: what was written
    before a crash of the machine may be on the disk in part. Who maps it alone finds the images that others left, and
    may replace them; so too where somebody was stopped while writing.

    Raises:
        OSError: if the disk is full, before anything is written to memory that it has no room for.
    """
    started = hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes()).digest()
    lock = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            with path.open("rb") as file:
                known = file.read(len(started)) == started
            if not known:
                path.unlink()  # not emptied: another machine may have it mapped
        with path.open("r+b" if path.exists() else "w+b") as file:
            os.posix_fallocate(file.fileno(), 0, length)
            file.write(started)
            file.flush()
            mapped = mmap.mmap(file.fileno(), length)  # keeps the open file, and so the lock
            if _locked_alone(file.fileno()):
                stamps = np.frombuffer(mapped, np.int64, count, HEADER)
                stamps[stamps == BUSY] = EMPTY
                np.negative(stamps, out=stamps, where=stamps > 0)
                fcntl.flock(file, fcntl.LOCK_SH)
            return mapped
    finally:
        os.close(lock)
