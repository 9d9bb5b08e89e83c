"""Images that are decoded when somebody looks at them."""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

Array = np.ndarray[Any, Any]
# A sample on its way through a pipeline: an image under "img", those of its partners under "mix_results".
Results = dict[str, Any]
# A file's content to BGR, [height, width, 3] uint8; None if it is no image. The host's, as users choose it there.
Decode = Callable[[bytes], Array | None]


class UnreadableImage(ValueError):
    """A file that should be an image is none."""


class UnusableImage(UnreadableImage, cv2.error):
    """OpenCV refuses an image, as one so narrow that its size has a side of 0 pixels. Stock lets OpenCV's own error
    through, which names no file; this is one too."""

    @classmethod
    def of(cls, step: str, names: Sequence[Any], error: cv2.error) -> "UnusableImage":
        """What OpenCV has said in a step that was given the images of these names."""
        listed = ", ".join(map(str, names))
        return cls(f"{step} cannot use {'one of ' * (len(names) > 1)}{listed}: {' '.join(str(error).split())}")


class Deferred:
    """What stands for an array of pixels under `results["img"]` until a step needs the array."""

    shape: tuple[int, ...]
    dtype: Any = np.dtype(np.uint8)

    def pixels(self) -> Array:
        """The whole image, [height, width, channels], BGR; not to be written to."""
        raise NotImplementedError


def pixels(image: Any) -> Any:
    """What `image` stands for, if it is `Deferred`; else itself."""
    return image.pixels() if isinstance(image, Deferred) else image


def decode(sample: Results) -> None:
    """Puts arrays in the place of deferred images, in a sample and its partners."""
    for part in (sample, *sample.get("mix_results", ())):
        if isinstance(part.get("img"), Deferred):
            part["img"] = part["img"].pixels()


def is_colour(image: Any) -> bool:
    """Whether an array, or what stands for one, is [height, width, 3] uint8."""
    is_image = isinstance(image, (np.ndarray, Deferred))
    return is_image and image.dtype == np.uint8 and len(image.shape) == 3 and image.shape[2] == 3


def unmirrored(image: Any) -> Any:
    """The same pixels, in memory from left to right and top to bottom; anything but a mirrored colour image as it is.

    OpenCV and torch have a mirrored view copied by numpy, which goes from pixel to pixel.
    """
    if not isinstance(image, np.ndarray) or min(image.strides, default=0) >= 0 or not is_colour(image):
        return image
    down, right = (stride < 0 for stride in image.strides[:2])
    if not (down or right):
        return image
    stored = image[:: -1 if down else 1, :: -1 if right else 1]
    return cv2.flip(stored, -1 if down and right else int(right))


def in_planes(image: Array) -> Array:
    """The same pixels, in memory channel after channel: a transposition to [channels, height, width] copies nothing."""
    planes = np.empty((image.shape[2], *image.shape[:2]), image.dtype)
    cv2.split(image, list(planes))
    image = planes.transpose(1, 2, 0)
    return image


class DecodedImage(Deferred):
    """Pixels that are there."""

    def __init__(self, image: Array) -> None:
        self._image = image
        self.shape, self.dtype = image.shape, image.dtype

    def pixels(self) -> Array:
        """See `Deferred`."""
        return self._image


class EncodedImage(Deferred):
    """A file's image. If the header tells its shape, nothing is decoded before `pixels` is called."""

    def __init__(self, name: str, data: bytes, decode: Decode, keep: Callable[[Array], None] | None = None) -> None:
        """`keep` is given the pixels when they are there."""
        self._name, self._data, self._decode, self._keep = name, data, decode, keep
        self._pixels: Array | None = None
        self.shape = jpeg_shape(data) or self.pixels().shape

    def pixels(self) -> Array:
        """See `Deferred`.

        Raises:
            UnreadableImage: this is none.
        """
        if self._pixels is None:
            try:
                self._pixels = self._decode(self._data) if self._data else None
            except cv2.error as error:  # of sizes that it refuses
                raise UnreadableImage(f"{self._name} is no readable image: {error.err}") from error
            if self._pixels is None:
                raise UnreadableImage(f"{self._name} is no readable image ({len(self._data)} bytes)")
            if self._keep is not None:
                self._keep(self._pixels)
        return self._pixels


def jpeg_shape(data: bytes) -> tuple[int, int, int] | None:
    """(height, width, 3) of a JPEG from its header; None for other formats and where EXIF may turn the image."""
    if data[:2] != b"\xff\xd8":
        return None
    begin = 2
    while begin + 9 <= len(data) and data[begin] == 0xFF:
        kind = data[begin + 1]
        if kind == 0xE1 and data[begin + 4 : begin + 8] == b"Exif":
            return None
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a frame, whatever its compression
            height, width = (int.from_bytes(data[i : i + 2], "big") for i in (begin + 5, begin + 7))
            return (height, width, 3) if height and width else None
        begin += 2 + int.from_bytes(data[begin + 2 : begin + 4], "big")
    return None
