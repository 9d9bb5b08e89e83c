"""What is checked in data sets: annotation files field by field, classes, and that images are there."""

import codecs
import functools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from ..core import annotation_index
from ..core.annotation_index import AnnotationIndex
from ..core.coco_json import CocoFile, read_coco
from .messages import InputError, warn


class Source(NamedTuple):
    """An annotation file with its images, and what MMDetection reads of them."""

    part: str  # of the config, where a data set names it
    kind: str  # of that data set
    path: Path
    folder: Path
    classes: Sequence[str]
    training: bool
    sizes: bool  # whether it reads the size of each image, and boxes as in training
    keeps_empty: bool
    min_size: int  # pixels: it trains on no smaller images
    byte_order_mark: bool  # whether it reads a file that begins with one


class Counts(NamedTuple):
    """What is in an annotation file."""

    source: Source
    images: int
    boxes: dict[str, int]  # of each class, in the order of labels


class Checked(NamedTuple):
    """What was found in annotation files that can be used."""

    labels: dict[str, int]  # each class's
    files: list[Counts]
    indexes: list[tuple[AnnotationIndex, Path]]  # of large files to train on that have none

    def keep_indexes(self) -> None:
        """Keeps them for the data sets, so that these read no file again; here they take no memory then."""
        while self.indexes:
            annotation_index.keep(*self.indexes.pop())


def check_data(sources: Iterable[Source], root: Path | None, heads: int | None, images: bool = True) -> Checked:
    """What is in the annotation files, if they fit the config and every image file has an image's beginning.

    Args:
        root: --data-path, if it was given.
        heads: for how many classes the config's head is, if it says so.
        images: whether image files are looked at.

    Raises:
        InputError: something is missing or wrong.
    """
    if root is not None and not root.is_dir():
        raise InputError(f"--data-path {root} is not a folder")
    known: dict[str, tuple[int, Path]] = {}
    files: list[Counts] = []
    indexes: list[tuple[AnnotationIndex, Path]] = []
    trained: Source | None = None  # if the config's classes are all that it has
    for source in sources:
        if trained is not None and not source.training and os.path.isfile(source.path):
            check_same_classes(source.path, trained.classes, trained.path)
        files.append(check_file(source, root, heads, images))
        if source.training and list(source.classes) == classes_in(source.path):
            trained = source
        check_labels(known, list(files[-1].boxes), source.path)
        is_large = source.path.stat().st_size >= annotation_index.LARGE
        if source.training and is_large and annotation_index.find(source.path.absolute()) is None:
            index = annotation_index.build(read_file(source.path))
            indexes += [(index, source.path)] if index is not None else []
    _read.cache_clear()
    return Checked({name: label for name, (label, _) in known.items()}, files, indexes)


def check_file(source: Source, root: Path | None, heads: int | None, images: bool) -> Counts:
    """Checks an annotation file and its images."""
    path = source.path
    if not os.path.isfile(path):
        if root is not None and path.is_relative_to(root):
            raise InputError(f"--data-path {root} has no {path.relative_to(root)}")
        raise InputError(f"{path}, the ann_file of {source.part}, does not exist")
    content = check_annotations(source)
    labels = check_classes(source, content["categories"], heads)
    check_gts(source, content)
    if images:
        check_images(source.folder, [image["file_name"] for image in content["images"]], path)
    names = {category["id"]: category["name"] for category in content["categories"]}
    boxes = Counter(names.get(entry["category_id"]) for entry in content["annotations"])
    return Counts(source, len(content["images"]), {name: boxes[name] for name in labels})


def check_labels(known: dict[str, tuple[int, Path]], labels: Sequence[str], path: Path) -> None:
    """Raises InputError if a class has another label in this file than in one before it.

    Args:
        known: each class's label, and the file that it is from.
    """
    for label, name in enumerate(labels):
        expected, other = known.setdefault(name, (label, path))
        if label != expected:
            raise InputError(
                f"{name} is label {label} in {path} but {expected} in {other}, as MMDetection numbers the classes that"
                " a file has in its order: give both the same categories"
            )


def in_words(names: Iterable[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= 80 else f"{text[:77]}..."


SURROGATE = re.compile("[\ud800-\udfff]")  # no character, and OpenCV crashes at a file name with one

Rule = tuple[str, Callable[[Any], bool], str]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max  # which a NaN is not


def _is_box(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(map(_is_number, value))


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and not SURROGATE.search(value)


def _is_id(value: Any) -> bool:
    return _is_number(value) or isinstance(value, str)


ID: list[Rule] = [("id", _is_id, "a number or a string")]

IMAGES: list[Rule] = [*ID, ("file_name", _is_text, "the name of a file")]

SIZES: list[Rule] = [(side, _is_positive, "a number of pixels") for side in ("width", "height")]

CATEGORIES: list[Rule] = [*ID, ("name", _is_text, "a name")]

ANNOTATIONS: list[Rule] = [*ID, *((f"{to}_id", _is_id, "the id of an entry") for to in ("image", "category"))]

BOXES: list[Rule] = [
    ("bbox", _is_box, "4 finite numbers, x, y, width and height"),
    ("area", _is_number, "a number of pixels"),
]

CROWDS: list[Rule] = [("iscrowd", _is_number, "0 or 1")]


def _problem(kind: str, place: int, entry: Any, rules: Iterable[Rule]) -> str | None:
    """What is wrong with an entry of an annotation file, in words that name its id and the field."""
    if not isinstance(entry, dict):
        return f"{kind} number {place} must be an object, got {entry!r:.40}"
    for field, fits, expected in rules:
        if field not in entry or not fits(entry[field]):
            name = f"number {place}" if field == "id" else f"{entry['id']}"
            got = f"must be {expected}, got {entry[field]!r:.40}" if field in entry else "is missing"
            return f"{field} of {kind} {name} {got}"
    return None


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        others = f", and {len(problems) - 1} more like it" if len(problems) > 1 else ""
        raise InputError(f"{path}: {problems[0]}{others}")


def check_entries(path: Path, kind: str, entries: Sequence[Any], rules: Sequence[Rule]) -> None:
    """Raises InputError unless every entry has what the rules ask for and an id of its own."""
    found = (_problem(kind, place, entry, rules) for place, entry in enumerate(entries))
    _refuse(path, [problem for problem in found if problem])
    if len({isinstance(entry["id"], str) for entry in entries}) > 1:
        raise InputError(f"{path}: ids of {kind} entries must be all numbers or all strings")
    ids = Counter(entry["id"] for entry in entries)
    _refuse(path, [f"{count} entries have the {kind} id {name!r}" for name, count in ids.items() if count > 1])


def read_annotations(path: Path) -> dict[str, list[Any]]:
    """An annotation file's lists, see `read_file`."""
    content: dict[str, list[Any]] = read_file(path).content
    return content


def read_file(path: Path) -> CocoFile:
    """An annotation file, which nobody may change: until `check_data` ends, the last one stays in memory.

    Raises:
        InputError: it is none.
    """
    about = path.stat()
    return _read(path, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=1)
def _read(path: Path, *_: int) -> CocoFile:
    try:
        file = read_coco(path)
    except (ValueError, RecursionError) as error:  # also of numbers and depths that Python refuses
        raise InputError(f"{path} is no JSON file: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(file.content, dict) or not all(isinstance(file.content.get(part), list) for part in parts):
        raise InputError(f"{path} must be an object with the lists {', '.join(parts)}")
    return file


def _begins_with_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def classes_in(path: Path) -> list[str]:
    """The names of an annotation file's categories, in its order, in which MMDetection numbers the labels.

    Not that of a group: Roboflow adds one, which is named as the `supercategory` of the others and has no box.

    Raises:
        InputError: it is no annotation file, or a category has no name, or two have the same.
    """
    content = read_annotations(path)
    categories = content["categories"]
    check_entries(path, "category", categories, CATEGORIES)
    groups = [entry.get("supercategory") for entry in categories if entry.get("supercategory") != entry["name"]]
    if any(entry["name"] in groups for entry in categories):
        used = _used(path)
        left_out = [entry["name"] for entry in categories if entry["name"] in groups and entry["id"] not in used]
        if left_out:
            warn(f"{path}: no class, but a group without boxes of its own: {in_words(left_out)}")
        categories = [entry for entry in categories if entry["name"] not in groups or entry["id"] in used]
    names = Counter(entry["name"] for entry in categories)
    _refuse(path, [f"{count} categories are named {name}" for name, count in names.items() if count > 1])
    if not names:
        raise InputError(f"{path} has no categories")
    return list(names)


def _used(path: Path) -> set[Any]:
    """The ids of the categories that have boxes."""
    annotations = read_annotations(path)["annotations"]
    check_entries(path, "annotation", annotations, ANNOTATIONS)
    return {entry["category_id"] for entry in annotations}


def check_same_classes(path: Path, classes: Sequence[str], trained: Path) -> None:
    """Raises InputError if an annotation file has boxes of other categories than `classes`, those of `trained`, or
    lacks one of these."""
    categories = read_annotations(path)["categories"]
    check_entries(path, "category", categories, CATEGORIES)
    used = _used(path)
    extra = [entry["name"] for entry in categories if entry["name"] not in classes and entry["id"] in used]
    lacking = [name for name in classes if name not in [entry["name"] for entry in categories]]
    if extra or lacking:
        words = [f"{verb} {in_words(names)}" for verb, names in (("has", extra), ("lacks", lacking)) if names]
        raise InputError(
            f"the categories of {path} differ from those of {trained}: it {' and '.join(words)}; give both the same"
        )


def check_annotations(source: Source) -> dict[str, list[dict[str, Any]]]:
    """The content of an annotation file that has everything that MMDetection, and in validation pycocotools, read.

    Raises:
        InputError: for the first problem of each kind, with the file, the id and the field.
    """
    path, training = source.path, source.training
    content = read_annotations(path)
    if not source.byte_order_mark and _begins_with_mark(path):
        raise InputError(f"{path} begins with a byte order mark, which {source.kind} does not read: save it without")
    if not content["images"]:
        raise InputError(f"{path} lists no images")
    check_entries(path, "image", content["images"], [*IMAGES, *SIZES] if source.sizes else IMAGES)
    check_entries(path, "category", content["categories"], CATEGORIES)
    check_entries(path, "annotation", content["annotations"], ANNOTATIONS)
    images, categories = ({entry["id"] for entry in content[part]} for part in ("images", "categories"))
    read = [entry for entry in content["annotations"] if entry["image_id"] in images]
    if training:
        read = [entry for entry in read if not entry.get("ignore")]
    check_entries(path, "annotation", read, [*ID, *BOXES] if training else [*ID, *BOXES, *CROWDS])
    strange = {
        "image_id": sum(entry["image_id"] not in images for entry in content["annotations"]),
        "category_id": sum(entry["category_id"] not in categories for entry in content["annotations"]),
    }
    for field, count in strange.items():
        if count:
            warn(f"{path}: the {field} of {count} of {len(content['annotations'])} annotations is unknown, left out")
    return content


def check_classes(source: Source, categories: Sequence[dict[str, Any]], heads: int | None) -> list[str]:
    """The config's classes that a file has, in the order of its categories, in which MMDetection numbers the labels.

    Raises:
        InputError: it has none, or one twice, or the head is for another number of classes.
    """
    path, wanted = source.path, source.classes
    found = [category["name"] for category in categories]
    labels = [name for name in found if name in wanted]
    if not labels:
        raise InputError(
            f"{path} has none of the config's {len(wanted)} classes ({wanted[0]}, ...) but"
            f" {in_words(sorted(found))}: name a --config whose data sets have these `classes`"
        )
    _refuse(path, [f"{count} categories are named {name}" for name, count in Counter(labels).items() if count > 1])
    if heads not in (None, len(wanted)):
        raise InputError(f"the config has {len(wanted)} classes but model.bbox_head.num_classes={heads}")
    lacking = [name for name in wanted if name not in labels]
    if lacking:
        warn(f"{path} lacks {len(lacking)} of the config's {len(wanted)} classes: {', '.join(lacking)}")
    return labels


def count_gts(content: dict[str, Any], wanted: Sequence[str], training: bool) -> Counter[Any]:
    """How many annotations of the config's classes that are no crowd each image has, by its id."""
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"] if category["name"] in wanted}
    left_out = ("iscrowd", "ignore") if training else ("iscrowd",)
    return Counter(
        entry["image_id"]
        for entry in content["annotations"]
        if entry["image_id"] in images
        and entry["category_id"] in categories
        and not any(entry.get(key) for key in left_out)
    )


def labels_of(sources: Iterable[Source]) -> dict[str, int]:
    """Each class's label in files that `check_data` has passed."""
    known: dict[str, int] = {}
    for source in sources:
        index = annotation_index.open_index(source.path)
        categories = json.loads(source.path.read_bytes())["categories"] if index is None else index.categories
        names = [category["name"] for category in categories]
        for label, name in enumerate(name for name in names if name in source.classes):
            known.setdefault(name, label)
    return known


def has_gts(source: Source) -> bool:
    """Whether a file that `check_data` has passed has anything to evaluate with."""
    return bool(count_gts(json.loads(source.path.read_bytes()), source.classes, training=False))


def check_gts(source: Source, content: dict[str, Any]) -> None:
    """Raises InputError if there is nothing to train on, and warns if there is nothing to evaluate with."""
    path = source.path
    gts = count_gts(content, source.classes, source.training)
    if not source.training:
        if not gts:
            warn(f"{path} has no annotation of the config's classes: mAP will be null")
        return
    if not gts:
        raise InputError(f"{path} has no annotation of the config's classes to train on")
    for image in content["images"]:
        if min(image["width"], image["height"]) >= source.min_size and (gts[image["id"]] or source.keeps_empty):
            return
    raise InputError(
        f"{path}: MMDetection leaves out all images, as of less than {source.min_size} pixels or unannotated"
    )


def _begins_as_image(path: Path) -> bool:
    # At a pipe, OpenCV would wait for ever.
    return os.path.isfile(path) and cv2.haveImageReader(str(path))


def check_images(folder: Path, names: Sequence[str], annotations: Path) -> None:
    """Raises InputError if files are missing or do not begin as images do."""
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder")
    with ThreadPoolExecutor(16) as pool:  # waits for the disk more than it computes
        readable = list(pool.map(lambda name: _begins_as_image(folder / name), names))
    bad = [name for name, good in zip(names, readable, strict=True) if not good]
    if bad:
        problem = "is no readable image" if os.path.exists(folder / bad[0]) else "does not exist"
        others = f", and {len(bad) - 1} more like it" if len(bad) > 1 else ""
        raise InputError(f"{folder / bad[0]!s:.300}, which {annotations.name} lists, {problem}{others}")
