"""What is checked in a config for MMDetection 2.28 before a run writes anything: parts and evaluation."""

import contextlib
import copy
import inspect
import io
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import mmcv
import mmdet.datasets
import numpy as np
from mmcv import Config, build_from_cfg
from mmcv.runner import HOOKS, build_optimizer
from mmdet.core import DistEvalHook, EvalHook
from mmdet.datasets import DATASETS
from mmdet.models import DETECTORS, build_detector
from torch.utils.data import DataLoader

from ...mmdet2.dataset import CocoDataset
from ...mmdet2.detector import YOLOX
from ..checks import Built, check_file_names, check_precision
from ..configs import class_of
from ..messages import InputError, described, warn


def check_autocast(cfg: Config, option: str | None) -> None:
    """Raises InputError for a precision that the device, or the detector, does not have.

    Args:
        option: what --amp was given.
    """
    other = "the config's fp16" if cfg.get("fp16") is not None else None
    check_precision(cfg.device, cfg.model.get("autocast"), option is not None, other_detector(cfg), other)


def other_detector(cfg: Config) -> str | None:
    """The config's detector, if it is another than the plugin's; one that there is not is for building it to find."""
    kind = class_of(cfg.model, DETECTORS)
    return kind.__name__ if kind is not None and not issubclass(kind, YOLOX) else None


def check_model(cfg: Config) -> Any:
    """The config's detector.

    Raises:
        InputError: its registries cannot build it.
    """
    return described("model", lambda: build_detector(copy.deepcopy(cfg.model)))


def check_parts(cfg: Config) -> Built:
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
    if "filename_tmpl" in saving:
        check_file_names("checkpoint_config.filename_tmpl", saving["filename_tmpl"])
    if "max_epochs" in cfg.runner and not saving.get("by_epoch", True):
        warn("checkpoint_config.by_epoch=False: a resume goes on with the next epoch, as MMDetection's")
    return Built(model, optimizer)


def check_logged(meta: dict[str, Any], option: str, path: Path) -> None:
    """Raises InputError for a checkpoint's meta that MMDetection cannot write to its log, at which it would end."""
    try:
        mmcv.dump({name: value for name, value in meta.items() if name != "ranks"}, file_format="json")
    except (TypeError, ValueError) as error:
        raise InputError(f"{option} {path}: MMDetection cannot log its meta, where resumed: {error}") from error


def check_evaluation(cfg: Config, distributed: bool) -> None:
    """Raises InputError for what the config's `evaluation` asks for and MMDetection would refuse after an epoch."""
    options = {key: value for key, value in cfg.evaluation.items() if key != "dynamic_intervals"}
    hook_class = DistEvalHook if distributed else EvalHook
    no_images: Any = []
    hook = described("evaluation", lambda: hook_class(DataLoader(no_images), **options))
    described("evaluation", lambda: try_evaluation(cfg.data.val, hook))


def try_evaluation(leaf: Any, hook: Any) -> None:
    """Evaluates one image with one box in the way of `hook`, on a data set of val's kind."""
    kind = class_of(leaf, DATASETS)
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
