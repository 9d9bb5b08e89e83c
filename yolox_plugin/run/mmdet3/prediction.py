"""Detection in images with MMDetection 3's own test pipeline."""

from pathlib import Path
from typing import Any

import mmdet
import mmengine.device
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings

from .. import checks
from ..configs import PART, check_kinds, config_file, with_plugin
from ..messages import InputError, described
from ..saved_config import config_in
from .config import CONFIG_DIRS, KINDS, check_registered
from .evaluation import load_model

HOST = f"MMDetection {mmdet.__version__}"


def read_config(name: str) -> dict[str, Any]:
    """The entries of a config file, or of a config that has this name."""
    file = config_file(name, CONFIG_DIRS)
    entries: dict[str, Any] = described(f"file {file}", lambda: Config.fromfile(str(file))).to_dict()
    check_kinds(f"--config {name}", entries, {"model": (dict,), **KINDS})
    return entries


def saved_config(meta: dict[str, Any], path: Path) -> dict[str, Any]:
    """The config in a checkpoint, of parts that MMDetection and this plugin have."""
    entries = config_in(meta, path)
    check_registered(entries, f"the config in --pth-path {path}")
    return entries


class Network:
    """A detector with the weights of a checkpoint."""

    def __init__(self, entries: dict[str, Any], checkpoint: Path, device: str | None, amp: str) -> None:
        """Raises InputError for a config that is of another MMDetection."""
        check_kinds("the config", entries, {
            "model": (dict,), "test_dataloader": PART, "test_dataloader.dataset": PART, **KINDS,
            "test_dataloader.dataset.pipeline.*": (dict,)})  # fmt: skip
        dataset = (entries.get("test_dataloader") or {}).get("dataset") or {}
        if not isinstance(dataset.get("pipeline"), (list, tuple)):
            raise InputError(
                f"the config has no test_dataloader.dataset.pipeline, which {HOST} detects with: if it is of another,"
                " name one of this by --config, such as yolox_s_8x8_300e_coco; its classes will be the checkpoint's"
            )
        import_modules_from_strings(**with_plugin(entries.get("custom_imports")))
        init_default_scope(entries.get("default_scope") or "mmdet")
        cfg = Config(entries)
        self.device = device or mmengine.device.get_device()
        # Images come decoded, as to MMDetection's own inference_detector.
        steps = [{"type": "mmdet.LoadImageFromNDArray"}, *cfg.test_dataloader.dataset.pipeline[1:]]
        self._pipeline = described("test_dataloader.dataset.pipeline", lambda: Compose(steps))
        model = described("model", lambda: load_model(cfg, checkpoint))
        checks.prepare_for_inference(model, self.device, amp)
        self.model = model.to(self.device).eval()

    def sample(self, image: Any) -> Any:
        """What the model gets of an image, (h, w, 3) uint8 BGR."""
        return self._pipeline({"img": image, "img_id": 0})

    def images(self, samples: list[Any]) -> torch.Tensor:
        """What the network sees of samples, `[N, 3, H, W]`, on the model's device."""
        images: torch.Tensor = self.model.data_preprocessor(pseudo_collate(samples), False)["inputs"]
        return images

    @torch.no_grad()
    def detect(self, samples: list[Any]) -> list[tuple[Any, Any]]:
        """For each sample boxes (x1, y1, x2, y2, score), an (n, 5) array, and labels, (n,)."""
        found = [sample.pred_instances for sample in self.model.test_step(pseudo_collate(samples))]
        return [
            (torch.cat([some.bboxes, some.scores[:, None]], 1).float().cpu().numpy(), some.labels.cpu().numpy())
            for some in found
        ]
