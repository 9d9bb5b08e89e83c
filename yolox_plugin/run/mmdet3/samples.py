"""The samples with which a training on MMDetection 3 begins."""

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.utils.dl_utils import set_multi_processing

from ...core.mixing import data_sets_in
from ...core.positions import placed
from ...core.seeds import seed_everything
from ...protocol import Moment, TrainingPart
from ..messages import described
from .recipe import counts_epochs
from .training import build_loader


def training_set(cfg: Config) -> Any:
    """The config of the data set that a training reads, with those inside of it."""
    return cfg.train_dataloader.dataset


def first_samples(args: argparse.Namespace, cfg: Config) -> Iterator[tuple[Any, Any, Any]]:
    """See `run.look`: the samples of the first epoch, each an image (h, w, 3) uint8 BGR with boxes [N, 4] (x1, y1, x2,
    y2) and labels [N].

    Raises:
        InputError: the loader, or the processes for it, cannot be built.
    """
    described("env_cfg.mp_cfg", lambda: set_multi_processing(**(cfg.env_cfg.get("mp_cfg") or {})))
    loader = build_loader(args, cfg)
    with contextlib.ExitStack() as stack:
        if counts_epochs(cfg):  # as the plugin's loop begins an epoch; mmengine's by iterations tells nothing
            seed_everything(args.seed, epoch=0, rank=0, worker=0)
            for part in data_sets_in(loader.dataset):
                if isinstance(part, TrainingPart):
                    part.start_epoch(Moment(args.seed))
                    stack.callback(part.end_epoch)
            stack.enter_context(placed(loader, rank=0, world_size=1))
        for batch in loader:
            for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
                things = sample.gt_instances
                boxes = getattr(things.bboxes, "tensor", things.bboxes)
                pixels = np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
                yield pixels.round().clip(0, 255).astype(np.uint8), boxes.numpy(), things.labels.numpy()
