"""The main job in small: makes a data set, trains a small YOLOX on it with the plugin, evaluates and shows the result.

python -m yolox_plugin.demo
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import matplotlib
import mmcv
import numpy as np
import torch
from mmcv import Config, DictAction
from mmcv.parallel import MMDataParallel
from mmcv.runner import load_checkpoint
from mmdet.apis import set_random_seed, single_gpu_test, train_detector
from mmdet.datasets import build_dataloader, build_dataset
from mmdet.models import build_detector
from mmdet.utils import get_root_logger, setup_multi_processes

from .demo_data import make_dataset

CONFIG = Path(__file__).with_name("configs") / "yolox_demo.py"
COLOURS = ((80, 80, 240), (80, 200, 80), (240, 140, 60), (60, 200, 240), (220, 80, 220))  # BGR, one a class


def train(cfg: Config) -> None:
    """Trains through MMDetection's own runner, on the CPU."""
    model = build_detector(cfg.model)
    model.init_weights()
    model.to(memory_format=torch.channels_last)  # the layout that the CPU's convolutions are fastest in
    dataset = build_dataset(cfg.data.train)
    model.CLASSES = dataset.CLASSES
    stamp = time.strftime("%Y%m%d_%H%M%S")
    get_root_logger(log_file=str(Path(cfg.work_dir) / f"{stamp}.log"), log_level=cfg.log_level)
    meta = {"CLASSES": dataset.CLASSES, "seed": cfg.seed}
    train_detector(model, [dataset], cfg, validate=True, timestamp=stamp, meta=meta)


def evaluate(cfg: Config, checkpoint: Path) -> tuple[dict[str, float], list[Any], Any]:
    """pycocotools' figures for a checkpoint on val (none if it detects nothing), the detections and the data set."""
    dataset = build_dataset(cfg.data.val, {"test_mode": True})
    loader = build_dataloader(dataset, samples_per_gpu=1, workers_per_gpu=1, dist=False, shuffle=False)
    model = build_detector(cfg.model)
    # MMDetection keeps the raw weights as ema_*; the model wants the averages alone.
    load_checkpoint(model, str(checkpoint), map_location="cpu", revise_keys=[(r"^ema_.*", "")])
    results = single_gpu_test(MMDataParallel(model, device_ids=[-1]), loader)
    return dataset.evaluate(results, metric="bbox"), results, dataset


def read_log(work_dir: Path) -> list[dict[str, Any]]:
    """The lines of the newest JSON log of MMDetection in `work_dir`."""
    newest = max(work_dir.glob("*.log.json"))
    return [json.loads(line) for line in newest.read_text().splitlines()]


def draw_curves(log: list[dict[str, Any]], path: Path) -> None:
    """Training loss and validation mAP over the epochs."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [line for line in log if line.get("mode") == "train"]
    evaluations = [line for line in log if line.get("mode") == "val"]
    per_epoch = max((line["iter"] for line in steps), default=1)
    figure, left = pyplot.subplots(figsize=(7, 4), layout="constrained")
    epochs = [line["epoch"] - 1 + line["iter"] / per_epoch for line in steps]
    left.plot(epochs, [line["loss"] for line in steps], color="tab:blue")
    left.set_xlabel("epoch")
    left.set_ylabel("training loss", color="tab:blue")
    right = left.twinx()
    right.plot([e["epoch"] for e in evaluations], [e.get("bbox_mAP", 0.0) for e in evaluations], "o-", color="tab:red")
    right.set_ylabel("validation mAP", color="tab:red")
    right.set_ylim(0, 1)
    left.set_title("YOLOX demo")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_detections(dataset: Any, results: list[Any], path: Path, columns: int = 4, rows: int = 2) -> None:
    """A contact sheet of the first val images with their detections of a score of 0.3 or more."""
    width, height = 320, 240
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for index in range(min(columns * rows, len(dataset))):
        image = mmcv.imread(str(Path(dataset.img_prefix) / dataset.data_infos[index]["filename"]))
        scale = min(width / image.shape[1], height / image.shape[0])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for label, detections in enumerate(results[index]):
            for *box, score in detections[detections[:, 4] >= 0.3]:
                corners = np.nan_to_num(np.array(box) * scale).clip(
                    -width, 2 * width
                )  # an untrained net knows no bounds
                x1, y1, x2, y2 = (round(float(v)) for v in corners)
                colour = COLOURS[label % len(COLOURS)]
                cv2.rectangle(image, (x1, y1), (x2, y2), colour, 1, cv2.LINE_AA)
                words = f"{dataset.CLASSES[label]} {score:.2f}"
                (w, h), below = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, 0.35, 1)
                left = max(min(x1, image.shape[1] - w - 2), 0)
                top = max(y1 - h - below, 0)
                cv2.rectangle(image, (left, top), (left + w + 2, top + h + below), colour, -1)
                place = (left + 1, top + h)
                cv2.putText(image, words, place, cv2.FONT_HERSHEY_SIMPLEX, 0.35, (0, 0, 0), 1, cv2.LINE_AA)
        y, x = index // columns * height, index % columns * width
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    if not cv2.imwrite(str(path), sheet):
        raise OSError(f"cannot write {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("data/demo"), help="made if it is not there")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/demo"), help="emptied first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="KEY=VALUE changes to the config")
    args = parser.parse_args()
    start = time.monotonic()
    if not args.data_root.exists():
        make_dataset(args.data_root)
    if args.work_dir.exists():
        if any(args.work_dir.iterdir()) and not list(args.work_dir.glob("*.log.json")):
            parser.error(f"--work-dir {args.work_dir} holds something else than a training run; name another")
        shutil.rmtree(args.work_dir)
    args.work_dir.mkdir(parents=True)

    cfg = Config.fromfile(str(CONFIG))
    for split, data in (("train", cfg.data.train.dataset), ("val", cfg.data.val), ("test", cfg.data.test)):
        name = "train2017" if split == "train" else "val2017"
        data.ann_file = str(args.data_root / "annotations" / f"instances_{name}.json")
        data.img_prefix = str(args.data_root / name) + "/"
    cfg.merge_from_dict(args.cfg_options or {})
    cfg.merge_from_dict({"work_dir": str(args.work_dir), "device": "cpu", "gpu_ids": [0], "seed": args.seed})
    setup_multi_processes(cfg)
    set_random_seed(args.seed)
    cfg.dump(str(args.work_dir / CONFIG.name))
    train(cfg)
    trained = time.monotonic() - start

    checkpoint = args.work_dir / "latest.pth"
    figures, results, dataset = evaluate(cfg, checkpoint)
    log = read_log(args.work_dir)
    draw_curves(log, args.work_dir / "curves.png")
    draw_detections(dataset, results, args.work_dir / "detections.png")
    seconds = [line["time"] for line in log if line.get("mode") == "train"]
    print(
        f"\ndemo: mAP {figures.get('bbox_mAP', 0.0):.3f}, AP50 {figures.get('bbox_mAP_50', 0.0):.3f},"
        f" {cfg.data.samples_per_gpu / median(seconds):.1f} images/s in training, trained in {trained:.0f} s"
        f"\n  checkpoint  {checkpoint}"
        f"\n  detections  {args.work_dir / 'detections.png'}"
        f"\n  curves      {args.work_dir / 'curves.png'}"
    )


if __name__ == "__main__":
    main()
