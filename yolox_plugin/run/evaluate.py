"""Evaluates a checkpoint on val2017, on one device or several.

    python -m yolox_plugin.test --data-path=coco2017 --pth-path=work_dirs/yolox_m_8x8_300e_coco/latest.pth
    python -m yolox_plugin.test ... --devices=8 --batch-size=16 --save-dir=pictures

Prints COCO's figures and writes result.json to --work-dir, which is work_dirs/NAME/test by default. The exit status is
0 after a complete run, 2 if something in the command is wrong (nothing has been written then), and 1 if the evaluation
failed.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmcv import Config
from mmdet.datasets import build_dataloader, build_dataset, replace_ImageToTensor
from mmdet.models import build_detector
from mmdet.utils import build_dp, setup_multi_processes

from ..core.checkpoint import read_checkpoint
from ..mmdet2.ddp import gather_results, init_process_group
from . import annotations, checks, folders, launch, report
from .config import load_config
from .messages import InputError
from .options import add_options, options_of, user_path


def parser() -> argparse.ArgumentParser:
    """The options; `--help` shows them."""
    options = argparse.ArgumentParser(
        "python -m yolox_plugin.test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(options)
    add = options.add_argument
    add(
        "--pth-path",
        type=user_path,
        required=True,
        metavar="FILE",
        help="the checkpoint, of this plugin or of MMDetection",
    )
    add("--save-dir", type=user_path, metavar="DIR", help="every image with its boxes and scores, as a new file")
    add("--score-thr", type=float, default=0.3, metavar="X", help="what is drawn there (default: %(default)s)")
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
    return launch.run_processes("yolox_plugin.test", arguments, args, cfg.device, restarts=0)


def check(args: argparse.Namespace, cfg: Config) -> None:
    """Raises InputError for whatever would fail later, or overwrite something."""
    checks.check_devices(cfg.device, args.devices)
    labels = annotations.check_data(cfg, ["test"], args.data_path.absolute())
    content = checks.check_checkpoint(checks.check_model(cfg), "--pth-path", args.pth_path)
    checks.check_trained_classes(cfg, content)
    checks.check_labels_of(content.get("meta") or {}, "--pth-path", args.pth_path, labels)
    folders.check_folder("--work-dir", Path(cfg.work_dir))
    folders.check_replaceable(Path(cfg.work_dir))
    if args.save_dir is not None:
        folders.check_pictures(args.save_dir, cfg)


def test(args: argparse.Namespace, cfg: Config) -> None:
    """One process of an evaluation, from the process group to result.json."""
    start = time.time()
    rank, world_size = init_process_group(cfg.device)
    setup_multi_processes(cfg)
    batch_size = args.batch_size or cfg.data.test_dataloader.get("samples_per_gpu", 1)
    if batch_size > 1:
        cfg.data.test.pipeline = replace_ImageToTensor(cfg.data.test.pipeline)
    dataset = build_dataset(cfg.data.test, {"test_mode": True})
    model = load_model(cfg, args.pth_path)
    model.CLASSES = dataset.CLASSES
    begin = time.perf_counter()
    found = detect(model, dataset, cfg, batch_size, args.save_dir, args.score_thr)
    seconds = time.perf_counter() - begin
    if rank > 0:
        return
    print()
    figures = report.accuracy(dataset.evaluate(found, metric="bbox"), annotations.has_gts(cfg, "test"))
    work_dir = Path(cfg.work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    rate = len(dataset) / seconds
    report.write_result(work_dir, {
        "task": "test",
        "config": args.config,
        "checkpoint": str(args.pth_path),
        "device": cfg.device,
        "devices": world_size,
        "batch_size": batch_size,
        "images": len(dataset),
        "versions": report.versions(),
        "images_per_second": {"median": rate, "quartiles": [rate, rate], "measurements": 1},
        **figures,
        "seconds": time.time() - start,
    })  # fmt: skip


def load_model(cfg: Config, checkpoint: Path) -> Any:
    """The config's detector with the weights of a checkpoint, on the CPU; the averaged ones if it has both.

    Raises:
        RuntimeError: some are missing, or of another shape.
    """
    model = build_detector(cfg.model)
    wanted, weights = model.state_dict(), read_checkpoint(checkpoint)["state_dict"]
    # The averages bear the model's own names; MMDetection's hook keeps the raw weights as ema_* beside them.
    model.load_state_dict({name: value for name, value in weights.items() if name in wanted})
    return model


@torch.no_grad()
def detect(
    model: Any, dataset: Any, cfg: Config, batch_size: int, save_dir: Path | None = None, score_thr: float = 0.3
) -> list[Any]:
    """MMDetection's results for every image of the data set, in its order; with several processes, on rank 0 only."""
    world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    rank = torch.distributed.get_rank() if world_size > 1 else 0
    loader = build_dataloader(
        dataset,
        samples_per_gpu=batch_size,
        workers_per_gpu=cfg.data.test_dataloader.get("workers_per_gpu", 2),
        dist=world_size > 1,
        shuffle=False,
    )
    network = build_dp(model.eval(), cfg.device, device_ids=[int(os.environ.get("LOCAL_RANK", "0"))])
    mine: list[Any] = []
    progress = mmcv.ProgressBar(len(dataset)) if rank == 0 else None
    for data in loader:
        for result in network(return_loss=False, rescale=True, **data):
            index = rank + len(mine) * world_size
            mine.append(result)
            if save_dir is not None and index < len(dataset):  # beyond that, samplers begin again
                name = dataset.data_infos[index]["filename"]
                image = mmcv.imread(str(Path(dataset.img_prefix, name)))
                drawn = [report.drawable(detections, image.shape) for detections in result]
                model.show_result(image, drawn, score_thr, out_file=str(save_dir / name))
            if progress is not None and index < len(dataset):
                progress.update(min(world_size, len(dataset) - index))
    return gather_results(mine, len(dataset)) if world_size > 1 else mine
