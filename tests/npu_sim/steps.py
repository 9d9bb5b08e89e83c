"""Whole training steps through MMDetection's own `train_detector`, counted from the loader's batch to the updated
weights, averages and log."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmdet
import numpy as np
import torch
from device import Record, recorded
from mmcv import Config
from mmcv.parallel import DataContainer
from mmcv.runner import HOOKS, Hook
from mmdet.apis import train_detector
from mmdet.models import build_detector

CONFIGS = Path(mmdet.__file__).parent / ".mim/configs/yolox"


class Batches(torch.utils.data.Dataset[Any]):
    """Samples as the standard pipeline ends in them, of one size: images and gts of random numbers."""

    def __init__(self, count: int, gts: int, size: int, dtype: torch.dtype = torch.uint8) -> None:
        self._count, self._gts, self._size, self._dtype = count, gts, size, dtype
        self.flag = np.zeros(count, np.uint8)  # of one aspect ratio, for the sampler
        self.CLASSES = ("thing",)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, DataContainer]:
        g = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, self._size, self._size), generator=g).to(self._dtype)
        corner = torch.rand(self._gts, 2, generator=g) * self._size / 2
        boxes = torch.cat([corner, corner + 8 + torch.rand(self._gts, 2, generator=g) * self._size / 3], 1)
        return {
            "img": DataContainer(image, stack=True),
            "gt_bboxes": DataContainer(boxes),
            "gt_labels": DataContainer(torch.randint(0, 80, (self._gts,), generator=g)),
            "img_metas": DataContainer({"img_shape": (self._size, self._size, 3)}, cpu_only=True),
        }


_records: list[Record] = []
_open: list[Any] = []


class OpeningHook(Hook):
    """Begins to record when the loader has handed over a batch."""

    def before_train_iter(self, runner: Any) -> None:
        _open.append(recorded())
        _records.append(_open[-1].__enter__())


class ClosingHook(Hook):
    """Ends it when every other hook has done its work."""

    def after_train_iter(self, runner: Any) -> None:
        _open.pop().__exit__(None, None, None)


for _hook in (OpeningHook, ClosingHook):
    HOOKS.register_module(_hook, force=True)


def train(
    work_dir: Path,
    config: str = "yolox_nano_8x8_300e_coco.py",
    amp: str | None = "float32",
    steps: int = 4,
    batch: int = 2,
    gts: int = 10,
    size: int = 96,
    dtype: torch.dtype = torch.uint8,
    options: dict[str, Any] | None = None,
    hooks: Sequence[dict[str, Any]] = (),
    distributed: bool = False,
    epochs: int = 1,
    resume: Path | None = None,
) -> tuple[Any, list[Record]]:
    """A training of `steps` steps an epoch; the network, and what each step asked of the device. With several epochs,
    there is a checkpoint of each.

    Args:
        amp: the plugin's precision; None for what MMDetection does on an NPU, which is float16 with loss scaling.
        dtype: of the images; the plugin's runner has them as uint8, MMDetection as float32.
    """
    cfg = Config.fromfile(str(CONFIGS / config))
    cfg.merge_from_dict(options or {})
    cfg.device, cfg.gpu_ids, cfg.seed, cfg.work_dir = "npu", [0], 0, str(work_dir)
    cfg.runner.max_epochs, cfg.resume_from = epochs, resume and str(resume)
    loader = {"samples_per_gpu": batch, "workers_per_gpu": 0}
    cfg.data = {"train": {}, "val": {}, "test": {}, "train_dataloader": loader}
    cfg.log_config.hooks = [{"type": "TextLoggerHook"}]
    cfg.checkpoint_config = {"interval": 1} if epochs > 1 else None
    cfg.custom_hooks = [
        {"type": "OpeningHook", "priority": 0}, *hook_of_config(cfg), *hooks, {"type": "ClosingHook", "priority": 100}
    ]  # fmt: skip
    torch.manual_seed(0)
    np.random.seed(0)
    model = build_detector(cfg.model if amp is None else {**cfg.model, "autocast": amp})
    model.init_weights()
    _records.clear()
    train_detector(model, [Batches(steps * batch, gts, size, dtype)], cfg, distributed=distributed, meta={})
    return model, list(_records)


def hook_of_config(cfg: Config) -> list[dict[str, Any]]:
    """The config's own hooks but the one that changes the data set, which here is none that mixes images."""
    return [hook for hook in cfg.custom_hooks if hook["type"] != "YOLOXModeSwitchHook"]
