"""Lengths of a recipe for MMDetection 2.28: what does not fit is refused; a short run is the whole recipe in little."""

import argparse
from typing import Any

from mmcv import Config
from mmcv.runner import RUNNERS

from ...mmdet2.runner import EpochBasedRunner
from ..configs import class_of, data_sets, mid_epoch_option, shrunk
from ..image_size import change_sizes
from ..messages import InputError


def change_size(cfg: Config, side: int) -> None:
    """See `image_size.change_sizes`."""
    pipelines = [part["pipeline"] for part in (*data_sets(cfg.data.train), cfg.data.val, cfg.data.test)]
    tests = [step.get("img_scale") for step in cfg.data.test.pipeline if step.type == "MultiScaleFlipAug"]
    change_sizes(cfg._cfg_dict, pipelines, tests[0] if tests else None, side)


def can_stop(cfg: Config) -> bool:
    """Whether this config's training writes checkpoints in the middle of an epoch."""
    return issubclass(runner_of(cfg), EpochBasedRunner)


def runner_of(cfg: Config) -> type:
    """The class of this config's runner. Raises InputError if there is none of that name."""
    kind: type | None = class_of(cfg.runner, RUNNERS)
    if kind is None:
        named = cfg.runner.get("type")
        raise InputError(f"the config's runner.type must be a runner's, as 'EpochBasedRunner', got {named!r:.60}")
    return kind


def check_recipe(args: argparse.Namespace, cfg: Config) -> None:
    """Raises InputError for what MMDetection's runners do not do, or do without a word."""
    runner_of(cfg)
    if len(cfg.workflow) != 1 or cfg.workflow[0][0] != "train":
        raise InputError(f"the config's workflow must be [('train', 1)], got {cfg.workflow}: `evaluation` is for val")
    option = mid_epoch_option(args)
    if option and not can_stop(cfg):
        raise InputError(f"{option} is for the plugin's EpochBasedRunner, got the config's {cfg.runner.type}")
    lr: Any = cfg.lr_config or {}
    if args.epochs and {"periods", "total_steps"}.intersection(lr):
        raise InputError(
            f"--epochs cannot shorten the config's lr_config.policy={lr.policy!r}: change its lengths there"
        )
    if "max_epochs" in cfg.runner:
        if lr.get("warmup_by_epoch") and not args.epochs and not args.performance:
            check_lengths(cfg, iterations_per_epoch=1)  # all lengths are in epochs
        return
    kind = cfg.runner.type
    counted = [f"lr_config.{key}" for key in ("by_epoch", "warmup_by_epoch", "num_last_epochs") if lr.get(key)]
    counted += [hook.type for hook in cfg.custom_hooks if hook.get("num_last_epochs")]
    if args.epochs:
        counted.append("--epochs")
    if counted:
        raise InputError(
            f"the config's {kind} has no epochs, in which {counted[0]} counts: leave that out, or use EpochBasedRunner"
        )
    if kind == "IterBasedRunner" and cfg.device != "cuda" and (args.resume or args.max_restarts or cfg.resume_from):
        raise InputError(f"the config's {kind} resumes on CUDA alone, as mmcv has it: use EpochBasedRunner")


def check_lengths(cfg: Config, iterations_per_epoch: int) -> None:
    """Raises InputError if warm-up and closing phase leave nothing of the training, where the learning rate is made of
    its share."""
    lr: Any = cfg.lr_config or {}
    if lr.get("policy") != "YOLOX":
        return
    warm_up = lr.get("warmup_iters", 0) * (iterations_per_epoch if lr.get("warmup_by_epoch") else 1)
    closing, length = lr.num_last_epochs, cfg.runner.max_epochs
    if warm_up and warm_up >= (length - closing) * iterations_per_epoch:
        raise InputError(
            f"the config's warm-up of {warm_up / iterations_per_epoch:g} epochs and closing phase of {closing} must be"
            f" shorter than its {length} epochs"
        )


def schedule(cfg: Config, epochs: int | None, iterations_per_epoch: int) -> None:
    """Fits the recipe into `epochs`: warm-up, closing phase, steps and intervals shrink. The end is evaluated."""
    lr: Any = cfg.get("lr_config") or {}
    evaluation = cfg.get("evaluation")
    changes = [tuple(change) for change in (evaluation or {}).get("dynamic_intervals") or ()]
    if epochs:
        share = min(epochs / cfg.runner.max_epochs, 1.0)
        cfg.runner.max_epochs = epochs
        parts = [hook for hook in cfg.get("custom_hooks") or () if "num_last_epochs" in hook]
        parts += [part for part in (lr, evaluation, cfg.get("checkpoint_config")) if part]
        for part in parts:
            part.update({key: shrunk(part[key], share) for key in ("interval", "start", "step") if part.get(key)})
            if "num_last_epochs" in part:  # of one epoch none is left for it, in which the learning rate is the lowest
                part.num_last_epochs = min(shrunk(part.num_last_epochs, share), epochs - 1)
        closing = max((part.num_last_epochs for part in parts if "num_last_epochs" in part), default=0)
        changes = [(epochs - closing, 1)] if changes else []
        if lr.get("warmup_iters"):
            warm_up = lr.warmup_iters * (iterations_per_epoch if lr.get("warmup_by_epoch") else 1)
            most = max((epochs - closing) * iterations_per_epoch - 1, 1)
            lr.update(warmup_by_epoch=False, warmup_iters=min(shrunk(warm_up, share), most))
    if evaluation is not None:
        end = cfg.runner.get("max_epochs") or cfg.runner.max_iters
        evaluation.dynamic_intervals = [*changes, (end, 1)]


def log_often(cfg: Config, iterations: float) -> None:
    """Lets the loggers write at least once in so many iterations."""
    for part in (cfg.log_config, *cfg.log_config.hooks):
        if "interval" in part:
            part.interval = min(part.interval, max(int(iterations), 1))
