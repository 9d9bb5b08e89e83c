"""Evaluation with MMDetection 2.28's own data sets."""

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmcv import Config
from mmcv.runner import get_dist_info
from mmdet.core import bbox2result
from mmdet.datasets import build_dataloader, build_dataset, replace_ImageToTensor
from mmdet.datasets.pipelines import Compose
from mmdet.models import build_detector
from mmdet.utils import setup_multi_processes
from torch import Tensor

from ...core.checkpoint import read_checkpoint
from ...core.ranks import gather_in_turns
from ...mmdet2.ddp import build_dp
from .. import annotations, checks, report
from ..annotations import Source
from ..configs import heads_of
from ..messages import described
from ..saved_config import config_classes_in
from . import checks as parts
from .config import adopt_classes, load_config
from .data import sources

__all__ = ["Evaluation", "adopt_classes", "check", "load_config", "sources"]


def check(args: argparse.Namespace, cfg: Config) -> list[Source]:
    """What will be read. Raises InputError for whatever would fail later."""
    checks.check_devices(cfg.device, args.devices)
    lowered = None if args.amp == "float32" else args.amp
    checks.check_precision(cfg.device, lowered, option=True, detector=parts.other_detector(cfg), other=None)
    found = sources(cfg, ["test"])
    root = None if args.data_path is None else args.data_path.absolute()
    labels = annotations.check_data(found, root, heads_of(cfg)).labels
    model = parts.check_model(cfg)
    described("data.test.pipeline", lambda: Compose(cfg.data.test.pipeline))
    content = checks.check_checkpoint(model, "--pth-path", args.pth_path)
    checks.prepare_for_inference(model, cfg.device, args.amp)  # to see whether it can
    meta = content.get("meta") or {}
    checks.check_trained_classes(config_classes_in(meta), found[0].classes)
    checks.check_labels_of(meta, "--pth-path", args.pth_path, labels)
    return found


class Evaluation:
    """One process of an evaluation of a checkpoint on the config's data.test.

    Args:
        batch_size: images a device; default the config's.
        amp: the precision of the plugin's detector; others have MMDetection's.
    """

    shows_progress = True

    def __init__(self, cfg: Config, checkpoint: Path, batch_size: int | None = None, amp: str = "float32") -> None:
        setup_multi_processes(cfg)
        self.cfg = cfg
        self.batch_size: int = batch_size or cfg.data.test_dataloader.get("samples_per_gpu", 1)
        if self.batch_size > 1:
            cfg.data.test.pipeline = replace_ImageToTensor(cfg.data.test.pipeline)
        self.dataset = build_dataset(cfg.data.test, {"test_mode": True})
        self.classes = self.dataset.CLASSES
        self.model = load_model(cfg, checkpoint)
        checks.prepare_for_inference(self.model, cfg.device, amp)

    @torch.no_grad()
    def detect(self, save_dir: Path | None = None, score_thr: float = 0.3) -> list[Any]:
        """MMDetection's results for every image of the data set, in its order; with several processes, on rank 0 only.

        Args:
            save_dir: where a picture of each image goes, with its boxes of a score of `score_thr` or more.
        """
        rank, world_size = get_dist_info()
        total = len(self.dataset)
        loader = build_dataloader(
            self.dataset,
            samples_per_gpu=self.batch_size,
            workers_per_gpu=self.cfg.data.test_dataloader.get("workers_per_gpu", 2),
            dist=world_size > 1,
            shuffle=False,
        )
        network = build_dp(self.model.eval(), self.cfg.device, device_ids=[int(os.environ.get("LOCAL_RANK", "0"))])
        mine: list[Any] = []
        progress = mmcv.ProgressBar(total) if rank == 0 and self.shows_progress else None
        for data in loader:
            for result in network(return_loss=False, rescale=True, **data):
                index = rank + len(mine) * world_size
                mine.append(result)
                if save_dir is not None and index < total:  # beyond that, samplers begin again
                    name = self.dataset.data_infos[index]["filename"]
                    report.save_picture(self._file(index), result, self.classes, score_thr, save_dir / name)
                if progress is not None and index < total:
                    progress.update(min(world_size, total - index))
        if progress is not None:
            print()
        return (gather_in_turns(mine, total) or []) if world_size > 1 else mine

    def detect_by(self, found_in: Callable[[Tensor], list[tuple[Tensor, Tensor]]]) -> list[Any]:
        """Like `detect`, by something else than the model, which afterwards detects no more.

        Args:
            found_in: for images `[N, 3, H, W]` each one's boxes `[n, 5]` (x1, y1, x2, y2, score), in their pixels, and
                labels `[n]`.
        """

        def simple_test(images: Tensor, metas: list[dict[str, Any]], rescale: bool) -> list[Any]:
            results = []
            for (boxes, labels), meta in zip(found_in(images), metas, strict=True):
                corners = boxes[:, :4] / boxes.new_tensor(meta["scale_factor"])
                results.append(bbox2result(torch.cat([corners, boxes[:, 4:]], 1), labels, len(self.classes)))
            return results

        self.model.simple_test = simple_test
        return self.detect()

    def _file(self, index: int) -> Path:
        return Path(self.dataset.img_prefix, self.dataset.data_infos[index]["filename"])

    def figures(self, found: list[Any]) -> dict[str, float | None]:
        """COCO's figures, of what `detect` has found; on rank 0."""
        if get_dist_info()[0] > 0:
            return {}
        has_gts = all(map(annotations.has_gts, sources(self.cfg, ["test"])))
        return report.accuracy(self.dataset.evaluate(found, metric="bbox"), has_gts)

    def by_image(self, found: list[Any]) -> dict[Any, list[Any]]:
        """What `detect` has found, by the image's id: boxes (x1, y1, x2, y2, score), an (n, 5) array for each class."""
        boxes = [result[0] if isinstance(result, tuple) else result for result in found]  # else with masks
        return dict(zip(self.dataset.img_ids, boxes, strict=True))

    def pictures(self) -> Iterator[tuple[Path, Any]]:
        """The image files, each with the boxes of each class that `detect` has found."""
        for index, result in enumerate(self.detect()):
            yield self._file(index), result


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
