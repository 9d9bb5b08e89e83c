"""The main job in small: makes a data set, trains a small YOLOX on it with the plugin, evaluates and shows the result.

python -m yolox_plugin.demo
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from mmdet.datasets import build_dataset

from . import launch, results
from . import test as testing
from . import train as training
from .demo_data import make_dataset

CONFIG = "yolox_demo"


def main() -> int:
    """Runs the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", type=Path, default=Path("data/demo"), help="made if it is not there")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/demo"), help="emptied first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=launch.positive, help="default: 34")
    args = parser.parse_args(launch.options_of(sys.argv[1:]))
    if not args.data_path.exists():
        make_dataset(args.data_path)
    if args.work_dir.exists():
        if any(args.work_dir.iterdir()) and not list(args.work_dir.glob("*.log.json")):
            parser.error(f"--work-dir {args.work_dir} holds something else than a training run; name another")
        shutil.rmtree(args.work_dir)

    common = [f"--config={CONFIG}", f"--data-path={args.data_path}", f"--work-dir={args.work_dir}", "--device=cpu"]
    status = training.main([*common, f"--seed={args.seed}", *([f"--epochs={args.epochs}"] if args.epochs else [])])
    if status:
        return status
    result = json.loads((args.work_dir / "result.json").read_text())

    checkpoint = args.work_dir / "latest.pth"
    evaluation = testing.parser().parse_args([*common, f"--pth-path={checkpoint}"])
    cfg = launch.load_config(evaluation)
    model, dataset = testing.load_model(cfg, checkpoint), build_dataset(cfg.data.test, {"test_mode": True})
    picture = args.work_dir / "detections.png"
    results.draw_detections(dataset, testing.detect(model, dataset, cfg, batch_size=1), picture)
    print(
        f"\n\ndemo: mAP {result['mAP']:.3f}, AP50 {result['AP50']:.3f},"
        f" {result['images_per_second']['median']:.1f} images/s in training, trained in {result['seconds']:.0f} s"
        f"\n  checkpoint  {checkpoint}"
        f"\n  detections  {picture}"
        f"\n  curves      {args.work_dir / 'curves.png'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
