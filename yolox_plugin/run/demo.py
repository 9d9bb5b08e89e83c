"""The main job in small: makes a data set, trains a small YOLOX on it with the plugin, evaluates and shows the result.

python -m yolox_plugin.demo
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

from ..core.checkpoint import newest_checkpoint
from . import evaluate, report
from . import train as training
from .demo_data import make_dataset
from .messages import InputError
from .options import options_of, positive, user_path, whole

CONFIG = "yolox_demo"
MARKER = ".made-by-yolox-demo"
# What a demo writes. Anything else in its folder is somebody's.
MADE = re.compile(
    r"config\.py|result\.json|(curves|detections)\.png|(latest|epoch_\d+)\.pth|\d+_\d+\.log(\.json)?|tf_logs/.*"
    r"|last_checkpoint|\d+_\d+/.*|mid_epoch\.pth(\.part)?"
)


def main() -> int:
    """Runs the demo in a folder of its own; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", type=user_path, default=Path("data/demo"), help="made if it is not there")
    parser.add_argument("--work-dir", type=user_path, default=Path("work_dirs/demo"),
                        help="emptied first of what an earlier demo has left there")  # fmt: skip
    parser.add_argument("--seed", type=whole, default=0)
    parser.add_argument("--epochs", type=positive, help="default: 34")
    args = parser.parse_args(options_of(sys.argv[1:]))
    if args.work_dir.exists():
        if not args.work_dir.is_dir():
            parser.error(f"--work-dir {args.work_dir} is not a folder")
        strange = not_made_here(args.work_dir)
        if strange:
            parser.error(
                f"--work-dir {args.work_dir} holds something else than a training run of this demo,"
                f" {strange[0]}: name another"
            )
    if not args.data_path.exists():
        make_dataset(args.data_path)
    common = options(args)
    try:
        given = training.parser().parse_args(common)
        training.host.check_data(given, training.host.configure(given), ("train", "val"))
    except InputError as error:
        parser.error(str(error))
    for path in args.work_dir.iterdir() if args.work_dir.exists() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    args.work_dir.resolve().mkdir(parents=True, exist_ok=True)
    try:
        return run(args)
    finally:
        made = {name: written for name, written in files_in(args.work_dir).items() if MADE.fullmatch(name)}
        (args.work_dir / MARKER).write_text(json.dumps(made))


def files_in(folder: Path) -> dict[str, int]:
    """Every file and link under `folder`, and when it was written, in nanoseconds."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in paths if path.name != MARKER}


def not_made_here(work_dir: Path) -> list[str]:
    """The files in it that no earlier demo has left there, or that somebody has written to since."""
    try:
        made = json.loads((work_dir / MARKER).read_text())
    except (FileNotFoundError, ValueError):  # none, or one that somebody has written to
        made = {}
    return [name for name, written in files_in(work_dir).items() if made.get(name) != written]


def options(args: argparse.Namespace) -> list[str]:
    """Those that training and testing share."""
    return [f"--config={CONFIG}", f"--data-path={args.data_path}", f"--work-dir={args.work_dir}", "--device=cpu"]


def run(args: argparse.Namespace) -> int:
    """Trains, evaluates and draws; returns the exit status."""
    common = options(args)
    status = training.main([*common, f"--seed={args.seed}", *([f"--epochs={args.epochs}"] if args.epochs else [])])
    if status:
        return status
    result = json.loads((args.work_dir / "result.json").read_text())

    checkpoint = newest_checkpoint(args.work_dir)
    assert checkpoint is not None, "a training leaves one"
    cfg = evaluate.load_config(evaluate.parser().parse_args([*common, f"--pth-path={checkpoint}"]))
    evaluation = evaluate.host.Evaluation(cfg, checkpoint)
    picture = args.work_dir / "detections.png"
    report.draw_detections(evaluation.pictures(), evaluation.classes, picture)
    print(
        f"\n\ndemo: mAP {result['mAP']:.3f}, AP50 {result['AP50']:.3f},"
        f" {result['images_per_second']['median']:.1f} images/s in training, trained in {result['seconds']:.0f} s"
        f"\n  checkpoint  {checkpoint}"
        f"\n  detections  {picture}"
        f"\n  curves      {args.work_dir / 'curves.png'}"
    )
    return 0
