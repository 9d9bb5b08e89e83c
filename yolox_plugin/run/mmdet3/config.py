"""The config that a command asks for, in the form that mmengine's runner reads."""

import argparse
import copy
from pathlib import Path
from typing import Any

import mmdet
import mmengine.device.utils
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

from ..configs import config_file, leaves, listed, with_plugin
from ..messages import InputError, described

CONFIG_DIRS = (Path(__file__).parents[2] / "configs/mmdet3", Path(mmdet.__file__).parent / ".mim/configs/yolox")

SPLITS = {"train": "train2017", "val": "val2017", "test": "val2017"}

# What is read here and a config may leave out, or have as None.
DEFAULTS: dict[str, Any] = {
    "auto_scale_lr": {}, "custom_hooks": [], "default_hooks": {}, "default_scope": "mmdet", "env_cfg": {},
    "load_from": None, "log_level": "INFO", "log_processor": {}, "param_scheduler": [], "resume": False,
    "visualizer": {"type": "DetLocalVisualizer", "vis_backends": [{"type": "LocalVisBackend"}], "name": "visualizer"},
}  # fmt: skip


def load_config(args: argparse.Namespace) -> Config:
    """The config that is asked for, with the options that the entry points share, and with what it may leave out.

    Raises:
        InputError: no such config, or none that Python or mmengine can read.
    """
    file = config_file(args.config, CONFIG_DIRS)
    cfg = described(f"file {file}", lambda: Config.fromfile(str(file)))
    check_shape(args, cfg)
    for split, name in SPLITS.items():
        if cfg.get(f"{split}_dataloader") is not None:
            point_to(cfg, split, args.data_path.absolute(), name)
    described("--cfg-options", lambda: cfg.merge_from_dict(args.cfg_options))
    check_shape(args, cfg)
    # As plain values: a config in Python's own words holds types, which config.py can only name.
    entries = cfg.to_dict()
    for key, value in DEFAULTS.items():
        if entries.get(key) is None:
            entries[key] = copy.deepcopy(value)
    entries["work_dir"] = str(args.work_dir or Path("work_dirs") / file.stem)
    entries["device"] = args.device or mmengine.device.get_device()
    entries["custom_imports"] = with_plugin(entries.get("custom_imports"))
    init_default_scope(entries["default_scope"])
    mmengine.device.utils.DEVICE = entries["device"]  # which mmengine's runner asks, and takes from nobody
    return Config(entries)


def check_shape(args: argparse.Namespace, cfg: Config) -> None:
    """Raises InputError unless the config has a model, and its loaders data sets."""
    if not isinstance(cfg.get("model"), dict):
        raise InputError(f"--config {args.config} must have a model")
    for split in SPLITS:
        loader = cfg.get(f"{split}_dataloader")
        if loader is not None and (not isinstance(loader, dict) or not isinstance(loader.get("dataset"), dict)):
            raise InputError(f"--config {args.config} has no {split}_dataloader with a dataset")


def point_to(cfg: Config, split: str, root: Path, name: str) -> None:
    """Lets a split read COCO's files under `root`, or, if it has several annotation files, those of the same names.

    These keep their place in relation to the config's data_root.
    """
    parts = list(leaves(cfg[f"{split}_dataloader"].dataset))
    before = cfg.get("data_root") or ""
    for part in parts:
        if len(parts) == 1:
            part.data_root = f"{root}/"
            part.ann_file = f"annotations/instances_{name}.json"
            part.data_prefix = ConfigDict({**(part.get("data_prefix") or {}), "img": f"{name}/"})
        elif part.get("data_root"):
            part.data_root = f"{root / part.data_root.removeprefix(before)}/"
        else:
            part.ann_file = str(root / part.ann_file.removeprefix(before))
            prefixes = (part.get("data_prefix") or {}).items()
            part.data_prefix = ConfigDict({key: str(root / text.removeprefix(before)) for key, text in prefixes})
    for metric in listed(cfg.get(f"{split}_evaluator") or []):
        if metric.get("ann_file") is not None:
            if len(parts) == 1:
                metric.ann_file = str(root / "annotations" / f"instances_{name}.json")
            else:
                metric.ann_file = str(root / metric.ann_file.removeprefix(before))
