"""--val-fraction: the images of one annotation file shared out to training and validation."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from ..core.coco_json import LISTS, CocoFile
from . import annotations
from .layouts import Layout, Part
from .messages import InputError

FOLDER = "split"  # in the work directory


class Split(NamedTuple):
    """The two annotation files that are to be, as JSON, and how they came about."""

    train: str
    val: str
    val_images: int

    def files(self, work_dir: Path) -> dict[Path, str]:
        """The text of each file of this split."""
        parts = split_parts(work_dir, Path())
        return {parts["train"].annotations: self.train, parts["val"].annotations: self.val}


def split_parts(work_dir: Path, images: Path) -> dict[str, Part]:
    """What each split of a config reads then, from the one folder of images."""
    train, val = (Part(work_dir.absolute() / FOLDER / f"{name}.json", images) for name in ("train", "val"))
    return {"train": train, "val": val, "test": val}


def plan_split(root: Path, layout: Layout, fraction: float, seed: int) -> Split:
    """A share `fraction` of the images of each class for validation, drawn with `seed`, each image as a whole.

    Raises:
        InputError: the data set is split already, or so small that training or validation would have no image.
    """
    if layout.is_split:
        raise InputError(f"--val-fraction: --data-path {root} is split already, as {layout.name}")
    path = layout.train.annotations
    file = annotations.read_file(path)
    content = file.content
    val = draw_images(content["images"], content["annotations"], fraction, random.Random(seed))
    if all(entry["image_id"] in val for entry in content["annotations"]):
        raise InputError(f"--val-fraction={fraction:g} leaves no box of {path} for the training")
    if not 0 < len(val) < len(content["images"]):
        raise InputError(
            f"--val-fraction={fraction:g} leaves {len(val)} of the {len(content['images'])} images of {path} for"
            " validation: both it and the training need one"
        )
    record = {"file": path.name, "val_fraction": fraction, "seed": seed}
    others = {name: value for name, value in content.items() if name not in LISTS}
    head = json.dumps({**others, "split": record})[:-1]
    train_text, val_text = (
        f'{head}, "images": [{_texts(file, "images", "id", val, inside)}],'
        f' "annotations": [{_texts(file, "annotations", "image_id", val, inside)}]}}'
        for inside in (False, True)
    )
    return Split(train_text, val_text, len(val))


def _texts(file: CocoFile, kind: str, key: str, images: set[Any], inside: bool) -> str:
    """The entries of a kind whose image is one of `images`, or none of them."""
    entries = enumerate(file.content[kind])
    return ", ".join(file.entry(kind, place) for place, entry in entries if (entry[key] in images) == inside)


def draw_images(images: list[Any], boxes: list[Any], fraction: float, rng: random.Random) -> set[Any]:
    """The ids of the images for validation, all of one file together: the rarest classes choose first, as in iterative
    stratification (Sechidis, Tsoumakas, Vlahavas, 2011), and images without boxes last."""
    files = {image["id"]: image.get("file_name", image["id"]) for image in images}
    classes: dict[Any, set[Any]] = {file: set() for file in files.values()}
    for entry in boxes:
        if entry["image_id"] in files:
            classes[files[entry["image_id"]]].add(entry["category_id"])
    for found in classes.values():
        found.update([] if found else [None])
    order = list(classes)
    rng.shuffle(order)
    counts = Counter(name for found in classes.values() for name in found)
    # How many more images of each class validation is to get.
    wanted = {name: round(count * fraction) for name, count in counts.items()}
    val, decided = set(), set()
    for name in sorted(counts, key=lambda name: (name is None, counts[name], str(name))):
        for file in order:
            if name not in classes[file] or file in decided:
                continue
            decided.add(file)
            if wanted[name] > 0:
                val.add(file)
                for other in classes[file]:
                    wanted[other] -= 1
    return {image for image, file in files.items() if file in val}
