"""Whole training steps through mmengine's own `Runner` on MMDetection 3, counted from the loader's batch to the updated
weights, averages and log."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmdet
import torch
from device import Record, recorded
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import InstanceData

CONFIGS = Path(mmdet.__file__).parent / ".mim/configs/yolox"


class Batches(torch.utils.data.Dataset[Any]):
    """Samples as the standard pipeline ends in them, of one size: images and gts of random numbers."""

    metainfo: dict[str, Any] = {}  # noqa: RUF012  as mmengine's data sets have it

    def __init__(self, count: int, gts: int, size: int) -> None:
        self._count, self._gts, self._size = count, gts, size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        g = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, self._size, self._size), generator=g, dtype=torch.uint8)
        corner = torch.rand(self._gts, 2, generator=g) * self._size / 2
        boxes = torch.cat([corner, corner + 8 + torch.rand(self._gts, 2, generator=g) * self._size / 3], 1)
        labels = torch.randint(0, 80, (self._gts,), generator=g)
        sample = DetDataSample(
            gt_instances=InstanceData(bboxes=HorizontalBoxes(boxes), labels=labels),
            ignored_instances=InstanceData(bboxes=HorizontalBoxes(boxes[:0]), labels=labels[:0]),
            metainfo={"img_shape": (self._size, self._size), "img_id": index},
        )
        return {"inputs": image, "data_samples": sample}


class OpeningHook(Hook):
    """Begins to record when the loader has handed over a batch."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.open: Any = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.open = recorded()
        self.records.append(self.open.__enter__())


class ClosingHook(Hook):
    """Ends it when every other hook has done its work."""

    def __init__(self, opening: OpeningHook) -> None:
        self._opening = opening

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        self._opening.open.__exit__(None, None, None)


def runner(
    work_dir: Path,
    options: dict[str, Any] | None = None,
    steps: int = 4,
    batch: int = 2,
    gts: int = 10,
    size: int = 96,
    config: str = "yolox_nano_8xb8-300e_coco.py",
    **changes: Any,
) -> Runner:
    """For a training of one epoch of `steps` steps of the standard config.

    Args:
        options: what to merge into the config.
        changes: other arguments of the runner.
    """
    cfg = Config.fromfile(str(CONFIGS / config))
    cfg.merge_from_dict(options or {})
    hooks = [hook for hook in cfg.custom_hooks if hook["type"] != "YOLOXModeSwitchHook"]  # for data sets that mix
    loader = {"batch_size": batch, "num_workers": 0, "sampler": {"type": "DefaultSampler", "shuffle": False}}
    arguments = {
        "model": cfg.model, "work_dir": str(work_dir), "optim_wrapper": cfg.optim_wrapper, "custom_hooks": hooks,
        "param_scheduler": cfg.param_scheduler, "train_cfg": {"by_epoch": True, "max_epochs": 1},
        "train_dataloader": {**loader, "dataset": Batches(steps * batch, gts, size)}, "default_scope": "mmdet",
        "randomness": {"seed": 0}, "experiment_name": work_dir.name, "log_level": "ERROR",
    }  # fmt: skip
    return Runner(**arguments | changes)


def train(work_dir: Path, hooks: Sequence[Hook] = (), **changes: Any) -> tuple[Runner, list[Record]]:
    """Such a training; the runner, and what each step asked of the device."""
    made = runner(work_dir, **changes)
    opening = OpeningHook()
    made.register_hook(opening, priority=0)
    for hook in hooks:
        made.register_hook(hook, priority=99)
    made.register_hook(ClosingHook(opening), priority=100)
    made.train()
    return made, opening.records
