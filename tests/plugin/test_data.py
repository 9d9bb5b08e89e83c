"""Data loading over many epochs: seeds, the mode switch and memory. MMDetection's own classes fail these tests
(YOLOX_PLUGIN_TRAINING=off)."""

import copy
import json
import pickle

import numpy as np
import pytest
from mmcv import build_from_cfg
from mmcv.runner import HOOKS
from mmdet.datasets import DATASETS, build_dataset

from yolox_plugin.dataset import PackedList

SWITCH = {"type": "YOLOXModeSwitchHook", "num_last_epochs": 2, "skip_type_keys": ("Blank",), "priority": 48}


def hashes(epochs):
    return {epoch: [batch["hash"] for batch in batches] for epoch, batches in epochs.items()}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("persistent_workers", [False, True])
def test_no_epoch_repeats_another(mixed_dataset, run_epochs, persistent_workers, workers):
    """open-mmlab/mmdetection#9530: the same images in the same order, and yet never the same batch again."""
    options = {"persistent_workers": persistent_workers, "workers": workers}
    epochs = hashes(run_epochs(mixed_dataset, max_epochs=3, **options))
    batches = [batch for epoch in epochs.values() for batch in epoch]
    assert len(batches) == 18
    assert len(set(batches)) == 18
    # The same seed gives the same run, another seed another.
    assert hashes(run_epochs(mixed_dataset, max_epochs=3, **options)) == epochs
    assert not set(batches) & set(hashes(run_epochs(mixed_dataset, max_epochs=1, seed=1, **options))[0])
    # A run that begins with epoch 1 sees what the first one saw in it.
    assert hashes(run_epochs(mixed_dataset, max_epochs=3, start=1, **options)) == {1: epochs[1], 2: epochs[2]}


def test_shuffling_is_a_function_of_seed_and_epoch(mixed_dataset, run_epochs):
    epochs = hashes(run_epochs(mixed_dataset, max_epochs=3, shuffle=True))
    assert hashes(run_epochs(mixed_dataset, max_epochs=3, start=2, shuffle=True)) == {2: epochs[2]}


@pytest.mark.parametrize("start", [0, 3, 4, 5])
@pytest.mark.parametrize("persistent_workers", [False, True])
def test_the_mode_switches_for_exactly_the_last_epochs(mixed_dataset, run_epochs, persistent_workers, start):
    """open-mmlab/mmdetection#7284 (an epoch early) and #10116 (never, after a resume)."""
    blank = next(step for step in mixed_dataset.pipeline if type(step).__name__ == "Blank")
    blank.active = True
    epochs = run_epochs(mixed_dataset, max_epochs=6, start=start, hooks=[SWITCH], persistent_workers=persistent_workers)
    seen = {epoch: {(batch["blank"], batch["l1"]) for batch in batches} for epoch, batches in epochs.items()}
    assert seen == {epoch: {(True, False) if epoch < 4 else (False, True)} for epoch in range(start, 6)}


@pytest.mark.parametrize(("epoch", "interval"), [(0, 10), (3, 10), (4, 1), (5, 1)])
def test_norms_are_synchronised_in_exactly_the_last_epochs(epoch, interval):
    class Runner:
        max_epochs = 6

    hook = build_from_cfg({"type": "SyncNormHook", "num_last_epochs": 2, "interval": 10}, HOOKS)
    Runner.epoch = epoch
    hook.before_train_epoch(Runner)
    assert hook.interval == interval


def test_a_packed_list_is_a_list():
    items = [{"a": i, "b": np.arange(i)} for i in range(5)]
    packed = PackedList(items)
    assert len(packed) == 5
    assert [item["a"] for item in packed] == list(range(5))
    assert packed[-1]["b"].tolist() == [0, 1, 2, 3]
    assert [item["a"] for item in packed[1:4:2]] == [1, 3]
    assert len(packed + packed) == len(items + packed) == 10
    assert pickle.loads(pickle.dumps(packed))[3]["a"] == 3
    assert len(PackedList([])) == 0
    for index in (5, -6):
        with pytest.raises(IndexError, match=rf"index must be in \[-5, 5\), got {index}"):
            packed[index]


@pytest.mark.parametrize("test_mode", [False, True])
def test_a_packed_data_set_says_what_the_stock_one_says(data_root, test_mode):
    from mmdet.datasets.coco import CocoDataset as Stock

    cfg = {
        "classes": ("star", "disc"),
        "ann_file": str(data_root / "annotations/instances_train2017.json"),
        "img_prefix": str(data_root / "train2017"),
        "pipeline": [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}],
        "test_mode": test_mode,
    }
    stock, ours = Stock(**copy.deepcopy(cfg)), DATASETS.get("CocoDataset")(**copy.deepcopy(cfg))
    assert type(ours).__module__.startswith("yolox_plugin")
    assert list(ours.data_infos) == stock.data_infos
    assert len(ours) == len(stock)
    assert test_mode or np.array_equal(ours.flag, stock.flag)
    assert ("coco" in vars(ours)) == test_mode
    for i in range(len(stock)):
        np.testing.assert_equal(ours.get_ann_info(i), stock.get_ann_info(i))
        assert ours.get_cat_ids(i) == stock.get_cat_ids(i)
        if not test_mode:  # an image of a test has no annotations
            np.testing.assert_equal(ours[i], stock[i])
    results = [[np.array([[10.0, 10, 50, 50, 0.9]]), np.zeros((0, 5))] for _ in range(len(stock))]
    assert ours.evaluate(results) == stock.evaluate(results)  # reads the annotations again after training


@pytest.mark.slow
def test_memory_of_the_workers_stays_flat(tmp_path, private_bytes):
    """open-mmlab/mmdetection#6931, on 100,000 annotations: resident memory of the workers alone, over 20 epochs."""
    from torch.utils.data import DataLoader

    images = [{"id": i, "file_name": f"{i:012}.jpg", "width": 640, "height": 480} for i in range(12500)]
    annotations = [
        {"id": i, "image_id": i // 8, "category_id": i % 80, "bbox": [i % 300, 20.0, 100.5, 50.25], "area": 5050.125,
         "iscrowd": 0, "segmentation": [[10.5, 10.5, 100.25, 10.5, 100.25, 50.75, 10.5, 50.75]]}
        for i in range(100_000)
    ]  # fmt: skip
    categories = [{"id": i, "name": str(i)} for i in range(80)]
    ann_file = tmp_path / "annotations.json"
    ann_file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    annotated = {
        "type": "CocoDataset", "ann_file": str(ann_file), "classes": [str(i) for i in range(80)],
        "pipeline": [{"type": "LoadAnnotations", "with_bbox": True}],
    }  # fmt: skip
    dataset = build_dataset({"type": "MultiImageMixDataset", "dataset": annotated, "pipeline": [{"type": "Blank"}]})
    del images, annotations
    loader = DataLoader(dataset, batch_size=100, num_workers=2, persistent_workers=True, collate_fn=len, shuffle=True)
    grown = []
    for epoch in range(20):
        assert sum(loader) == 12500
        grown.append(sum(private_bytes(worker.pid) for worker in loader._iterator._workers) / 1e6)
        print(f"epoch {epoch}: workers hold {grown[-1]:.1f} MB of their own")
    assert grown[-1] - grown[0] < 10
    assert grown[-1] < 60  # MMDetection's: 160 after the first epoch, 410 after the fifth
