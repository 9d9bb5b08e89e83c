"""What is checked in a config for MMDetection 3 before a run writes anything: parts and evaluation."""

import contextlib
import copy
import io
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmdet.datasets
import numpy as np
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, HOOKS, METRICS, MODELS, OPTIMIZERS, PARAM_SCHEDULERS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper

from ...mmdet3.detector import YOLOX
from ..checks import Built, check_file_names, check_precision
from ..configs import class_of, listed
from ..messages import InputError, described
from .data import classes_of


def check_autocast(cfg: Config, option: str | None) -> None:
    """Raises InputError for a precision that the device, or the detector, does not have.

    Args:
        option: what --amp was given.
    """
    kind = cfg.optim_wrapper.get("type", "OptimWrapper")
    other = f"the config's {kind}" if kind == "AmpOptimWrapper" else None
    check_precision(cfg.device, cfg.model.get("autocast"), option is not None, other_detector(cfg), other)


def other_detector(cfg: Config) -> str | None:
    """The config's detector, if it is another than the plugin's; one that there is not is for building it to find."""
    kind = class_of(cfg.model, MODELS)
    return kind.__name__ if kind is not None and not issubclass(kind, YOLOX) else None


def check_model(cfg: Config) -> Any:
    """The config's detector.

    Raises:
        InputError: its registries cannot build it.
    """
    return described("model", lambda: MODELS.build(copy.deepcopy(cfg.model)))


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """Within it, mmengine's current logger writes errors alone: what is built for checks is no news."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_parts(cfg: Config) -> Built:
    """The config's detector and optimizer.

    Raises:
        InputError: for parts of the recipe that their registries cannot build.
    """
    model = check_model(cfg)
    kind = (cfg.optim_wrapper.get("optimizer") or {}).get("type")
    if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
        raise InputError(f"the config's optim_wrapper cannot be: there is no optimizer {kind!r}")
    with without_log():
        wrapper = described("optim_wrapper", lambda: build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper)))
    hooks = {f"custom_hooks ({hook!r:.60})": hook for hook in cfg.custom_hooks}
    default = {name: hook for name, hook in cfg.default_hooks.items() if hook is not None}
    default.pop("visualization", None)  # which asks for the runner's visualizer
    hooks |= {f"default_hooks.{name}": hook for name, hook in default.items()}
    for name, hook in hooks.items():
        options = {key: value for key, value in hook.items() if key != "priority"}
        described(name, lambda options=options: HOOKS.build(options))  # type: ignore[misc]
    for scheduler in listed(cfg.param_scheduler):
        options = {"optimizer": wrapper.optimizer, **scheduler}
        if options.pop("convert_to_iter_based", False):
            kind = PARAM_SCHEDULERS.get(options.pop("type"))
            described(
                f"param_scheduler ({scheduler.type})",
                lambda kind=kind, options=options: kind.build_iter_from_epoch(**options, epoch_length=1),  # type: ignore[misc]
            )
        else:
            described(
                f"param_scheduler ({scheduler.get('type')})",
                lambda options=options: PARAM_SCHEDULERS.build(options),  # type: ignore[misc]
            )
    described("log_level", lambda: logging.Logger("").setLevel(cfg.log_level))
    saving = cfg.default_hooks.get("checkpoint") or {}
    if saving.get("out_dir") is not None:
        raise InputError(
            "the config's default_hooks.checkpoint.out_dir is not supported: --work-dir says where files go"
        )
    if saving.get("filename_tmpl") is not None:
        check_file_names("default_hooks.checkpoint.filename_tmpl", saving["filename_tmpl"])
    return Built(model, wrapper.optimizer)


def check_evaluation(cfg: Config) -> None:
    """Raises InputError for what the config's val_evaluator asks for and MMDetection would refuse after an epoch."""
    for key in ("val_evaluator", "val_cfg"):
        if cfg.get(key) is None:
            raise InputError(f"the config has a val_dataloader, but no {key}")
    metrics = listed(cfg.val_evaluator)
    for metric in metrics:
        kind = METRICS.get(metric.get("type"))
        if kind is None:
            raise InputError(f"the config's val_evaluator cannot be: there is no metric {metric.get('type')!r}")
        if kind is not CocoMetric:
            return  # a user's own may want other results, and write files
    with without_log():
        names = described("val_evaluator", lambda: [name for metric in metrics for name in try_metric(metric, cfg)])
    best = (cfg.default_hooks.get("checkpoint") or {}).get("save_best")
    for name in listed(best or []):
        if name != "auto" and name not in names:
            raise InputError(
                f"the config's default_hooks.checkpoint.save_best must be 'auto' or one of {', '.join(names)}, got"
                f" {name!r}"
            )


def try_metric(metric: Any, cfg: Config) -> list[str]:
    """Evaluates one image with one box with this metric; the names of its figures."""
    leaf = cfg.val_dataloader.dataset
    if not issubclass(class_of(leaf, DATASETS), mmdet.datasets.CocoDataset):
        return []
    classes = classes_of(leaf, "val_dataloader.dataset")
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
    }
    found = {"bboxes": np.array([[8.0, 8.0, 48.0, 48.0]]), "scores": np.array([0.9]), "labels": np.array([0])}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder, "one.json")
        path.write_text(json.dumps(content))
        options = {"ann_file": str(path)} if metric.get("ann_file") is not None else {}
        if metric.get("outfile_prefix") is not None:
            options["outfile_prefix"] = str(Path(folder, "one"))
        built = METRICS.build({**metric, **options})
        built.dataset_meta = {"classes": tuple(classes)}
        truth = {"img_id": 1, "width": 64, "height": 64, "anns": [{"bbox_label": 0, "bbox": [8, 8, 48, 48]}]}
        figures = built.compute_metrics([(truth, {"img_id": 1, **found})])
    return [f"{built.prefix}/{name}" if built.prefix else name for name in figures]
