"""Training with MMDetection 2.28's own runner."""

import argparse
import contextlib
import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmcv import Config
from mmcv.runner import HOOKS, OPTIMIZERS, BaseRunner, EMAHook, Hook, IterBasedRunner, OptimizerHook, get_dist_info
from mmcv.runner.iter_based_runner import IterLoader
from mmdet.apis import set_random_seed, train_detector
from mmdet.core.hook.ema import BaseEMAHook
from mmdet.datasets import build_dataloader, build_dataset
from mmdet.utils import get_root_logger, setup_multi_processes

from ...core.checkpoint import newest_checkpoint
from ...core.mixing import data_sets_in
from ...core.sgd import SGD
from ...mmdet2.dataset import CocoDataset
from ...mmdet2.ddp import prepare_parallel
from ...mmdet2.detector import YOLOX
from .. import annotations, checks, folders, report, start, where
from ..annotations import Checked
from ..configs import asked_lengths, heads_of, in_words, length_of, listed, text_of
from ..messages import described
from ..start import Ready, check_start, own_classes
from ..terminal import Kept, show_progress_alone
from . import checks as parts
from .config import adopt_classes, load_config, read_split
from .data import sources
from .log import initialization_logged, read_log, seed_of
from .recipe import can_stop, change_size, check_lengths, check_recipe, log_often, schedule

__all__ = ["CACHE", "MORE_WORKERS", "Training", "check", "check_data", "configure", "describe", "read_split",
           "sources", "splits_of"]  # fmt: skip

# Options for a training that waits for data.
MORE_WORKERS, CACHE = "data.workers_per_gpu=N", "data.train.cache=ram"
# Hooks with a closing phase, and how many epochs MMDetection gives it where the config does not say.
CLOSING = {"YOLOXModeSwitchHook": 15, "SyncNormHook": 15}


def configure(args: argparse.Namespace) -> Config:
    """The config with everything the options say, except what depends on the size of the data set (`schedule`)."""
    cfg = load_config(args)
    adopt_classes(cfg, lambda: own_classes([source.path for source in sources(cfg, ["train"])]))
    if args.img_size:
        change_size(cfg, args.img_size)
    if args.batch_size:
        cfg.data.train_dataloader.samples_per_gpu = args.batch_size
    if args.amp:
        cfg.model.autocast = args.amp
    if "base_batch_size" in cfg.auto_scale_lr:
        cfg.auto_scale_lr.enable = True
    cfg.seed = args.seed
    cfg.auto_resume = False  # `train` says where to go on from
    if "evaluation" not in cfg:
        cfg.evaluation = {}  # MMDetection evaluates every epoch then; None stands for none
    cfg.custom_hooks = list(listed(cfg.custom_hooks))
    for hook in cfg.custom_hooks:
        if hook.get("type") in CLOSING:
            hook.setdefault("num_last_epochs", CLOSING[hook.type])
    cfg.log_config.setdefault("interval", 50)
    cfg.log_config.setdefault("hooks", [])
    loggers = ["TextLoggerHook"]  # the figures of a run come from its log
    if importlib.util.find_spec("tensorboard") is not None:
        loggers.append("TensorboardLoggerHook")
    there = [hook.type for hook in cfg.log_config.hooks]
    cfg.log_config.hooks.extend({"type": name} for name in loggers if name not in there)
    return cfg


def validates(args: argparse.Namespace, cfg: Config) -> bool:
    """Whether this training evaluates on val."""
    return not args.performance and cfg.evaluation is not None


def splits_of(args: argparse.Namespace, cfg: Config) -> tuple[str, ...]:
    """The splits of the data set that this training reads."""
    return ("train", "val") if validates(args, cfg) else ("train",)


def check(args: argparse.Namespace, cfg: Config) -> Ready:
    """What is there to begin with. Raises InputError for whatever would fail later, or overwrite something."""
    checks.check_devices(cfg.device, args.devices)
    parts.check_autocast(cfg, args.amp)
    built = parts.check_parts(cfg)
    check_recipe(args, cfg)
    splits = splits_of(args, cfg)
    data = check_data(args, cfg, splits)
    ready = check_start(args, data, built.model)
    if "val" in splits:
        parts.check_evaluation(cfg, distributed=args.devices > 1 or args.nnodes is not None)
    work_dir = Path(cfg.work_dir)
    folders.check_folder("--work-dir", work_dir)
    folders.check_new(work_dir, args.resume)
    checks.check_initial_weights(built.model, "load_from", cfg.load_from)
    checks.check_initial_weights(built.model, "resume_from", cfg.resume_from)
    newest = newest_checkpoint(work_dir) if args.resume else None
    checks.check_goes_on(newest, can_stop(cfg))
    if newest:
        option, path = "--resume", newest
    elif cfg.resume_from and "://" not in cfg.resume_from:
        option, path = "resume_from", Path(cfg.resume_from)
    else:
        return ready
    meta = checks.check_resumable(built, option, path, length_of(args, cfg.runner), data.labels)
    parts.check_logged(meta, option, path)
    return ready


def describe(args: argparse.Namespace, cfg: Config, ready: Ready) -> str:
    """What this command is going to do, in a few lines."""
    batch = cfg.data.train_dataloader.get("samples_per_gpu", 2)
    length = in_words(length_of(args, cfg.runner))
    return start.describe(args.config, cfg.device, args.devices, batch, length, cfg.work_dir, ready)


def check_data(args: argparse.Namespace, cfg: Config, splits: Sequence[str], images: bool = True) -> Checked:
    """What is there to train on; raises InputError for annotations, and `images`, that MMDetection cannot train on."""
    return annotations.check_data(sources(cfg, splits), args.data_path.absolute(), heads_of(cfg), images)


def iterations_in(dataset: Any, cfg: Config, distributed: bool) -> int:
    """In an epoch, of the loader that MMDetection will make; the images shared out for a runner without epochs."""
    options = {"samples_per_gpu": 2, **cfg.data.train_dataloader, "workers_per_gpu": 0, "persistent_workers": False}
    if "max_epochs" in cfg.runner:
        loader = build_dataloader(dataset, dist=distributed, seed=cfg.seed, runner_type=cfg.runner.type, **options)
        return len(loader)
    batches: float = len(dataset) / options["samples_per_gpu"] / len(cfg.gpu_ids)
    return math.ceil(batches)


class Enough(Exception):
    """As many iterations as were asked for."""


@HOOKS.register_module()
class StopHook(Hook):
    """Ends the training after so many iterations, which mmcv's runner has no other way for."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def after_train_iter(self, runner: BaseRunner) -> None:
        if runner.iter + 1 >= self.iterations:
            runner.logger.info(f"stopped after {self.iterations} iterations, as asked")
            raise Enough


@HOOKS.register_module()
class FirstBatchHook(Hook):
    """Hands the runner and its first batch to `keep`."""

    def __init__(self, keep: Callable[[Any], None]) -> None:
        self.keep: Callable[[Any], None] | None = keep

    def before_train_iter(self, runner: BaseRunner) -> None:
        if self.keep is not None:
            self.keep((runner, runner.data_batch))
            self.keep = None


def measure_step(runner: BaseRunner, batch: Any, device: str, rank: int) -> dict[str, Any]:
    """What a step takes of host and device (`where.Steps`), in some more steps of a training that has ended, by all
    ranks: with optimizer and moving average, but nothing that logs, evaluates or saves."""
    runner._hooks = [hook for hook in runner.hooks if isinstance(hook, (OptimizerHook, EMAHook, BaseEMAHook))]
    runner._epoch = runner._iter = 0  # when images have the config's own size
    steps = where.Steps(batch, device)
    batches = steps if rank == 0 else [batch] * len(steps)
    if isinstance(runner, IterBasedRunner):
        for given in batches:
            runner.train(IterLoader([given]))
    else:
        runner.train(batches)
    return steps.figures


def labels_of(dataset: Any) -> dict[str, list[str]]:
    """What a checkpoint tells of the numbering of classes, in which MMDetection follows the annotation file."""
    leaves = [part for part in data_sets_in(dataset) if isinstance(part, CocoDataset)]
    return {"LABELS": leaves[0].label_names} if leaves else {}


class Training:
    """One process of a training: data set, model and recipe."""

    def __init__(self, args: argparse.Namespace, cfg: Config, kept: Kept) -> None:
        """Builds them; nothing is written.

        Args:
            kept: what is to be written into the log.

        Raises:
            InputError: for what shows only in the data set.
        """
        self.args, self.cfg, self.kept = args, cfg, kept
        self.rank, self.world_size = get_dist_info()
        prepare_parallel(
            gradient_as_bucket_view=cfg.device == "npu" and OPTIMIZERS.get(str(cfg.optimizer.get("type"))) is SGD,
        )
        setup_multi_processes(cfg)
        set_random_seed(args.seed)
        cfg.gpu_ids = list(range(self.world_size))
        self.dataset = described("data.train", lambda: build_dataset(cfg.data.train))
        per_epoch = iterations_in(self.dataset, cfg, distributed=self.world_size > 1)
        epochs, iterations = asked_lengths(args, cfg.runner, per_epoch)
        schedule(cfg, epochs, per_epoch)
        length = cfg.runner.max_iters if "max_iters" in cfg.runner else cfg.runner.max_epochs * per_epoch
        if "max_epochs" in cfg.runner and not epochs:  # or they have been made to fit
            check_lengths(cfg, per_epoch)
        log_often(cfg, min(min(length, iterations or length) // 20, per_epoch))
        self.model = parts.check_model(cfg)
        self.iterations = iterations
        self.can_stop = can_stop(cfg)
        self.text = text_of(cfg.items())

    def run(self, newest: Path | None) -> report.Outcome:
        """The training itself, in a folder that is this run's, from the checkpoint `newest` on."""
        args, cfg, model = self.args, self.cfg, self.model
        work_dir = Path(cfg.work_dir)
        stamp = time.strftime("%Y%m%d_%H%M%S")
        log_file = str(work_dir / f"{stamp}.log") if self.rank == 0 else None
        logger = get_root_logger(log_file=log_file, log_level=cfg.log_level)
        show_progress_alone(logger)
        self.kept.write_to(logger)
        logger.info(", ".join(f"{name} {value}" for name, value in report.versions().items()))
        with initialization_logged(logger):
            model.init_weights()
        if isinstance(model, YOLOX):  # built for the device that MMDetection would choose
            model.prepare_for(cfg.device)
        if cfg.device != "npu" and cfg.get("channels_last"):
            model.to(memory_format=torch.channels_last)
        model.CLASSES = self.dataset.CLASSES
        about = {"CLASSES": self.dataset.CLASSES, **labels_of(self.dataset)}
        meta = {**about, "seed": args.seed, "config": self.text}
        if cfg.checkpoint_config is not None:
            cfg.checkpoint_config.meta = about
        if self.can_stop:
            cfg.custom_hooks.append({
                "type": "MidEpochCheckpointHook", "iterations": args.checkpoint_iterations,
                "minutes": args.checkpoint_minutes, "priority": "LOWEST",
                "create_symlink": (cfg.checkpoint_config or {}).get("create_symlink", True),
            })  # fmt: skip
        if self.iterations:
            cfg.custom_hooks.append({"type": "StopHook", "iterations": self.iterations, "priority": "LOWEST"})
        kept: list[Any] = []
        if args.performance and cfg.device in where.DEVICES:
            # MMDetection copies the config with all that is in it except functions.
            cfg.custom_hooks.append({"type": "FirstBatchHook", "keep": kept.append})
        if newest:
            cfg.resume_from = str(newest)
        with contextlib.suppress(Enough):
            train_detector(model, [self.dataset], cfg, distributed=self.world_size > 1,
                           validate=validates(args, cfg), timestamp=stamp, meta=meta)  # fmt: skip
        step = None
        for runner, batch in kept:  # or no iteration was left
            step = measure_step(runner, batch, cfg.device, self.rank)
        is_main = self.rank == 0
        return report.Outcome(
            batch_size=cfg.data.train_dataloader.get("samples_per_gpu", 2),
            epochs=cfg.runner.get("max_epochs"),
            iterations=args.iterations or cfg.runner.get("max_iters"),
            seed=seed_of(work_dir / f"{stamp}.log.json") if is_main else None,
            log=read_log(work_dir, by_epoch="max_epochs" in cfg.runner) if is_main else [],
            has_gts=is_main and validates(args, cfg) and all(map(annotations.has_gts, sources(cfg, ["val"]))),
            step=step,
        )
