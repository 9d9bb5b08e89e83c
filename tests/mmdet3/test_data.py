"""Data loading over many epochs: seeds, the mode switch and what users do to a data set, beside MMDetection's own."""

import copy
import hashlib
import inspect
import pickle
from functools import partial
from types import SimpleNamespace

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmdet.datasets import CocoDataset, dataset_wrappers
from mmdet.datasets import MultiImageMixDataset as StockMultiImageMixDataset
from mmdet.engine.hooks import YOLOXModeSwitchHook
from mmdet.registry import DATASETS, TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.dataset import BaseDataset, Compose, ConcatDataset, DefaultSampler, RepeatDataset, worker_init_fn
from pairs import STOCK, build, build_stock, draw, inner, same, standard
from photographs import write_images
from torch.utils.data import DataLoader

from yolox_plugin.core import annotation_index, mixing
from yolox_plugin.core.cache import file_stamp
from yolox_plugin.core.images import UnreadableImage
from yolox_plugin.core.mixing import data_sets_in
from yolox_plugin.core.positions import placed
from yolox_plugin.mmdet3 import PARTS
from yolox_plugin.mmdet3.dataset import CocoDataset as OurCocoDataset
from yolox_plugin.mmdet3.dataset import MultiImageMixDataset
from yolox_plugin.protocol import Moment


@TRANSFORMS.register_module(force=True)
class Blank(BaseTransform):
    """Does nothing until it is told to, in the worker: shows which steps of the pipeline ran."""

    active = False

    def transform(self, results):
        if self.active:
            results["img"] = np.zeros_like(results["img"])
        return results


def digest(samples):
    """Of the one sample of a batch; "blank" if there is nothing in it."""
    [sample] = samples
    image = sample["inputs"] if "inputs" in sample else torch.from_numpy(np.ascontiguousarray(sample["img"]))
    return hashlib.sha256(image.numpy().tobytes()).hexdigest() if image.any() else "blank"


def loader_of(dataset, seed=3, workers=2, **options):
    """As mmengine's runner makes it."""
    start = partial(worker_init_fn, num_workers=workers, rank=0, seed=seed)
    return DataLoader(dataset, num_workers=workers, worker_init_fn=start, collate_fn=digest, **options)


def epochs(loader, which, seed=3):
    """What comes in these epochs, by epoch, in a train loop that says where it is."""
    seen = {}
    for epoch in which:
        loader.dataset.start_epoch(Moment(seed=seed, epoch=epoch))
        seen[epoch] = list(loader)
        loader.dataset.end_epoch()
    return seen


# Seeds


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_no_epoch_repeats_another(images, persistent_workers):
    """open-mmlab/mmdetection#9530: the same images in the same order, and yet never the same sample again."""
    run = partial(loader_of, build(inner(images), standard()), persistent_workers=persistent_workers)
    first = epochs(run(), range(3))
    samples = [sample for epoch in first.values() for sample in epoch]
    assert len(samples) == 3 * 14
    assert len(set(samples)) == len(samples)
    # The same seed gives the same run, another seed another.
    assert epochs(run(), range(3)) == first
    assert not set(samples) & set(epochs(run(), range(1), seed=4)[0])
    # A run that begins with epoch 1 sees what the first one saw in it.
    assert epochs(run(), range(1, 3)) == {1: first[1], 2: first[2]}


@pytest.mark.parametrize("wrap", [
    lambda config: config,
    lambda config: {"type": "RepeatDataset", "dataset": config, "times": 2},
    lambda config: {"type": "ConcatDataset", "datasets": [config, config]},
])  # fmt: skip
def test_batches_do_not_depend_on_the_workers(images, wrap):
    """Also where an image comes several times in an epoch."""
    mixed = {"type": "MultiImageMixDataset", "dataset": inner(images), "pipeline": standard()}
    seen = []
    for workers in (0, 1, 2, 3):
        outer = DATASETS.build(copy.deepcopy(wrap(mixed)))
        order = DefaultSampler(outer, seed=4)
        loader = loader_of(outer, workers=workers, sampler=order, persistent_workers=workers > 2)
        parts = [part for part in data_sets_in(outer) if isinstance(part, MultiImageMixDataset)]
        for epoch in range(2):
            for part in parts:
                part.start_epoch(Moment(seed=3, epoch=epoch))
            with placed(loader, rank=0, world_size=1):
                seen.append(list(loader))
            for part in parts:
                part.end_epoch()
        assert loader.sampler is loader.batch_sampler.sampler
    assert seen == seen[:2] * 4
    assert len(set(seen[0] + seen[1])) == 2 * len(outer)


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_epochs_of_stock_repeat_the_first(images, persistent_workers):
    """Where workers are restarted in each epoch, and where a run is resumed."""
    run = partial(loader_of, build_stock(inner(images), standard()), persistent_workers=persistent_workers)
    loader = run()
    first, second = list(loader), list(loader)
    assert len(set(first)) == 14
    assert (first == second) != persistent_workers
    assert list(run()) == first  # resumed in the second epoch


@pytest.mark.parametrize("workers", [0, 2])
def test_under_another_loop_samples_are_those_of_stock(images, workers):
    seen = []
    for make in (build, build_stock):
        np.random.seed(5)
        loader = loader_of(make(inner(images), standard()), workers=workers, persistent_workers=workers > 0)
        seen.append([list(loader) for _ in range(2)])
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[0][1]


def test_after_an_epoch_new_workers_have_the_seeds_of_the_host(images):
    dataset = build(inner(images), standard())
    epochs(loader_of(dataset), range(1))
    assert list(loader_of(dataset)) == list(loader_of(build_stock(inner(images), standard())))
    assert list(loader_of(dataset, seed=4)) != list(loader_of(dataset, seed=5))


# The mode switch


def blanked(images, make):
    """A data set whose samples are blank until that step is left out, in living workers."""
    dataset = make(inner(images), [{"type": "Blank"}])
    dataset.pipeline[0].active = True
    return dataset, loader_of(dataset, persistent_workers=True)


@pytest.mark.parametrize("make", [build, build_stock])
def test_living_workers_hear_of_the_switch(images, make):
    """In stock's they do not, so that its hook has to restart them."""
    dataset, loader = blanked(images, make)
    assert set(loader) == {"blank"}
    workers = [worker.pid for worker in loader._iterator._workers]
    dataset.update_skip_type_keys(("Blank",))
    assert ("blank" in set(loader)) == (make is build_stock)
    assert [worker.pid for worker in loader._iterator._workers] == workers
    dataset.update_skip_type_keys(())
    assert set(loader) == {"blank"}


@pytest.mark.parametrize("make", [build, build_stock])
def test_the_hook_of_stock_switches_too(images, make):
    _, loader = blanked(images, make)
    hook = YOLOXModeSwitchHook(num_last_epochs=1, skip_type_keys=("Blank",))
    model = SimpleNamespace(bbox_head=SimpleNamespace(use_l1=False))
    seen = []
    for epoch in range(3):
        runner = SimpleNamespace(
            epoch=epoch, max_epochs=3, train_dataloader=loader, model=model, logger=SimpleNamespace(info=print)
        )
        hook.before_train_epoch(runner)
        seen.append("blank" in set(loader))
    assert seen == [True, False, False]  # an epoch too early, as open-mmlab/mmdetection#7284


def test_living_workers_hear_of_steps_that_were_added(images):
    dataset, _ = blanked(images, build)
    dataset.pipeline.append(dataset.pipeline[0])
    dataset.pipeline_types.append("Added")
    dataset.start_epoch(Moment(seed=0))
    loader = loader_of(dataset, persistent_workers=True)
    dataset.update_skip_type_keys(("Blank",))
    assert set(loader) == {"blank"}
    dataset.update_skip_type_keys(("Blank", "Added"))
    assert "blank" not in set(loader)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))], ids=["deepcopy", "pickle"])
def test_living_workers_of_a_copy_hear_as_well(images, copied):
    original, _ = blanked(images, build)
    dataset = copied(original)
    loader = loader_of(dataset, persistent_workers=True)
    assert set(loader) == {"blank"}
    dataset.update_skip_type_keys(("Blank",))
    assert "blank" not in set(loader)
    assert digest([original[0]]) == "blank"


# Copies and retries


def test_samples_are_not_copied(images, monkeypatch):
    """Stock copies each sample and each partner, and all of them again for every step."""
    copies = []

    def counted(thing, *args):
        copies.append(1)
        return copy.deepcopy(thing, *args)

    datasets = [make(inner(images), standard()) for make in (build, build_stock)]
    for module in (mixing, dataset_wrappers):
        monkeypatch.setattr(module, "copy", SimpleNamespace(deepcopy=counted))
    counts = []
    for dataset in datasets:
        copies.clear()
        draw(dataset, 0, 3)
        counts.append(len(copies))
    assert counts == [0, 1 + 3 + 1 + 9]


@TRANSFORMS.register_module(force=True)
class Fastidious(BaseTransform):
    """Spoils what it is given and returns None for it, until it is asked for the last time."""

    def __init__(self, refusals):
        self.refusals, self.given = refusals, []

    def transform(self, results):
        self.given.append(int(results["img"].sum()))
        results["img"][:] = 0
        return results if len(self.given) > self.refusals else None


@pytest.mark.parametrize("make", [build, build_stock])
def test_a_step_without_a_result_is_asked_again(images, make):
    dataset = make(inner(images), [{"type": "Fastidious", "refusals": 3}], max_refetch=4)
    assert not dataset[0]["img"].any()
    given = dataset.pipeline[0].given
    assert len(given) == 4
    assert len(set(given)) == 1
    assert given[0] > 0
    dataset = make(inner(images), [{"type": "Fastidious", "refusals": 4}], max_refetch=4)
    with pytest.raises(RuntimeError, match="None"):
        dataset[0]


# Loading


@pytest.mark.parametrize("where", ["file", "instance", "base", "step", "pipeline", "subclass"])
def test_patches_of_loading_are_called(images, monkeypatch, where):
    calls = []
    data = inner(images)

    def patch(thing, name):
        stock = getattr(thing, name)
        monkeypatch.setattr(thing, name, lambda *args, **kwargs: calls.append(name) or stock(*args, **kwargs))

    if where == "file":
        patch(LoadImageFromFile, "transform")
    elif where == "instance":
        patch(data, "prepare_data")
    elif where == "base":
        patch(BaseDataset, "get_data_info")
    elif where == "step":
        patch(data.pipeline.transforms[0], "transform")
    elif where == "pipeline":
        own = type("Own", (Compose,), {"__call__": lambda self, data: calls.append(1) or Compose.__call__(self, data)})
        data.pipeline = own(data.pipeline.transforms)
    else:
        own = type("Own", (CocoDataset,), {
            "prepare_data": lambda self, idx: calls.append(1) or CocoDataset.prepare_data(self, idx)
        })  # fmt: skip
        data.__class__ = own
    found = draw(build(data, standard()), 0, 1)
    assert calls
    monkeypatch.undo()
    same(found, draw(build_stock(inner(images), standard()), 0, 1))


def test_a_subclass_with_other_classes_is_standard(images, monkeypatch):
    """As users make it for their own names."""
    own = type("Own", (CocoDataset,), {"METAINFO": {"classes": ("2", "0")}})
    data = inner(images)
    for make in (build, build_stock):
        mixed = make(own(ann_file=data.ann_file, data_prefix=data.data_prefix, pipeline=data.pipeline.transforms), [])
        assert mixed.metainfo["classes"] == ("2", "0")
        labels = np.concatenate([mixed[i]["gt_bboxes_labels"] for i in range(len(mixed))])
        assert set(labels) == {0, 1}
        if make is build:
            assert mixed._load_deferred(0) is not None


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "garbage", "cut in the header"])
def test_an_unreadable_image_is_named(tmp_path, content):
    root = write_images(tmp_path / "bad", [(96, 96)])
    path = root / "000.jpg"
    path.write_bytes(path.read_bytes()[:40] if content is None else content)
    with pytest.raises(ValueError, match=r"000\.jpg is no readable image \(\d+ bytes\)"):
        build(inner(root), standard())[0]


def test_an_image_that_opencv_refuses_is_named(tmp_path):
    """In an evaluation and in training; where the user wants it, another one is taken. Stock names none."""
    root = write_images(tmp_path / "odd", [(2, 400), (96, 96)])
    resize = {"type": "Resize", "scale": (96, 96), "keep_ratio": True}
    tested = OurCocoDataset(
        ann_file=str(root / "annotations.json"), data_prefix={"img": str(root)}, test_mode=True,
        metainfo={"classes": ("0", "1", "2")}, pipeline=[{"type": "LoadImageFromFile"}, resize],
    )  # fmt: skip
    mixed = build(inner(root), [resize])
    for data_set, step in ((tested, "the pipeline"), (mixed, "Resize")):
        with pytest.raises(cv2.error, match=rf"{step} cannot use \S+000\.jpg: OpenCV.*resize") as refused:
            data_set[0]
        assert isinstance(refused.value, UnreadableImage)
    mixed.skip_unreadable = True
    np.random.seed(0)
    assert mixed[0]["img_path"].endswith("001.jpg")
    assert mixed._announcements.unreadable >= 1


@pytest.mark.parametrize("make", [build, build_stock])
def test_a_partner_without_boxes_is_not_decoded(tmp_path, make):
    """Stock fails at one that cannot be."""
    root = write_images(tmp_path / "bad", [(96, 96)] * 5)
    cut = root / "004.jpg"  # has no boxes
    cut.write_bytes(cut.read_bytes().partition(b"\xff\xda")[0])  # before the first pixel
    dataset = make(inner(root), [standard()[2] | {"max_iters": 1}])
    failed = 0
    for seed in range(30):
        try:
            draw(dataset, 0, seed)
        except AssertionError as error:
            assert "failed to load image" in str(error)
            failed += 1
    assert (failed == 0) == (make is build)


# Decoded images that are kept


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_kept_images_are_decoded_once(images, tmp_path, monkeypatch, kind):
    plain = build(inner(images), standard())
    cached = build(inner(images), standard(), cache=kind, cache_dir=str(tmp_path / "cache"))
    expected = [draw(plain, seed % 14, seed) for seed in range(60)]
    for seed in range(60):
        same(draw(cached, seed % 14, seed), expected[seed])
    list(loader_of(cached))  # which keep what is left
    for path in images.glob("*.jpg"):
        kept = cached._cache.get(str(path), file_stamp(str(path)))
        assert np.array_equal(kept, mmcv.imread(str(path)))  # and nobody has written to it
    decoded = []
    monkeypatch.setattr(mmcv, "imfrombytes", lambda *args, **kwargs: decoded.append(1))
    for seed in range(60):
        same(draw(cached, seed % 14, seed), expected[seed])
    assert not decoded
    if kind == "disk":  # a later run as well
        later = build(inner(images), standard(), cache=kind, cache_dir=str(tmp_path / "cache"))
        same(draw(later, 3, 3), expected[3])


def test_the_folder_of_kept_images(tmp_path):
    root = write_images(tmp_path / "images", [(40, 60)])
    build(inner(root), standard(), cache="disk")[0]
    assert len(list((tmp_path / "images.cache").iterdir())) == 1


def test_a_cache_needs_the_standard_loading(images):
    message = "cache='ram' needs a CocoDataset with LoadImageFromFile, LoadAnnotations alone"
    with pytest.raises(ValueError, match=message):
        build(inner(images, load={"to_float32": True}), standard(), cache="ram")


# What stock promises


def public(thing):
    return {name for name in dir(thing) if not name.startswith("_")}


def test_signatures_and_attributes_of_stock(images):
    data = inner(images)
    pairs = [(build(data, []), build_stock(data, []))]
    pairs += [(TRANSFORMS.get(name)(), cls()) for name, cls in STOCK.items()]
    for mine, theirs in pairs:
        assert type(mine).__module__.startswith("yolox_plugin")
        assert public(mine) >= public(theirs), type(mine)
        own = [p for p in inspect.signature(type(mine)).parameters.values() if p.kind is not p.KEYWORD_ONLY]
        assert [(p.name, p.default) for p in own] == [
            (p.name, p.default) for p in inspect.signature(type(theirs)).parameters.values()
        ]
        assert repr(mine) == repr(theirs) or isinstance(mine, MultiImageMixDataset)
    assert not hasattr(pairs[0][0], "dynamic_scale")


@pytest.mark.parametrize("cls", [MultiImageMixDataset, StockMultiImageMixDataset])
def test_a_mixing_set_by_position_and_with_more_steps(images, cls):
    data = inner(images)
    dataset = cls(data, [{"type": "Blank"}], ["Nothing"], 3, True)
    assert (dataset.max_refetch, dataset._skip_type_keys, dataset._fully_initialized) == (3, ["Nothing"], False)
    assert len(dataset) == dataset.num_samples == 14
    assert dataset._fully_initialized
    assert dataset.metainfo == data.metainfo
    assert dataset.get_data_info(3) == data.get_data_info(3)
    step = Blank()
    step.active = True
    dataset.pipeline.append(step)  # which stock leaves out, as it has no type
    assert digest([dataset[0]]) != "blank"
    dataset.pipeline_types.append("Blank")
    assert digest([dataset[0]]) == "blank"
    dataset.update_skip_type_keys(["Blank"])
    assert digest([dataset[0]]) != "blank"
    assert cls(data, [])._skip_type_keys is None
    with pytest.raises(TypeError, match="pipeline must be a dict"):
        cls(data, [step])
    with pytest.raises(TypeError, match="instance"):
        cls([1, 2], [])


def test_a_data_set_that_loads_late_is_loaded(images):
    data = inner(images, lazy_init=True)
    assert not data._fully_initialized
    dataset = build(data, standard())
    assert data._fully_initialized
    same(draw(dataset, 0, 1), draw(build_stock(inner(images), standard()), 0, 1))


OPTIONS = [
    {}, {"lazy_init": True},
    {"filter_cfg": {"filter_empty_gt": True, "min_size": 32}}, {"filter_cfg": {"min_size": 70}},
    {"filter_cfg": {"filter_empty_gt": True}, "metainfo": {"classes": ("2",)}}, {"indices": 4}, {"test_mode": True},
    {"serialize_data": False}, {"return_classes": True}, {"data_root": ""},
]  # fmt: skip


def both(images, **changes):
    """The plugin's data set and MMDetection's own."""
    common = {
        "ann_file": str(images / "annotations.json"), "data_prefix": {"img": str(images)},
        "metainfo": {"classes": ("2", "0")},
        "pipeline": [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}], **changes,
    }  # fmt: skip
    ours, stock = DATASETS.get("CocoDataset")(**copy.deepcopy(common)), CocoDataset(**common)
    assert type(ours) is OurCocoDataset and type(stock) is CocoDataset
    return ours, stock


def equal(ours, theirs):
    """Compares what data sets say."""
    np.testing.assert_equal(plain(ours), plain(theirs))


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.numpy() if isinstance(value, HorizontalBoxes) else value


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_annotations_of_an_index(images, tmp_path, monkeypatch, options, kept):
    if kept:
        monkeypatch.setattr(annotation_index, "LARGE", 0)
    path = tmp_path / "train.json"
    path.write_bytes((images / "annotations.json").read_bytes())
    for _ in range(2):
        ours, stock = both(images, ann_file=str(path), **options)
        assert len(ours) == len(stock) > 0
        assert not kept or ours._index is None or ours._index.kept == tmp_path / "train.json.yolox_index"
        assert (ours.cat_ids, ours.cat2label) == (stock.cat_ids, stock.cat2label)
        for dataset in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            for i in (*range(len(stock)), -1):
                equal(dataset.get_data_info(i), stock.get_data_info(i))
            equal(dataset[0], stock[0])
            assert dataset.get_cat_ids(0) == stock.get_cat_ids(0)
        with pytest.raises(IndexError):
            ours.get_data_info(len(stock))
    usual = not options.keys() & {"indices", "test_mode", "serialize_data"}
    assert (ours._index is not None) == usual
    assert (tmp_path / "train.json.yolox_index").exists() == (kept and usual)


@pytest.mark.parametrize("look", [
    lambda data: data.data_bytes.tobytes(), lambda data: data.data_address.tolist(), lambda data: data.cat_img_map,
    lambda data: [data.get_subset([1, 3]).get_data_info(i) for i in range(2)], lambda data: data.load_data_list(),
    lambda data: data.get_subset_(3) or [len(data), data.get_data_info(2)], lambda data: data.metainfo,
    lambda data: data.data_list,
])  # fmt: skip
def test_what_stock_keeps_of_all_samples_is_there_when_somebody_looks(images, look):
    ours, stock = both(images)
    equal(look(ours), look(stock))
    equal(ours.get_data_info(1), stock.get_data_info(1))
    assert len(ours) == len(stock)


def test_a_data_set_is_what_it_was_when_it_was_loaded(images, tmp_path, monkeypatch):
    """Whatever becomes of its file, its folder and its options."""
    path = tmp_path / "train.json"
    path.write_bytes((images / "annotations.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    ours, stock = both(images, ann_file="train.json", filter_cfg={"filter_empty_gt": True, "min_size": 40})
    monkeypatch.chdir("/")
    path.unlink()
    for dataset in (ours, stock):
        dataset.data_prefix["img"] = "elsewhere"
        dataset.cat2label = dict.fromkeys(dataset.cat2label, 7)
        dataset._metainfo["classes"] = ("1",)
        dataset.filter_cfg["min_size"] = 70
        dataset.cat_ids = [1]
    assert len(ours) == len(stock) > 3
    for index in (0, -1):
        equal(ours.get_data_info(index), stock.get_data_info(index))
    for one, other in (
        (copy.deepcopy(ours).get_subset(3), stock.get_subset(3)),
        (ours.get_subset([2]), stock.get_subset([2])),
    ):
        assert len(one) == len(other)
        equal(one.get_data_info(0), other.get_data_info(0))
    assert ours.cat_ids == [1] and ours.cat_img_map == stock.cat_img_map
    assert ours.data_bytes.tobytes() == stock.data_bytes.tobytes()


def test_what_users_make_themselves_counts(images):
    for dataset in (pair := both(images)):
        dataset.data_list = dataset.load_data_list()[:2]
        dataset.data_bytes, dataset.data_address = dataset._serialize_data()
    assert len(pair[0]) == len(pair[1]) == 2
    equal(pair[0].get_data_info(1), pair[1].get_data_info(1))
    for dataset in pair:
        dataset._fully_initialized = False
        dataset.full_init()
    assert len(pair[0]) == len(pair[1]) == len(pair[0].data_address) > 2


@pytest.mark.parametrize("options", [
    {"filter_cfg": {"min_size": 1000}}, {"data_prefix": {}},
    {"filter_cfg": {"filter_empty_gt": True}, "metainfo": {"classes": ("none",)}},
], ids=str)  # fmt: skip
def test_what_stock_refuses_is_refused(images, options):
    for cls in (CocoDataset, OurCocoDataset):
        with pytest.raises((ValueError, KeyError)):
            cls(**{"ann_file": str(images / "annotations.json"), "data_prefix": {"img": str(images)}, "pipeline": [],
                   **options})  # fmt: skip


@pytest.mark.parametrize("late", [False, True])
def test_a_patch_of_the_stock_class_is_heard(images, monkeypatch, late):
    calls = []
    theirs = CocoDataset.get_data_info
    if late:
        ours = both(images)[0]
    monkeypatch.setattr(BaseDataset, "get_data_info", lambda self, idx: calls.append(1) or theirs(self, idx))
    if not late:
        ours = both(images)[0]
    assert ours.get_data_info(0)["img_id"] == 0 and calls


def test_what_somebody_else_loads_is_loaded_so(images):
    class Own(OurCocoDataset):
        def parse_data_info(self, raw_data_info):
            return super().parse_data_info(raw_data_info) | {"own": 1}

    theirs = Own(ann_file=str(images / "annotations.json"), data_prefix={"img": str(images)}, pipeline=[])
    assert theirs._index is None and theirs.get_data_info(0)["own"] == 1


def test_configs_build_the_plugin(images):
    config = {"type": "MultiImageMixDataset", "pipeline": standard(), "dataset": {
        "type": "CocoDataset", "ann_file": str(images / "annotations.json"), "data_prefix": {"img": str(images)},
        "metainfo": {"classes": ("0", "1", "2")},
        "pipeline": [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}],
    }}  # fmt: skip
    dataset = DATASETS.build(config)
    assert type(dataset) is MultiImageMixDataset
    assert [type(step) for step in dataset.pipeline[:4]] == [cls for _, cls in PARTS["PIPELINE"]]
    assert dataset._load_deferred(0) is not None
    same(draw(dataset, 0, 1), draw(build_stock(inner(images), standard()), 0, 1))


def test_a_string_is_no_sequence_of_keys(images):
    """A forgotten comma, `("Mosaic")`, left out nothing."""
    message = r"skip_type_keys must be a sequence of names such as \('Mosaic',\), got 'Mosaic' alone"
    with pytest.raises(TypeError, match=message):
        build(inner(images), standard(), skip_type_keys=("Mosaic"))
    with pytest.raises(TypeError, match=message):
        build(inner(images), standard()).update_skip_type_keys("Mosaic")
    with pytest.raises(AssertionError):  # as stock
        build(inner(images), standard(), skip_type_keys=[1])


def test_data_sets_in_others(images):
    data = inner(images)
    mixed = build(data, [])
    repeated = {"type": "RepeatDataset", "dataset": data, "times": 2}
    outer = ConcatDataset([data, repeated, {"type": "MultiImageMixDataset", "dataset": data, "pipeline": []}])
    assert [type(part) for part in data_sets_in(outer)] == [
        ConcatDataset, CocoDataset, RepeatDataset, CocoDataset, MultiImageMixDataset, CocoDataset
    ]  # fmt: skip
    assert list(data_sets_in(mixed)) == [mixed, data]


def test_a_data_set_of_several(images, tmp_path):
    """Around which stock's own loading stays."""
    parts = [{"type": "CocoDataset", "ann_file": str(images / "annotations.json"), "data_prefix": {"img": str(images)},
              "pipeline": [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}], "indices": indices,
              "metainfo": {"classes": ("0", "1", "2")}} for indices in (5, 3)]  # fmt: skip
    config = {"type": "ConcatDataset", "datasets": parts}
    ours, theirs = (make(config, standard()) for make in (build, build_stock))
    assert len(ours) == len(theirs) == 8
    for seed in range(20):
        same(draw(ours, seed % 8, seed), draw(theirs, seed % 8, seed))
