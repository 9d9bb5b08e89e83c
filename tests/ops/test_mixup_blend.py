"""mixup_blend against its reference, and against MMDetection's steps with cv2 itself: the same bits."""

import cv2
import numpy as np
import pytest
import torch

from yolox_ops import mixup_blend, reference


def case(seed, large=130):
    """Random sizes, one of them often 1; noise or one colour, where a rounding would show."""
    rng = np.random.default_rng(seed)
    side = lambda most: int(rng.integers(1, most + 1)) if seed % 7 else 1  # noqa: E731
    canvas = (int(rng.integers(2, large)), int(rng.integers(2, large)))
    factor = rng.uniform(0.3, 2)
    scaled = tuple(max(int(length * factor), 1) for length in canvas)
    image = torch.from_numpy(rng.integers(0, 256, (side(large), side(large), 3), dtype=np.uint8))
    shape = (side(canvas[0]), side(canvas[1]), 3)
    noise = rng.integers(0, 256, shape, dtype=np.uint8)
    partner = torch.from_numpy(noise if seed % 3 else np.full(shape, rng.integers(256), np.uint8))
    offset = tuple(int(rng.integers(0, max(s - o, 0) + 1)) for s, o in zip(scaled, image.shape[:2], strict=True))
    return image, partner, canvas, scaled, offset, bool(seed % 2), int(rng.integers(256))


def by_cv2(image, partner, canvas, scaled, offset, flip, pad):
    """Line by line what MMDetection's `_mixup_transform` does."""
    picture = np.ones((*canvas, 3), dtype=np.uint8) * float(pad)
    picture[: partner.shape[0], : partner.shape[1]] = partner.numpy()
    picture = cv2.resize(picture, scaled[::-1], interpolation=cv2.INTER_LINEAR)
    picture = picture[:, ::-1, :] if flip else picture
    height, width = image.shape[:2]
    padded = np.zeros((max(scaled[0], height), max(scaled[1], width), 3)).astype(np.uint8)
    padded[: scaled[0], : scaled[1]] = picture
    seen = padded[offset[0] : offset[0] + height, offset[1] : offset[1] + width]
    return torch.from_numpy((0.5 * image.numpy().astype(np.float32) + 0.5 * seen.astype(np.float32)).astype(np.uint8))


@pytest.fixture
def ipp(request):
    there = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(request.param)
    yield cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(there)


@pytest.mark.parametrize("ipp", [False, True], indirect=True, ids=["OpenCV", "IPP"])
def test_the_bits_of_cv2(ipp):
    for seed in range(300):
        args = case(seed)
        ours = mixup_blend(*args, ipp)
        assert torch.equal(ours, by_cv2(*args)), f"seed {seed}"


@pytest.mark.parametrize("ipp", [False, True])
def test_reference(ipp):
    different = total = 0
    for seed in range(100):
        args = case(seed)
        ours, expected = mixup_blend(*args, ipp).int(), reference.mixup_blend(*args, ipp).int()
        assert (ours - expected).abs().max() <= 1
        different += int((ours != expected).sum())
        total += ours.numel()
    assert different <= (1e-3 * total if ipp else 0)


def test_half_the_size_and_the_same_size():
    """Which cv2 has ways of its own for."""
    image, partner, *_ = case(5)
    same = (60, 44)
    partner = partner[:60, :44]
    for ipp in (False, True):
        args = (image, partner, same, same, (0, 0), False, 114)
        assert torch.equal(mixup_blend(*args, ipp), by_cv2(*args))
        args = (image, partner, same, (30, 22), (0, 0), True, 114)
        assert (mixup_blend(*args, ipp).int() - by_cv2(*args).int()).abs().max() <= 1


def test_layouts_and_nothing_at_all():
    args = case(11)
    image, partner, *rest = args
    strange = image.permute(1, 0, 2).contiguous().permute(1, 0, 2), partner.repeat(1, 2, 1)[:, : partner.shape[1]]
    assert torch.equal(mixup_blend(*strange, *rest), mixup_blend(*args))
    for shape in ((0, 9, 3), (9, 0, 3)):
        assert mixup_blend(torch.zeros(shape, dtype=torch.uint8), *args[1:]).shape == shape
    assert torch.equal(mixup_blend(image, partner[:0], *rest), mixup_blend(image, partner[:, :0], *rest))
    far = mixup_blend(image, partner, rest[0], rest[1], (10_000, 10_000))
    assert torch.equal(far, image // 2)


IMAGE = torch.zeros(8, 8, 3, dtype=torch.uint8)
GOOD = {"image": IMAGE, "partner": IMAGE, "canvas": (8, 8), "scaled": (9, 9)}


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"image": IMAGE.float()}, TypeError, "image must be uint8, got float"),
        ({"image": IMAGE[..., 0]}, ValueError, r"image must be \[H, W, 3\], got \[8, 8\]"),
        ({"partner": IMAGE[..., :2]}, ValueError, r"partner must be \[H, W, 3\], got \[8, 8, 2\]"),
        ({"canvas": (8, 7)}, ValueError, r"partner must fit into the canvas \[8, 7\], got \[8, 8, 3\]"),
        ({"canvas": (0, 8)}, ValueError, r"canvas must be \(height, width\) of 1 or more, got \[0, 8\]"),
        ({"scaled": (9, -1)}, ValueError, r"scaled must be \(height, width\) of 1 or more, got \[9, -1\]"),
        ({"scaled": (9, 1 << 40)}, ValueError, "scaled must be"),
        ({"scaled": (9, 9, 9)}, ValueError, "scaled must be"),
        ({"offset": (0, -1)}, ValueError, r"offset must be \(y, x\) of 0 or more, got \[0, -1\]"),
        ({"pad": 256}, ValueError, r"pad must be in \[0, 255\], got 256"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_errors(wrong, error, words):
    with pytest.raises(error, match=words):
        mixup_blend(**{**GOOD, **wrong})


@pytest.mark.skipif(not hasattr(torch.library, "opcheck"), reason="torch 2.4 and newer")
def test_opcheck():
    torch.library.opcheck(torch.ops.yolox_ops.mixup_blend.default, (*case(11), False))
