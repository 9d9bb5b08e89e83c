"""Evaluates a checkpoint on val2017, on one device or several.

    python -m yolox_plugin.test --data-path=coco2017 --pth-path=work_dirs/yolox_m_8x8_300e_coco/latest.pth
    python -m yolox_plugin.test ... --devices=8 --batch-size=16 --save-dir=pictures

Prints COCO's figures and the worst classes, and writes to --work-dir, which is work_dirs/NAME/test by default:
result.json; classes.csv, figures of each class; confusion.png, what is taken for what; precision_recall.png;
worst.png, the images with most missed and false boxes. The exit status is 0 after a complete run, 2 if something in the
command is wrong (nothing has been written then), and 1 if the evaluation failed.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..hosts import find_host
from . import analysis, folders, launch, machines, report, terminal
from .analysis_pictures import draw_confusion, draw_precision_recall, draw_worst
from .annotations import Source
from .checks import content_of
from .failures import explained
from .layouts import find_layout
from .messages import InputError, warn
from .options import STANDARD, add_options, options_of, user_path
from .saved_config import classes_in, config_in, has_config

# The config, its checks and the evaluation, for the MMDetection that is installed.
host = importlib.import_module(f".{find_host()}.evaluation", __package__)


def parser() -> argparse.ArgumentParser:
    """The options; `--help` shows them."""
    options = argparse.ArgumentParser(
        "python -m yolox_plugin.test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(options, recorded=True)
    add = options.add_argument
    add(
        "--pth-path",
        type=user_path,
        required=True,
        metavar="FILE",
        help="the checkpoint, of this plugin or of MMDetection",
    )
    add("--amp", choices=("float32", "bfloat16", "float16"), default="float32",
        help="precision of the convolutions but for the last ones (default: %(default)s)")  # fmt: skip
    add("--save-dir", type=user_path, metavar="DIR", help="every image with its boxes and scores, as a new file")
    add(
        "--score-thr",
        type=float,
        default=0.3,
        metavar="X",
        help="what is drawn there, and what is right, missed or false (default: %(default)s)",
    )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks, then evaluates: here for one device, else in processes of their own. Returns the exit status."""
    arguments = options_of(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(arguments)
    try:
        cfg = load_config(args)
        if args.work_dir is None:
            cfg.work_dir = str(Path(cfg.work_dir, "test"))  # beside the training's files, none of which it replaces
        if not launch.is_child():
            check(args, cfg)
        if launch.is_child() or (args.devices == 1 and args.nnodes is None):
            test(args, cfg)
            return 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return launch.interrupted()
    except Exception as error:
        return explained(error)
    status = launch.run_processes("yolox_plugin.test", arguments, args, cfg.device, restarts=0)
    return 1 if status < 0 else status


def load_config(args: argparse.Namespace) -> Any:
    """The config that is asked for, or the one in the checkpoint; without either, the standard one.

    Raises:
        InputError: for whatever of these cannot be; no code of the checkpoint is executed to find out.
    """
    meta = content_of("--pth-path", args.pth_path).get("meta") or {}
    saved = None
    if args.config is None and has_config(meta):
        saved = config_in(meta, args.pth_path)
    elif args.config is None:
        args.config = STANDARD
        if not launch.is_child():
            warn(f"--pth-path {args.pth_path} has no config in it: it is taken for one of --config={STANDARD}")
    if saved is None and args.data_path is None:
        raise InputError("--data-path is needed: without a --config of the training's, nothing else says where val is")
    cfg = host.load_config(args, saved)
    if classes := classes_in(meta):
        host.adopt_classes(cfg, lambda: classes)
    return cfg


def checked(args: argparse.Namespace, cfg: Any) -> Source:
    """What is evaluated on; a warning if that may be what was trained on. Raises InputError as `host.check` does."""
    source: Source
    [source] = host.check(args, cfg)
    if args.data_path is not None and source.path == find_layout(args.data_path.absolute()).train.annotations:
        warn(f"{source.path} is not split: what was trained on is in the figures, unless this is other data")
    return source


def check(args: argparse.Namespace, cfg: Any) -> None:
    """Raises InputError for whatever would fail later, or overwrite something."""
    source = checked(args, cfg)
    folders.check_folder("--work-dir", Path(cfg.work_dir))
    folders.check_replaceable(Path(cfg.work_dir), analysis.FILES.values())
    if args.save_dir is not None:
        folders.check_pictures(args.save_dir, source.path)


def test(args: argparse.Namespace, cfg: Any) -> None:
    """One process of an evaluation, from the process group to result.json."""
    start = time.time()
    with terminal.libraries_kept(), launch.joined(cfg.device) as (rank, world_size):
        machines.check_same(args, cfg, lambda: host.sources(cfg, ["test"]), [args.pth_path])
        evaluation = host.Evaluation(cfg, args.pth_path, args.batch_size, args.amp)
        begin = time.perf_counter()
        found = evaluation.detect(args.save_dir, args.score_thr)
        seconds = time.perf_counter() - begin
        figures = evaluation.figures(found)
    if rank > 0:
        return
    [source] = host.sources(cfg, ["test"])
    errors = analysis.analyse(source, evaluation.by_image(found), args.score_thr)
    analysis.tell(errors)
    work_dir = Path(cfg.work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    images = len(evaluation.dataset)
    rate = images / seconds
    report.write_result(work_dir, {
        "task": "test",
        "config": args.config or "in the checkpoint",
        "checkpoint": str(args.pth_path),
        "device": cfg.device,
        "devices": world_size,
        "batch_size": evaluation.batch_size,
        "amp": args.amp,
        "images": images,
        "versions": report.versions(),
        "images_per_second": {"median": rate, "quartiles": [rate, rate], "measurements": 1},
        **figures,
        "seconds": time.time() - start,
        "analysis": analysis.FILES,
    })  # fmt: skip
    # After the file that names them, so that another evaluation may replace what an interrupted one has left.
    analysis.write_table(work_dir / analysis.FILES["classes"], errors)
    draw_confusion(errors, work_dir / analysis.FILES["confusion"])
    draw_precision_recall(errors, work_dir / analysis.FILES["precision_recall"])
    draw_worst(errors, source.folder, work_dir / analysis.FILES["worst"])
