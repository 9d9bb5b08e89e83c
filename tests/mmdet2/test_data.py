"""Data loading over many epochs: seeds, the mode switch and memory. MMDetection's own classes fail these tests
(YOLOX_PLUGIN_TRAINING=off)."""

import copy
import inspect
import itertools
import json
import pickle

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmcv import build_from_cfg
from mmcv.runner import HOOKS
from mmdet.datasets import (
    DATASETS,
    PIPELINES,
    ClassBalancedDataset,
    ConcatDataset,
    RepeatDataset,
    build_dataset,
)
from mmdet.datasets.coco import CocoDataset as StockCoco
from mmdet.datasets.pipelines import MixUp, Mosaic, RandomAffine, YOLOXHSVRandomAug
from torch.utils.data import DataLoader

from yolox_plugin.core import annotation_index
from yolox_plugin.core.images import UnreadableImage
from yolox_plugin.core.mixing import data_sets_in
from yolox_plugin.core.packed import PackedList
from yolox_plugin.mmdet2.dataset import StockMultiImageMixDataset as StockMix
from yolox_plugin.protocol import Moment

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


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: ConcatDataset([RepeatDataset(data, 2), data])])
def test_batches_do_not_depend_on_the_workers(mixed_dataset, run_epochs, wrap):
    """Shuffled, in each of two epochs, and where an image comes three times in an epoch."""
    data = wrap(mixed_dataset)
    first, *others = (
        hashes(run_epochs(data, max_epochs=2, shuffle=True, workers=workers, persistent_workers=workers == 3))
        for workers in (0, 1, 2, 3)
    )
    assert all(other == first for other in others)
    batches = [batch for epoch in first.values() for batch in epoch]
    assert len(set(batches)) == len(batches)


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


def test_a_packed_list_reads_as_a_list():
    items = [{"a": i, "b": np.arange(i)} for i in range(5)]
    packed = PackedList(items)
    assert len(packed) == 5
    assert [item["a"] for item in packed] == list(range(5))
    assert packed[-1]["b"].tolist() == [0, 1, 2, 3]
    assert [item["a"] for item in packed[1:4:2]] == [1, 3]
    assert pickle.loads(pickle.dumps(packed))[3]["a"] == 3
    assert len(PackedList([])) == 0
    for index in (5, -6):
        with pytest.raises(IndexError, match=rf"index must be in \[-5, 5\), got {index}"):
            packed[index]


def coco_config(root, **changes):
    return {
        "classes": ("star", "disc", "ring"),
        "ann_file": str(root / "annotations/instances_train2017.json"),
        "img_prefix": str(root / "train2017"),
        "filter_empty_gt": False,
        "pipeline": [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}],
        **changes,
    }


def both(root, **changes):
    """The plugin's data set and MMDetection's own."""
    found = [cls(**copy.deepcopy(coco_config(root, **changes))) for cls in (DATASETS.get("CocoDataset"), StockCoco)]
    assert type(found[0]) is not type(found[1])
    return found


def shuffled(infos):
    return [infos[i] for i in np.random.RandomState(1).permutation(len(infos))]


def assign(change):
    def edit(dataset):
        dataset.data_infos = change(dataset.data_infos)

    return edit


def in_place(change):
    return lambda dataset: change(dataset.data_infos)


def give_another_category(dataset):
    for annotation in dataset.coco.anns.values():
        annotation["category_id"] = dataset.cat_ids[0]


EDITS = {
    "every other": assign(lambda infos: infos[::2]),
    "shuffled": assign(shuffled),
    "doubled": assign(lambda infos: infos + infos),
    "renamed": assign(lambda infos: [info | {"filename": "000001.jpg"} for info in infos]),
    "of a stranger": assign(lambda infos: [*infos, infos[2] | {"id": 10**9}]),
    "appended": in_place(lambda infos: infos.append(dict(infos[3]))),
    "exchanged": in_place(lambda infos: infos.__setitem__(0, infos[5])),
    "reversed": in_place(lambda infos: infos.reverse()),
    "cut": in_place(lambda infos: infos.__delitem__(slice(2, 7))),
    "an item's field": in_place(lambda infos: infos[1].update(width=40)),
    "sorted": in_place(lambda infos: infos.sort(key=lambda info: info["width"])),
    "annotations": give_another_category,
    "labels": lambda dataset: dataset.cat2label.update({i: 2 for i in dataset.cat_ids}),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_what_users_do_to_a_data_set_means_the_same(data_root, edit, tmp_path):
    ours, stock = both(data_root)
    before = [stock.get_ann_info(i)["bboxes"].tobytes() for i in range(len(stock))]
    assert len(set(before)) == len(before)  # or a mistake would not be seen
    for dataset in (ours, stock):
        edit(dataset)
    assert ours.data_infos == stock.data_infos
    assert stock.data_infos[1] in ours.data_infos
    mmcv.dump(ours.data_infos, tmp_path / "infos.json")
    assert mmcv.load(tmp_path / "infos.json") == stock.data_infos
    assert len(ours) == len(stock)
    for i in range(len(stock)):
        np.testing.assert_equal(ours.get_ann_info(i), stock.get_ann_info(i))
        assert ours.get_cat_ids(i) == stock.get_cat_ids(i)
        np.testing.assert_equal(ours.prepare_train_img(i), stock.prepare_train_img(i))
    # In the workers of a training as well.
    for part in (mixed := mix(ours), ours):
        part.start_epoch(Moment(seed=0))
    loader = DataLoader(mixed, batch_size=1, num_workers=1, collate_fn=lambda samples: samples[0])
    seen = [(sample["filename"], sample["gt_bboxes"].tolist()) for sample in itertools.islice(loader, len(stock))]
    wanted = [stock.prepare_train_img(i) for i in range(mixed.num_samples)]
    assert seen == [(sample["filename"], sample["gt_bboxes"].tolist()) for sample in wanted]


def test_after_a_training_workers_read_what_is_there_then(data_root, run_epochs):
    ours, _ = both(data_root)
    ours.data_infos = [ours.data_infos[0]] * 4  # of one size
    mixed = mix(ours)
    mixed.pipeline += [PIPELINES.get("DefaultFormatBundle")(), PIPELINES.get("Collect")(keys=["img"], meta_keys=())]
    mixed.pipeline_types += ["DefaultFormatBundle", "Collect"]
    run_epochs(mixed, max_epochs=2)
    ours.data_infos[0] = ours.data_infos[0] | {"filename": "000007.jpg"}
    ours.coco  # noqa: B018  its annotations count as well
    with_workers, without = (
        next(iter(DataLoader(mixed, batch_size=1, num_workers=n, collate_fn=lambda samples: samples[0]["img"].data)))
        for n in (1, 0)
    )
    assert with_workers.dtype == torch.float32
    assert torch.equal(with_workers, without)


def mix(dataset, **options):
    return DATASETS.get("MultiImageMixDataset")(dataset, [{"type": "Blank"}], **options)


def test_group_flags_follow_an_assignment(data_root):
    ours, _ = both(data_root)
    mixed = mix(ours)
    ours.data_infos = shuffled(ours.data_infos)[::2]
    wide = [info["width"] > info["height"] for info in ours.data_infos]
    assert 0 < sum(wide) < len(wide)
    assert ours.flag.tolist() == mixed.flag.tolist() == wide


def test_the_index_of_pycocotools_is_not_read_again_in_training(data_root):
    ours, _ = both(data_root)
    loader = DataLoader(mix(ours), batch_size=1, num_workers=0, collate_fn=len)
    assert sum(loader) == len(ours)
    assert "coco" not in vars(ours)


@pytest.mark.parametrize("test_mode", [False, True])
def test_a_byte_order_mark_is_no_part_of_the_annotations(data_root, tmp_path, test_mode):
    marked = tmp_path / "marked.json"
    marked.write_bytes(b"\xef\xbb\xbf" + (data_root / "annotations/instances_train2017.json").read_bytes())
    ours, plain = (
        DATASETS.get("CocoDataset")(**coco_config(data_root, test_mode=test_mode, **changes))
        for changes in ({"ann_file": str(marked)}, {})
    )
    assert ours.data_infos == plain.data_infos
    assert ours.coco.dataset == plain.coco.dataset
    for i in range(len(plain)):
        np.testing.assert_equal(ours.get_ann_info(i), plain.get_ann_info(i))
    assert [path.name for path in tmp_path.iterdir()] == ["marked.json"]


def public(thing):
    return {name for name in dir(thing) if not name.startswith("_")}


def test_signatures_and_attributes_of_stock(data_root):
    ours, stock = both(data_root)
    steps = [{"type": "Blank"}]
    pairs = [(ours, stock), (mix(ours), StockMix(stock, steps))]
    pairs += [(PIPELINES.get(cls.__name__)(), cls()) for cls in (Mosaic, RandomAffine, MixUp, YOLOXHSVRandomAug)]
    ours.coco  # noqa: B018  read again
    for mine, theirs in pairs:
        assert type(mine).__module__.startswith("yolox_plugin")
        assert public(mine) >= public(theirs), type(mine)
        # `*args, **kwargs` goes on to stock; what is written out begins with stock's parameters in their order.
        own = [p for p in inspect.signature(type(mine)).parameters.values() if p.kind is not p.KEYWORD_ONLY]
        if not any(p.kind is p.VAR_POSITIONAL for p in own):
            assert [(p.name, p.default) for p in own] == [
                (p.name, p.default) for p in inspect.signature(type(theirs)).parameters.values()
            ]


def test_a_mixing_set_by_position_and_with_more_steps(data_root):
    ours, stock = both(data_root)
    for cls, inner in ((DATASETS.get("MultiImageMixDataset"), ours), (StockMix, stock)):
        mixed = cls(inner, [{"type": "Blank"}], None, ["Nothing"], 3)
        assert mixed.max_refetch == 3
        step = PIPELINES.get("Blank")()
        step.active = True
        mixed.pipeline.append(step)  # which stock leaves out, as it has no type
        assert mixed[0]["img"].any()
        mixed.pipeline_types.append("Blank")
        assert not mixed[0]["img"].any()
        mixed.update_skip_type_keys(["Blank"])
        assert mixed[0]["img"].any()


def test_living_workers_hear_of_steps_that_were_added(data_root):
    ours, _ = both(data_root)
    mixed = mix(ours)
    step = PIPELINES.get("Blank")()
    step.active = True
    mixed.pipeline.append(step)
    mixed.pipeline_types.append("Added")
    mixed.start_epoch(Moment(seed=0))
    loader = DataLoader(mixed, num_workers=1, persistent_workers=True, collate_fn=lambda samples: samples[0])
    assert not any(sample["img"].any() for sample in loader)
    mixed.update_skip_type_keys(("Added",))
    assert all(sample["img"].any() for sample in loader)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))], ids=["deepcopy", "pickle"])
def test_living_workers_of_a_copy_hear_as_well(data_root, copied):
    ours, _ = both(data_root)
    original = DATASETS.get("MultiImageMixDataset")(ours, [{"type": "Blank"}])
    original.pipeline[0].active = True
    mixed = copied(original)
    loader = DataLoader(mixed, num_workers=1, persistent_workers=True, collate_fn=lambda samples: samples[0])
    assert not any(sample["img"].any() for sample in loader)
    mixed.update_skip_type_keys(("Blank",))
    assert all(sample["img"].any() for sample in loader)
    assert not original[0]["img"].any()


def test_an_unreadable_image_of_a_test_is_named(data_root, tmp_path):
    import shutil

    shutil.copytree(data_root / "train2017", tmp_path / "images")
    cut = tmp_path / "images/000003.jpg"
    cut.write_bytes(cut.read_bytes()[:40])
    data = DATASETS.get("CocoDataset")(
        **coco_config(data_root, img_prefix=str(tmp_path / "images"), pipeline=[{"type": "LoadImageFromFile"}],
                      test_mode=True)
    )  # fmt: skip
    assert data[0]["img"].any()
    with pytest.raises(ValueError, match=r"000003\.jpg is no readable image"):
        data[2]


def test_an_image_that_opencv_refuses_is_named(data_root, tmp_path):
    """In an evaluation and in training; where the user wants it, another one is taken. Stock names none."""
    import shutil

    shutil.copytree(data_root / "train2017", tmp_path / "images")
    cv2.imwrite(str(tmp_path / "images/000001.jpg"), np.zeros((2, 400, 3), np.uint8))
    prefix, resize = str(tmp_path / "images"), {"type": "Resize", "img_scale": (96, 96), "keep_ratio": True}
    steps = [{"type": "LoadImageFromFile"}, resize]
    tested = DATASETS.get("CocoDataset")(**coco_config(data_root, img_prefix=prefix, pipeline=steps, test_mode=True))
    mixed = DATASETS.get("MultiImageMixDataset")(both(data_root, img_prefix=prefix)[0], [resize])
    for data_set, step in ((tested, "the pipeline"), (mixed, "Resize")):
        with pytest.raises(cv2.error, match=rf"{step} cannot use \S+000001\.jpg: OpenCV.*resize") as refused:
            data_set[0]
        assert isinstance(refused.value, UnreadableImage)
    mixed.skip_unreadable = True
    np.random.seed(0)
    assert not mixed[0]["filename"].endswith("000001.jpg")
    assert mixed._announcements.unreadable >= 1


def test_a_string_is_no_sequence_of_keys(data_root):
    """A forgotten comma, `("Mosaic")`, left out nothing."""
    ours, _ = both(data_root)
    message = r"skip_type_keys must be a sequence of names such as \('Mosaic',\), got 'Mosaic' alone"
    with pytest.raises(TypeError, match=message):
        mix(ours, skip_type_keys=("Mosaic"))
    with pytest.raises(TypeError, match=message):
        mix(ours).update_skip_type_keys("Mosaic")
    with pytest.raises(AssertionError):  # as stock
        mix(ours, skip_type_keys=[1])


def test_data_sets_in_others(data_root):
    ours, _ = both(data_root)
    mixed = mix(ClassBalancedDataset(ours, oversample_thr=0.1))
    outer = ConcatDataset([RepeatDataset(mixed, 2), mixed])
    found = [type(part).__name__ for part in data_sets_in(outer)]
    inside = ["MultiImageMixDataset", "ClassBalancedDataset", "CocoDataset"]
    assert found == ["ConcatDataset", "RepeatDataset", *inside, *inside]
    assert len(outer) == 3 * len(mixed)
    assert outer[len(mixed) + 1]["filename"] == mixed[1]["filename"]


@pytest.mark.parametrize("test_mode", [False, True])
def test_a_packed_data_set_says_what_the_stock_one_says(data_root, test_mode):
    ours, stock = both(data_root, classes=("star", "disc"), filter_empty_gt=True, test_mode=test_mode)
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


@pytest.mark.parametrize("options", [
    {}, {"filter_empty_gt": True}, {"filter_empty_gt": True, "classes": ("ring",)}, {"classes": ("no such thing",)},
], ids=str)  # fmt: skip
def test_a_data_set_of_a_kept_index(data_root, tmp_path, monkeypatch, options):
    """Which later processes map."""
    monkeypatch.setattr(annotation_index, "LARGE", 0)
    content = mmcv.load(data_root / "annotations/instances_train2017.json")
    for image in content["images"][::3]:
        image["width"] = 31  # MMDetection leaves these out
    content["annotations"] = content["annotations"][::3]
    mmcv.dump(content, tmp_path / "train.json")
    for _ in range(2):
        ours, stock = both(data_root, ann_file=str(tmp_path / "train.json"), **options)
        assert ours._index.kept == tmp_path / "train.json.yolox_index"
        assert (len(ours), ours.img_ids, ours.cat_ids) == (len(stock), stock.img_ids, stock.cat_ids)
        assert ours.flag.dtype == stock.flag.dtype and ours.flag.tolist() == stock.flag.tolist()
        for dataset in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            for i in range(len(stock)):
                np.testing.assert_equal(dataset[i], stock[i])
        assert len(stock) < len(content["images"]) and ours.data_infos == stock.data_infos


def test_a_data_set_needs_its_file_no_more(data_root, tmp_path, monkeypatch):
    """Whatever becomes of it, and wherever the process goes."""
    path = tmp_path / "train.json"
    path.write_bytes((data_root / "annotations/instances_train2017.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    data, images = both(data_root, ann_file="train.json", img_prefix=str(data_root / "train2017"), filter_empty_gt=True)
    monkeypatch.chdir("/")
    for change in (lambda: path.write_text('{"images": [], "annotations": [], "categories": []}'), path.unlink):
        change()
        for ours, stock in ((data, images), (copy.deepcopy(data), images)):
            assert ours.coco.dataset == stock.coco.dataset
            assert ours.coco.cat_img_map == stock.coco.cat_img_map and ours.coco.imgToAnns == stock.coco.imgToAnns
            assert ours._filter_imgs() == stock._filter_imgs() and ours._filter_imgs(99) == stock._filter_imgs(99)
    info = data.data_infos[0]
    assert data.coco.imgs[info["id"]] is info  # as in the stock class


def test_a_file_can_be_loaded_again(data_root):
    for ours in (both(data_root)[0], both(data_root)[0]):
        stock = both(data_root)[1]
        for dataset in (ours, stock):
            dataset.data_infos = dataset.load_annotations(dataset.ann_file)
        assert len(ours) == len(stock) and ours.data_infos == stock.data_infos
        np.testing.assert_equal(ours[3], stock[3])


@pytest.mark.parametrize("name", ["get_ann_info", "get_cat_ids"])
@pytest.mark.parametrize("late", [False, True])
def test_a_patch_of_the_stock_class_is_heard(data_root, monkeypatch, name, late):
    calls = []
    theirs = getattr(StockCoco, name)
    if late:
        ours = both(data_root)[0]
    monkeypatch.setattr(StockCoco, name, lambda self, idx: calls.append(1) or theirs(self, idx))
    if not late:
        ours = both(data_root)[0]
    getattr(ours, name)(0)
    assert calls


@pytest.mark.parametrize("name", [
    "_filter_imgs", "_parse_ann_info", "_set_group_flag", "load_annotations", "get_ann_info", "get_cat_ids",
])  # fmt: skip
def test_what_somebody_else_loads_is_loaded_so(data_root, name):
    calls = []
    base = DATASETS.get("CocoDataset")
    theirs = getattr(base, name)
    own = type("Own", (base,), {name: lambda self, *args: calls.append(1) or theirs(self, *args)})
    ours, stock = own(**coco_config(data_root)), StockCoco(**coco_config(data_root))
    np.testing.assert_equal(ours[0], stock[0])
    assert ours.get_cat_ids(0) == stock.get_cat_ids(0)
    assert "coco" in vars(ours)  # before workers start, for whom each would read the file
    assert calls and ours.data_infos == stock.data_infos


@pytest.mark.slow
def test_memory_of_the_workers_stays_flat(tmp_path, private_bytes):
    """open-mmlab/mmdetection#6931, on 100,000 annotations: resident memory of the workers alone, over 20 epochs."""
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
    for part in data_sets_in(dataset):  # as the runner does; without it, workers copy the list of images, once
        part.start_epoch(Moment(seed=0))
    loader = DataLoader(dataset, batch_size=100, num_workers=2, persistent_workers=True, collate_fn=len, shuffle=True)
    grown = []
    for epoch in range(20):
        assert sum(loader) == 12500
        grown.append(sum(private_bytes(worker.pid) for worker in loader._iterator._workers) / 1e6)
        print(f"epoch {epoch}: workers hold {grown[-1]:.1f} MB of their own")
    assert grown[-1] - grown[0] < 10
    assert grown[-1] < 60  # MMDetection's: 160 after the first epoch, 410 after the fifth
