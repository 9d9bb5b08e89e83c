"""Trains YOLOX with MMDetection's own runner and this plugin, on one device or several, on NPUs, GPUs or CPUs.

    python -m yolox_plugin.train --data-path=coco2017                   the standard YOLOX-M recipe, 300 epochs
    python -m yolox_plugin.train --data-path=coco2017 --devices=8       on eight devices, through torchrun
    python -m yolox_plugin.train --data-path=coco2017 --performance     images a second, one epoch, no validation
    python -m yolox_plugin.train --data-path=mine --model=s --load-from=yolox_s.pth --epochs=30     your own classes

Writes to --work-dir: checkpoints, logs, the config, result.json and curves.png. The exit status is 0 after a complete
run, 2 if something in the command is wrong (nothing has been written then), and 1 if training failed. SIGTERM and
SIGUSR1 let it write a checkpoint after the iteration and end with status 143 and 138; a second one ends it at once.
"""

import argparse
import contextlib
import fcntl
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..core import mid_epoch
from ..core.checkpoint import MID_EPOCH, newest_checkpoint
from ..core.mixing import Mixing, data_sets_in
from ..core.ranks import agreed, gathered
from ..hosts import find_host
from . import folders, initial_weights, launch, machines, report, sharing, terminal, where
from . import start as starting
from .failures import explained
from .messages import InputError, warn
from .options import add_options, add_size_option, minutes, options_of, positive, share, user_path, whole

# The config, its checks and the training, for the MMDetection that is installed.
host = importlib.import_module(f".{find_host()}.training", __package__)

# Seconds since 1970, for the processes that a command starts, restarted ones too; it has checked everything.
START = "YOLOX_PLUGIN_START"

# The share of a step that may go to waiting for data before the final lines say what helps.
LONG_WAIT = 0.1


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
        help="speed, and where time goes; one epoch, or --epochs or --iterations; no validation")  # fmt: skip
    add("--amp", choices=("float32", "bfloat16", "float16"),
        help="precision of the convolutions (default: MMDetection's, float32, but float16 on an NPU)")  # fmt: skip
    add("--load-from", type=user_path, metavar="FILE",
        help="begin with what fits of this checkpoint, MMDetection's, this plugin's or Megvii's")  # fmt: skip
    add("--val-fraction", type=share, metavar="X",
        help="keep this share of the images of a data set with one annotation file for validation")  # fmt: skip
    add_size_option(options)
    add("--seed", type=whole, default=0, help="default: %(default)s")
    add("--resume", action="store_true", help="go on from the newest checkpoint in --work-dir, if there is one")
    add("--checkpoint-minutes", type=minutes, metavar="X",
        help=f"write {MID_EPOCH} every so many minutes; --resume goes on in the middle of the epoch")  # fmt: skip
    add("--checkpoint-iterations", type=positive, metavar="N", help="the same, every N iterations")
    add("--skip-unreadable", action="store_true",
        help="train on other images in the place of those that cannot be read any more, and say how many")  # fmt: skip
    add("--timeout-minutes", type=minutes, metavar="X",
        help="end when a process has waited so long for another one (default: torch's)")  # fmt: skip
    add("--max-restarts", type=whole, default=0, metavar="N",
        help="when a process ends with an error, start again from the newest checkpoint, N times at most")  # fmt: skip
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks, then trains: here for one device, else in processes of their own. Returns the exit status."""
    own = arguments is None  # else they are of another command, the demo, which has no --resume
    arguments = options_of(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(arguments)
    given = os.environ.get(START)
    start = float(given or time.time())
    alone = args.devices == 1 and not args.max_restarts and args.nnodes is None
    cfg = None  # while it is read, Ctrl-C may come
    try:
        cfg = host.configure(args)
        work_dir = Path(cfg.work_dir)
        if args.load_from and (cfg.get("resume_from") or cfg.get("resume")):
            raise InputError("--load-from begins a training, but the config goes on with one: leave one of them out")
        if not given:
            ready = host.check(args, cfg)
            if args.resume and newest_checkpoint(work_dir):
                ready = ready._replace(weights=None)
            print(host.describe(args, cfg, ready), flush=True)
            starting.write(work_dir, ready)
        if args.val_fraction is not None:
            host.read_split(cfg, args.data_path.absolute())
        if args.load_from:
            cfg.load_from = str(work_dir / initial_weights.FILE)
        # What lies in the work directory of a process that is started again is this command's own.
        resume = args.resume or given is not None
        several = not alone and not launch.is_child()
        status = run_several(arguments, args, cfg, start, ready) if several else train(args, cfg, start, resume)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        status = launch.interrupted()
    except Exception as error:
        status = explained(error)
    tells = own and status not in (0, 2) and not launch.is_child()
    if cfg is not None and tells and newest_checkpoint(Path(cfg.work_dir)):
        print(f"The same command with --resume goes on from the newest checkpoint in {cfg.work_dir}.", file=sys.stderr)
    return status


def run_several(
    arguments: Sequence[str], args: argparse.Namespace, cfg: Any, start: float, ready: starting.Ready
) -> int:
    """Trains in processes of their own; the exit status."""
    os.environ |= {START: str(start), starting.CLASSES: json.dumps(list(ready.data.labels))}
    try:
        with launch.told() as (heard, told):
            status = launch.run_processes("yolox_plugin.train", arguments, args, cfg.device, args.max_restarts)
    finally:
        del os.environ[START], os.environ[starting.CLASSES]
    if status == 0:
        return max(told, default=0)
    if status < 0:  # processes may have ended by that before they could write anything
        return heard[0] if heard else 1
    return status


def train(args: argparse.Namespace, cfg: Any, start: float, resume: bool) -> int:
    """One process of a training that began at `start`, from the process group to result.json. Returns the status to end
    with.

    Raises:
        InputError: for what shows only in the data set; nothing has been written then.
    """
    work_dir = Path(cfg.work_dir)
    weights = [cfg.get("load_from"), cfg.get("resume_from")]
    with terminal.libraries_kept() as kept, launch.joined(cfg.device, args.timeout_minutes) as (rank, world_size):
        machines.check_same(args, cfg, lambda: host.sources(cfg, host.splits_of(args, cfg)), weights)
        training = machines.together(lambda: host.Training(args, cfg, kept))
        with contextlib.ExitStack() as held:
            claim = claimed(work_dir, resume, training.text) if rank == 0 else contextlib.nullcontext()
            machines.together(lambda: held.enter_context(claim))
            stopped = None
            mid_epoch.hear(0)
            try:
                for part in data_sets_in(training.dataset):
                    if isinstance(part, Mixing):
                        part.skip_unreadable = args.skip_unreadable
                with launch.signals_to(mid_epoch.hear) if training.can_stop else contextlib.nullcontext():
                    outcome = training.run(checkpoint_in(work_dir) if resume else None)
            except mid_epoch.Stopped as end:
                stopped = end
            unreadable = sum(gathered(unreadable_in(training.dataset)))
            if unreadable and rank == 0:
                warn(f"{unreadable} samples had an image that could not be read: others were taken")
            if rank == 0 and stopped is not None:
                print(f"error: stopped by {stopped}, with a checkpoint in {work_dir / MID_EPOCH}", file=sys.stderr)
            elif rank == 0:
                finish(args, cfg, outcome, world_size, time.time() - start)
    if stopped is None:
        return 0
    return launch.tell_ended(stopped.status) if launch.is_child() else stopped.status


def unreadable_in(dataset: Any) -> int:
    """How many samples have been left out, as --skip-unreadable wants it."""
    return sum(part._announcements.unreadable for part in data_sets_in(dataset) if isinstance(part, Mixing))


def checkpoint_in(work_dir: Path) -> Path | None:
    """The newest one: rank 0's, on every rank; of several machines, each with its own folder, see `sharing`."""
    return sharing.newest_of_all(work_dir) if machines.are_several() else agreed(newest_checkpoint(work_dir))


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
        file.write(folders.MARK + text)
        file.flush()
        yield


def finish(args: argparse.Namespace, cfg: Any, outcome: report.Outcome, world_size: int, seconds: float) -> None:
    """Writes result.json and curves.png, and prints the final lines."""
    work_dir, log = Path(cfg.work_dir), outcome.log
    losses = [line["loss"] for line in log if line["mode"] == "train"]
    evaluations = [line for line in log if line["mode"] == "val"]
    images = outcome.batch_size * world_size
    speed = report.speed(log, images)
    rate, wait = speed["images_per_second"], speed["data_wait"]
    step = None
    if args.performance:
        ms = None if rate is None else 1e3 * images / rate["median"]
        why = "no iteration was left" if cfg.device in where.DEVICES else "the host is the device"
        step = {"ms": ms, **(outcome.step or where.unmeasured(why))}
    report.draw_curves(log, work_dir / "curves.png", args.config, "epoch" if outcome.epochs else "iteration")
    report.write_result(work_dir, {
        "task": "train",
        "config": args.config,
        "device": cfg.device,
        "devices": world_size,
        "batch_size": outcome.batch_size,
        "epochs": outcome.epochs,
        "iterations": outcome.iterations,
        "seed": outcome.seed,
        "amp": args.amp,
        "load_from": args.load_from and str(args.load_from),
        "val_fraction": args.val_fraction,
        "versions": report.versions(),
        **speed,
        "step": step,
        **(report.accuracy(evaluations[-1], outcome.has_gts) if evaluations else {"mAP": None}),
        "loss": losses[-1] if losses else None,
        "seconds": seconds,
    })  # fmt: skip
    if args.performance and wait is not None and wait > LONG_WAIT:
        print(f"  more workers (--cfg-options {host.MORE_WORKERS}) or a cache of images ({host.CACHE}) help")
    if evaluations and report.accuracy(evaluations[-1], outcome.has_gts)["mAP"] == 0.0:
        print("  nothing was detected in validation: more --epochs help, or --load-from a checkpoint of other data")
    newest, middle = newest_checkpoint(work_dir), work_dir / MID_EPOCH
    if newest is not None and newest.resolve() != middle.resolve():  # latest.pth may be a link to it
        middle.unlink(missing_ok=True)  # its epoch has been trained to the end
        middle.with_name(f"{MID_EPOCH}.part").unlink(missing_ok=True)  # of a run that was killed while writing it
    saved = "checkpoints, " if newest else ""  # of less than an epoch there is none
    print(f"  in {work_dir}: {saved}logs, config.py, result.json, curves.png", flush=True)
