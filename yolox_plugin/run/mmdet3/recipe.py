"""Lengths of a recipe for MMDetection 3: what does not fit is refused; a short run is the whole recipe in little."""

import argparse
from typing import Any

from mmengine.config import Config
from mmengine.registry import LOOPS

from ...mmdet3.loop import EpochBasedTrainLoop
from ..configs import class_of, data_sets, listed, mid_epoch_option, shrunk
from ..image_size import change_sizes
from ..messages import InputError
from .config import SPLITS

# Where the time of a scheduler is written down.
TIMES = ("begin", "end", "T_max", "milestones", "step_size")
# Its other measures, which have no place in a shorter time.
FIXED = {"periods", "restart_weights", "total_steps", "steps_per_epoch"}


def change_size(cfg: Config, side: int) -> None:
    """See `image_size.change_sizes`."""
    loaders = [cfg[f"{split}_dataloader"] for split in SPLITS if cfg.get(f"{split}_dataloader") is not None]
    pipelines = [part["pipeline"] for loader in loaders for part in data_sets(loader.dataset)]
    evaluated = loaders[-1].dataset.get("pipeline") or []
    resizes = [step.get("scale") for step in evaluated if step.type.rpartition(".")[2] == "Resize"]
    change_sizes(cfg._cfg_dict, pipelines, resizes[0] if resizes else None, side)


def counts_epochs(cfg: Config) -> bool:
    """Whether the config's training is so many epochs, and not iterations."""
    return "max_epochs" in cfg.train_cfg


def can_stop(cfg: Config) -> bool:
    """Whether this config's training writes checkpoints in the middle of an epoch."""
    kind = class_of({"type": cfg.train_cfg.get("type") or "EpochBasedTrainLoop"}, LOOPS)
    return counts_epochs(cfg) and kind is not None and issubclass(kind, EpochBasedTrainLoop)


def check_recipe(args: argparse.Namespace, cfg: Config) -> None:
    """Raises InputError for what mmengine's loops do not do, or do without a word."""
    for key in ("max_epochs" if counts_epochs(cfg) else "max_iters", "val_interval"):
        length = cfg.train_cfg.get(key, 1)
        if type(length) is not int or length < 1:
            raise InputError(f"the config's train_cfg.{key} must be a whole number of 1 or more, got {length!r}")
    option = mid_epoch_option(args)
    if option and not can_stop(cfg):
        raise InputError(f"{option} is for the plugin's EpochBasedTrainLoop, which the config's train_cfg does not use")
    for scheduler in listed(cfg.param_scheduler):
        if args.epochs and FIXED.intersection(scheduler):
            raise InputError(f"--epochs cannot shorten the config's {scheduler.type}: change its lengths there")
    if counts_epochs(cfg):
        return
    counted = [f"the {scheduler.type}" for scheduler in listed(cfg.param_scheduler) if scheduler.get("by_epoch", True)]
    counted += [f"the {hook.type}" for hook in cfg.custom_hooks if "num_last_epochs" in hook]
    if args.epochs:
        counted.append("--epochs")
    if counted:
        raise InputError(
            f"the config's training has max_iters and no epochs, in which {counted[0]} counts: leave that out, or use"
            " max_epochs"
        )


def closing_of(cfg: Config) -> int:
    """How many epochs the closing phase of the config has, as its hooks say."""
    return max((hook.num_last_epochs for hook in cfg.custom_hooks if "num_last_epochs" in hook), default=0)


def schedule(cfg: Config, epochs: int | None, iterations_per_epoch: int) -> None:
    """Fits the recipe into `epochs`: warm-up, closing phase, steps and intervals shrink. mmengine evaluates the end."""
    if not epochs:
        return
    before, closing = cfg.train_cfg.max_epochs, closing_of(cfg)
    share = min(epochs / before, 1.0)
    # Of one epoch none is left for the closing phase, in which the learning rate is the lowest.
    left = min(shrunk(closing, share), epochs - 1) if closing else 0

    def moved(time: Any) -> Any:
        """A time, in epochs, in the new recipe: the phases before and in the closing one shrink each by its own."""
        if isinstance(time, (list, tuple)):
            return [moved(part) for part in time]
        if time >= before or (share == 1.0 and time >= before - closing):
            return time - before + epochs
        if share == 1.0:
            return time
        if time <= before - closing:
            return time * (epochs - left) / (before - closing)
        return epochs - left + (time - before + closing) * left / closing

    cfg.train_cfg.max_epochs = epochs
    for part, key in ((cfg.train_cfg, "val_interval"), (cfg.default_hooks.get("checkpoint") or {}, "interval")):
        if part.get(key):
            part[key] = shrunk(part[key], share)
    if cfg.train_cfg.get("dynamic_intervals"):
        cfg.train_cfg.dynamic_intervals = [(epochs - left, 1)]
    for hook in cfg.custom_hooks:
        if "num_last_epochs" in hook:
            hook.num_last_epochs = min(shrunk(hook.num_last_epochs, share), epochs - 1)
    schedulers = [in_iterations(part, iterations_per_epoch, moved) for part in listed(cfg.param_scheduler)]
    cfg.param_scheduler = [part for part in schedulers if part.get("begin", 0) < part.get("end", float("inf"))]


def in_iterations(scheduler: Any, per_epoch: int, moved: Any) -> Any:
    """A scheduler at its new times; whole epochs stay what it counts if it changes the rate once in an epoch."""
    finely = not scheduler.get("by_epoch", True) or scheduler.get("convert_to_iter_based")
    unit = 1 if scheduler.get("by_epoch", True) else per_epoch  # times are in epochs / unit

    def placed(time: Any) -> Any:
        if isinstance(time, (list, tuple)):
            return [placed(part) for part in time]
        new = moved(time / unit)
        return max(round(new * per_epoch if finely else new), 1 if time > 0 else 0)

    changed = {key: placed(scheduler[key]) for key in TIMES if scheduler.get(key) is not None}
    result = type(scheduler)({**scheduler, **changed})
    if finely:
        result.pop("convert_to_iter_based", None)
        result.by_epoch = False
    return result


def log_often(cfg: Config, iterations: float) -> None:
    """Lets the log have a line at least once in so many iterations, with the means of those since the one before."""
    logger = cfg.default_hooks.logger
    logger.interval = min(logger.get("interval", 10), max(int(iterations), 1))
    cfg.log_processor.window_size = logger.interval
