"""A config on MMDetection 2.28's own YOLOX-M config, so small that whole trainings take seconds."""

from pathlib import Path

import mmdet

from yolox_plugin.run.demo_data import CLASSES

STANDARD = Path(mmdet.__file__).parent / ".mim/configs/yolox/yolox_m_8x8_300e_coco.py"
CONFIG = """
_base_ = "{standard}"
custom_imports = dict(imports=["yolox_plugin"], allow_failed_imports=False)
img_scale = (96, 96)
model = dict(
    input_size=img_scale, random_size_range=(2, 4), random_size_interval=3,
    backbone=dict(deepen_factor=0.33, widen_factor=0.125),
    neck=dict(in_channels=[32, 64, 128], out_channels=32, num_csp_blocks=1),
    bbox_head=dict(in_channels=32, feat_channels=32, num_classes={classes}),
)
classes = {names}
pad = dict(type="Pad", pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0)))
pipeline = [
    dict(type="Mosaic", img_scale=img_scale, pad_val=114.0),
    dict(type="RandomAffine", scaling_ratio_range=(0.5, 1.5), border=(-48, -48)),
    dict(type="MixUp", img_scale=img_scale, ratio_range=(0.8, 1.6), pad_val=114.0),
    dict(type="YOLOXHSVRandomAug"), dict(type="RandomFlip", flip_ratio=0.5),
    dict(type="Resize", img_scale=img_scale, keep_ratio=True), pad,
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1, 1), keep_empty=False),
    dict(type="DefaultFormatBundle"), dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels"]),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="MultiScaleFlipAug", img_scale=img_scale, flip=False, transforms=[
        dict(type="Resize", keep_ratio=True), dict(type="RandomFlip"), pad,
        dict(type="DefaultFormatBundle"), dict(type="Collect", keys=["img"]),
    ]),
]
val = dict(
    ann_file="{root}/annotations/instances_val2017.json", img_prefix="{root}/val2017/", classes=classes,
    pipeline=test_pipeline,
)
data = dict(
    samples_per_gpu=4, workers_per_gpu=1, persistent_workers=True,
    train=dict(
        pipeline=pipeline,
        dataset=dict(
            ann_file="{root}/annotations/instances_train2017.json", img_prefix="{root}/train2017/", classes=classes
        ),
    ),
    val=val, test=val,
)
runner = dict(max_epochs={epochs})
lr_config = dict({warm_up}, num_last_epochs={closing})
custom_hooks = [
    dict(type="YOLOXModeSwitchHook", num_last_epochs={closing}, priority=48),
    dict(type="SyncNormHook", num_last_epochs={closing}, interval=1, priority=48),
    dict(type="ExpMomentumEMAHook", momentum=0.001, priority=49),
]
checkpoint_config = dict(interval=1, max_keep_ckpts=2)
evaluation = dict(interval=100, dynamic_intervals=None)
log_config = dict(interval=2)
"""

# To be added to it: learns a few images by heart in half a minute.
LEARNS = """
img_scale = (256, 256)
model.update(input_size=img_scale, random_size_interval=10000)
for _part in ("backbone", "neck", "bbox_head"):
    model[_part]["norm_cfg"] = dict(type="BN", momentum=0.2, eps=0.001)
del _part
data["train"]["pipeline"] = [
    dict(type="Resize", img_scale=img_scale, keep_ratio=True), dict(type="RandomFlip", flip_ratio=0.0), pad,
    dict(type="DefaultFormatBundle"), dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels"]),
]
test_pipeline[1]["img_scale"] = img_scale
optimizer = dict(lr=0.02)
custom_hooks = [dict(type="ExpMomentumEMAHook", momentum=0.1, priority=49)]
lr_config = dict(warmup_iters=5, num_last_epochs=10)
auto_scale_lr = dict(base_batch_size=4)
log_config = dict(interval=1)
checkpoint_config = dict(interval=1000)
"""


# To be added to it: every image in every batch, nothing random, and norms that do not depend on what else is in the
# batch.
COMPARABLE = """
norm = dict(type="GN", num_groups=4)
model.update(random_size_interval=1000)
for _part in ("backbone", "neck", "bbox_head"):
    model[_part]["norm_cfg"] = norm
data["train"]["pipeline"] = [
    dict(type="Resize", img_scale=img_scale, keep_ratio=True), dict(type="RandomFlip", flip_ratio=0.0), pad,
    dict(type="DefaultFormatBundle"), dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels"]),
]
del _part
custom_hooks = [dict(type="ExpMomentumEMAHook", momentum=0.001, priority=49)]
auto_scale_lr = dict(base_batch_size=16)
log_config = dict(interval=1)
"""

# Options of a command.
LEARNING_RATE = "optimizer.lr"
EVERY_EPOCH = ["evaluation.interval=1", "checkpoint_config.interval=1"]
# One that shows only when the data set is built, as the length of an epoch; and what is said of it.
REFUSED = (
    ["lr_config.warmup_by_epoch=False", "lr_config.warmup_iters=2000"],
    "closing phase of 3 must be shorter than its 20 epochs",
)
VERSIONS = ("2.28.2",)
# How far the weights of two processes may be from those of one, after a few steps.
WEIGHTS_ATOL = 1e-4


# What else in the config is refused, and how.
CONFIG_OPTIONS = [
    (["--config=BROKEN"], "There are syntax errors in config file"),
    (["--config=yolox_huge"], "--config must be a file or one of yolox_demo, yolox_l_8x8_300e_coco"),
    (["--cfg-options", "data.train.dataset.classes=disc"], "classes='disc' of data.train is a string"),
    (["--cfg-options", "data.train.dataset.classes=disc,disc"], "classes of data.train must differ"),
    (["--cfg-options", "data.val.ann_file=/nowhere.json"], "/nowhere.json, the ann_file of data.val,"),
    (["--cfg-options", "resume_from=FILE"], "resume_from: "),
    (["--cfg-options", "data=1"], "must have model and data"),
    (["--cfg-options", "runner.max_epochs=0"], "runner.max_epochs must be a whole number of 1 or more, got 0"),
    (["--cfg-options", "runner.max_epochs=two"], "must be a whole number of 1 or more, got 'two'"),
    (["--cfg-options", "optimizer.type=Sgd"], "optimizer cannot be: KeyError: 'Sgd is not in the optimizer"),
    (["--cfg-options", "custom_hooks.0.type=Hooky"], "'Hooky is not in the hook registry'"),
    (["--cfg-options", "lr_config.policy=Straight"], "lr_config cannot be: KeyError: 'StraightLrUpdaterHook is"),
    (["--cfg-options", "evaluation.metric=boxes"], "KeyError: 'metric boxes is not supported'"),
    (["--cfg-options", "evaluation.metric=proposal_fast"], "AttributeError: 'list' object has no attribute 'ndim'"),
    (["--cfg-options", "evaluation.metric_items=mAP_x"], "KeyError: 'metric item mAP_x is not supported'"),
    (["--cfg-options", "evaluation.nonsense=1"], "got an unexpected keyword argument 'nonsense'"),
    (["--cfg-options", "evaluation.interval=0"], "evaluation cannot be: ValueError: "),
    (["--cfg-options", "evaluation.save_best=loss"], "save_best must be 'auto' or one of bbox_mAP, bbox_mAP_50,"),
    (["--cfg-options", "evaluation.save_best=nothing"], "Cannot infer the rule for key nothing"),
    (["--cfg-options", "evaluation.out_dir=/elsewhere"], "evaluation.out_dir is not supported"),
    (["--cfg-options", "data.train.cache=rom"], "data.train cannot be: ValueError: cache must be one of ram, disk"),
    (["--cfg-options", "data.train.dataset.nonsense=1"], "data.train cannot be: TypeError: "),
    (["--cfg-options", "checkpoint_config.out_dir=/elsewhere"], "checkpoint_config.out_dir is not supported"),
    (["--cfg-options", "checkpoint_config.filename_tmpl=yolox_{}.pth"],
     "filename_tmpl must be as 'epoch_{}.pth', 'iter_{}.pth' or 'NAME_epoch_{}.pth', which --resume finds again, got"
     " 'yolox_{}.pth'"),
    (["--cfg-options", "checkpoint_config.filename_tmpl=epoch_7.pth"], "which --resume finds again, got 'epoch_7.pth'"),
    (["--cfg-options", "checkpoint_config.filename_tmpl=all/my_epoch_{}.pth"],
     "finds again, got 'all/my_epoch_{}.pth'"),
    (["--cfg-options", "checkpoint_config.filename_tmpl={}_epoch_{}.pth"], "filename_tmpl cannot be: IndexError"),
    (["--cfg-options", "resume_from=OTHER"], "has no tensor of the config's model"),
]  # fmt: skip


def resume_from(checkpoint: Path) -> list[str]:
    """Options that go on from a checkpoint elsewhere."""
    return [f"resume_from={checkpoint}"]


def write_config(path: Path, root: Path, epochs: int, more: str = "") -> Path:
    """Writes it for the data set in `root`; returns `path`."""
    warm_up, closing = ("warmup_iters=2", 3) if epochs > 5 else ("warmup_by_epoch=False, warmup_iters=1", 1)
    text = CONFIG.format(standard=STANDARD, root=root, classes=len(CLASSES), names=list(CLASSES), epochs=epochs,
                         warm_up=warm_up, closing=closing)  # fmt: skip
    path.write_text(text + more)
    return path
