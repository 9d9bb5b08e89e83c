"""Trains YOLOX with MMDetection's own runner and this plugin, on one device or several, on NPUs, GPUs or CPUs.

    python -m yolox_plugin.train --data-path=coco2017                   the standard YOLOX-M recipe, 300 epochs
    python -m yolox_plugin.train --data-path=coco2017 --devices=8       on eight devices, through torchrun
    python -m yolox_plugin.train --data-path=coco2017 --performance     images a second, one epoch, no validation

Writes to --work-dir: checkpoints, logs, the config, result.json and curves.png. The exit status is 0 after a complete
run, 2 if something in the command is wrong (nothing has been written then), and 1 if training failed.
"""

import argparse
import importlib.util
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv import Config
from mmcv.runner import HOOKS, BaseRunner, Hook
from mmdet.apis import set_random_seed, train_detector
from mmdet.datasets import build_dataset
from mmdet.models import build_detector
from mmdet.utils import get_root_logger, setup_multi_processes

from . import launch, results
from .distributed import init_process_group

# Seconds since 1970, for the processes that a command starts, restarted ones too; it has checked everything.
START = "YOLOX_PLUGIN_START"


def parser() -> argparse.ArgumentParser:
    """The options; `--help` shows them."""
    options = argparse.ArgumentParser(
        "python -m yolox_plugin.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    launch.add_options(options)
    add = options.add_argument
    add("--epochs", type=launch.positive, metavar="N",
        help="a short run: warm-up, closing phase and intervals of the config shrink in proportion")  # fmt: skip
    add("--iterations", type=launch.positive, metavar="N", help="stop after so many, in the midst of the schedule")
    add("--performance", action="store_true",
        help="no validation; one epoch, unless --epochs or --iterations says otherwise")  # fmt: skip
    add("--amp", choices=("float32", "bfloat16", "float16"),
        help="precision of the convolutions (default: MMDetection's, float32, but float16 on an NPU)")  # fmt: skip
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--resume", action="store_true", help="go on from the newest checkpoint in --work-dir, if there is one")
    add("--max-restarts", type=int, default=0, metavar="N",
        help="when a process ends with an error, start again from the newest checkpoint, N times at most")  # fmt: skip
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks, then trains: here for one device, else in processes of their own. Returns the exit status."""
    arguments = launch.options_of(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(arguments)
    given = os.environ.get(START)
    start = float(given or time.time())
    try:
        cfg = configure(args)
        if given:
            cfg.auto_resume = True  # what lies in the work directory now is this command's own
        else:
            check(args, cfg)
    except launch.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    alone = args.devices == 1 and not args.max_restarts and args.nnodes is None
    if alone or launch.is_child():
        train(args, cfg, start)
        return 0
    os.environ[START] = str(start)
    status = launch.run_processes("yolox_plugin.train", arguments, args, cfg.device, args.max_restarts)
    del os.environ[START]
    if status:
        print(f"The same command with --resume goes on from the newest checkpoint in {cfg.work_dir}.", file=sys.stderr)
    return status


def configure(args: argparse.Namespace) -> Config:
    """The config with everything the options say, except what depends on the size of the data set (`schedule`)."""
    cfg = launch.load_config(args)
    if args.batch_size:
        cfg.data.samples_per_gpu = args.batch_size
    if args.amp:
        cfg.model.autocast = args.amp
    if "base_batch_size" in cfg.get("auto_scale_lr", {}):
        cfg.auto_scale_lr.enable = True
    cfg.seed = args.seed
    cfg.auto_resume = args.resume
    if importlib.util.find_spec("tensorboard") is not None:
        cfg.log_config.hooks.append({"type": "TensorboardLoggerHook"})
    return cfg


def check(args: argparse.Namespace, cfg: Config) -> None:
    """Raises InputError for whatever would fail later, or overwrite something."""
    launch.check_devices(cfg.device, args.devices)
    if cfg.device == "cpu" and args.amp == "float16":
        raise launch.InputError("--amp=float16 needs an accelerator: on a CPU use --amp=bfloat16")
    launch.check_data(cfg, ("train",) if args.performance else ("train", "val"))
    work_dir = Path(cfg.work_dir)
    if work_dir.exists() and not work_dir.is_dir():
        raise launch.InputError(f"--work-dir {work_dir} is not a folder")
    if not cfg.auto_resume and any(work_dir.glob("*.log.json")):
        raise launch.InputError(f"--work-dir {work_dir} has a run already: --resume goes on with it, or name another")


def schedule(cfg: Config, epochs: int | None, iterations_per_epoch: int) -> None:
    """Fits the recipe into `epochs`: warm-up, closing phase and intervals in proportion. The last one is evaluated."""
    evaluations = [tuple(change) for change in cfg.evaluation.get("dynamic_intervals") or ()]
    if epochs:
        share = min(epochs / cfg.runner.max_epochs, 1.0)
        cfg.runner.max_epochs = epochs
        warm_up = cfg.lr_config.warmup_iters * (iterations_per_epoch if cfg.lr_config.get("warmup_by_epoch") else 1)
        cfg.lr_config.update(warmup_by_epoch=False, warmup_iters=max(round(warm_up * share), 1))
        # Of one epoch none is left for it: its learning rate is the lowest.
        closing = max(round(cfg.lr_config.num_last_epochs * share), 1) if epochs != 1 else 0
        evaluations = [(cfg.runner.max_epochs - closing, 1)] if evaluations else []
        for part in (cfg.lr_config, cfg.evaluation, cfg.checkpoint_config, *cfg.custom_hooks):
            if "num_last_epochs" in part:
                part.num_last_epochs = closing
            if "interval" in part:
                part.interval = max(round(part.interval * share), 1)
    cfg.evaluation.dynamic_intervals = [*evaluations, (cfg.runner.max_epochs, 1)]


def iterations_in(dataset: Any, batch_size: int, world_size: int) -> int:
    """In an epoch; MMDetection's samplers keep wide and tall images apart."""
    groups = np.bincount(dataset.flag) if hasattr(dataset, "flag") else [len(dataset)]
    return sum(math.ceil(count / batch_size / world_size) for count in groups)


class Enough(Exception):
    """As many iterations as were asked for."""


@HOOKS.register_module()
class StopHook(Hook):
    """Ends the training after so many iterations, which mmcv's runner has no other way for."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def after_train_iter(self, runner: BaseRunner) -> None:
        if runner.iter + 1 >= self.iterations:
            raise Enough


def train(args: argparse.Namespace, cfg: Config, start: float) -> None:
    """One process of a training that began at `start`, from the process group to result.json."""
    rank, world_size = init_process_group(cfg.device)
    setup_multi_processes(cfg)
    set_random_seed(args.seed)
    dataset = build_dataset(cfg.data.train)
    batch_size = cfg.data.samples_per_gpu
    per_epoch = iterations_in(dataset, batch_size, world_size)
    epochs = 1 if args.performance and not args.iterations else None
    schedule(cfg, args.epochs or epochs, per_epoch)
    length = min(cfg.runner.max_epochs * per_epoch, args.iterations or math.inf)
    cfg.log_config.interval = min(cfg.log_config.interval, max(int(length) // 20, 1))
    if args.iterations:
        cfg.custom_hooks.append({"type": "StopHook", "iterations": args.iterations, "priority": "LOWEST"})
    cfg.gpu_ids = [0] if world_size == 1 else list(range(world_size))

    work_dir = Path(cfg.work_dir)
    stamp = time.strftime("%Y%m%d_%H%M%S")
    log_file = None
    if rank == 0:
        work_dir.mkdir(parents=True, exist_ok=True)
        cfg.dump(str(work_dir / "config.py"))
        log_file = str(work_dir / f"{stamp}.log")
    logger = get_root_logger(log_file=log_file, log_level=cfg.log_level)
    logger.info(", ".join(f"{name} {value}" for name, value in results.versions().items()))
    model = build_detector(cfg.model)
    model.init_weights()
    if cfg.get("channels_last"):
        model.to(memory_format=torch.channels_last)
    model.CLASSES = dataset.CLASSES
    cfg.checkpoint_config.meta = {"CLASSES": dataset.CLASSES}
    meta = {"CLASSES": dataset.CLASSES, "seed": args.seed, "config": cfg.pretty_text}
    try:
        train_detector(model, [dataset], cfg, distributed=world_size > 1, validate=not args.performance,
                       timestamp=stamp, meta=meta)  # fmt: skip
    except Enough:
        logger.info(f"stopped after {args.iterations} iterations, as asked")
    if rank == 0:
        report(args, cfg, batch_size, world_size, time.time() - start)


def report(args: argparse.Namespace, cfg: Config, batch_size: int, world_size: int, seconds: float) -> None:
    """Writes result.json and curves.png, and prints the final lines."""
    work_dir = Path(cfg.work_dir)
    log = results.read_log(work_dir)
    losses = [line["loss"] for line in log if line["mode"] == "train"]
    evaluations = [line for line in log if line["mode"] == "val"]
    results.draw_curves(log, work_dir / "curves.png", args.config)
    results.write_result(work_dir, {
        "task": "train",
        "config": args.config,
        "device": cfg.device,
        "devices": world_size,
        "batch_size": batch_size,
        "epochs": cfg.runner.max_epochs,
        "iterations": args.iterations,
        "seed": args.seed,
        "amp": args.amp,
        "versions": results.versions(),
        **results.speed(log, batch_size * world_size),
        **(results.accuracy(evaluations[-1]) if evaluations else {"mAP": None}),
        "loss": losses[-1] if losses else None,
        "seconds": seconds,
    })  # fmt: skip
    print(f"  in {work_dir}: checkpoints, logs, config.py, result.json, curves.png", flush=True)


if __name__ == "__main__":
    sys.exit(main())
