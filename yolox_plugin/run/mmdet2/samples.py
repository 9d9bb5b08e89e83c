"""The samples with which a training on MMDetection 2.28 begins."""

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

import mmcv
import numpy as np
from mmcv import Config
from mmdet.apis import set_random_seed
from mmdet.datasets import build_dataloader, build_dataset
from mmdet.utils import setup_multi_processes

from ...core.mixing import data_sets_in
from ...core.positions import placed
from ...core.seeds import seed_everything
from ...protocol import Moment, TrainingPart
from ..messages import described


def training_set(cfg: Config) -> Any:
    """The config of the data set that a training reads, with those inside of it."""
    return cfg.data.train


def first_samples(args: argparse.Namespace, cfg: Config) -> Iterator[tuple[Any, Any, Any]]:
    """See `run.look`: the samples of the first epoch, each an image (h, w, 3) uint8 BGR with boxes [N, 4] (x1, y1, x2,
    y2) and labels [N].

    Raises:
        InputError: the data set cannot be built.
    """
    setup_multi_processes(cfg)
    set_random_seed(args.seed)
    dataset = described("data.train", lambda: build_dataset(cfg.data.train))
    options = {"samples_per_gpu": 2, "workers_per_gpu": 2, **cfg.data.train_dataloader}  # as `train_detector` has it
    loader = described("data.train_dataloader", lambda: build_dataloader(
        dataset, dist=False, seed=args.seed, runner_type=cfg.runner.type, **options))  # fmt: skip
    with contextlib.ExitStack() as stack:
        if "max_epochs" in cfg.runner:  # as the plugin's runner begins an epoch; mmcv's by iterations tells nothing
            seed_everything(args.seed, epoch=0, rank=0, worker=0)
            for part in data_sets_in(dataset):
                if isinstance(part, TrainingPart):
                    part.start_epoch(Moment(args.seed, takes_uint8=True))
                    stack.callback(part.end_epoch)
            stack.enter_context(placed(loader, rank=0, world_size=1))
        for batch in loader:
            images, boxes, labels, metas = (
                batch[key].data[0] for key in ("img", "gt_bboxes", "gt_labels", "img_metas")
            )
            for image, of_boxes, of_labels, meta in zip(images, boxes, labels, metas, strict=True):
                yield _as_read(image, meta.get("img_norm_cfg")), of_boxes.numpy(), of_labels.numpy()


def _as_read(image: Any, norm: dict[str, Any] | None) -> Any:
    """The pixels of an image tensor as OpenCV reads files, before `Normalize`."""
    pixels = np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
    if pixels.dtype == np.uint8:
        return pixels
    if norm:
        pixels = mmcv.imdenormalize(pixels, norm["mean"], norm["std"], to_bgr=norm["to_rgb"])
    return pixels.round().clip(0, 255).astype(np.uint8)
