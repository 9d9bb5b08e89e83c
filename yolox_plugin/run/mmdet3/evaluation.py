"""Evaluation with MMDetection 3's own data sets and metrics."""

import argparse
import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from mmengine.utils import ProgressBar
from torch import Tensor

from ...core.checkpoint import read_checkpoint
from ...core.ranks import rank_and_world_size
from ...mmdet3.processes import collect_results, share_no_folder
from .. import annotations, checks, report
from ..annotations import Source
from ..configs import heads_of
from ..messages import InputError, described
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
    for key in ("test_dataloader", "test_evaluator"):
        if cfg.get(key) is None:
            raise InputError(f"the config has no {key}")
    found = sources(cfg, ["test"])
    root = None if args.data_path is None else args.data_path.absolute()
    labels = annotations.check_data(found, root, heads_of(cfg)).labels
    model = parts.check_model(cfg)
    content = checks.check_checkpoint(model, "--pth-path", args.pth_path)
    checks.prepare_for_inference(model, cfg.device, args.amp)  # to see whether it can
    meta = content.get("meta") or {}
    checks.check_trained_classes(config_classes_in(meta), found[0].classes)
    checks.check_labels_of(meta, "--pth-path", args.pth_path, labels)
    return found


class Evaluation:
    """One process of an evaluation of a checkpoint on the config's test_dataloader.

    Args:
        batch_size: images a device; default the config's.
        amp: the precision of the plugin's detector; others have MMDetection's.
    """

    shows_progress = True

    def __init__(self, cfg: Config, checkpoint: Path, batch_size: int | None = None, amp: str = "float32") -> None:
        share_no_folder()
        self.cfg = cfg
        options = copy.deepcopy(cfg.test_dataloader)
        options.batch_size = batch_size or options.get("batch_size", 1)
        self.batch_size: int = options.batch_size
        self.loader = described("test_dataloader", lambda: Runner.build_dataloader(options))
        self.dataset: Any = self.loader.dataset
        self.classes = self.dataset.metainfo["classes"]
        self.evaluator = described("test_evaluator", lambda: Evaluator(copy.deepcopy(cfg.test_evaluator)))
        self.evaluator.dataset_meta = self.dataset.metainfo
        self.model = load_model(cfg, checkpoint)
        checks.prepare_for_inference(self.model, cfg.device, amp)

    def detect(self, save_dir: Path | None = None, score_thr: float = 0.3) -> list[tuple[Any, list[Any]]]:
        """Hands the detections in every image to the evaluator. Each one's id and boxes of each class, in the order of
        the data set; with several processes, on rank 0 only.

        Args:
            save_dir: where a picture of each image goes, with its boxes of a score of `score_thr` or more.
        """
        root = Path(self.dataset.data_prefix["img"])
        mine = []
        for sample in self._samples():
            results = by_class(sample.pred_instances, len(self.classes))
            mine.append((sample.img_id, results))
            if save_dir is not None:
                path = Path(sample.img_path)
                report.save_picture(path, results, self.classes, score_thr, save_dir / path.relative_to(root))
        return collect_results(mine, len(self.dataset)) or []

    def detect_by(self, found_in: Callable[[Tensor], list[tuple[Tensor, Tensor]]]) -> list[Any]:
        """Like `detect`, by something else than the model, which afterwards detects no more.

        Args:
            found_in: for images `[N, 3, H, W]` each one's boxes `[n, 5]` (x1, y1, x2, y2, score), in their pixels, and
                labels `[n]`.
        """

        def predict(images: Tensor, samples: list[Any]) -> list[Any]:
            found = []
            for (boxes, labels), sample in zip(found_in(images), samples, strict=True):
                corners = boxes[:, :4] / boxes.new_tensor([*sample.scale_factor, *sample.scale_factor])
                found.append(InstanceData(bboxes=corners, scores=boxes[:, 4], labels=labels))
            predicted: list[Any] = self.model.add_pred_to_datasample(samples, found)
            return predicted

        self.model.predict = predict
        return self.detect()

    def pictures(self) -> Iterator[tuple[Path, list[Any]]]:
        """This process's image files, each with the boxes of each class that are found in it."""
        for sample in self._samples():
            yield Path(sample.img_path), by_class(sample.pred_instances, len(self.classes))

    @torch.no_grad()
    def _samples(self) -> Iterator[Any]:
        """This process's images with what is found in them, of which the evaluator has had all."""
        rank, world_size = rank_and_world_size()
        total = len(self.dataset)
        device = self.cfg.device
        if device != "cpu":
            device = f"{device}:{os.environ.get('LOCAL_RANK', '0')}"
        model = self.model.to(device).eval()
        seen = rank
        progress = ProgressBar(total) if rank == 0 and self.shows_progress else None
        for data in self.loader:
            samples = model.test_step(data)
            self.evaluator.process(data_samples=samples, data_batch=data)
            for sample in samples:
                if seen < total:  # beyond that, samplers begin again
                    yield sample
                    if progress is not None:
                        progress.update(min(world_size, total - seen))
                seen += world_size
        if progress is not None:
            print()

    def figures(self, found: list[Any]) -> dict[str, float | None]:
        """COCO's figures, of what `detect` has found and the evaluator has had; on rank 0."""
        figures = self.evaluator.evaluate(len(self.dataset))
        if rank_and_world_size()[0] > 0:
            return {}
        has_gts = all(map(annotations.has_gts, sources(self.cfg, ["test"])))
        return report.accuracy({name.rpartition("/")[2]: value for name, value in figures.items()}, has_gts)

    def by_image(self, found: list[tuple[Any, list[Any]]]) -> dict[Any, list[Any]]:
        """What `detect` has found, by the image's id: boxes (x1, y1, x2, y2, score), an (n, 5) array for each class."""
        return dict(found)


def by_class(instances: Any, classes: int) -> list[Any]:
    """Boxes (x1, y1, x2, y2, score), an (n, 5) array for each class."""
    found = torch.cat([instances.bboxes, instances.scores[:, None]], 1).float().cpu().numpy()
    labels = instances.labels.cpu().numpy()
    return [np.ascontiguousarray(found[labels == label]) for label in range(classes)]


def load_model(cfg: Config, checkpoint: Path) -> Any:
    """The config's detector with the weights of a checkpoint, on the CPU; the averaged ones if it has both.

    Raises:
        RuntimeError: some are missing, or of another shape.
    """
    model = MODELS.build(copy.deepcopy(cfg.model))
    wanted, weights = model.state_dict(), read_checkpoint(checkpoint)["state_dict"]
    # Those under the model's own names are the averages; what else is there is the raw weights of MMDetection 2.28.
    model.load_state_dict({name: value for name, value in weights.items() if name in wanted})
    return model
