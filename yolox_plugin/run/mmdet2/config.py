"""The config that a command asks for, in the form that MMDetection's training and evaluation read."""

import argparse
import copy
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

import mmdet
import mmdet.datasets
from mmcv import Config
from mmcv.utils import import_modules_from_strings
from mmdet.datasets import DATASETS
from mmdet.utils import compat_cfg, get_device, replace_cfg_vals

from ..configs import (
    LIST,
    PART,
    SEVERAL,
    TEXT,
    check_data_set,
    check_kinds,
    class_of,
    config_file,
    heads_of,
    leaves,
    listed,
    with_plugin,
)
from ..layouts import Part, find_layout, part_of
from ..messages import InputError, described
from ..saved_config import types_in
from ..splits import split_parts

CONFIG_DIRS = (Path(__file__).parents[2] / "configs", Path(mmdet.__file__).parent / ".mim/configs/yolox")

T = TypeVar("T")

SPLITS = ("train", "val", "test")

# Of what is read, see `check_kinds`.
KINDS: dict[str, tuple[type, ...]] = {
    "model.bbox_head": PART, "model.type": (str,), "data.train_dataloader": PART,
    "data.val_dataloader": PART, "data.test_dataloader": PART, "runner": (dict,), "lr_config": PART,
    "lr_config.policy": (str,), "optimizer": (dict,), "optimizer_config": PART, "log_config": PART,
    "log_config.hooks": (*LIST, NoneType), "log_config.hooks.*": (dict,), "log_config.hooks.*.type": (str,),
    "checkpoint_config": PART, "evaluation": PART, "evaluation.dynamic_intervals": (*LIST, NoneType),
    "workflow": (*LIST, NoneType), "workflow.*": LIST, "auto_scale_lr": PART, "custom_imports": PART,
    "custom_imports.imports": (str, *LIST, NoneType), "custom_hooks": SEVERAL, "custom_hooks.*": PART,
    "load_from": TEXT, "resume_from": TEXT,
    "data_root": TEXT, "fp16": PART,
}  # fmt: skip

# What MMDetection's training reads and a config may leave out, or have as None.
DEFAULTS: dict[str, Any] = {
    "auto_scale_lr": {}, "checkpoint_config": None, "custom_hooks": [], "load_from": None, "log_config": {},
    "log_level": "INFO", "lr_config": None, "optimizer_config": {}, "resume_from": None, "workflow": [("train", 1)],
}  # fmt: skip


def load_config(args: argparse.Namespace, saved: dict[str, Any] | None = None) -> Config:
    """The config that is asked for, with the options that the entry points share, in the form that MMDetection brings
    older ones into (`compat_cfg`), and with what it may leave out.

    Args:
        saved: the entries of a checkpoint's config, if that is the one.

    Raises:
        InputError: no such config, or none that Python or mmcv can read; no data set in --data-path.
    """
    if saved is None:
        file = config_file(args.config, CONFIG_DIRS)
        cfg = read_file(file)
        work_dir, named = Path("work_dirs") / file.stem, f"--config {args.config}"
    else:
        import_modules_from_strings(**with_plugin(saved.get("custom_imports")))
        check_registered(saved, f"the config in --pth-path {args.pth_path}")
        cfg, work_dir, named = Config(saved), args.pth_path.parent, f"the config in --pth-path {args.pth_path}"
    check_shape(named, cfg)
    if args.data_path is not None:
        point_to(cfg, args.data_path.absolute(), whole=getattr(args, "val_fraction", None) is not None)
    described("--cfg-options", lambda: cfg.merge_from_dict(args.cfg_options))
    check_shape(named, cfg)
    cfg = described("shape", lambda: compat_loaders(cfg))
    for key, value in DEFAULTS.items():
        if cfg.get(key) is None:
            cfg[key] = copy.deepcopy(value)
    cfg.work_dir = str(args.work_dir or work_dir)
    cfg.device = args.device or get_device()
    cfg.custom_imports = with_plugin(cfg.get("custom_imports"))
    return cfg


def read_file(file: Path) -> Config:
    """A config file's.

    Raises:
        InputError: none that Python or mmcv can read.
    """
    return described(f"file {file}", lambda: replace_cfg_vals(without_rest(lambda: Config.fromfile(str(file)))))


def without_rest(make: Callable[[], T]) -> T:
    """What `make` makes. Where mmcv fails, it leaves a file open in a folder that is gone, of which Python would tell
    after all that the command says."""
    try:
        return make()
    except BaseException as error:
        before, sys.unraisablehook = sys.unraisablehook, lambda _: None
        traceback.clear_frames(error.__traceback__)
        sys.unraisablehook = before
        raise


def check_shape(named: str, cfg: Config) -> None:
    """Raises InputError unless the config, of this name, has a model and data sets, and parts of the kinds that those
    who read them expect."""
    if not isinstance(cfg.get("data"), dict) or not isinstance(cfg.get("model"), dict):
        raise InputError(f"{named} must have model and data, as of MMDetection 2")
    check_kinds(named, cfg._cfg_dict, KINDS)
    for split in SPLITS:
        if cfg.data.get(split) is None:
            raise InputError(f"{named} has no data.{split}")
        check_data_set(named, f"data.{split}", cfg.data[split])


def point_to(cfg: Config, root: Path, whole: bool = False) -> None:
    """Lets the data sets read what is under `root`, all of them the `whole` of a data set that is not split: in its
    layout, or, where a split has several annotation files, under the names that they have.

    The latter keep their place in relation to the config's data_root, as with MMDetection's MMDET_DATASETS.
    """
    for split in SPLITS:
        parts = list(leaves(cfg.data[split]))
        if len(parts) == 1 and len(listed(parts[0].get("ann_file"))) == 1:
            read_part(cfg, split, part_of(find_layout(root), "train" if whole else split), root)
            continue
        for part in parts:
            before = part.get("data_root") or cfg.get("data_root") or ""
            for key in ("ann_file", "img_prefix"):
                moved = [str(root / old.removeprefix(before)) for old in listed(part.get(key) or "")]
                part[key] = moved if isinstance(part.get(key), (list, tuple)) else moved[0]


def check_registered(entries: dict[str, Any], named: str) -> None:
    """Raises InputError for a `type` of a registry that MMDetection 2 has not; of those that it has, mmcv tells."""
    for kind in types_in(entries):
        if kind.startswith("mmengine."):
            raise InputError(f"{named} has a part of type {kind!r:.60}, which is of MMDetection 3")


def read_split(cfg: Config, root: Path) -> None:
    """Lets the data sets read the files that --val-fraction makes in the work directory (`splits`)."""
    for split, part in split_parts(Path(cfg.work_dir), find_layout(root).train.images).items():
        read_part(cfg, split, part, root)


def read_part(cfg: Config, split: str, part: Part, root: Path) -> None:
    """Lets a split, of one data set with one annotation file, read this one, in the data set under `root`."""
    [leaf] = leaves(cfg.data[split])
    leaf.ann_file = str(part.annotations)
    leaf.img_prefix = f"{part.images}/"


def adopt_classes(cfg: Config, find: Callable[[], Sequence[str]]) -> None:
    """Gives data sets and head the classes that `find` finds, where the config has COCO's because it names none."""
    parts = [leaf for split in SPLITS for leaf in leaves(cfg.data[split])]
    kinds = [class_of(leaf, DATASETS) for leaf in parts]
    known = mmdet.datasets.CocoDataset.CLASSES
    if any(leaf.get("classes") is not None for leaf in parts) or any(
        getattr(kind, "CLASSES", None) != known for kind in kinds
    ):
        return
    names = find()
    if not names or list(names) == list(known):
        return
    for leaf in parts:
        leaf.classes = tuple(names)
    if heads_of(cfg) == len(known):
        cfg.model.bbox_head.num_classes = len(names)


def compat_loaders(cfg: Config) -> Config:
    """MMDetection's `compat_cfg`, with the loaders that torch refuses mended.

    Raises:
        InputError: for what that asserts.
    """
    if "runner" not in cfg and "total_epochs" not in cfg:
        raise InputError("the config has no runner")
    epochs = cfg.get("total_epochs")
    if "runner" in cfg and epochs not in (None, cfg.runner.get("max_epochs")):
        raise InputError(f"the config has total_epochs={epochs} and another length in runner: leave one out")
    for key in ("samples_per_gpu", "persistent_workers"):
        if key in cfg.data and key in cfg.data.get("train_dataloader", {}):
            raise InputError(f"the config has {key} in data and in data.train_dataloader: leave one out")
    cfg = compat_cfg(cfg)
    cfg.data.pop("imgs_per_gpu", None)  # or it would be moved again
    cfg.pop("total_epochs", None)
    for name in ("train", "val", "test"):
        loader = cfg.data[f"{name}_dataloader"]
        workers = loader.get("workers_per_gpu", 1)
        if type(workers) is not int or workers < 0:
            raise InputError(
                f"the config's workers_per_gpu must be a whole number of 0 or more, got {workers!r:.60} for {name}"
            )
        if workers == 0:
            loader.persistent_workers = False
    return cfg
