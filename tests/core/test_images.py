"""What the steps of every host do to pixels, against the same in numpy."""

import cv2
import numpy as np
import pytest

from yolox_plugin.core.hsv import shift_hsv
from yolox_plugin.core.images import DecodedImage, in_planes, unmirrored


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)


@pytest.mark.parametrize("place", [np.s_[::-1], np.s_[:, ::-1], np.s_[::-1, ::-1]])
def test_a_mirrored_view_becomes_an_array(image, place):
    mirrored = image[place]
    found = unmirrored(mirrored)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, mirrored)


def test_anything_else_stays_as_it_is(image):
    others = (image, image[:, 3:20], image[::-1, :, 0], image[::-1].astype(np.float32), DecodedImage(image[::-1]), None)
    for other in others:
        assert unmirrored(other) is other


def test_planes_are_transposed_without_a_copy(image):
    planes = in_planes(image)
    np.testing.assert_array_equal(planes, image)
    assert planes.transpose(2, 0, 1).flags.c_contiguous


@pytest.mark.parametrize("shape", [(64, 64), (4, 1), (1, 4), (1, 1)])
def test_colours_are_shifted_in_every_amount(shape):
    """Against MMDetection's own formula."""
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    for gains in [(0, 0, 0), (5, -30, 30), (-5, 30, -30), (179, 255, -255), (-360, -1, 1), (1000, -1000, 1000)]:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.int16)
        hsv[..., 0] = (hsv[..., 0] + gains[0]) % 180
        hsv[..., 1] = np.clip(hsv[..., 1] + gains[1], 0, 255)
        hsv[..., 2] = np.clip(hsv[..., 2] + gains[2], 0, 255)
        expected = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)
        before = image.copy()
        np.testing.assert_array_equal(shift_hsv(image, np.array(gains, np.int16)), expected, str(gains))
        np.testing.assert_array_equal(image, before)
