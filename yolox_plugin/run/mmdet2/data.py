"""Which files MMDetection 2.28's data sets read, and what it does not read of them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmdet.datasets
from mmcv import Config
from mmdet.datasets import DATASETS

from ...mmdet2.dataset import CocoDataset, MultiImageMixDataset
from ..annotations import Source, in_words
from ..configs import class_of, leaves
from ..messages import InputError


def sources(cfg: Config, splits: Sequence[str]) -> list[Source]:
    """The annotation files of the config's data sets.

    Raises:
        InputError: they are of a kind that the commands do not know.
    """
    found = []
    for split in splits:
        check_nesting(cfg.data[split], split)
        for leaf in leaves(cfg.data[split]):
            classes = classes_of(leaf, split)
            training = split == "train"
            found += [
                Source(
                    f"data.{split}", leaf.type, path, folder, classes, training, sizes=training,
                    keeps_empty=not leaf.get("filter_empty_gt", True), min_size=32,
                    byte_order_mark=_is_ours(leaf.type, CocoDataset),
                )
                for path, folder in files_of(leaf)
            ]  # fmt: skip
    return found


def files_of(leaf: Any) -> list[tuple[Path, Path]]:
    """Annotation files and image folders that a data set of this config reads, as MMDetection finds them."""
    root = leaf.get("data_root") or ""
    paths = leaf.ann_file if isinstance(leaf.ann_file, (list, tuple)) else [leaf.ann_file]
    prefix = leaf.get("img_prefix") or ""
    prefixes = prefix if isinstance(prefix, (list, tuple)) else [prefix] * len(paths)
    return [(Path(root, path), Path(root, folder)) for path, folder in zip(paths, prefixes, strict=True)]


def check_nesting(data: Any, split: str, around: tuple[str, ...] = ()) -> None:
    """Raises InputError for data sets around data sets that do not work.

    Args:
        around: the types of those outside of `data`.
    """
    if split != "train":
        if isinstance(data, (list, tuple)) or "dataset" in data or "datasets" in data or len(files_of(data)) != 1:
            raise InputError(f"data.{split} must be one data set with one annotation file, whose figures are reported")
        return
    if isinstance(data, (list, tuple)):
        for part in data:
            check_nesting(part, split, (*around, "ConcatDataset"))
        return
    if data.type == "MultiImageMixDataset" and "ClassBalancedDataset" in around:
        raise InputError(
            "data.train has a MultiImageMixDataset in a ClassBalancedDataset, which asks it for classes that it does"
            " not tell: put the ClassBalancedDataset inside"
        )
    if data.type == "MultiImageMixDataset" and around and not _is_ours(data.type, MultiImageMixDataset):
        raise InputError(
            f"data.train has a MultiImageMixDataset in a {around[-1]}: MMDetection's hooks, without the plugin's"
            " training part, find only an outermost one"
        )
    for key in ("dataset", "datasets"):
        if key in data:
            check_nesting(data[key], split, (*around, data.type))


def _is_ours(name: str, ours: type) -> bool:
    """Whether the data set registered under this name is the plugin's, or the user's own kind of it."""
    return issubclass(DATASETS.get(name), ours)


def classes_of(leaf: Any, split: str) -> Sequence[str]:
    """The classes of a data set that reads COCO's annotations.

    Raises:
        InputError: it is another kind, or has no good classes.
    """
    kind = class_of(leaf, DATASETS)
    if kind is None or not issubclass(kind, mmdet.datasets.CocoDataset):
        raise InputError(f"data.{split} must be read by a CocoDataset, got {leaf.get('type')}")
    classes = leaf.get("classes")
    if isinstance(classes, str) and not os.path.isfile(classes):
        raise InputError(
            f"classes={classes!r} of data.{split} is a string, which MMDetection takes for a file with a class a line,"
            f" and there is none: for one class write ({classes!r},)"
        )
    wanted: Sequence[str] = kind.get_classes(classes)
    if not all(isinstance(name, str) for name in wanted):
        raise InputError(f"classes of data.{split} must be names, got {wanted!r:.60}")
    if len(set(wanted)) < len(wanted):
        raise InputError(f"classes of data.{split} must differ, got {in_words(wanted)}")
    return wanted
