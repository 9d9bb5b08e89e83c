"""The entries of an annotation file in one block of memory, by image, which the processes of a machine share."""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import mmap
import os
import stat
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .coco_json import LISTS, CocoFile, read_coco, state_of
from .images import Array

# Bytes of an annotation file from which on its index is kept in a file: below, reading it again takes less than 1 s.
LARGE = 2**24
MAGIC = b"yolox_ops index2"
SUFFIX = ".yolox_index"
# Of a folder that is read-only or full, or has something else under that name.
CANNOT_WRITE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip


class AnnotationIndex:
    """Images with their annotations in the order in which pycocotools gives them. Whoever reads it changes no reference
    counts, so forked workers copy nothing.

    Args:
        buffer: what `build` has put together.
        kept: the file that it is mapped from.

    Attributes:
        categories: as in the file.
        ids: of images.
        sizes: [n, 2] float64, width and height.
    """

    def __init__(self, buffer: Any, kept: Path | None = None) -> None:
        self.buffer, self.kept = buffer, kept
        self.about, begin = _header(buffer)
        arrays = {name: np.frombuffer(buffer, dtype, count, begin + offset)
                  for name, (dtype, count, offset) in self.about["arrays"].items()}  # fmt: skip
        self.ids: list[Any] = json.loads(arrays["ids"].tobytes())
        self.sizes: Array = arrays["sizes"].reshape(-1, 2)
        self._images, self._image_ends = arrays["images"], arrays["image_ends"]
        self._annotations, self._annotation_ends = arrays["annotations"], arrays["annotation_ends"]
        self._labels, self._counts, self._order = arrays["labels"], arrays["counts"], arrays["order"]
        self._others = arrays["others"]
        self.categories: list[dict[str, Any]] = json.loads(self._others.tobytes())["categories"]

    def __len__(self) -> int:
        return len(self.ids)

    def __deepcopy__(self, memo: Any) -> "AnnotationIndex":
        return self  # nobody can change it

    def __reduce__(self) -> Any:
        if self.kept is None:
            return AnnotationIndex, (bytes(self.buffer),)
        return _map_again, (self.kept, self.about)

    def image(self, place: int) -> dict[str, Any]:
        """An entry of `images`, the caller's own."""
        found: dict[str, Any] = json.loads(_cut(self._images, self._image_ends, place))
        return found

    def annotations(self, place: int) -> list[dict[str, Any]]:
        """Those of an image, the caller's own; behind the last image, those of images that are not there."""
        found: list[dict[str, Any]] = json.loads(b"[%b]" % _cut(self._annotations, self._annotation_ends, place))
        return found

    def content(self) -> dict[str, Any]:
        """The value of the whole file, the caller's own."""
        found: dict[str, Any] = json.loads(self._others.tobytes())
        found["images"] = [self.image(place) for place in range(len(self))]
        entries = [entry for place in range(len(self) + 1) for entry in self.annotations(place)]
        found["annotations"] = [entries[place] for place in self._order.argsort()]
        return found

    @cached_property
    def places(self) -> dict[Any, int]:
        """The place of each image by its id."""
        return {id_: place for place, id_ in enumerate(self.ids)}

    def has_any(self, categories: Collection[Any]) -> Array:
        """[n] bool: whether an image has an annotation of one of these categories, which are ids."""
        wanted = np.array([*(category["id"] in categories for category in self.categories), False])
        images = np.repeat(np.arange(len(self) + 1), self._counts)[wanted[self._labels]]
        found: Array = np.bincount(images, minlength=len(self) + 1)[: len(self)] > 0
        return found

    def chosen(self, min_size: float, categories: Collection[Any] | None) -> Array:
        """The places of images whose sides have `min_size` pixels and, unless it is None, that have any of these
        `categories`."""
        chosen: Array = self.sizes.min(1, initial=np.inf) >= min_size
        if categories is not None:
            chosen &= self.has_any(categories)
        places: Array = chosen.nonzero()[0]
        return places


def as_coco(kind: Any, content: dict[str, Any]) -> Any:
    """What MMDetection's class `kind` for pycocotools' index makes of a file with this content, or a part of it."""
    coco = kind()
    coco.dataset = content
    coco.createIndex()
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
    return coco


def _cut(texts: Array, ends: Array, place: int) -> bytes:
    return texts[ends[place - 1] if place else 0 : ends[place]].tobytes()


def open_index(ann_file: str | os.PathLike[str]) -> AnnotationIndex | None:
    """The index of an annotation file: the kept one, or a new one, which is kept if the file is large. Processes that
    ask for the same one at a time wait for the first. None for a file with something unusual in it.

    Raises:
        ValueError: it is no JSON.
    """
    path = Path(os.path.abspath(ann_file))
    if path.stat().st_size < LARGE:
        return build(read_coco(path))
    found = find(path)
    if found is not None:
        return found
    with _locked():
        found = find(path)
        if found is not None:
            return found
        _log(f"reading {path} ({path.stat().st_size / 1e6:.0f} MB), once for all processes of this machine")
        built = build(read_coco(path))
        return None if built is None else _keep(built, path)


def keep(index: AnnotationIndex, ann_file: Path) -> None:
    """Keeps the index of a large annotation file for whoever opens it, unless that is kept already."""
    path = Path(os.path.abspath(ann_file))
    if index.about["state"][0] < LARGE or find(path) is not None:
        return
    with _locked():
        _keep(index, path)


def build(file: CocoFile) -> AnnotationIndex | None:
    """The index of what has been read. None if images or annotations have no ids of their own, or lack what MMDetection
    asks for, so that its own code has to say what then."""
    content = file.content
    if not {"images", "annotations"} <= file.spans.keys() or not isinstance(content.get("categories"), list):
        return None
    images, annotations, categories = content["images"], content["annotations"], content["categories"]
    if not (_have_ids(images) and _have_ids(annotations) and _have_ids(categories)):
        return None
    if not all(map(_is_usual_image, images)) or not all(map(_is_usual_annotation, annotations)):
        return None
    if not all(isinstance(entry.get("name"), str) for entry in categories):
        return None
    places = {image["id"]: place for place, image in enumerate(images)}
    labels = {category["id"]: label for label, category in enumerate(categories)}
    image_of = np.array([places.get(entry["image_id"], len(images)) for entry in annotations], np.int64)
    order = image_of.argsort(kind="stable")
    counts = np.bincount(image_of, minlength=len(images) + 1)
    label_of = np.array([labels.get(entry["category_id"], -1) for entry in annotations], np.int32)
    texts, text_ends = _joined(file.entry("images", place) for place in range(len(images)))
    walk = iter(order.tolist())
    groups = (",".join(file.entry("annotations", next(walk)) for _ in range(count)) for count in counts.tolist())
    grouped, group_ends = _joined(groups)
    sizes = np.array([(image["width"], image["height"]) for image in images], np.float64)
    others = {name: value for name, value in content.items() if name not in LISTS}
    arrays = {
        "sizes": sizes, "image_ends": text_ends, "annotation_ends": group_ends, "counts": counts, "order": order,
        "labels": label_of[order], "ids": np.frombuffer(json.dumps([*places]).encode(), np.uint8),
        "others": np.frombuffer(json.dumps(others).encode(), np.uint8),
        "images": np.frombuffer(texts, np.uint8), "annotations": np.frombuffer(grouped, np.uint8),
    }  # fmt: skip
    return AnnotationIndex(_packed({"state": file.state}, arrays))


def _have_ids(entries: Sequence[Any]) -> bool:
    """Whether each has one of its own."""
    ids = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    return len(ids) == len(entries) and all(map(_is_id, ids)) and len({*ids}) == len(ids)


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**53


def _is_usual_image(entry: dict[str, Any]) -> bool:
    width, height = entry.get("width", 0), entry.get("height", 0)
    if not _is_number(width) or not _is_number(height) or min(width, height) <= 0:
        return False
    return isinstance(entry.get("file_name"), str)


def _is_usual_annotation(entry: dict[str, Any]) -> bool:
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or not _is_number(entry.get("area")):
        return False
    return _is_id(entry.get("image_id")) and _is_id(entry.get("category_id"))


def _joined(texts: Iterator[str]) -> tuple[bytearray, Array]:
    """One after another, and where each ends."""
    joined, ends = bytearray(), []
    for text in texts:
        joined += text.encode()
        ends.append(len(joined))
    return joined, np.array(ends, np.int64)


def _packed(about: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """`AnnotationIndex`'s buffer: a header in JSON, then the arrays at multiples of 8 bytes."""
    table, pieces, length = {}, [], 0
    for name, array in arrays.items():
        table[name] = [array.dtype.str, array.size, length]
        pieces += [array.tobytes(), bytes(-array.nbytes % 8)]
        length += array.nbytes + len(pieces[-1])
    header = json.dumps({**about, "arrays": table, "length": length}).encode()
    header += b" " * (-len(header) % 8)
    return b"".join([MAGIC, len(header).to_bytes(8, "little"), header, *pieces])


def _header(buffer: Any) -> tuple[dict[str, Any], int]:
    """What it says, and where the arrays begin. Raises ValueError unless it is one."""
    begin = len(MAGIC) + 8
    end = begin + int.from_bytes(buffer[len(MAGIC) : begin], "little")
    return json.loads(bytes(buffer[begin:end])), end


def _map(kept: Path, state: list[int]) -> AnnotationIndex | None:
    """A kept index, if it is there and whole, and of an annotation file of this state."""
    try:
        with kept.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:  # whatever hinders: it was for speed alone
        return None
    try:
        about, begin = _header(mapped)
    except ValueError:  # of one that a crash of the machine has cut
        return None
    if (about["state"], begin + about["length"]) != (state, len(mapped)):
        return None
    return AnnotationIndex(mapped, kept)


def _map_again(kept: Path, about: Mapping[str, Any]) -> AnnotationIndex:
    """In a process that was not forked."""
    found = _map(kept, about["state"])
    if found is None:
        raise OSError(f"{kept} is not there any more: start again")
    return found


def find(path: Path) -> AnnotationIndex | None:
    """The kept index of an annotation file as it is now, if there is one."""
    state = state_of(path.stat())
    found = (_map(home, state) for home in _homes(path))
    return next((index for index in found if index is not None), None)


def _homes(path: Path) -> list[Path]:
    """Where an index may be kept: beside the annotation file, or where nothing can be written there, in this user's
    part of the folder for temporary files."""
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()
    return [path.with_name(path.name + SUFFIX), _own_folder() / f"{digest}{SUFFIX}"]


def _own_folder() -> Path:
    """Raises OSError if somebody else could write to it."""
    folder = Path(tempfile.gettempdir(), f"yolox_ops-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise OSError(f"{folder} must be a folder that only its owner can write to: remove it")
    return folder


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Within it, no other process of this user and machine is."""
    folder = os.open(_own_folder(), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _keep(index: AnnotationIndex, path: Path) -> AnnotationIndex:
    """The same one, mapped from a file if there is room for it; while `_locked`."""
    problems = []
    for home in _homes(path):
        # Others, whom the lock does not keep out, may do the same in a shared folder.
        part = home.with_name(f".{uuid.uuid4().hex}{SUFFIX}.part")
        try:
            if os.path.lexists(home) and not _is_index(home):
                raise FileExistsError(errno.EEXIST, "is something else", str(home))
            with part.open("xb") as file:
                file.write(index.buffer)
                file.flush()
                os.fsync(file.fileno())
            part.replace(home)
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
            problems.append(str(error))
            continue
        finally:
            part.unlink(missing_ok=True)
        found = _map(home, index.about["state"])
        if found is not None:
            _log(f"the index of {path} is kept in {home}")
            return found
    _log(f"the index of {path} is kept in the memory of each process: {'; '.join(problems)}")
    return index


def _is_index(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:  # a folder, or somebody's who lets nobody read it
        return False


def _log(text: str) -> None:
    logging.getLogger("yolox_plugin").info(text)
