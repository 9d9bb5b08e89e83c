"""An affine map of an image and its boxes."""

import math

import cv2
import numpy as np

from .images import Array, Deferred, pixels
from .mosaic import MosaicImage


def warp_image(image: Array | Deferred, matrix: Array, size: tuple[int, int], border_val: tuple[int, ...]) -> Array:
    """What a picture of `size` (width, height) shows of an image under `matrix` [3, 3]; of a mosaic only that is
    painted."""
    if isinstance(image, MosaicImage):
        image = image.part(*_visible(matrix, image.shape, *size))
    return cv2.warpPerspective(pixels(image), matrix, dsize=size, borderValue=border_val)


def _visible(matrix: Array, shape: tuple[int, ...], width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what an affine `matrix` maps into a picture, with all that interpolation reads;
    not empty, inside of `shape`."""
    corners = np.array([[-1, width, -1, width], [-1, -1, height, height], [1, 1, 1, 1]], np.float64)
    x, y = (np.linalg.inv(matrix.astype(np.float64)) @ corners)[:2]
    left, right = (min(max(side, 0), shape[1]) for side in (math.floor(x.min()) - 2, math.ceil(x.max()) + 3))
    top, bottom = (min(max(side, 0), shape[0]) for side in (math.floor(y.min()) - 2, math.ceil(y.max()) + 3))
    return left, top, max(right, 1), max(bottom, 1)


def warp_boxes(boxes: Array, matrix: Array) -> Array:
    """The boxes `[N, 4]` (x1, y1, x2, y2), pixels, around the corners of `boxes` under `matrix` [3, 3]; N >= 1."""
    corners = np.vstack([boxes[:, [0, 0, 2, 2]].ravel(), boxes[:, [1, 3, 3, 1]].ravel(),
                         np.ones(4 * len(boxes), boxes.dtype)])  # fmt: skip
    moved = matrix @ corners
    xs, ys = (moved[:2] / moved[2]).reshape(2, -1, 4)
    warped: Array = np.vstack((xs.min(1), ys.min(1), xs.max(1), ys.max(1))).T
    return warped


def clip(boxes: Array, width: int, height: int) -> None:
    """Cuts boxes (x1, y1, x2, y2) to a picture, in place."""
    boxes[:, 0::2].clip(0, width, out=boxes[:, 0::2])
    boxes[:, 1::2].clip(0, height, out=boxes[:, 1::2])


def reach_into(boxes: Array, width: int, height: int) -> Array:
    """Which of the boxes `[N, 4]` (x1, y1, x2, y2) have a part in a picture."""
    inside: Array = (boxes[:, 0] < width) & (boxes[:, 1] < height) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
    return inside
