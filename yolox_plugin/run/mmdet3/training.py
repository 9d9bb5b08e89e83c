"""Training with mmengine's own runner."""

import argparse
import contextlib
import copy
import importlib.util
import inspect
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook, RuntimeInfoHook
from mmengine.logging import MMLogger
from mmengine.runner import EpochBasedTrainLoop, Runner, set_random_seed
from torch import nn

from ...core.checkpoint import newest_checkpoint
from ...core.ranks import rank_and_world_size
from ...mmdet3.detector import YOLOX
from ...mmdet3.processes import share_no_folder
from .. import annotations, checks, folders, report, start, where
from ..annotations import Checked
from ..configs import asked_lengths, heads_of, in_words, length_of, listed, text_of
from ..messages import InputError, described
from ..start import Ready, check_start, own_classes
from ..terminal import Kept, show_progress_alone
from . import checks as parts
from .config import adopt_classes, load_config, read_split
from .data import sources
from .log import read_log
from .recipe import can_stop, change_size, check_recipe, counts_epochs, log_often, schedule

__all__ = ["CACHE", "MORE_WORKERS", "Training", "check", "check_data", "configure", "describe", "read_split",
           "sources", "splits_of"]  # fmt: skip

# Options for a training that waits for data.
MORE_WORKERS, CACHE = "train_dataloader.num_workers=N", "train_dataloader.dataset.cache=ram"


def configure(args: argparse.Namespace) -> Config:
    """The config with everything the options say, except what depends on the size of the data set (`schedule`)."""
    cfg = load_config(args)
    for key in ("train_dataloader", "train_cfg", "optim_wrapper"):
        if not isinstance(cfg.get(key), dict):
            raise InputError(f"--config {args.config} has no {key}")
    adopt_classes(cfg, lambda: own_classes([source.path for source in sources(cfg, ["train"])]))
    if "max_epochs" not in cfg.train_cfg and "max_iters" not in cfg.train_cfg:
        raise InputError(f"--config {args.config} has neither max_epochs nor max_iters in train_cfg")
    if args.img_size:
        change_size(cfg, args.img_size)
    if args.batch_size:
        cfg.train_dataloader.batch_size = args.batch_size
    if args.amp:
        cfg.model.autocast = args.amp
    if args.amp == "float16":  # for the scale of its losses
        cfg.optim_wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic")
    if "base_batch_size" in cfg.auto_scale_lr:
        cfg.auto_scale_lr.enable = True
    cfg.randomness = {**(cfg.get("randomness") or {}), "seed": args.seed}
    if cfg.load_from is None:
        cfg.resume = False  # `train` says where to go on from
    cfg.custom_hooks = list(listed(cfg.custom_hooks))
    cfg.default_hooks.setdefault("logger", {"type": "LoggerHook", "interval": 50})
    backends = cfg.visualizer.setdefault("vis_backends", [])
    wanted = ["LocalVisBackend"]  # the figures of a run come from its log
    if importlib.util.find_spec("tensorboard") is not None:
        wanted.append("TensorboardVisBackend")
    there = [backend.type for backend in backends]
    backends.extend({"type": name} for name in wanted if name not in there)
    if args.performance or cfg.get("val_dataloader") is None or cfg.get("val_evaluator") is None:
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    return cfg


def splits_of(args: argparse.Namespace, cfg: Config) -> tuple[str, ...]:
    """The splits of the data set that this training reads."""
    return ("train",) if cfg.val_dataloader is None else ("train", "val")


def check(args: argparse.Namespace, cfg: Config) -> Ready:
    """What is there to begin with. Raises InputError for whatever would fail later, or overwrite something."""
    checks.check_devices(cfg.device, args.devices)
    parts.check_autocast(cfg, args.amp)
    check_recipe(args, cfg)
    built = parts.check_parts(cfg)
    splits = splits_of(args, cfg)
    data = check_data(args, cfg, splits)
    ready = check_start(args, data, built.model)
    if "val" in splits:
        parts.check_evaluation(cfg)
    work_dir = Path(cfg.work_dir)
    folders.check_folder("--work-dir", work_dir)
    folders.check_new(work_dir, args.resume)
    checks.check_initial_weights(built.model, "load_from", cfg.load_from)
    newest = newest_checkpoint(work_dir) if args.resume else None
    checks.check_goes_on(newest, can_stop(cfg))
    if newest:
        checks.check_resumable(built, "--resume", newest, length_of(args, cfg.train_cfg), data.labels)
    elif cfg.resume and "://" not in cfg.load_from:
        checks.check_resumable(built, "load_from", Path(cfg.load_from), length_of(args, cfg.train_cfg), data.labels)
    return ready


def describe(args: argparse.Namespace, cfg: Config, ready: Ready) -> str:
    """What this command is going to do, in a few lines."""
    batch = cfg.train_dataloader.get("batch_size", 1)
    length = in_words(length_of(args, cfg.train_cfg))
    return start.describe(args.config, cfg.device, args.devices, batch, length, cfg.work_dir, ready)


def check_data(args: argparse.Namespace, cfg: Config, splits: Sequence[str], images: bool = True) -> Checked:
    """What is there to train on; raises InputError for annotations, and `images`, that MMDetection cannot train on."""
    return annotations.check_data(sources(cfg, splits), args.data_path.absolute(), heads_of(cfg), images)


class Enough(Exception):
    """As many iterations as were asked for."""


@HOOKS.register_module()
class StopHook(Hook):
    """Ends the training after so many iterations; mmengine's loop has no other way but at the end of an epoch."""

    priority = "LOWEST"

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """See mmengine."""
        if runner.iter + 1 >= self.iterations:
            runner.logger.info(f"stopped after {self.iterations} iterations, as asked")
            raise Enough


@HOOKS.register_module()
class SharedNormsHook(Hook):
    """Evaluates what the checkpoint holds, rank 0's norms, as MMDetection 2.28 does; mmengine lets each rank have its
    own."""

    priority = "LOWEST"  # after the averages have been put in place

    def before_val_epoch(self, runner: Runner) -> None:
        """See mmengine."""
        if not runner.distributed:
            return
        for module in runner.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for buffer in (module.running_mean, module.running_var):
                    if buffer is not None:
                        dist.broadcast(buffer, 0)


@HOOKS.register_module()
class LabelsHook(Hook):
    """Tells in checkpoints of the numbering of classes, in which MMDetection follows the annotation file."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """See mmengine."""
        checkpoint["meta"]["LABELS"] = self.labels


class FirstBatchHook(Hook):
    """Keeps the first batch of a training as `batch`."""

    batch: Any = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """See mmengine."""
        if self.batch is None:
            self.batch = data_batch


def measure_step(runner: Runner, batch: Any, device: str, rank: int) -> dict[str, Any]:
    """What a step takes of host and device (`where.Steps`), in some more steps of a training that has ended, by all
    ranks: with optimizer and moving average, but nothing that logs, evaluates or saves."""
    runner._hooks = [hook for hook in runner.hooks if isinstance(hook, (EMAHook, RuntimeInfoHook))]
    steps, loop = where.Steps(batch, device), runner.train_loop
    batches = steps if rank == 0 else [batch] * len(steps)
    loop._epoch = loop._iter = 0  # when images have the config's own size
    if isinstance(loop, EpochBasedTrainLoop):
        loop.dataloader = batches
        loop.run_epoch()
    else:
        for given in batches:
            loop.run_iter(given)
    return steps.figures


class _Runner(Runner):
    """mmengine's, without a second copy of the config, which the command has written already, and with a terminal that
    shows how far it is."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """See mmengine. The terminal gets less than the file."""
        logger = super().build_logger(*args, **kwargs)
        show_progress_alone(logger)
        return logger

    def dump_config(self) -> None:
        """See mmengine."""


def build_loader(args: argparse.Namespace, cfg: Config) -> Any:
    """The loader of a training, with everything seeded as that begins.

    Raises:
        InputError: the config's cannot be built.
    """
    randomness = {key: value for key, value in cfg.randomness.items() if key != "seed"}
    set_random_seed(args.seed, **randomness)
    options = copy.deepcopy(cfg.train_dataloader)
    return described("train_dataloader", lambda: Runner.build_dataloader(options, seed=args.seed,
        diff_rank_seed=randomness.get("diff_rank_seed", False)))  # fmt: skip


class Training:
    """One process of a training: data set, model and recipe."""

    def __init__(self, args: argparse.Namespace, cfg: Config, kept: Kept) -> None:
        """Builds them; nothing is written.

        Args:
            kept: what is to be written into the log.

        Raises:
            InputError: for what shows only in the data set.
        """
        share_no_folder()
        self.args, self.cfg, self.kept = args, cfg, kept
        self.rank, self.world_size = rank_and_world_size()
        self.loader = build_loader(args, cfg)
        self.dataset = self.loader.dataset
        by_epoch = counts_epochs(cfg)
        # Of a loader that never ends, as trainings without epochs have, an epoch is once through the data set.
        self.per_epoch: int = len(self.loader)
        epochs, self.iterations = asked_lengths(args, cfg.train_cfg, self.per_epoch)
        schedule(cfg, epochs, self.per_epoch)
        length = cfg.train_cfg.max_epochs * self.per_epoch if by_epoch else cfg.train_cfg.max_iters
        log_often(cfg, min(min(length, self.iterations or length) // 20, self.per_epoch))
        self.model = parts.check_model(cfg)
        self.can_stop = can_stop(cfg)
        self.text = text_of(cfg.to_dict().items())

    def run(self, newest: Path | None) -> report.Outcome:
        """The training itself, in a folder that is this run's, from the checkpoint `newest` on."""
        args, cfg = self.args, self.cfg
        work_dir = Path(cfg.work_dir)
        if isinstance(self.model, YOLOX):  # built for the device that mmengine would choose
            self.model.prepare_for(cfg.device)
        if cfg.get("channels_last") and cfg.device != "npu":
            self.model.to(memory_format=torch.channels_last)
        is_main = self.rank == 0
        hooks = [*cfg.custom_hooks, {"type": "SharedNormsHook"}]
        if is_main:  # the others write no checkpoints
            labels = list(annotations.labels_of(sources(cfg, ["train"])))
            hooks.append({"type": "LabelsHook", "labels": labels})
        if self.can_stop:
            hooks.append({
                "type": "MidEpochCheckpointHook", "iterations": args.checkpoint_iterations,
                "minutes": args.checkpoint_minutes,
            })  # fmt: skip
        if self.iterations:
            hooks.append({"type": "StopHook", "iterations": self.iterations})
        first = FirstBatchHook()
        if args.performance and cfg.device in where.DEVICES:
            hooks.append(first)
        given = {name: cfg[name] for name in inspect.signature(Runner).parameters if name in cfg}
        # Those of an evaluation that is not this command's.
        for name in ("test_dataloader", "test_cfg", "test_evaluator"):
            given.pop(name, None)
        given |= {
            "model": self.model, "train_dataloader": self.loader, "custom_hooks": hooks, "cfg": cfg,
            "launcher": "pytorch" if self.world_size > 1 else "none",
            # mmengine keeps one for each name, which writes to the folder of the first run in this process.
            "visualizer": {**cfg.visualizer, "name": f"visualizer {time.time_ns()}"},
        }  # fmt: skip
        if newest:
            given |= {"resume": True, "load_from": str(newest)}
        runner = _Runner(**given)
        self.kept.write_to(runner.logger)
        runner.logger.info(", ".join(f"{name} {value}" for name, value in report.versions().items()))
        with contextlib.suppress(Enough):
            runner.train()
        step = None if first.batch is None else measure_step(runner, first.batch, cfg.device, self.rank)
        by_epoch = counts_epochs(cfg)
        return report.Outcome(
            batch_size=cfg.train_dataloader.get("batch_size", 1),
            epochs=cfg.train_cfg.get("max_epochs"),
            iterations=args.iterations or cfg.train_cfg.get("max_iters"),
            seed=runner.seed,
            log=read_log(work_dir, self.per_epoch if by_epoch else None) if is_main else [],
            has_gts=is_main and cfg.val_dataloader is not None and all(map(annotations.has_gts, sources(cfg, ["val"]))),
            step=step,
        )
