"""What is checked in a config before a run writes anything: devices, parts, evaluation and checkpoints."""

import contextlib
import copy
import inspect
import io
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

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
from ..mmdet2.dataset import CocoDataset
from ..mmdet2.detector import YOLOX
from .annotations import check_type, in_words
from .messages import InputError, described, warn


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


class Built(NamedTuple):
    """What a config's recipe is made of, for checks alone."""

    model: Any
    optimizer: Any


def check_resumable(built: Built, option: str, path: Path, length: dict[str, int], labels: dict[str, int]) -> None:
    """Raises InputError for a checkpoint of another model, optimizer or data set, for one that torch does not load, and
    if nothing is left to train; of a damaged one, the runner goes back to the one before.

    Args:
        built: of `check_parts`.
        length: how many of "epoch" or "iter" the training has.
        labels: of `check_data`.
    """
    try:
        content = check_checkpoint(built.model, option, path)
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
              for state in (content.get("optimizer"), built.optimizer.state_dict()) if state]  # fmt: skip
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
    if "max_epochs" in cfg.runner and not saving.get("by_epoch", True):
        warn("checkpoint_config.by_epoch=False: a resume goes on with the next epoch, as MMDetection's")
    return Built(model, optimizer)


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
        warn(f"the checkpoint was trained on {in_words(trained)}, the config's classes are {in_words(wanted)}")
