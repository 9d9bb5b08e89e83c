"""Detection in images with MMDetection 2.28's own test pipeline."""

import copy
from pathlib import Path
from typing import Any

import mmdet
import numpy as np
import torch
from mmcv import Config
from mmcv.parallel import collate
from mmcv.utils import import_modules_from_strings
from mmdet.datasets import replace_ImageToTensor
from mmdet.datasets.pipelines import Compose
from mmdet.utils import get_device

from ...mmdet2.ddp import build_dp
from .. import checks
from ..configs import PART, check_kinds, config_file, with_plugin
from ..messages import InputError, described
from ..saved_config import config_in
from .config import CONFIG_DIRS, KINDS, check_registered, read_file
from .evaluation import load_model

HOST = f"MMDetection {mmdet.__version__}"


def read_config(name: str) -> dict[str, Any]:
    """The entries of a config file, or of a config that has this name."""
    file = config_file(name, CONFIG_DIRS)
    entries: dict[str, Any] = read_file(file).to_dict()
    check_kinds(f"--config {name}", entries, {"model": (dict,), **KINDS})
    return entries


def saved_config(meta: dict[str, Any], path: Path) -> dict[str, Any]:
    """The config in a checkpoint, of parts that MMDetection 2 may have."""
    entries = config_in(meta, path)
    check_registered(entries, f"the config in --pth-path {path}")
    return entries


class Network:
    """A detector with the weights of a checkpoint."""

    def __init__(self, entries: dict[str, Any], checkpoint: Path, device: str | None, amp: str) -> None:
        """Raises InputError for a config that is of another MMDetection."""
        check_kinds("the config", entries, {"data": PART, "model": (dict,), **KINDS})
        test = (entries.get("data") or {}).get("test")
        if not isinstance(test, dict) or not isinstance(test.get("pipeline"), list):
            raise InputError(
                f"the config has no data.test.pipeline, which {HOST} detects with: if it is of another,"
                " name one of this by --config, such as yolox_s_8x8_300e_coco; its classes will be the checkpoint's"
            )
        import_modules_from_strings(**with_plugin(entries.get("custom_imports")))
        cfg = Config(copy.deepcopy(entries))
        self.device = device or get_device()
        # Images come decoded, as to MMDetection's own inference_detector.
        steps = replace_ImageToTensor([{"type": "LoadImageFromWebcam"}, *cfg.data.test.pipeline[1:]])
        self._pipeline = described("data.test.pipeline", lambda: Compose(steps))
        model = described("model", lambda: load_model(cfg, checkpoint))
        checks.prepare_for_inference(model, self.device, amp)
        self.model = model.eval()
        self._network = build_dp(self.model, self.device, device_ids=[0])

    def sample(self, image: Any) -> Any:
        """What the model gets of an image, (h, w, 3) uint8 BGR."""
        return self._pipeline({"img": image})

    def images(self, samples: list[Any]) -> torch.Tensor:
        """What the network sees of samples, `[N, 3, H, W]`, on the CPU.

        Raises:
            InputError: for a pipeline that makes several images of one.
        """
        several = collate(samples, samples_per_gpu=len(samples))["img"]
        if len(several) != 1:
            raise InputError(f"the config's data.test.pipeline makes {len(several)} images of one: it should make one")
        images: torch.Tensor = several[0].data[0]
        return images

    @torch.no_grad()
    def detect(self, samples: list[Any]) -> list[tuple[Any, Any]]:
        """For each sample boxes (x1, y1, x2, y2, score), an (n, 5) array, and labels, (n,)."""
        batch = collate(samples, samples_per_gpu=len(samples))
        return [
            (np.concatenate(by_class), np.repeat(np.arange(len(by_class)), [len(boxes) for boxes in by_class]))
            for by_class in self._network(return_loss=False, rescale=True, **batch)
        ]
