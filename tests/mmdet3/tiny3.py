"""A config on MMDetection 3's own YOLOX-M config, so small that whole trainings take seconds."""

import os
import subprocess
import sys
from pathlib import Path

import mmdet

from yolox_plugin.run.demo_data import CLASSES

TOOLS = Path(mmdet.__file__).parent / ".mim/tools"
CONFIG = """
_base_ = "mmdet::yolox/yolox_m_8xb8-300e_coco.py"
custom_imports = dict(imports={imports}, allow_failed_imports=False)
img_scale = (96, 96)
model = dict(
    data_preprocessor=dict(batch_augments=[
        dict(type="BatchSyncRandomResize", random_size_range=(64, 128), size_divisor=32, interval=3)
    ]),
    backbone=dict(deepen_factor=0.33, widen_factor=0.125),
    neck=dict(in_channels=[32, 64, 128], out_channels=32, num_csp_blocks=1),
    bbox_head=dict(in_channels=32, feat_channels=32, num_classes={classes}),
)
metainfo = dict(classes={names})
pad = dict(type="Pad", pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0)))
pipeline = [
    dict(type="Mosaic", img_scale=img_scale, pad_val=114.0),
    dict(type="RandomAffine", scaling_ratio_range=(0.5, 1.5), border=(-48, -48)),
    dict(type="MixUp", img_scale=img_scale, ratio_range=(0.8, 1.6), pad_val=114.0),
    dict(type="YOLOXHSVRandomAug"), dict(type="RandomFlip", prob=0.5),
    dict(type="Resize", scale=img_scale, keep_ratio=True), pad,
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1, 1), keep_empty=False), dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"), dict(type="Resize", scale=img_scale, keep_ratio=True), pad,
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=4, num_workers=1,
    dataset=dict(pipeline=pipeline, dataset=dict(data_root="{root}/", metainfo=metainfo)),
)
val_dataloader = dict(
    batch_size=4, num_workers=1, dataset=dict(data_root="{root}/", metainfo=metainfo, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file="{root}/annotations/instances_val2017.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs={epochs}, val_interval={epochs})
param_scheduler = [
    dict(type="mmdet.QuadraticWarmupLR", by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=0.0005, begin=1, T_max={epochs} - 1, end={epochs} - 1, by_epoch=True,
         convert_to_iter_based=True),
    dict(type="ConstantLR", by_epoch=True, factor=1, begin={epochs} - 1, end={epochs}),
]
custom_hooks = [
    dict(type="YOLOXModeSwitchHook", num_last_epochs=1, priority=48),
    dict(type="SyncNormHook", priority=48),
    dict(type="EMAHook", ema_type="ExpMomentumEMA", momentum=0.001, update_buffers=True, priority=49),
]
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=2), logger=dict(interval=2))
"""


# To be added to it: learns a few images by heart.
LEARNS = """
img_scale = (256, 256)
model["data_preprocessor"].pop("batch_augments")
model["data_preprocessor"]["_delete_"] = True
model["data_preprocessor"].update(type="DetDataPreprocessor", pad_size_divisor=32)
for _part in ("backbone", "neck", "bbox_head"):
    model[_part]["norm_cfg"] = dict(type="BN", momentum=0.2, eps=0.001)
del _part
val_dataloader["dataset"].update(
    ann_file="annotations/instances_train2017.json", data_prefix=dict(img="train2017/")
)
val_evaluator["ann_file"] = val_evaluator["ann_file"].replace("val2017", "train2017")
train_dataloader["dataset"]["pipeline"] = [
    dict(type="Resize", scale=img_scale, keep_ratio=True), dict(type="RandomFlip", prob=0.0), pad,
    dict(type="PackDetInputs"),
]
test_pipeline[1]["scale"] = img_scale
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=5),
]
custom_hooks = [
    dict(type="EMAHook", ema_type="ExpMomentumEMA", momentum=0.1, update_buffers=True, priority=49),
]
default_hooks = dict(checkpoint=dict(interval=1000), logger=dict(interval=1))
"""

# To be added to it: every image in every batch, nothing random, and norms that do not depend on what else is in the
# batch.
COMPARABLE = """
norm = dict(_delete_=True, type="GN", num_groups=4)
model["data_preprocessor"].pop("batch_augments")
model["data_preprocessor"]["_delete_"] = True
model["data_preprocessor"].update(type="DetDataPreprocessor", pad_size_divisor=32)
for _part in ("backbone", "neck", "bbox_head"):
    model[_part]["norm_cfg"] = norm
del _part
train_dataloader["dataset"]["pipeline"] = [
    dict(type="Resize", scale=img_scale, keep_ratio=True), dict(type="RandomFlip", prob=0.0), pad,
    dict(type="PackDetInputs"),
]
custom_hooks = [
    dict(type="EMAHook", ema_type="ExpMomentumEMA", momentum=0.001, update_buffers=True, priority=49),
]
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(logger=dict(interval=1))
"""

# Options of a command.
LEARNING_RATE = "optim_wrapper.optimizer.lr"
EVERY_EPOCH = ["train_cfg.val_interval=1", "default_hooks.checkpoint.interval=1"]
# One that shows only when the data set is built; and what is said of it.
REFUSED = (["train_dataloader.dataset.nonsense=1"], "train_dataloader cannot be: TypeError: ")
VERSIONS = ("3.3.0", "3.5.1")
# How far the weights of two processes may be from those of one, after a few steps.
WEIGHTS_ATOL = 2e-4


# What else in the config is refused, and how.
CONFIG_OPTIONS = [
    (["--config=BROKEN"], "broken.py cannot be: SyntaxError: "),
    (["--config=yolox_huge"], "--config must be a file or one of yolox_demo, yolox_l_8xb8-300e_coco"),
    (["--cfg-options", "train_dataloader.dataset.dataset.metainfo.classes=disc"],
     "metainfo.classes='disc' of train_dataloader.dataset is a string"),
    (["--cfg-options", "train_dataloader.dataset.dataset.metainfo.classes=disc,disc"],
     "metainfo.classes of train_dataloader.dataset must differ"),
    (["--cfg-options", "val_dataloader.dataset.ann_file=/nowhere.json"],
     "/nowhere.json, the ann_file of val_dataloader.dataset,"),
    (["--cfg-options", "train_dataloader.dataset.dataset.type=VOCDataset"],
     "train_dataloader.dataset must be read by a CocoDataset, got VOCDataset"),
    (["--cfg-options", "train_dataloader.dataset.dataset.type=7"],
     "train_dataloader.dataset must be read by a CocoDataset, got 7"),
    (["--cfg-options", "model.type=None"], "model cannot be: "),
    (["--cfg-options", "load_from=FILE", "resume=True"], "load_from: "),
    (["--cfg-options", "load_from=OTHER", "resume=True"], "has no tensor of the config's model"),
    (["--cfg-options", "train_dataloader=1"], "has no train_dataloader with a dataset"),
    (["--cfg-options", "train_cfg=1"], "train_cfg must be a dict or None, got 1"),
    (["--cfg-options", "train_cfg.max_epochs=0"], "train_cfg.max_epochs must be a whole number of 1 or more, got 0"),
    (["--cfg-options", "train_cfg.max_epochs=two"], "must be a whole number of 1 or more, got 'two'"),
    (["--cfg-options", "train_cfg.val_interval=0"], "train_cfg.val_interval must be a whole number of 1 or more"),
    (["--cfg-options", "optim_wrapper.type=AmpOptimWrapper"], "the config's AmpOptimWrapper needs an accelerator"),
    (["--cfg-options", "optim_wrapper.optimizer.type=Sgd"], "optim_wrapper cannot be: there is no optimizer 'Sgd'"),
    (["--cfg-options", "custom_hooks.0.type=Hooky"], "cannot be: KeyError: 'Hooky is not in the"),
    (["--cfg-options", "default_hooks.timer.type=Hooky"], "default_hooks.timer cannot be: KeyError: 'Hooky is not in"),
    (["--cfg-options", "param_scheduler.2.type=Straight"], "param_scheduler (Straight) cannot be: KeyError: 'Straight"),
    (["--cfg-options", "param_scheduler.0.end=0"], "param_scheduler (mmdet.QuadraticWarmupLR) cannot be: ValueError: "),
    (["--cfg-options", "val_evaluator.metric=boxes"], "val_evaluator cannot be: KeyError: \"metric should be one of"),
    (["--cfg-options", "val_evaluator.metric_items=mAP_x"], "val_evaluator cannot be: KeyError: 'metric item"),
    (["--cfg-options", "val_evaluator.nonsense=1"], "got an unexpected keyword argument 'nonsense'"),
    (["--cfg-options", "val_evaluator.type=Coco"], "val_evaluator cannot be: there is no metric 'Coco'"),
    (["--cfg-options", "default_hooks.checkpoint.save_best=loss"], "save_best must be 'auto' or one of coco/bbox_mAP,"),
    (["--cfg-options", "default_hooks.checkpoint.out_dir=/elsewhere"], "checkpoint.out_dir is not supported"),
    (["--cfg-options", "default_hooks.checkpoint.filename_tmpl=yolox_{}.pth"],
     "filename_tmpl must be as 'epoch_{}.pth', 'iter_{}.pth' or 'NAME_epoch_{}.pth', which --resume finds again, got"
     " 'yolox_{}.pth'"),
    (["--cfg-options", "default_hooks.checkpoint.filename_tmpl=epoch_7.pth"],
     "which --resume finds again, got 'epoch_7.pth'"),
    (["--cfg-options", "default_hooks.checkpoint.filename_tmpl=all/my_epoch_{}.pth"],
     "finds again, got 'all/my_epoch_{}.pth'"),
    (["--cfg-options", "default_hooks.checkpoint.filename_tmpl={}_epoch_{}.pth"],
     "filename_tmpl cannot be: IndexError"),
    (["--cfg-options", "train_dataloader.dataset.cache=rom"],
     "train_dataloader cannot be: ValueError: cache must be one of ram, disk"),
    (["--cfg-options", "train_dataloader.dataset.nonsense=1"], "train_dataloader cannot be: TypeError: "),
    (["--cfg-options", "train_dataloader.batch_size=0"], "train_dataloader cannot be: "),
    (["--cfg-options", "train_dataloader.num_workers=-1"], "train_dataloader cannot be: ValueError: "),
]  # fmt: skip


def resume_from(checkpoint: Path) -> list[str]:
    """Options that go on from a checkpoint elsewhere."""
    return [f"load_from={checkpoint}", "resume=True"]


def write_config(
    path: Path, root: Path, epochs: int, more: str = "", imports: tuple[str, ...] = ("yolox_plugin",)
) -> Path:
    """Writes it for the data set in `root`; returns `path`."""
    text = CONFIG.format(imports=list(imports), root=root, classes=len(CLASSES), names=CLASSES, epochs=epochs)
    path.write_text(text + more)
    return path


def environment(**more: str) -> dict[str, str]:
    """Of a process that trains on one thread of a CPU."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": "1", **more}


def start(tool: str, *arguments: object, processes: int = 1, **more: str) -> "subprocess.Popen[str]":
    """Starts MMDetection's own train.py, or its test.py, which without mmcv's operators needs the plugin before it."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"] if processes > 1 else []
    program = [TOOLS / f"{tool}.py"]
    if tool == "test":
        program = ["-c", f"import runpy, yolox_plugin; runpy.run_path({str(program[0])!r}, None, '__main__')"]
    command = [sys.executable, *launcher, *program, *arguments]
    if processes > 1:
        command.append("--launcher=pytorch")
    return subprocess.Popen(
        [str(word) for word in command], env=environment(**more), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def run(tool: str, *arguments: object, processes: int = 1, **more: str) -> str:
    """What it prints; it has to succeed."""
    process = start(tool, *arguments, processes=processes, **more)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-5000:]
    return output
