"""Which files MMDetection 3's data sets read, and what it does not read of them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmdet.datasets
from mmdet.registry import DATASETS
from mmengine.config import Config

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
        part = f"{split}_dataloader.dataset"
        parts = list(leaves(cfg[f"{split}_dataloader"].dataset))
        if split != "train" and len(parts) != 1:
            raise InputError(f"{part} must be one data set with one annotation file, whose figures are reported")
        for leaf in parts:
            classes = classes_of(leaf, part)
            root, prefix = leaf.get("data_root") or "", leaf.get("data_prefix") or {}
            kept = leaf.get("filter_cfg") or {}
            found.append(
                Source(
                    part, leaf.type, Path(root, leaf.ann_file), Path(root, prefix.get("img", "")), classes,
                    training=split == "train", sizes=True, keeps_empty=not kept.get("filter_empty_gt", False),
                    min_size=kept.get("min_size", 0), byte_order_mark=False,
                )
            )  # fmt: skip
    return found


def classes_of(leaf: Any, part: str) -> Sequence[str]:
    """The classes of a data set that reads COCO's annotations.

    Raises:
        InputError: it is another kind, or has no good classes.
    """
    kind = class_of(leaf, DATASETS)
    if kind is None or not issubclass(kind, mmdet.datasets.CocoDataset):
        raise InputError(f"{part} must be read by a CocoDataset, got {leaf.get('type')}")
    classes = (leaf.get("metainfo") or {}).get("classes")
    if isinstance(classes, str):
        if not os.path.isfile(classes):
            raise InputError(
                f"metainfo.classes={classes!r} of {part} is a string, which MMDetection takes for a file with a class a"
                f" line, and there is none: for one class write ({classes!r},)"
            )
        classes = Path(classes).read_text().splitlines()
    wanted: Sequence[str] = kind.METAINFO["classes"] if classes is None else classes
    if not all(isinstance(name, str) for name in wanted):
        raise InputError(f"metainfo.classes of {part} must be names, got {wanted!r:.60}")
    if len(set(wanted)) < len(wanted):
        raise InputError(f"metainfo.classes of {part} must differ, got {in_words(wanted)}")
    return wanted
