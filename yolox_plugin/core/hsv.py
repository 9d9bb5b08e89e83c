"""Changes of hue, saturation and value."""

import cv2
import numpy as np

from .images import Array


def shift_hsv(image: Array, gains: Array) -> Array:
    """A BGR image [height, width, 3] uint8 with `gains` [3] int16 added to hue (which wraps around at 180), saturation
    and value (which are cut to 0 and 255), by a table for each channel."""
    levels = np.arange(256, dtype=np.int16)[:, None] + gains
    tables = np.stack([levels[:, 0] % 180, *levels[:, 1:].clip(0, 255).T], 1).astype(np.uint8)
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), tables[None])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
