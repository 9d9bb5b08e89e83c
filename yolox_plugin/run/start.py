"""What a training begins with, beside its config: classes, a split and weights that the command has found or made."""

import argparse
import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import annotations, folders, initial_weights, splits
from .annotations import Checked, Counts, classes_in
from .initial_weights import Fitting, fitting_weights
from .layouts import Layout, find_layout
from .messages import InputError
from .splits import Split

# The classes of the training annotations, for the processes that a command starts, so that not each reads these again.
CLASSES = "YOLOX_PLUGIN_CLASSES"


class Ready(NamedTuple):
    """What the checks of a training have found."""

    data: Checked
    split: Split | None
    weights: Fitting | None


def own_classes(paths: Sequence[Path]) -> list[str]:
    """The classes of a training's annotations, in the order of the file; none if there are several files, or none,
    which the checks tell."""
    if len(paths) != 1:
        return []
    if given := os.environ.get(CLASSES):
        found: list[str] = json.loads(given)
        return found
    return classes_in(paths[0]) if os.path.isfile(paths[0]) else []


def check_start(args: argparse.Namespace, data: Checked, model: Any) -> Ready:
    """What a training begins with, of data that has been checked.

    Raises:
        InputError: validation has no data set of its own; --load-from has nothing for it.
    """
    train, *others = [counts.source for counts in data.files]
    val = [source for source in others if not source.training]
    split = None
    if args.val_fraction is not None:
        split = plan(args, [counts.source.path for counts in data.files])
    elif val and val[0].path == train.path == _unsplit(args):
        raise InputError(
            f"--data-path {args.data_path} has one annotation file, {train.path.name}: --val-fraction=0.1 keeps a tenth"
            " of its images for validation"
        )
    weights = fitting_weights(model, args.load_from, list(data.labels)) if args.load_from else None
    return Ready(data, split, weights)


def _unsplit(args: argparse.Namespace) -> Path | None:
    layout = find_layout(args.data_path.absolute())
    return None if layout.is_split else layout.train.annotations


def plan(args: argparse.Namespace, read: Sequence[Path]) -> Split:
    """See `splits.plan_split`. Raises InputError too if the config reads other files than this one."""
    root = args.data_path.absolute()
    layout: Layout = find_layout(root)
    if set(read) != {layout.train.annotations}:
        raise InputError("--val-fraction is for configs whose training reads one annotation file")
    return splits.plan_split(root, layout, args.val_fraction, args.seed)


def write(work_dir: Path, ready: Ready) -> None:
    """Writes to `work_dir` what the config is to read from there, and keeps indexes of annotations.

    Raises:
        InputError: something else is there under such a name.
    """
    files: dict[Path, Callable[[Path], object]] = {}
    if ready.split is not None:
        for path, text in ready.split.files(work_dir).items():
            files[path] = functools.partial(Path.write_text, data=text, encoding="utf-8")
    if ready.weights is not None:
        files[work_dir / initial_weights.FILE] = ready.weights.write
    folders.write_new(work_dir, files)
    ready.data.keep_indexes()


def describe(config: str, device: str, devices: int, batch_size: int, length: str, work_dir: str, ready: Ready) -> str:
    """What is going to be trained on what, in a few lines.

    Args:
        length: of the training, in words.
    """
    train = [counts for counts in ready.data.files if counts.source.training]
    val = [counts for counts in ready.data.files if not counts.source.training]
    boxes: dict[str, int] = dict.fromkeys(ready.data.labels, 0)
    for counts in train:
        for name, count in counts.boxes.items():
            boxes[name] += count
    parts = [f"{in_words(train)} for training"]
    if ready.split is not None:
        [kept] = val
        parts = [f"{in_words([kept])}, of which {ready.split.val_images} images are for validation"]
    elif val:
        parts.append(f"{in_words(val)} for validation")
    lines = {
        "data": "; ".join(parts),
        "classes": f"{len(boxes)}, with boxes: " + ", ".join(f"{name} {count}" for name, count in boxes.items()),
        "training": f"{config}, {length}, {batch_size} images at a time on {devices} {device}",
        "begins": f"with {ready.weights}" if ready.weights else "",
        "writes to": work_dir,
    }
    return "\n".join(f"{name:<10}{words}" for name, words in lines.items() if words)


def in_words(files: list[Counts]) -> str:
    """How much is in annotation files, and which they are."""
    images, boxes = sum(file.images for file in files), sum(sum(file.boxes.values()) for file in files)
    return f"{images} images with {boxes} boxes in {annotations.in_words(str(file.source.path) for file in files)}"
