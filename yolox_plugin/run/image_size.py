"""--img-size: all sizes of a recipe change in proportion to that of the images in evaluation."""

from collections.abc import Iterable, Iterator
from typing import Any

from .messages import InputError

STRIDE = 32  # the largest, of which every side is a multiple
# Where the parts of a recipe have sides of images, in pixels.
SIDES = {
    "Mosaic": ("img_scale",),
    "MixUp": ("img_scale",),
    "RandomAffine": ("border",),  # half of one, and negative
    "Resize": ("img_scale", "scale"),
    "MultiScaleFlipAug": ("img_scale",),
    "YOLOX": ("input_size", "random_size_range"),  # the latter, of MMDetection 2.28, in strides
    "BatchSyncRandomResize": ("random_size_range",),
}
# Steps of pipelines that have none.
WITHOUT = {
    "YOLOXHSVRandomAug", "RandomFlip", "Pad", "FilterAnnotations", "DefaultFormatBundle", "Collect", "PackDetInputs",
    "LoadImageFromFile", "LoadAnnotations", "ImageToTensor", "Normalize", "PhotoMetricDistortion",
}  # fmt: skip


def change_sizes(entries: Any, pipelines: Iterable[Any], before: Any, after: int) -> None:
    """Changes a config so that evaluation has images of `after` x `after` pixels.

    Args:
        entries: the whole config.
        pipelines: those that the data sets of the command read.
        before: the size of images in evaluation.

    Raises:
        InputError: images are not square, or a step of a pipeline is none of the standard recipes'.
    """
    for pipeline in pipelines:
        for part in parts_in(pipeline):
            kind = kind_of(part)
            if kind not in SIDES and kind not in WITHOUT:
                raise InputError(f"--img-size does not know what {kind} has to change: do it in a --config")
    share = after / side_of(before, "evaluation")
    for part in parts_in(entries):
        kind = kind_of(part)
        for key in SIDES.get(kind, ()):
            if part.get(key) is not None:
                part[key] = changed(part[key], share, f"{kind}.{key}", in_strides=kind == "YOLOX")
    if "img_scale" in entries:  # which the standard configs have for their own use
        entries["img_scale"] = changed(entries["img_scale"], share, "img_scale", in_strides=False)


def parts_in(entries: Any) -> Iterator[dict[str, Any]]:
    """Everything with a `type` in (a part of) a config."""
    if isinstance(entries, dict):
        if isinstance(entries.get("type"), str):
            yield entries
        entries = list(entries.values())
    if isinstance(entries, (list, tuple)):
        for entry in entries:
            yield from parts_in(entry)


def kind_of(part: dict[str, Any]) -> str:
    """Its type, without the registry that MMDetection 3 may name with it."""
    kind: str = part["type"].rpartition(".")[2]
    return kind


def side_of(pair: Any, name: str) -> int:
    """The side of square images. Raises InputError for others."""
    if not isinstance(pair, (list, tuple)) or len(pair) != 2 or pair[0] != pair[1] or not isinstance(pair[0], int):
        raise InputError(f"--img-size is for recipes with square images: the config's {name} is {pair!r:.60}")
    side: int = pair[0]
    return side


def changed(pair: Any, share: float, name: str, in_strides: bool) -> tuple[int, int]:
    """Sides in the new proportion; each is a multiple of the stride."""
    key = name.rpartition(".")[2]
    if key == "random_size_range":
        low, high = pair
        unit = 1 if in_strides else STRIDE
        return max(round(low * share / unit), 1) * unit, max(round(high * share / unit), 1) * unit
    side = side_of(pair, name)
    if key == "border":
        half = -max(round(-2 * side * share / STRIDE), 1) * STRIDE // 2
        return half, half
    side = max(round(side * share / STRIDE), 1) * STRIDE
    return side, side
