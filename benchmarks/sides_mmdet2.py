"""What the benchmarks take from MMDetection 2: sides, samples, data loaders."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sides
from peers import quiet
from report import Target
from sides import BFLOAT16, CACHED, PLUGIN, Detector, check_origin
from torch import Tensor

from yolox_plugin.protocol import Moment

with quiet():
    import mmcv
    import mmdet
    from mmcv import Config
    from mmcv.parallel import DataContainer
    from mmcv.runner import HOOKS, build_optimizer
    from mmdet.datasets import CocoDataset, build_dataloader, build_dataset
    from mmdet.models import build_detector
    from mmdet.utils import build_dp

CONFIGS = Path(mmdet.__file__).parent / ".mim/configs/yolox"
STANDARD = "yolox_m_8x8_300e_coco"
VERSIONS = {"mmcv": mmcv.__version__, "mmdet": mmdet.__version__}
CLASSES = CocoDataset.CLASSES
STAGES = sides.STAGES
# Where images are read and decoded.
READERS = ((mmcv, "imfrombytes"), (mmcv.FileClient, "get"))
# Of a side of the sample benchmark: at least so many times faster than MMDetection's.
SAMPLE_TARGETS = {PLUGIN: 2.0, CACHED: 4.0}
# Of a side of the step benchmark: at most this share of a step outside of the network's forward and backward.
OUTSIDE = {PLUGIN: 0.03, BFLOAT16: 0.07}


def read_config(name: str) -> Any:
    return Config.fromfile(str(CONFIGS / f"{name}.py"))


def image_size(cfg: Any) -> int:
    size: int = cfg.model.input_size[0]
    return size


def sgd_settings(cfg: Any) -> Mapping[str, Any]:
    """The config's optimizer."""
    settings: Mapping[str, Any] = cfg.optimizer
    return settings


class Side(Detector):
    """Detector, optimizer and hooks as its own registries build them from the config."""

    def __init__(self, cfg: Any, name: str) -> None:
        model = cfg.model.copy()
        if name == BFLOAT16:
            model["autocast"] = "bfloat16"
        network = build_detector(model)
        network.train()
        self.model = build_dp(network, "cpu", device_ids=[0])
        super().__init__(name, network, build_optimizer(self.model, cfg.optimizer))
        self.optimizer_hook = mmcv.build_from_cfg({**cfg.optimizer_config, "type": "OptimizerHook"}, HOOKS)
        ema = next(hook for hook in cfg.custom_hooks if "EMA" in hook.type)
        self.ema_hook = mmcv.build_from_cfg({k: v for k, v in ema.items() if k != "priority"}, HOOKS)
        check_origin(name, [network, self.head, self.head.assigner, self.optimizer, self.ema_hook])
        self.head.loss = self.loss_watch.around(self.head.loss)
        self.runner = SimpleNamespace(
            model=self.model, optimizer=self.optimizer, iter=0, logger=logging.getLogger(), outputs={}
        )
        self.ema_hook.before_run(self.runner)

    def start(self, state: Mapping[str, Tensor], loader: Any) -> None:
        """See the base class."""
        super().start(state, loader)
        self.runner.iter = 0

    def step(self) -> dict[str, float]:
        """One training step, as mmcv's runner goes about it; seconds of each stage."""
        self.before_step()
        self.assigned.clear()
        if self.name in sides.OURS:
            self.network.start_epoch(Moment(seed=0))  # multi-scale training stays at the default size
        else:
            self.network._progress_in_iter = 0
        clock = [time.perf_counter()]
        batch = next(self.batches)
        clock.append(time.perf_counter())
        self.runner.outputs = self.model.train_step(batch, self.optimizer)
        clock.append(time.perf_counter())
        self.optimizer_hook.after_train_iter(self.runner)
        clock.append(time.perf_counter())
        self.ema_hook.after_train_iter(self.runner)
        clock.append(time.perf_counter())
        self.runner.iter += 1
        self.losses = self.runner.outputs["log_vars"]
        return self.stages(*(b - a for a, b in itertools.pairwise(clock)))


def assigned(result: Any, *args: Any) -> tuple[Any, ...]:
    """Scores, priors, boxes, gts and labels that MMDetection's assigner was given; which gt, and what IoU, each prior
    got."""
    return args[:5], result.gt_inds - 1, result.max_overlaps.clamp(min=0)


def targets(gts: int, found: Mapping[str, Any]) -> list[Target]:
    """Of the standard config's steps."""
    result = []
    for name, most in OUTSIDE.items():
        share = found[name]["outside the network"]
        what = f"{name}, {gts} gts: at most {most:.0%} of a step outside the network"
        result.append(Target(what, f"{share:.1%}", share <= most))
    return result


def pack(image: Tensor, boxes: Tensor, labels: Tensor) -> dict[str, Any]:
    """A sample as the config's pipeline ends with it."""
    return {
        "img": DataContainer(image, stack=True),
        "gt_bboxes": DataContainer(boxes),
        "gt_labels": DataContainer(labels),
        "img_metas": DataContainer({"img_shape": (*image.shape[1:], 3), "scale_factor": 1.0}, cpu_only=True),
    }


def unpack(batch: Any) -> tuple[Any, ...]:
    """Images, boxes and labels of a loader's batch, each by image."""
    return tuple(batch[key].data[0] for key in ("img", "gt_bboxes", "gt_labels"))


def contents(sample: Any) -> dict[str, Tensor]:
    """The tensors of a sample by name."""
    return {name: sample[name].data for name in ("gt_bboxes", "gt_labels", "img")}


def loader(dataset: Any, batch: int, workers: int = 1, shuffle: bool = False) -> Any:
    """As mmdet's `train_detector` makes it."""
    return build_dataloader(dataset, batch, workers, dist=False, shuffle=shuffle, seed=0, persistent_workers=True)


def build_samples(root: Path, **options: Any) -> Any:
    """The standard config's training set over the images in `root`, as the registries build it."""
    cfg = read_config(STANDARD).data.train
    cfg.dataset.update(ann_file=str(root / "annotations.json"), img_prefix=str(root), filter_empty_gt=False)
    return build_dataset({**cfg, **options})
