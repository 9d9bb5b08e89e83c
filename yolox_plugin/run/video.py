"""Video files, as far as OpenCV reads and writes them."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

from .messages import InputError, warn

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm")
WRITTEN = ".mp4"
RATE = 25.0  # frames a second, of a file that does not say


def is_video(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in SUFFIXES


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """OpenCV's reader of a file. Raises InputError if it has none for this one."""
    if not path.is_file():  # at a pipe, OpenCV would wait for ever
        raise InputError(f"{path} is no file")
    reader = cv2.VideoCapture(str(path))
    try:
        if not reader.isOpened():
            raise InputError(f"{path} is no video that OpenCV reads")
        yield reader
    finally:
        reader.release()


def count_frames(path: Path) -> int:
    """How many frames a video says that it has.

    Raises:
        InputError: none can be read.
    """
    with opened(path) as reader:
        if not reader.read()[0]:
            raise InputError(f"{path} is a video without a frame that OpenCV reads")
        return max(int(reader.get(cv2.CAP_PROP_FRAME_COUNT)), 1)


def frames_of(path: Path) -> Iterator[Any]:
    """The frames of a video, (h, w, 3) uint8 BGR, upright; a warning if they end before it says so."""
    with opened(path) as reader:
        count = 0
        while True:
            there, frame = reader.read()
            if not there:
                break
            count += 1
            yield frame
        said = int(reader.get(cv2.CAP_PROP_FRAME_COUNT))
    if count < said:
        warn(f"{path}: frame {count} of {said} and those after it cannot be read")


class VideoWriter:
    """Writes frames of one size as a video, with the rate of `source`.

    Raises:
        OSError: OpenCV cannot.
    """

    def __init__(self, path: Path, source: Path) -> None:
        self.path = path
        self._writer: Any = None
        with opened(source) as reader:
            self.rate: float = reader.get(cv2.CAP_PROP_FPS) or RATE

    def write(self, frame: Any) -> None:
        """One more frame, (h, w, 3) uint8 BGR."""
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = (frame.shape[1], frame.shape[0])
            self._writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), self.rate, size)
            if not self._writer.isOpened():
                raise OSError(errno.EIO, "cannot be written", str(self.path))
        self._writer.write(frame)

    def close(self) -> None:
        """Finishes the file."""
        if self._writer is not None:
            self._writer.release()
