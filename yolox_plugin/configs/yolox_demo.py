# The standard YOLOX on the demo data set, small enough to train on two CPU cores in minutes. Everything that differs
# from MMDetection's own yolox_s config is below; mosaic, mixup, EMA, L1 phase and schedule are its own.
from os.path import dirname as _dirname

import mmdet

_base_ = _dirname(mmdet.__file__) + "/.mim/configs/yolox/yolox_s_8x8_300e_coco.py"
custom_imports = dict(imports=["yolox_plugin"], allow_failed_imports=False)

# Nano widths, 320 x 320, five classes.
img_scale = (320, 320)
classes = ("disc", "square", "triangle", "star", "ring")
model = dict(
    input_size=img_scale,
    random_size_range=(8, 12),
    backbone=dict(widen_factor=0.25),
    neck=dict(in_channels=[64, 128, 256], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64, num_classes=len(classes)),
)

# The standard pipelines at that size. Config lists are replaced as a whole, so they are spelled out.
train_pipeline = [
    dict(type="Mosaic", img_scale=img_scale, pad_val=114.0),
    dict(type="RandomAffine", scaling_ratio_range=(0.5, 1.5), border=(-img_scale[0] // 2, -img_scale[1] // 2)),
    dict(type="MixUp", img_scale=img_scale, ratio_range=(0.8, 1.6), pad_val=114.0),
    dict(type="YOLOXHSVRandomAug"),
    dict(type="RandomFlip", flip_ratio=0.5),
    dict(type="Resize", img_scale=img_scale, keep_ratio=True),
    dict(type="Pad", pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1, 1), keep_empty=False),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels"]),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="MultiScaleFlipAug",
        img_scale=img_scale,
        flip=False,
        transforms=[
            dict(type="Resize", keep_ratio=True),
            dict(type="RandomFlip"),
            dict(type="Pad", pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
            dict(type="DefaultFormatBundle"),
            dict(type="Collect", keys=["img"]),
        ],
    ),
]
data_root = "data/demo/"
val_data = dict(
    ann_file=data_root + "annotations/instances_val2017.json",
    img_prefix=data_root + "val2017/",
    classes=classes,
    pipeline=test_pipeline,
)
data = dict(
    samples_per_gpu=8,
    workers_per_gpu=2,
    train=dict(
        dataset=dict(
            ann_file=data_root + "annotations/instances_train2017.json",
            img_prefix=data_root + "train2017/",
            classes=classes,
        ),
        pipeline=train_pipeline,
    ),
    val=val_data,
    test=val_data,
)

# A short schedule.
max_epochs = 34
num_last_epochs = 6
interval = 8
optimizer = dict(lr=0.01)
lr_config = dict(warmup_iters=2, num_last_epochs=num_last_epochs)
runner = dict(max_epochs=max_epochs)
custom_hooks = [
    dict(type="YOLOXModeSwitchHook", num_last_epochs=num_last_epochs, priority=48),
    dict(type="SyncNormHook", num_last_epochs=num_last_epochs, interval=interval, priority=48),
    dict(type="ExpMomentumEMAHook", momentum=0.0001, priority=49),
]
checkpoint_config = dict(interval=interval, max_keep_ckpts=2)
evaluation = dict(interval=interval, dynamic_intervals=None)
log_config = dict(interval=10)
auto_scale_lr = dict(base_batch_size=8)
channels_last = True  # read by yolox_plugin.train, but on an NPU: the CPU's convolutions are fastest in this layout
