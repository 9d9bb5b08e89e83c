"""Trains YOLOX with MMDetection's own runner and this plugin, on one device or several, on NPUs, GPUs or CPUs.

    python -m yolox_plugin.train --data-path=coco2017                   the standard YOLOX-M recipe, 300 epochs
    python -m yolox_plugin.train --data-path=coco2017 --devices=8       on eight devices, through torchrun
    python -m yolox_plugin.train --data-path=coco2017 --performance     images a second, one epoch, no validation

Writes to --work-dir: checkpoints, logs, the config, result.json and curves.png. The exit status is 0 after a complete
run, 2 if something in the command is wrong (nothing has been written then), and 1 if training failed.
"""

import argparse
import contextlib
import fcntl
import importlib.util
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmcv import Config
from mmcv.runner import HOOKS, BaseRunner, Hook, get_dist_info
from mmdet.apis import set_random_seed, train_detector
from mmdet.datasets import build_dataloader, build_dataset
from mmdet.utils import get_root_logger, setup_multi_processes

from ..core.checkpoint import newest_checkpoint
from ..core.mixing import data_sets_in
from ..mmdet2.dataset import CocoDataset
from ..mmdet2.ddp import init_process_group
from . import annotations, checks, folders, launch, report
from .config import listed, load_config, text_of
from .messages import InputError, described, warn
from .options import add_options, options_of, positive, whole
from .recipe import check_lengths, check_recipe, length_of, log_often, schedule

# Seconds since 1970, for the processes that a command starts, restarted ones too; it has checked everything.
START = "YOLOX_PLUGIN_START"
# Hooks with a closing phase, and how many epochs MMDetection gives it where the config does not say.
CLOSING = {"YOLOXModeSwitchHook": 15, "SyncNormHook": 15}


def parser() -> argparse.ArgumentParser:
    """The options; `--help` shows them."""
    options = argparse.ArgumentParser(
        "python -m yolox_plugin.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(options)
    add = options.add_argument
    add("--epochs", type=positive, metavar="N",
        help="a short run: warm-up, closing phase and intervals of the config shrink in proportion")  # fmt: skip
    add("--iterations", type=positive, metavar="N", help="stop after so many, in the midst of the schedule")
    add("--performance", action="store_true",
        help="no validation; one epoch, unless --epochs or --iterations says otherwise")  # fmt: skip
    add("--amp", choices=("float32", "bfloat16", "float16"),
        help="precision of the convolutions (default: MMDetection's, float32, but float16 on an NPU)")  # fmt: skip
    add("--seed", type=whole, default=0, help="default: %(default)s")
    add("--resume", action="store_true", help="go on from the newest checkpoint in --work-dir, if there is one")
    add("--max-restarts", type=whole, default=0, metavar="N",
        help="when a process ends with an error, start again from the newest checkpoint, N times at most")  # fmt: skip
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks, then trains: here for one device, else in processes of their own. Returns the exit status."""
    arguments = options_of(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(arguments)
    given = os.environ.get(START)
    start = float(given or time.time())
    alone = args.devices == 1 and not args.max_restarts and args.nnodes is None
    try:
        cfg = configure(args)
        if not given:
            check(args, cfg)
        if alone or launch.is_child():
            # What lies in the work directory of a process that is started again is this command's own.
            train(args, cfg, start, resume=args.resume or given is not None)
            return 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        status = launch.interrupted()
    else:
        os.environ[START] = str(start)
        try:
            status = launch.run_processes("yolox_plugin.train", arguments, args, cfg.device, args.max_restarts)
        finally:
            del os.environ[START]
    if status not in (0, 2) and not launch.is_child() and newest_checkpoint(Path(cfg.work_dir)):
        print(f"The same command with --resume goes on from the newest checkpoint in {cfg.work_dir}.", file=sys.stderr)
    return status


def configure(args: argparse.Namespace) -> Config:
    """The config with everything the options say, except what depends on the size of the data set (`schedule`)."""
    cfg = load_config(args)
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


def check(args: argparse.Namespace, cfg: Config) -> None:
    """Raises InputError for whatever would fail later, or overwrite something."""
    checks.check_devices(cfg.device, args.devices)
    checks.check_precision(cfg, args.amp)
    built = checks.check_parts(cfg)
    check_recipe(args, cfg)
    splits = ("train", "val") if validates(args, cfg) else ("train",)
    labels = annotations.check_data(cfg, splits, args.data_path.absolute())
    if "val" in splits:
        checks.check_evaluation(cfg, distributed=args.devices > 1 or args.nnodes is not None)
    work_dir = Path(cfg.work_dir)
    folders.check_folder("--work-dir", work_dir)
    folders.check_new(work_dir, args.resume)
    checks.check_initial_weights(built.model, "load_from", cfg.load_from)
    checks.check_initial_weights(built.model, "resume_from", cfg.resume_from)
    newest = newest_checkpoint(work_dir) if args.resume else None
    if newest:
        checks.check_resumable(built, "--resume", newest, length_of(args, cfg), labels)
    elif cfg.resume_from and "://" not in cfg.resume_from:
        checks.check_resumable(built, "resume_from", Path(cfg.resume_from), length_of(args, cfg), labels)


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


def agreed(value: Any) -> Any:
    """Rank 0's, on every rank."""
    found = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    return found[0]


def labels_of(dataset: Any) -> dict[str, list[str]]:
    """What a checkpoint tells of the numbering of classes, in which MMDetection follows the annotation file."""
    leaves = [part for part in data_sets_in(dataset) if isinstance(part, CocoDataset)]
    return {"LABELS": leaves[0].label_names} if leaves else {}


def train(args: argparse.Namespace, cfg: Config, start: float, resume: bool) -> None:
    """One process of a training that began at `start`, from the process group to result.json.

    Raises:
        InputError: for what shows only in the data set; nothing has been written then.
    """
    rank, world_size = init_process_group(cfg.device)
    setup_multi_processes(cfg)
    set_random_seed(args.seed)
    cfg.gpu_ids = list(range(world_size))
    dataset = described("data.train", lambda: build_dataset(cfg.data.train))
    per_epoch = iterations_in(dataset, cfg, distributed=world_size > 1)
    epochs, iterations = args.epochs, args.iterations
    if args.performance and not epochs and not iterations:
        epochs, iterations = (1, None) if "max_epochs" in cfg.runner else (None, per_epoch)
    schedule(cfg, epochs, per_epoch)
    length = cfg.runner.max_iters if "max_iters" in cfg.runner else cfg.runner.max_epochs * per_epoch
    if "max_epochs" in cfg.runner and not epochs:  # or they have been made to fit
        check_lengths(cfg, per_epoch)
    log_often(cfg, min(min(length, iterations or length) // 20, per_epoch))
    model = checks.check_model(cfg)
    with claimed(Path(cfg.work_dir), resume, text_of(cfg)) if rank == 0 else contextlib.nullcontext():
        run(args, cfg, start, resume, dataset, model, iterations)


@contextlib.contextmanager
def claimed(work_dir: Path, resume: bool, text: str) -> Iterator[None]:
    """Makes `work_dir` with `text` as its config.py, which is locked meanwhile: no other run writes into this folder.

    The lock ends with this process, however that ends, and is none of its workers'.

    Raises:
        InputError: another run is there.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / "config.py").open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise InputError(f"--work-dir {work_dir} has a run that is going on: name another") from error
        except OSError as error:  # as of some network file systems
            warn(f"--work-dir {work_dir} cannot be locked against other runs: {error}")
        folders.check_unmixed(work_dir, resume)  # of one that has ended since the checks
        file.truncate(0)
        file.write(text)
        file.flush()
        yield


def run(
    args: argparse.Namespace, cfg: Config, start: float, resume: bool, dataset: Any, model: Any, iterations: int | None
) -> None:
    """The training itself, in a folder that is this run's."""
    rank, world_size = get_dist_info()
    work_dir = Path(cfg.work_dir)
    stamp = time.strftime("%Y%m%d_%H%M%S")
    log_file = str(work_dir / f"{stamp}.log") if rank == 0 else None
    logger = get_root_logger(log_file=log_file, log_level=cfg.log_level)
    logger.info(", ".join(f"{name} {value}" for name, value in report.versions().items()))
    model.init_weights()
    if cfg.get("channels_last"):
        model.to(memory_format=torch.channels_last)
    model.CLASSES = dataset.CLASSES
    about = {"CLASSES": dataset.CLASSES, **labels_of(dataset)}
    meta = {**about, "seed": args.seed, "config": text_of(cfg)}
    if cfg.checkpoint_config is not None:
        cfg.checkpoint_config.meta = about
    if iterations:
        cfg.custom_hooks.append({"type": "StopHook", "iterations": iterations, "priority": "LOWEST"})
    newest = agreed(newest_checkpoint(work_dir)) if resume else None
    if newest:
        cfg.resume_from = str(newest)
    with contextlib.suppress(Enough):
        train_detector(model, [dataset], cfg, distributed=world_size > 1, validate=validates(args, cfg),
                       timestamp=stamp, meta=meta)  # fmt: skip
    if rank == 0:
        finish(args, cfg, stamp, world_size, time.time() - start)


def finish(args: argparse.Namespace, cfg: Config, stamp: str, world_size: int, seconds: float) -> None:
    """Writes result.json and curves.png, and prints the final lines."""
    work_dir = Path(cfg.work_dir)
    batch_size = cfg.data.train_dataloader.get("samples_per_gpu", 2)
    log = report.read_log(work_dir)
    losses = [line["loss"] for line in log if line["mode"] == "train"]
    evaluations = [line for line in log if line["mode"] == "val"]
    report.draw_curves(log, work_dir / "curves.png", args.config, by_epoch="max_epochs" in cfg.runner)
    report.write_result(work_dir, {
        "task": "train",
        "config": args.config,
        "device": cfg.device,
        "devices": world_size,
        "batch_size": batch_size,
        "epochs": cfg.runner.get("max_epochs"),
        "iterations": args.iterations or cfg.runner.get("max_iters"),
        "seed": report.seed_of(work_dir / f"{stamp}.log.json"),
        "amp": args.amp,
        "versions": report.versions(),
        **report.speed(log, batch_size * world_size),
        **(report.accuracy(evaluations[-1], annotations.has_gts(cfg, "val")) if evaluations else {"mAP": None}),
        "loss": losses[-1] if losses else None,
        "seconds": seconds,
    })  # fmt: skip
    print(f"  in {work_dir}: checkpoints, logs, config.py, result.json, curves.png", flush=True)
