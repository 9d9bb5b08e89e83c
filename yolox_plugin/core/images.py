"""Images that are decoded when somebody looks at them, and only what is looked at: most of a mosaic's four tiles lies
outside of the picture that `RandomAffine` cuts from it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
# Both are the host's, which users set up to their liking.
Decode = Callable[[bytes], "Array | None"]  # a file's content to BGR, [height, width, 3] uint8; None if it is no image
Resize = Callable[[Array, tuple[int, int]], Array]  # to (width, height)


class Deferred:
    """What stands for an array of pixels under `results["img"]` until a step needs the array."""

    shape: tuple[int, ...]

    def pixels(self) -> Array:
        """The whole image, [height, width, channels] uint8, BGR; not to be written to."""
        raise NotImplementedError


def pixels(image: Any) -> Any:
    """What `image` stands for, if it is `Deferred`; else itself."""
    return image.pixels() if isinstance(image, Deferred) else image


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
            ValueError: if this is not an image.
        """
        if self._pixels is None:
            self._pixels = self._decode(self._data) if self._data else None
            if self._pixels is None:
                raise ValueError(f"{self._name} is no readable image ({len(self._data)} bytes)")
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


class Tile:
    """A mosaic's image: resized to (width, height) when it is wanted, of which the part from `source` on goes to
    `target` (x1, y1, x2, y2) of the mosaic."""

    def __init__(
        self,
        image: Array | Deferred,
        size: tuple[int, int],
        source: tuple[int, int],
        target: Sequence[int],
        resize: Resize,
    ) -> None:
        self.image, self.size, self.source, self.target, self.resize = image, size, source, target, resize

    def paint(self, canvas: Array, left: int, top: int) -> None:
        """Paints what lies right of `left`, below `top` and inside the canvas, whose origin is the mosaic's."""
        x1, y1, x2, y2 = self.target
        x1, y1 = max(x1, left), max(y1, top)
        x2, y2 = min(x2, canvas.shape[1]), min(y2, canvas.shape[0])
        if x1 >= x2 or y1 >= y2:
            return
        image = pixels(self.image)
        if image.shape[1::-1] != self.size:
            image = self.resize(image, self.size)
        x, y = self.source[0] - self.target[0], self.source[1] - self.target[1]
        canvas[y1:y2, x1:x2] = image[y1 + y : y2 + y, x1 + x : x2 + x]


class MosaicImage(Deferred):
    """Four tiles around a centre. Where none is, `pad_val`."""

    def __init__(self, shape: tuple[int, ...], tiles: Sequence[Tile], pad_val: float, dtype: Any) -> None:
        self.shape, self._tiles, self._pad_val, self._dtype = shape, tiles, pad_val, dtype

    def pixels(self) -> Array:
        """See `Deferred`."""
        return self.part(0, 0, self.shape[1], self.shape[0])

    def part(self, left: int, top: int, right: int, bottom: int) -> Array:
        """The corner of the mosaic from the origin to (right, bottom). What is left of `left` or above `top` is
        undefined."""
        canvas = np.empty((bottom, right, *self.shape[2:]), self._dtype)
        canvas[top:, left:] = self._pad_val
        for tile in self._tiles:
            tile.paint(canvas, left, top)
        return canvas
