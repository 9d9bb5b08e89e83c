"""Four images around a centre, decoded and painted where somebody looks: most of them lies outside of the picture that
`RandomAffine` cuts from the mosaic."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .images import Array, Deferred, pixels

PLACES = ("top_left", "top_right", "bottom_left", "bottom_right")
# An image to (width, height). The host's, as users choose it there.
Resize = Callable[[Array, tuple[int, int]], Array]
# Of a place, the centre (x, y) and a size (width, height): where the image goes to in the mosaic, and what of it, each
# (x1, y1, x2, y2).
Combine = Callable[[str, tuple[int, ...], tuple[int, int]], tuple[Sequence[int], Sequence[int]]]


class Move(NamedTuple):
    """What an image's boxes go through on the way into a mosaic."""

    scale: float
    x: int  # pixels
    y: int

    def __call__(self, boxes: Array) -> Array:
        """Boxes `[N, 4]` (x1, y1, x2, y2), pixels."""
        moved: Array = boxes.copy()
        if len(moved):
            moved[:, 0::2] = self.scale * moved[:, 0::2] + self.x
            moved[:, 1::2] = self.scale * moved[:, 1::2] + self.y
        return moved


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
        self.shape, self.dtype, self._tiles, self._pad_val = shape, dtype, tiles, pad_val

    def pixels(self) -> Array:
        """See `Deferred`."""
        return self.part(0, 0, self.shape[1], self.shape[0])

    def part(self, left: int, top: int, right: int, bottom: int) -> Array:
        """The corner of the mosaic from the origin to (right, bottom). What is left of `left` or above `top` is
        undefined."""
        canvas = np.empty((bottom, right, *self.shape[2:]), self.dtype)
        canvas[top:, left:] = self._pad_val
        for tile in self._tiles:
            tile.paint(canvas, left, top)
        return canvas


def arrange(
    images: Sequence[Array | Deferred],
    size: tuple[int, int],
    centre: tuple[int, ...],
    pad_val: float,
    combine: Combine,
    resize: Resize,
) -> tuple[MosaicImage, list[Move]]:
    """A mosaic of twice `size` (height, width), and how each of the four images has moved."""
    tiles, moves = [], []
    for place, image in zip(PLACES, images, strict=True):
        height, width = image.shape[:2]
        scale = min(size[0] / height, size[1] / width)
        scaled = (int(width * scale), int(height * scale))
        target, source = combine(place, centre, scaled)
        tiles.append(Tile(image, scaled, (source[0], source[1]), target, resize))
        moves.append(Move(scale, target[0] - source[0], target[1] - source[1]))
    shape = (int(size[0] * 2), int(size[1] * 2), *images[0].shape[2:])
    return MosaicImage(shape, tiles, pad_val, images[0].dtype), moves
