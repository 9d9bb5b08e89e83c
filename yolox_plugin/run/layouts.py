"""Where a data set's annotations and images lie under --data-path, in the layouts that people have."""

from pathlib import Path
from typing import NamedTuple

from .messages import InputError


class Part(NamedTuple):
    """An annotation file and the folder in which the names in it are found."""

    annotations: Path
    images: Path


class Layout(NamedTuple):
    """What was found. A data set that nobody has split has its one annotation file as `train`."""

    name: str
    train: Part
    val: Part | None

    @property
    def is_split(self) -> bool:
        """Whether there is a part for validation."""
        return self.val is not None and self.val.annotations.is_file()


class Form(NamedTuple):
    """How a layout names its files. `images` are tried in this order."""

    name: str
    train: str
    val: str
    annotations: str
    images: tuple[str, ...]


IMAGES = ("{}", "images/{}", "{}2017", "images", ".")
FORMS = (
    Form("COCO 2017", "train", "val", "annotations/instances_{}2017.json", ("{}2017",)),
    Form("annotations/train.json", "train", "val", "annotations/{}.json", IMAGES),
    Form("annotations/instances_train.json", "train", "val", "annotations/instances_{}.json", IMAGES),
    Form("Roboflow", "train", "valid", "{}/_annotations.coco.json", ("{}",)),
)
# A data set that nobody has split.
SINGLE = ("annotations.json", "_annotations.coco.json", "annotations/annotations.json", "annotations/instances.json")


def find_layout(root: Path) -> Layout:
    """The layout of the data set under `root`: the first of which a file is there.

    Raises:
        InputError: none is, or `root` is no folder.
    """
    if not root.is_dir():
        raise InputError(f"--data-path {root} is not a folder")
    for form in FORMS:
        train, val = (_part(root, form, split) for split in (form.train, form.val))
        if train.annotations.is_file() or val.annotations.is_file():
            return Layout(form.name, train, val)
    for name in SINGLE:
        if (root / name).is_file():
            folder = "images" if (root / "images").is_dir() else "."
            return Layout(name, Part(root / name, root / folder), None)
    looked_for = [form.annotations.format(form.train) for form in FORMS] + list(SINGLE)
    raise InputError(f"--data-path {root} has no {', no '.join(looked_for)}")


def _part(root: Path, form: Form, split: str) -> Part:
    """Where this layout has a split, whether it is there or not."""
    folders = [root / folder.format(split) for folder in form.images]
    images = next((folder for folder in folders if folder.is_dir()), folders[0])
    return Part(root / form.annotations.format(split), images)


def part_of(layout: Layout, split: str) -> Part:
    """What a split of a config, "train", "val" or "test", reads of this data set; all of it if it is not split."""
    return layout.train if split == "train" or layout.val is None else layout.val
