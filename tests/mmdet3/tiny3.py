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
