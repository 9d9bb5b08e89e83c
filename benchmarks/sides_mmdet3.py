"""What the benchmarks take from MMDetection 3: sides, samples, data loaders."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sides
from peers import quiet
from report import Target
from sides import BFLOAT16, CACHED, PLUGIN, STOCK, Detector, Stopwatch, check_origin
from torch import Tensor
from torch.utils.data import DataLoader

from yolox_plugin.protocol import Moment, TrainingPart

with quiet():
    import mmcv
    import mmdet
    import mmengine
    import mmengine.fileio
    from mmdet.datasets import CocoDataset
    from mmdet.registry import DATASETS, MODELS
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.dataset import DefaultSampler, pseudo_collate, worker_init_fn
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import HOOKS, LOG_PROCESSORS
    from mmengine.structures import InstanceData

    MMLogger.get_instance("mmengine").setLevel("ERROR")  # it tells of every weight
    register_all_modules()  # and the scope in which MMDetection's names are found

CONFIGS = Path(mmdet.__file__).parent / ".mim/configs/yolox"
STANDARD = "yolox_m_8xb8-300e_coco"
VERSIONS = {"mmengine": mmengine.__version__, "mmcv": mmcv.__version__, "mmdet": mmdet.__version__}
CLASSES = CocoDataset.METAINFO["classes"]
STAGES = (*sides.STAGES, "logging")
# Where images are read and decoded.
READERS = ((mmcv, "imfrombytes"), (mmengine.fileio, "get"))
# Of a side of the sample benchmark: at least so many times faster than MMDetection's.
SAMPLE_TARGETS = {PLUGIN: 2.5, CACHED: 5.0}
# Of the plugin's step: so many times faster at least is the head's loss at so many gts, and so many times as long as
# the network alone is the step at most.
HEAD_LOSS, HEAD_LOSS_GTS, STEP = 40.0, 30, 1.05


def read_config(name: str) -> Any:
    return Config.fromfile(str(CONFIGS / f"{name}.py"))


def image_size(cfg: Any) -> int:
    size: int = cfg.img_scale[0]
    return size


def sgd_settings(cfg: Any) -> Mapping[str, Any]:
    """The config's optimizer."""
    settings: Mapping[str, Any] = cfg.optim_wrapper.optimizer
    return settings


class Side(Detector):
    """Detector, optimizer and hooks as its own registries build them from the config."""

    def __init__(self, cfg: Any, name: str) -> None:
        model = cfg.model.copy()
        if name == BFLOAT16:
            model["autocast"] = "bfloat16"
        network = MODELS.build(model)
        network.train()
        self.optim_wrapper = build_optim_wrapper(network, cfg.optim_wrapper)
        super().__init__(name, network, self.optim_wrapper.optimizer)
        ema = next(hook for hook in cfg.custom_hooks if "EMA" in hook.type)
        self.ema_hook = HOOKS.build({k: v for k, v in ema.items() if k != "priority"})
        self.log_hook = HOOKS.build({"type": "RuntimeInfoHook"})
        self.runner = SimpleNamespace(
            model=network, optim_wrapper=self.optim_wrapper, message_hub=MessageHub.get_instance(name), epoch=0,
            max_epochs=cfg.max_epochs, log_processor=LOG_PROCESSORS.build(cfg.log_processor),
        )  # fmt: skip
        self.runner.iter = 0  # for good, and so images keep the default size
        self.runner.message_hub.update_info("iter", 0)
        self.ema_hook.before_run(self.runner)
        resize = network.data_preprocessor.batch_augments[0]
        hooks = (self.ema_hook.ema_model, self.log_hook)
        check_origin(name, [network, self.head, self.head.assigner, resize, self.optimizer, *hooks])
        self.update_watch, self.log_watch = Stopwatch(), Stopwatch()
        self.head.loss_by_feat = self.loss_watch.around(self.head.loss_by_feat)
        self.optim_wrapper.update_params = self.update_watch.around(self.optim_wrapper.update_params)
        for call in ("before_train_iter", "after_train_iter"):
            setattr(self.log_hook, call, self.log_watch.around(getattr(self.log_hook, call)))

    def start(self, state: Mapping[str, Tensor], loader: Any) -> None:
        """See the base class."""
        super().start(state, loader)
        self.ema_hook.ema_model.steps.zero_()
        self.runner.train_dataloader = loader
        self.runner.max_iters = self.runner.max_epochs * len(loader)
        self.log_hook.before_train(self.runner)
        for part in self.network.modules():
            if isinstance(part, TrainingPart):
                part.start_epoch(Moment(seed=0))

    def step(self) -> dict[str, float]:
        """One training step, as mmengine's runner goes about it; seconds of each stage."""
        self.before_step()
        self.assigned.clear()
        start = time.perf_counter()
        batch = next(self.batches)
        wait = time.perf_counter() - start
        self.log_hook.before_train_iter(self.runner, 0, batch)
        start = time.perf_counter()
        outputs = self.network.train_step(batch, self.optim_wrapper)
        train = time.perf_counter() - start
        self.log_hook.after_train_iter(self.runner, 0, batch, outputs)
        start = time.perf_counter()
        self.ema_hook.after_train_iter(self.runner, 0, batch, outputs)
        average = time.perf_counter() - start
        self.losses = {name: value.detach() for name, value in outputs.items()}
        update = self.update_watch.read()
        return self.stages(wait, train - update, update, average) | {"logging": self.log_watch.read()}


def assigned(result: Any, pred_instances: Any, gt_instances: Any, gt_instances_ignore: Any = None) -> tuple[Any, ...]:
    """Scores, priors, boxes, gts and labels that MMDetection's assigner was given; which gt, and what IoU, each prior
    got. The scores that it is given are roots."""
    predicted = (pred_instances.scores.square(), pred_instances.priors, pred_instances.bboxes)
    args = (*predicted, gt_instances.bboxes, gt_instances.labels)
    return args, result.gt_inds - 1, result.max_overlaps.clamp(min=0)


def targets(gts: int, found: Mapping[str, Any]) -> list[Target]:
    """Of the standard config's steps."""
    ours, theirs = found[PLUGIN], found[STOCK]
    share = ours["step"] / ours["network alone"]
    what = f"{PLUGIN}, {gts} gts: a step at most {STEP:g}x the network alone"
    result = [Target(what, f"{share:.3f}x", share <= STEP)]
    if gts == HEAD_LOSS_GTS:
        ratio = theirs["head loss"] / ours["head loss"]
        what = f"{PLUGIN}, {gts} gts: head loss >= {HEAD_LOSS:g}x {STOCK}"
        result.append(Target(what, f"{ratio:.1f}x", ratio >= HEAD_LOSS))
    return result


def pack(image: Tensor, boxes: Tensor, labels: Tensor) -> dict[str, Any]:
    """A sample as the config's pipeline ends with it."""
    size = tuple(image.shape[1:])
    sample = DetDataSample(metainfo={"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)})
    sample.gt_instances = InstanceData(bboxes=HorizontalBoxes(boxes), labels=labels)
    return {"inputs": image.byte(), "data_samples": sample}


def unpack(batch: Any) -> tuple[Any, ...]:
    """Images, boxes and labels of a loader's batch, each by image."""
    gts = [sample.gt_instances for sample in batch["data_samples"]]
    return batch["inputs"], [gt.bboxes.tensor for gt in gts], [gt.labels for gt in gts]


def contents(sample: Any) -> dict[str, Tensor]:
    """The tensors of a sample by name."""
    found = {"inputs": sample["inputs"]}
    for kind in ("gt_instances", "ignored_instances"):
        instances = getattr(sample["data_samples"], kind)
        found |= {f"{kind}.bboxes": instances.bboxes.tensor, f"{kind}.labels": instances.labels}
    return found


def loader(dataset: Any, batch: int, workers: int = 1, shuffle: bool = False) -> Any:
    """As mmengine's runner makes it, but of the data set itself, of which that takes a copy."""
    return DataLoader(
        dataset,
        batch,
        sampler=DefaultSampler(dataset, shuffle, seed=0),
        num_workers=workers,
        collate_fn=pseudo_collate,
        worker_init_fn=partial(worker_init_fn, num_workers=workers, rank=0, seed=0),
        persistent_workers=True,
    )


def build_samples(root: Path, **options: Any) -> Any:
    """The standard config's training set over the images in `root`, as the registries build it."""
    cfg = read_config(STANDARD).train_dataloader.dataset
    cfg.dataset.update(data_root="", ann_file=str(root / "annotations.json"), data_prefix={"img": str(root)})
    return DATASETS.build({**cfg, **options})
