"""What is checked before a run writes anything. What cannot be is an `InputError`, what is only odd a warning."""

import codecs
import contextlib
import copy
import inspect
import io
import json
import logging
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import mmdet.datasets
import numpy as np
import torch
from mmcv import Config, build_from_cfg
from mmcv.runner import HOOKS, build_optimizer
from mmdet.core import DistEvalHook, EvalHook
from mmdet.datasets import DATASETS
from mmdet.models import DETECTORS, build_detector
from torch.utils.data import DataLoader

from ..core.checkpoint import DamagedCheckpoint, UnsafeCheckpoint, read_checkpoint
from ..mmdet2.dataset import CocoDataset, MultiImageMixDataset
from ..mmdet2.detector import YOLOX

MAX_NAME = 255  # bytes
MIN_SIZE = 32  # pixels: MMDetection trains on no smaller images
CHECKPOINT = re.compile(r"(?:.+_)?(?:epoch|iter)_(\d+)\.pth")
# What a run writes under these names, besides checkpoints and logs.
WRITTEN = ("config.py", "result.json", "curves.png")


class InputError(Exception):
    """Something that the user gave is missing or wrong; the message is one sentence for them."""


def warn(message: str) -> None:
    """One line for the user, of something that may be meant."""
    print(f"warning: {message}", file=sys.stderr)


def check_devices(device: str, count: int) -> None:
    """Raises InputError where `count` processes would not have a device, or a core, each."""
    if device == "cpu":
        there = os.cpu_count() or 1
    else:
        module = getattr(torch, device, None)
        there = module.device_count() if module is not None and module.is_available() else 0
    if there < count:
        unit = "cores" if device == "cpu" else f"{device} devices"
        raise InputError(f"--devices={count} --device={device}: this machine has {there} {unit}")


def check_precision(cfg: Config, option: str | None) -> None:
    """Raises InputError for a precision that the device, or the detector, does not have.

    Args:
        option: what --amp was given.
    """
    given = cfg.model.get("autocast")
    named = f"--amp={given}" if option else f"the config's model.autocast={given!r}"
    if given is not None and not issubclass(DETECTORS.get(cfg.model.type), YOLOX):
        raise InputError(f"{named} is for the plugin's YOLOX: the config's detector is MMDetection's {cfg.model.type}")
    if given not in (None, "float32", "bfloat16", "float16"):
        raise InputError(f"{named} must be 'float32', 'bfloat16' or 'float16'")
    if cfg.device == "cpu":
        if given == "float16":
            raise InputError(f"{named} needs an accelerator: on a CPU use --amp=bfloat16")
        if given is None and cfg.get("fp16") is not None:
            raise InputError("the config's fp16 needs an accelerator: on a CPU use --amp=float32 or --amp=bfloat16")
    elif given == "bfloat16" and not getattr(torch, cfg.device).is_bf16_supported():
        raise InputError(f"{named}: this {cfg.device} device has no bfloat16, use --amp=float16")


def check_folder(option: str, folder: Path) -> None:
    """Raises InputError unless files can be written to `folder`, which need not be there yet."""
    longest = max(len(os.fsencode(part)) for part in folder.absolute().parts)
    if longest > MAX_NAME:
        raise InputError(f"{option} {folder!s:.80}... has a name of {longest} bytes, of {MAX_NAME} that there may be")
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"{option} {there} is not a folder")
    if not os.access(there, os.W_OK):
        raise InputError(f"{option} {folder}: {there} cannot be written to")


def newest_checkpoint(work_dir: Path) -> Path | None:
    """The one that training goes on from: latest.pth, or that of the highest epoch or iteration.

    Other .pth files are none of a run's. MMDetection's `find_latest_checkpoint` takes any for one, and fails for those
    that end in no number.
    """
    latest = work_dir / "latest.pth"
    if latest.exists():
        return latest
    numbered = [(int(match[1]), path) for path in work_dir.glob("*.pth") if (match := CHECKPOINT.fullmatch(path.name))]
    return max(numbered)[1] if numbered else None


def has_run(work_dir: Path) -> bool:
    """Whether there are checkpoints or logs in `work_dir`."""
    return newest_checkpoint(work_dir) is not None or any(work_dir.glob("*.log")) or any(work_dir.glob("*.log.json"))


def check_unmixed(work_dir: Path, resume: bool) -> None:
    """Raises InputError if `work_dir` has a run that is not to go on."""
    if has_run(work_dir) and not resume:
        raise InputError(f"--work-dir {work_dir} has a run already: --resume goes on with it, or name another")


def check_new(work_dir: Path, resume: bool) -> None:
    """Raises InputError if a run would overwrite, or mix with, something in `work_dir` that it does not go on with."""
    check_unmixed(work_dir, resume)
    if has_run(work_dir):
        return
    for name in WRITTEN:
        if os.path.lexists(work_dir / name):
            raise InputError(f"--work-dir {work_dir} has a {name} that would be overwritten: name another")


def check_replaceable(work_dir: Path) -> None:
    """Raises InputError if the result.json in `work_dir` is something else than that of an earlier evaluation."""
    path = work_dir / "result.json"
    if not os.path.lexists(path):
        return
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("task") != "test":
        raise InputError(f"--work-dir {work_dir} has a result.json that would be overwritten: name another")


def check_checkpoint(model: Any, option: str, path: Path) -> dict[str, Any]:
    """What is in a checkpoint file that has every tensor of `model`, in its shape.

    Raises:
        InputError: the file is another one; `DamagedCheckpoint` from it if it is none at all.
    """
    if not path.is_file():
        raise InputError(f"{option} {path} does not exist")
    try:
        content = read_checkpoint(path)
    except (DamagedCheckpoint, UnsafeCheckpoint) as error:
        kind = "" if isinstance(error, UnsafeCheckpoint) else " is no checkpoint"
        raise InputError(f"{option}{kind}: {error}") from error
    found, wanted = content["state_dict"], model.state_dict()
    unfit = [name for name, value in wanted.items() if name not in found or found[name].shape != value.shape]
    if unfit:
        name = unfit[0]
        there = list(found[name].shape) if name in found else "nothing"
        raise InputError(
            f"{option} {path} is of another model than --config: {len(unfit)} of {len(wanted)} tensors do not fit,"
            f" first {name}: expected {list(wanted[name].shape)}, got {there}"
        )
    return content


class Parts(NamedTuple):
    """What a config's recipe is made of, for checks alone."""

    model: Any
    optimizer: Any


def check_resumable(parts: Parts, option: str, path: Path, length: dict[str, int], labels: dict[str, int]) -> None:
    """Raises InputError for a checkpoint of another model, optimizer or data set, for one that torch does not load, and
    if nothing is left to train; of a damaged one, the runner goes back to the one before.

    Args:
        parts: of `check_parts`.
        length: how many of "epoch" or "iter" the training has.
        labels: of `check_data`.
    """
    try:
        content = check_checkpoint(parts.model, option, path)
    except InputError as error:
        if not isinstance(error.__cause__, DamagedCheckpoint):
            raise
        return
    meta = content.get("meta") or {}
    if not {"epoch", "iter"} <= meta.keys():
        raise InputError(f"{option} {path} has weights alone, of no training that could go on: name it as load_from")
    for unit, number in length.items():
        if meta[unit] >= number:
            raise InputError(f"{option} {path} has {meta[unit]} of {number} {unit}s: nothing is left to train")
    check_labels_of(meta, option, path, labels)
    groups = [[len(group["params"]) for group in state["param_groups"]]
              for state in (content.get("optimizer"), parts.optimizer.state_dict()) if state]  # fmt: skip
    if len(groups) == 2 and groups[0] != groups[1]:
        raise InputError(f"{option} {path} is of a training with other groups of parameters in its optimizer")


def check_labels_of(meta: dict[str, Any], option: str, path: Path, labels: dict[str, int]) -> None:
    """Raises InputError if a class has another label in a checkpoint of this plugin's than in the annotations."""
    for label, name in enumerate(meta.get("LABELS", ())):
        if labels.get(name, label) != label:
            raise InputError(
                f"{option} {path} was trained with {name} as label {label}, but the annotations make it {labels[name]},"
                " as MMDetection numbers the classes that a file has in its order: give both the same categories"
            )


T = TypeVar("T")


def described(what: str, make: Callable[[], T]) -> T:
    """What a config describes.

    Raises:
        InputError: whatever making it raises is about what the user has written there, which may be any code.
    """
    try:
        return make()
    except InputError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise InputError(f"the config's {what} cannot be: {type(error).__name__}: {text:.300}") from error


def check_model(cfg: Config) -> Any:
    """The config's detector.

    Raises:
        InputError: its registries cannot build it.
    """
    return described("model", lambda: build_detector(copy.deepcopy(cfg.model)))


def check_parts(cfg: Config) -> Parts:
    """The config's detector and optimizer.

    Raises:
        InputError: for parts of the recipe that their registries cannot build.
    """
    model = check_model(cfg)
    optimizer = described("optimizer", lambda: build_optimizer(model, copy.deepcopy(cfg.optimizer)))
    for hook in cfg.custom_hooks:
        described(
            f"custom_hooks ({hook!r:.60})",
            lambda hook=hook: build_from_cfg({k: v for k, v in hook.items() if k != "priority"}, HOOKS),  # type: ignore[misc]
        )
    if cfg.lr_config is not None:
        policy = cfg.lr_config.get("policy")
        kind = f"{policy.title() if str(policy).islower() else policy}LrUpdaterHook"  # as mmcv's runner finds it
        options = {key: value for key, value in cfg.lr_config.items() if key != "policy"}
        described("lr_config", lambda: build_from_cfg({**options, "type": kind}, HOOKS))
    described("log_level", lambda: logging.Logger("").setLevel(cfg.log_level))
    for unit in ("max_epochs", "max_iters"):
        length = cfg.runner.get(unit, 1)
        if type(length) is not int or length < 1:
            raise InputError(f"the config's runner.{unit} must be a whole number of 1 or more, got {length!r}")
    saving = cfg.checkpoint_config or {}
    for part in ("checkpoint_config", "evaluation"):
        if (cfg.get(part) or {}).get("out_dir") is not None:
            raise InputError(f"the config's {part}.out_dir is not supported: --work-dir says where files go")
    if "max_epochs" in cfg.runner and not saving.get("by_epoch", True):
        warn("checkpoint_config.by_epoch=False: a resume goes on with the next epoch, as MMDetection's")
    return Parts(model, optimizer)


def check_evaluation(cfg: Config, distributed: bool) -> None:
    """Raises InputError for what the config's `evaluation` asks for and MMDetection would refuse after an epoch."""
    options = {key: value for key, value in cfg.evaluation.items() if key != "dynamic_intervals"}
    hook_class = DistEvalHook if distributed else EvalHook
    no_images: Any = []
    hook = described("evaluation", lambda: hook_class(DataLoader(no_images), **options))
    described("evaluation", lambda: try_evaluation(cfg.data.val, hook))


def try_evaluation(leaf: Any, hook: Any) -> None:
    """Evaluates one image with one box in the way of `hook`, on a data set of val's kind."""
    kind = DATASETS.get(leaf.type)
    inspect.signature(kind.evaluate).bind(None, [], logger="silent", **hook.eval_kwargs)
    if kind not in (CocoDataset, mmdet.datasets.CocoDataset):
        return  # a user's own kind may want other results, and write files
    classes = kind.get_classes(leaf.get("classes"))
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
    }
    results = [[np.array([[8, 8, 48, 48, 0.9]] * (label == 0)).reshape(-1, 5) for label in range(len(classes))]]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder, "one.json")
        path.write_text(json.dumps(content))
        dataset = kind(ann_file=str(path), pipeline=[], classes=classes, test_mode=True)
        options = {**hook.eval_kwargs, "jsonfile_prefix": str(Path(folder, "one")), "logger": "silent"}
        figures = dataset.evaluate(results, **options)
    if hook.save_best not in (None, "auto", *figures):
        raise InputError(
            f"the config's evaluation.save_best must be 'auto' or one of {', '.join(figures)}, got {hook.save_best!r}"
        )


def check_initial_weights(model: Any, option: str, name: str | None) -> None:
    """Raises InputError for a file that is no checkpoint, or of quite another model; addresses of other stores are left
    to mmcv."""
    if not name or "://" in name:
        return
    if not Path(name).is_file():
        raise InputError(f"the config's {option}={name!r} does not exist")
    try:
        found = read_checkpoint(name)["state_dict"]
    except (DamagedCheckpoint, UnsafeCheckpoint) as error:
        raise InputError(f"the config's {option}: {error}") from error
    if not found.keys() & model.state_dict().keys():
        raise InputError(f"the config's {option}={name!r} has no tensor of the config's model")


def check_trained_classes(cfg: Config, checkpoint: dict[str, Any]) -> None:
    """Warns of a model that was trained on other classes than the config's."""
    trained, wanted = checkpoint.get("meta", {}).get("CLASSES"), check_type(cfg.data.test, "test")
    if trained is not None and list(trained) != list(wanted):
        warn(f"the checkpoint was trained on {_listed(trained)}, the config's classes are {_listed(wanted)}")


def check_pictures(save_dir: Path, cfg: Config) -> None:
    """Raises InputError unless the picture of every image of data.test would be a new file inside `save_dir`, and one
    that no other image has."""
    check_folder("--save-dir", save_dir)
    [(annotations, _)] = files_of(cfg.data.test)
    root = os.path.realpath(save_dir)
    taken: dict[str, str] = {}
    for image in json.loads(annotations.read_bytes())["images"]:
        name = image["file_name"]
        place = save_dir / name
        target = os.path.realpath(place)
        if Path(name).is_absolute() or not Path(target).is_relative_to(root):
            raise InputError(f"--save-dir {save_dir}: the picture of {name} would be outside of it, at {target}")
        if os.path.lexists(place):
            raise InputError(f"--save-dir {save_dir} has {name} already, which would be overwritten: name a new folder")
        if target in taken:
            raise InputError(f"--save-dir {save_dir}: {taken[target]} and {name} would be the same picture")
        if not cv2.haveImageWriter(name):
            raise InputError(f"--save-dir {save_dir}: OpenCV writes no files such as {name}")
        taken[target] = name
        check_folder("--save-dir", place.parent)


def leaves(data: Any) -> Iterator[Any]:
    """The configs of the data sets that read annotations, inside those that mix, repeat or join them."""
    if isinstance(data, (list, tuple)):
        for part in data:
            yield from leaves(part)
    elif "datasets" in data or "dataset" in data:
        yield from leaves(data.get("datasets", data.get("dataset")))
    else:
        yield data


def files_of(leaf: Any) -> list[tuple[Path, Path]]:
    """Annotation files and image folders that a data set of this config reads, as MMDetection finds them."""
    root = leaf.get("data_root") or ""
    paths = leaf.ann_file if isinstance(leaf.ann_file, (list, tuple)) else [leaf.ann_file]
    prefix = leaf.get("img_prefix") or ""
    prefixes = prefix if isinstance(prefix, (list, tuple)) else [prefix] * len(paths)
    return [(Path(root, path), Path(root, folder)) for path, folder in zip(paths, prefixes, strict=True)]


def check_data(cfg: Config, splits: Sequence[str], root: Path) -> dict[str, int]:
    """Each class's label, if annotations are there, fit the config, and every image file has an image's beginning.

    Args:
        root: --data-path.

    Raises:
        InputError: something is missing or wrong.
    """
    if not root.is_dir():
        raise InputError(f"--data-path {root} is not a folder")
    known: dict[str, tuple[int, Path]] = {}
    for split in splits:
        check_nesting(cfg.data[split], split)
        for leaf in leaves(cfg.data[split]):
            wanted = check_type(leaf, split)
            for path, folder in files_of(leaf):
                labels = check_file(cfg, leaf, split, root, path, folder, wanted)
                check_labels(known, labels, path)
    return {name: label for name, (label, _) in known.items()}


def check_file(
    cfg: Config, leaf: Any, split: str, root: Path, path: Path, folder: Path, wanted: Sequence[str]
) -> list[str]:
    """Checks an annotation file and its images; its classes in the order of their labels."""
    if not path.is_file():
        if path.is_relative_to(root):
            raise InputError(f"--data-path {root} has no {path.relative_to(root)}")
        raise InputError(f"{path}, the ann_file of data.{split}, does not exist")
    training = split == "train"
    content = check_annotations(leaf, path, training)
    labels = check_classes(cfg, content["categories"], wanted, path)
    check_gts(leaf, content, wanted, path, training)
    check_images(folder, [image["file_name"] for image in content["images"]], path)
    return labels


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


def check_type(leaf: Any, split: str) -> Sequence[str]:
    """The classes of a data set that reads COCO's annotations.

    Raises:
        InputError: it is another kind, or has no good classes.
    """
    kind = DATASETS.get(leaf.type)
    if kind is None or not issubclass(kind, mmdet.datasets.CocoDataset):
        raise InputError(f"data.{split} must be read by a CocoDataset, got {leaf.type}")
    classes = leaf.get("classes")
    if isinstance(classes, str) and not Path(classes).is_file():
        raise InputError(
            f"classes={classes!r} of data.{split} is a string, which MMDetection takes for a file with a class a line,"
            f" and there is none: for one class write ({classes!r},)"
        )
    wanted: Sequence[str] = kind.get_classes(classes)
    if len(set(wanted)) < len(wanted):
        raise InputError(f"classes of data.{split} must differ, got {_listed(wanted)}")
    return wanted


def _listed(names: Iterable[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= 80 else f"{text[:77]}..."


Rule = tuple[str, Callable[[Any], bool], str]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max  # which a NaN is not


def _is_box(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(map(_is_number, value))


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


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


def check_annotations(leaf: Any, path: Path, training: bool) -> dict[str, list[dict[str, Any]]]:
    """The content of an annotation file that has everything that MMDetection, and in validation pycocotools, read.

    Raises:
        InputError: for the first problem of each kind, with the file, the id and the field.
    """
    raw = path.read_bytes()
    if raw.startswith(codecs.BOM_UTF8) and not _is_ours(leaf.type, CocoDataset):
        raise InputError(f"{path} begins with a byte order mark, which {leaf.type} does not read: save it without")
    try:
        content = json.loads(raw.decode("utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no JSON file: {error}") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise InputError(f"{path} must be an object with the lists {', '.join(parts)}")
    if not content["images"]:
        raise InputError(f"{path} lists no images")
    check_entries(path, "image", content["images"], [*IMAGES, *SIZES] if training else IMAGES)
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


def check_classes(cfg: Config, categories: Sequence[dict[str, Any]], wanted: Sequence[str], path: Path) -> list[str]:
    """The config's classes that a file has, in the order of its categories, in which MMDetection numbers the labels.

    Raises:
        InputError: it has none, or one twice, or the head is for another number of classes.
    """
    found = [category["name"] for category in categories]
    labels = [name for name in found if name in wanted]
    if not labels:
        raise InputError(
            f"{path} has none of the config's {len(wanted)} classes ({wanted[0]}, ...) but"
            f" {_listed(sorted(found))}: name a --config with these `classes`"
        )
    _refuse(path, [f"{count} categories are named {name}" for name, count in Counter(labels).items() if count > 1])
    heads = cfg.model.get("bbox_head", {}).get("num_classes", len(wanted))
    if heads != len(wanted):
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


def has_gts(cfg: Config, split: str) -> bool:
    """Whether a split that `check_data` has passed has anything to evaluate with."""
    [(path, _)] = files_of(cfg.data[split])
    data = cfg.data[split]
    return bool(
        count_gts(json.loads(path.read_bytes()), DATASETS.get(data.type).get_classes(data.get("classes")), False)
    )


def check_gts(leaf: Any, content: dict[str, Any], wanted: Sequence[str], path: Path, training: bool) -> None:
    """Raises InputError if there is nothing to train on, and warns if there is nothing to evaluate with."""
    gts = count_gts(content, wanted, training)
    if not training:
        if not gts:
            warn(f"{path} has no annotation of the config's classes: mAP will be null")
        return
    if not gts:
        raise InputError(f"{path} has no annotation of the config's classes to train on")
    for image in content["images"]:
        if min(image["width"], image["height"]) >= MIN_SIZE and (
            gts[image["id"]] or not leaf.get("filter_empty_gt", True)
        ):
            return
    raise InputError(f"{path}: MMDetection leaves out all images, as of less than {MIN_SIZE} pixels or unannotated")


def check_images(folder: Path, names: Sequence[str], annotations: Path) -> None:
    """Raises InputError if files are missing or do not begin as images do."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    with ThreadPoolExecutor(16) as pool:  # waits for the disk more than it computes
        readable = list(pool.map(lambda name: cv2.haveImageReader(str(folder / name)), names))
    bad = [name for name, good in zip(names, readable, strict=True) if not good]
    if bad:
        problem = "is no readable image" if (folder / bad[0]).exists() else "does not exist"
        others = f", and {len(bad) - 1} more like it" if len(bad) > 1 else ""
        raise InputError(f"{folder / bad[0]}, which {annotations.name} lists, {problem}{others}")
