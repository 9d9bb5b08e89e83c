"""Decoded images that all workers of a data set share."""

import fcntl
import hashlib
import mmap
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.utils import get_logger

from .images import Array

KINDS = ("ram", "disk")
HEADER = 64  # bytes


class ImageCache:
    """Each image has its place in one mapping, and a stamp that says whether it is there. No lock is needed: all who
    fill a place write the same bytes, and the stamp after them.

    Args:
        infos: `filename`, `height` and `width` of every image.
        kind: "ram" or "disk".
        limit: bytes; None for half of the memory that is available, or nine tenths of the free disk.
        folder: for "disk".
    """

    def __init__(self, infos: Sequence[Mapping[str, Any]], kind: str, limit: int | None, folder: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"cache must be one of {', '.join(KINDS)}, got {kind!r}")
        if limit is not None and limit < 1:
            raise ValueError(f"cache_bytes must be 1 or more, got {limit}")
        digest = hashlib.sha256()
        shapes = np.empty((len(infos), 2), np.int64)
        for i, info in enumerate(infos):
            shapes[i] = info["height"], info["width"]
            digest.update(f"{info['filename']}\0{info['height']}\0{info['width']}\0".encode())
        begin = HEADER + 8 * len(shapes)
        self._shapes, self._kind = shapes, kind
        self._ends = begin + (shapes.prod(1) * 3).cumsum()
        needed = int(self._ends[-1])
        path = Path(folder, f"{digest.hexdigest()[:16]}.images")
        if kind == "disk":
            path.parent.mkdir(parents=True, exist_ok=True)
        if limit is None:
            limit = _available_memory() // 2 if kind == "ram" else _available_disk(path) * 9 // 10
        self._count = int(np.searchsorted(self._ends, limit, side="right"))
        length = int(self._ends[self._count - 1]) if self._count else begin
        mapped = mmap.mmap(-1, length) if kind == "ram" else _map_file(path, length)
        self._bytes = np.frombuffer(mapped, np.uint8)
        self._stamps = np.frombuffer(mapped, np.int64, len(shapes), HEADER)
        if os.environ.get("RANK", "0") == "0":
            text = f"cache={kind!r}: room for {self._count} of {len(shapes)} decoded images, {length / 1e9:.1f} GB"
            if self._count < len(shapes):
                text += f"; all of them need {needed / 1e9:.1f} GB, cache_bytes is {limit}"
            get_logger("yolox_plugin").info(text)

    def __getstate__(self) -> None:
        raise TypeError(f"cache={self._kind!r} needs workers that are forked, as by mp_start_method='fork'")

    def _place(self, index: int) -> Array:
        height, width = self._shapes[index]
        end = int(self._ends[index])
        return self._bytes[end - 3 * height * width : end].reshape(height, width, 3)

    def get(self, index: int, stamp: int) -> Array | None:
        """The pixels, not to be written to; None if they are not here, or of a file with another stamp."""
        there = index < self._count and self._stamps[index] == stamp
        return self._place(index) if there else None

    def put(self, index: int, stamp: int, pixels: Array) -> None:
        """Keeps the pixels, if there is room and they have the shape that the annotations say."""
        if index < self._count and pixels.shape == (*self._shapes[index], 3):
            self._place(index)[:] = pixels
            self._stamps[index] = stamp


def file_stamp(name: str) -> int:
    """Never 0; another one when the file changes."""
    found = os.stat(name)
    return hash((found.st_mtime_ns, found.st_size)) or 1


def _available_memory() -> int:
    """Bytes: what the machine has left, or the container."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        available = min(available, int(most) - int(limit.with_name("memory.current").read_text()))
    return max(available, 0)


def _available_disk(path: Path) -> int:
    """Bytes for this file, with those that it has already."""
    return shutil.disk_usage(path.parent).free + (path.stat().st_size if path.exists() else 0)


def _map_file(path: Path, length: int) -> mmap.mmap:
    """Maps the file; a new one, unless it was made since this machine started: what was written before a crash of the
    machine may be on the disk in part.

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
            return mmap.mmap(file.fileno(), length)
    finally:
        os.close(lock)
