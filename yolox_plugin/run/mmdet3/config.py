"""The config that a command asks for, in the form that mmengine's runner reads."""

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import mmdet
import mmdet.datasets
import mmdet.registry
import mmengine.device.utils
import mmengine.registry
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry, init_default_scope
from mmengine.utils import import_modules_from_strings

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

CONFIG_DIRS = (Path(__file__).parents[2] / "configs/mmdet3", Path(mmdet.__file__).parent / ".mim/configs/yolox")

# What a config may call its suppression, which is in no registry.
NMS = ("nms", "soft_nms", "nms_match")

SPLITS = ("train", "val", "test")

# Of what is read, see `check_kinds`.
KINDS: dict[str, tuple[type, ...]] = {
    "model.bbox_head": PART, "model.data_preprocessor": PART, "train_cfg": PART, "val_cfg": PART, "test_cfg": PART,
    "optim_wrapper": PART, "optim_wrapper.optimizer": PART, "param_scheduler": SEVERAL, "param_scheduler.*": PART,
    "custom_hooks": SEVERAL, "custom_hooks.*": PART,
    "default_hooks": PART, "default_hooks.**": PART, "env_cfg": PART, "env_cfg.mp_cfg": PART, "env_cfg.dist_cfg": PART,
    "log_processor": PART, "visualizer": PART, "visualizer.vis_backends": (*LIST, NoneType),
    "visualizer.vis_backends.*": (dict,), "auto_scale_lr": PART, "custom_imports": PART,
    "custom_imports.imports": (str, *LIST, NoneType), "load_from": TEXT, "resume": (bool, NoneType),
    "randomness": PART, "default_scope": TEXT, "data_root": TEXT, "val_evaluator": SEVERAL, "val_evaluator.*": PART,
    "test_evaluator": SEVERAL, "test_evaluator.*": PART,
}  # fmt: skip

# What is read here and a config may leave out, or have as None.
DEFAULTS: dict[str, Any] = {
    "auto_scale_lr": {}, "custom_hooks": [], "default_hooks": {}, "default_scope": "mmdet", "env_cfg": {},
    "load_from": None, "log_level": "INFO", "log_processor": {}, "param_scheduler": [], "resume": False,
    "visualizer": {"type": "DetLocalVisualizer", "vis_backends": [{"type": "LocalVisBackend"}], "name": "visualizer"},
}  # fmt: skip


def load_config(args: argparse.Namespace, saved: dict[str, Any] | None = None) -> Config:
    """The config that is asked for, with the options that the entry points share, and with what it may leave out.

    Args:
        saved: the entries of a checkpoint's config, if that is the one.

    Raises:
        InputError: no such config, or none that Python or mmengine can read; no data set in --data-path.
    """
    if saved is None:
        file = config_file(args.config, CONFIG_DIRS)
        cfg = described(f"file {file}", lambda: Config.fromfile(str(file)))
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
    # As plain values: a config in Python's own words holds types, which config.py can only name.
    entries = cfg.to_dict()
    for key, value in DEFAULTS.items():
        if entries.get(key) is None:
            entries[key] = copy.deepcopy(value)
    entries["work_dir"] = str(args.work_dir or work_dir)
    entries["device"] = args.device or mmengine.device.get_device()
    entries["custom_imports"] = with_plugin(entries.get("custom_imports"))
    init_default_scope(entries["default_scope"])
    mmengine.device.utils.DEVICE = entries["device"]  # which mmengine's runner asks, and takes from nobody
    return Config(entries)


def check_shape(named: str, cfg: Config) -> None:
    """Raises InputError unless the config, of this name, has a model, and its loaders data sets."""
    if not isinstance(cfg.get("model"), dict):
        raise InputError(f"{named} must have a model")
    check_kinds(named, cfg._cfg_dict, KINDS)
    for split in SPLITS:
        loader = cfg.get(f"{split}_dataloader")
        if loader is not None and (not isinstance(loader, dict) or not isinstance(loader.get("dataset"), dict)):
            raise InputError(f"{named} has no {split}_dataloader with a dataset")
        if loader is not None:
            check_data_set(named, f"{split}_dataloader.dataset", loader["dataset"])


def point_to(cfg: Config, root: Path, whole: bool = False) -> None:
    """Lets the data sets read what is under `root`, all of them the `whole` of a data set that is not split: in its
    layout, or, where a split has several annotation files, under the names that they have.

    The latter keep their place in relation to the config's data_root.
    """
    before = cfg.get("data_root") or ""
    for split in (split for split in SPLITS if cfg.get(f"{split}_dataloader") is not None):
        parts = list(leaves(cfg[f"{split}_dataloader"].dataset))
        if len(parts) == 1:
            read_part(cfg, split, part_of(find_layout(root), "train" if whole else split), root)
            continue
        for part in parts:
            if part.get("data_root"):
                part.data_root = f"{root / part.data_root.removeprefix(before)}/"
            else:
                part.ann_file = str(root / part.ann_file.removeprefix(before))
                prefixes = (part.get("data_prefix") or {}).items()
                part.data_prefix = ConfigDict({key: str(root / text.removeprefix(before)) for key, text in prefixes})
        for metric in metrics_of(cfg, split):
            metric.ann_file = str(root / metric.ann_file.removeprefix(before))


def check_registered(entries: dict[str, Any], named: str) -> None:
    """Raises InputError for a `type`, at any depth, that is in no registry: mmengine takes such for the name of a
    module, or of a function, to import and to call."""
    register_all_modules(init_default_scope=False)
    registries = [value for module in (mmengine.registry, mmdet.registry) for value in vars(module).values()]
    known = {name for value in registries if isinstance(value, Registry) for name in value.module_dict}
    for kind in types_in(entries):
        name = kind.rpartition(".")[2]
        if name not in known and name not in NMS:
            raise InputError(f"{named} has a part of type {kind!r:.60}, which is not registered: name it by --config")


def read_split(cfg: Config, root: Path) -> None:
    """Lets the data sets read the files that --val-fraction makes in the work directory (`splits`)."""
    for split, part in split_parts(Path(cfg.work_dir), find_layout(root).train.images).items():
        if cfg.get(f"{split}_dataloader") is not None:
            read_part(cfg, split, part, root)


def read_part(cfg: Config, split: str, part: Part, root: Path) -> None:
    """Lets a split, of one data set, read this one, and its metrics too."""
    [leaf] = leaves(cfg[f"{split}_dataloader"].dataset)
    annotations, images = (str(path.relative_to(root) if path.is_relative_to(root) else path) for path in part)
    leaf.data_root = f"{root}/"
    leaf.ann_file = annotations
    leaf.data_prefix = ConfigDict({**(leaf.get("data_prefix") or {}), "img": f"{images}/"})
    for metric in metrics_of(cfg, split):
        metric.ann_file = str(part.annotations)


def metrics_of(cfg: Config, split: str) -> list[Any]:
    """The metrics of a split that read annotations by themselves."""
    return [metric for metric in listed(cfg.get(f"{split}_evaluator") or []) if metric.get("ann_file") is not None]


def adopt_classes(cfg: Config, find: Callable[[], Sequence[str]]) -> None:
    """Gives data sets and head the classes that `find` finds, where the config has COCO's because it names none."""
    loaders = [cfg[f"{split}_dataloader"] for split in SPLITS if cfg.get(f"{split}_dataloader") is not None]
    parts = [leaf for loader in loaders for leaf in leaves(loader.dataset)]
    kinds = [class_of(leaf, DATASETS) for leaf in parts]
    known = mmdet.datasets.CocoDataset.METAINFO["classes"]
    if any((leaf.get("metainfo") or {}).get("classes") is not None for leaf in parts) or any(
        getattr(kind, "METAINFO", {}).get("classes") != known for kind in kinds
    ):
        return
    names = find()
    if not names or list(names) == list(known):
        return
    for leaf in parts:
        leaf.metainfo = ConfigDict({**(leaf.get("metainfo") or {}), "classes": tuple(names)})
    if heads_of(cfg) == len(known):
        cfg.model.bbox_head.num_classes = len(names)
