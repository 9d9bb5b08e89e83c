"""The config that a command asks for, in the form that MMDetection's training and evaluation read."""

import argparse
import copy
from pathlib import Path
from typing import Any

import mmdet
from mmcv import Config
from mmdet.utils import compat_cfg, get_device, replace_cfg_vals

from ..configs import config_file, leaves, listed, with_plugin
from ..messages import InputError, described

CONFIG_DIRS = (Path(__file__).parents[2] / "configs", Path(mmdet.__file__).parent / ".mim/configs/yolox")

SPLITS = {"train": "train2017", "val": "val2017", "test": "val2017"}

# What MMDetection's training reads and a config may leave out, or have as None.
DEFAULTS: dict[str, Any] = {
    "auto_scale_lr": {}, "checkpoint_config": None, "custom_hooks": [], "load_from": None, "log_config": {},
    "log_level": "INFO", "lr_config": None, "optimizer_config": {}, "resume_from": None, "workflow": [("train", 1)],
}  # fmt: skip


def load_config(args: argparse.Namespace) -> Config:
    """The config that is asked for, with the options that the entry points share, in the form that MMDetection brings
    older ones into (`compat_cfg`), and with what it may leave out.

    Raises:
        InputError: no such config, or none that Python or mmcv can read.
    """
    file = config_file(args.config, CONFIG_DIRS)
    cfg = described(f"file {file}", lambda: replace_cfg_vals(Config.fromfile(str(file))))
    if not isinstance(cfg.get("data"), dict) or not isinstance(cfg.get("model"), dict):
        raise InputError(f"--config {args.config} must have model and data")
    for split, name in SPLITS.items():
        if cfg.get("data", {}).get(split) is None:
            raise InputError(f"--config {args.config} has no data.{split}")
        point_to(cfg, split, args.data_path.absolute(), name)
    described("--cfg-options", lambda: cfg.merge_from_dict(args.cfg_options))
    cfg = described("shape", lambda: compat_loaders(cfg))
    for key, value in DEFAULTS.items():
        if cfg.get(key) is None:
            cfg[key] = copy.deepcopy(value)
    cfg.work_dir = str(args.work_dir or Path("work_dirs") / file.stem)
    cfg.device = args.device or get_device()
    cfg.custom_imports = with_plugin(cfg.get("custom_imports"))
    return cfg


def point_to(cfg: Config, split: str, root: Path, name: str) -> None:
    """Lets a split read COCO's files under `root`, or, if it has several annotation files, those of the same names.

    These keep their place in relation to the config's data_root, as with MMDetection's MMDET_DATASETS.
    """
    parts = list(leaves(cfg.data[split]))
    if len(parts) == 1 and len(listed(parts[0].get("ann_file"))) == 1:
        parts[0].ann_file = str(root / "annotations" / f"instances_{name}.json")
        parts[0].img_prefix = f"{root / name}/"
        return
    for part in parts:
        before = part.get("data_root") or cfg.get("data_root") or ""
        for key in ("ann_file", "img_prefix"):
            moved = [str(root / old.removeprefix(before)) for old in listed(part.get(key) or "")]
            part[key] = moved if isinstance(part.get(key), (list, tuple)) else moved[0]


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
        if loader.get("workers_per_gpu") == 0:
            loader.persistent_workers = False
    return cfg
