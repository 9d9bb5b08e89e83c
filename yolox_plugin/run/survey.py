"""What a look at a data set knows of it: annotations as arrays, and every image file read once."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from .annotations import Source
from .predictor import Unreadable, pixels_of

Array = NDArray[Any]


class Table(NamedTuple):
    """The images of an annotation file, and those of its boxes that are trained on or evaluated with."""

    source: Source
    names: list[str]  # I files, in `source.folder`
    image_ids: list[Any]
    sizes: Array  # [I, 2] (w, h) in the annotations, pixels; 0 where they do not say
    ids: list[Any]  # N
    boxes: Array  # [N, 4] (x, y, w, h), pixels, as they are written
    areas: Array  # [N], as they are written
    image: Array  # [N] places in `names`
    label: Array  # [N]

    def file(self, image: int) -> Path:
        """An image's."""
        return self.source.folder / self.names[image]


class Seen(NamedTuple):
    """What is kept of an image's pixels."""

    size: tuple[int, int]  # (w, h), upright as the camera held it
    small: Array  # [8, 9] uint8, shades of grey


def read_table(source: Source, labels: Mapping[str, int]) -> Table:
    """The content of an annotation file that `check_data` has passed, without crowds and what else is ignored.

    Args:
        labels: of `check_data`.
    """
    content = json.loads(source.path.read_bytes().decode("utf-8-sig"))
    images = content["images"]
    places = {image["id"]: place for place, image in enumerate(images)}
    label_of = {
        category["id"]: labels[category["name"]]
        for category in content["categories"]
        if category["name"] in source.classes
    }
    left_out = ("iscrowd", "ignore") if source.training else ("iscrowd",)
    things = [
        thing
        for thing in content["annotations"]
        if thing["image_id"] in places
        and thing["category_id"] in label_of
        and not any(thing.get(key) for key in left_out)
    ]
    return Table(
        source,
        [image["file_name"] for image in images],
        [image["id"] for image in images],
        np.array([[image.get("width") or 0, image.get("height") or 0] for image in images], np.float64),
        [thing["id"] for thing in things],
        np.array([thing["bbox"] for thing in things], np.float64).reshape(-1, 4),
        np.array([thing["area"] for thing in things], np.float64),
        np.array([places[thing["image_id"]] for thing in things], np.int64),
        np.array([label_of[thing["category_id"]] for thing in things], np.int64),
    )


def see(path: Path) -> Seen | Unreadable:
    """An image file's size and a small picture of it."""
    grey = pixels_of(path, cv2.IMREAD_GRAYSCALE)
    if isinstance(grey, Unreadable):
        return grey
    return Seen((grey.shape[1], grey.shape[0]), cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA))


def see_all(paths: Sequence[Path]) -> list[Seen | Unreadable]:
    """Every file, read in parallel, each once; with progress on a terminal."""
    found, shown = [], time.time()
    pool = ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1)))
    try:
        for seen in pool.map(see, paths):
            found.append(seen)
            if sys.stderr.isatty() and time.time() - shown > 0.2:
                shown = time.time()
                print(f"\r{len(found)}/{len(paths)} images", end="", file=sys.stderr, flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # or Ctrl-C would wait for all of them
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    return found


def with_sizes(table: Table, seen: Sequence[Seen | Unreadable]) -> Table:
    """The table with the files' sizes where the annotations do not say any."""
    sizes = table.sizes.copy()
    for place in np.flatnonzero((sizes <= 0).any(1)).tolist():
        image = seen[place]
        sizes[place] = image.size if isinstance(image, Seen) else (0, 0)
    return table._replace(sizes=sizes)


def scale_of(data: Any) -> tuple[int, int] | None:
    """The size that a training's pipeline brings images to before the network's own changes of size, pixels: of its
    last step that has one; of several, the largest.

    Args:
        data: the config of its data set, with those inside of it.
    """
    for part in _nested(data):
        for step in reversed(part.get("pipeline") or ()):
            scale = step.get("img_scale") or step.get("scale")
            if scale:
                scales = scale if isinstance(scale[0], (list, tuple)) else [scale]
                side, other = max(scales, key=lambda sides: sides[0] * sides[1])
                return int(side), int(other)
    return None


def _nested(data: Any) -> Iterator[Any]:
    """The configs of data sets, from the outside to the inside."""
    for part in data if isinstance(data, (list, tuple)) else [data]:
        yield part
        inner = part.get("datasets", part.get("dataset"))
        if inner is not None:
            yield from _nested(inner)


def factors(sizes: Array, scale: tuple[int, int]) -> Array:
    """By how much `Resize` enlarges images of these sizes [I, 2], pixels, which keeps their ratio; 1 for size 0."""
    short, long = np.maximum(sizes.min(1), 1e-9), np.maximum(sizes.max(1), 1e-9)
    return np.where(sizes.min(1) > 0, np.minimum(max(scale) / long, min(scale) / short), 1.0)
