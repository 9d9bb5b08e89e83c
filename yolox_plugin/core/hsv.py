"""Changes of hue, saturation and value."""

import cv2
import numpy as np

from .images import Array


def shift_hsv(image: Array, gains: Array) -> Array:
    """A BGR image [height, width, 3] uint8 with `gains` [3] int16 added to hue (which wraps around at 180), saturation
    and value (which are cut to 0 and 255)."""
    hue, *others = gains.tolist()
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    cv2.add(hsv, np.array([0.0, *others, 0.0]), dst=hsv)
    if hue:
        levels = (np.arange(256) + hue) % 180
        cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, 0), levels.astype(np.uint8)), hsv, 0)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR, dst=hsv)
