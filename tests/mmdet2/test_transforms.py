"""The augmentations against MMDetection's own on the same draws: equal boxes, labels and pixels."""

import os

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmcv.parallel import DataContainer
from mmdet.datasets import pipelines as stock_pipelines
from mmdet.datasets.coco import CocoDataset as StockCocoDataset
from mmdet.datasets.pipelines import Compose
from photographs import SHAPES, photograph, write_images
from torch.utils.data import DataLoader

from yolox_plugin.core import cache as caches
from yolox_plugin.core.cache import BUSY, file_stamp
from yolox_plugin.core.images import EncodedImage, jpeg_shape
from yolox_plugin.mmdet2 import dataset as datasets
from yolox_plugin.mmdet2 import transforms
from yolox_plugin.protocol import Moment

OURS = {name: getattr(transforms, name) for name in ("Mosaic", "RandomAffine", "MixUp", "YOLOXHSVRandomAug")}


@pytest.fixture(autouse=True)
def _no_image_is_too_small(monkeypatch):
    """MMDetection leaves out images below 32 pixels: here they are the hard cases."""
    monkeypatch.setattr(StockCocoDataset, "_filter_imgs", lambda self, min_size=32: list(range(len(self.data_infos))))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "odd", SHAPES)


def standard(size=96, mosaic=None, affine=None, mixup=None, hsv=None, flip=None):
    """The standard config's pipeline at another size, with options of its steps changed."""
    scale = (size, size)
    return [
        {"type": "Mosaic", "img_scale": scale, "pad_val": 114.0, **(mosaic or {})},
        {"type": "RandomAffine", "scaling_ratio_range": (0.1, 2), "border": (-size // 2, -size // 2), **(affine or {})},
        {"type": "MixUp", "img_scale": scale, "ratio_range": (0.8, 1.6), "pad_val": 114.0, **(mixup or {})},
        {"type": "YOLOXHSVRandomAug", **(hsv or {})},
        {"type": "RandomFlip", "flip_ratio": 0.5, **(flip or {})},
        {"type": "Resize", "img_scale": scale, "keep_ratio": True},
        {"type": "Pad", "pad_to_square": True, "pad_val": {"img": (114.0, 114.0, 114.0)}},
        {"type": "FilterAnnotations", "min_gt_bbox_wh": (1, 1), "keep_empty": False},
        {"type": "DefaultFormatBundle"},
        {"type": "Collect", "keys": ["img", "gt_bboxes", "gt_labels"]},
    ]


def inner(root, load):
    return {
        "ann_file": str(root / "annotations.json"), "img_prefix": str(root), "classes": ["0", "1", "2"],
        "pipeline": [{"type": "LoadImageFromFile", **load}, {"type": "LoadAnnotations", "with_bbox": True}],
        "filter_empty_gt": False,
    }  # fmt: skip


def build(root, steps, load=None, **options):
    """This plugin's data set."""
    data = datasets.CocoDataset(**inner(root, load or {}))
    data._set_group_flag()
    return datasets.MultiImageMixDataset(dataset=data, pipeline=steps, **options)


def build_stock(root, steps, load=None, skip_type_keys=None):
    """MMDetection's own classes throughout."""
    data = StockCocoDataset(**inner(root, load or {}))
    mixed = datasets.StockMultiImageMixDataset(dataset=data, pipeline=steps, skip_type_keys=skip_type_keys)
    mixed.pipeline = [
        getattr(stock_pipelines, step["type"])(**{k: v for k, v in step.items() if k != "type"}) for step in steps
    ]
    assert not any(type(step).__module__.startswith("yolox_plugin") for step in mixed.pipeline)
    assert type(data.pipeline) is Compose
    return mixed


def draw(dataset, index, seed):
    np.random.seed(seed)
    sample = dataset[index]
    sample["next draw"] = np.random.random()  # as many draws
    return sample


def same(ours, theirs):
    """Compares two samples."""
    assert ours.keys() == theirs.keys()
    assert ours["next draw"] == theirs["next draw"]
    np.testing.assert_equal(ours["img_metas"].data, theirs["img_metas"].data)
    for name in ("gt_bboxes", "gt_labels"):
        a, b = ours[name].data, theirs[name].data
        assert a.dtype == b.dtype
        assert torch.equal(a, b), (name, a, b)
    a, b = ours["img"].data, theirs["img"].data
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    assert torch.equal(a, b), f"{(a != b).sum()} of {a.numel()} levels differ, at most by {(a - b).abs().max()}"


OPTIONS = {
    "standard": {},
    "boxes may leave": {"mosaic": {"bbox_clip_border": False}, "affine": {"bbox_clip_border": False},
                        "mixup": {"bbox_clip_border": False}},
    "filters": {"mosaic": {"skip_filter": False, "min_bbox_size": 3}, "affine": {"skip_filter": False},
                "mixup": {"skip_filter": False}},
    "half of them": {"mosaic": {"prob": 0.5, "center_ratio_range": (0.2, 1.9)}, "affine": {"border": (0, 0)}},
    "small partners": {"mixup": {"ratio_range": (0.3, 0.9), "pad_val": 7.0, "flip_ratio": 1.0}},
    "half a level": {"mixup": {"pad_val": 113.5}},
    "whole levels": {"mixup": {"pad_val": 114}},  # which MMDetection then enlarges in uint8
    "strong": {"affine": {"max_rotate_degree": 80.0, "max_shear_degree": 30.0, "max_translate_ratio": 0.9,
                          "border_val": (1, 2, 250)}},
    "all flips": {"flip": {"flip_ratio": [0.3, 0.3, 0.3], "direction": ["horizontal", "vertical", "diagonal"]}},
    "all colours": {"hsv": {"hue_delta": 200, "saturation_delta": 300, "value_delta": 300}},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_samples_are_those_of_mmdet(images, name):
    ours, theirs = (make(images, standard(**OPTIONS[name])) for make in (build, build_stock))
    assert {type(step) for step in ours.pipeline} >= set(OURS.values())
    for seed in range(500):
        index = seed % len(ours)
        same(draw(ours, index, seed), draw(theirs, index, seed))


def test_without_ipp(images):
    """As where OpenCV comes without Intel's library, whose arithmetic is another."""
    there = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        test_samples_are_those_of_mmdet(images, "standard")
    finally:
        cv2.ipp.setUseIPP(there)


def test_the_last_epochs(images):
    skipped = ["Mosaic", "RandomAffine", "MixUp"]
    ours, theirs = (make(images, standard(), skip_type_keys=skipped) for make in (build, build_stock))
    for seed in range(100):
        index = seed % len(ours)
        same(draw(ours, index, seed), draw(theirs, index, seed))


def test_full_size(tmp_path):
    root = write_images(tmp_path / "full", [(480, 640), (640, 427), (375, 500), (480, 640), (612, 612)])
    ours, theirs = (make(root, standard(640)) for make in (build, build_stock))
    for seed in range(25):
        same(draw(ours, seed % 5, seed), draw(theirs, seed % 5, seed))


@pytest.mark.parametrize("load", [{"to_float32": True}, {"channel_order": "rgb"}], ids=str)
def test_other_ways_of_loading(images, load):
    """Which take MMDetection's way, step by step."""
    ours, theirs = (make(images, standard(), load) for make in (build, build_stock))
    assert not datasets._is_standard(ours.dataset)
    for seed in range(60):
        index = seed % len(ours)
        same(draw(ours, index, seed), draw(theirs, index, seed))


@pytest.mark.parametrize("transposed", [False, True])
def test_files_of_other_kinds(tmp_path, transposed):
    """PNG, grey JPEG, and a JPEG whose EXIF turns it."""
    root = write_images(tmp_path / "kinds", [(40, 90)] * 4, name="{:03}.png" if transposed else "{:03}.jpg")
    path = root / ("002.png" if transposed else "002.jpg")
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert cv2.imwrite(str(path), image)
    data = cv2.imencode(".jpg", photograph(np.random.default_rng(1), 40, 90))[1].tobytes()
    turn = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = data[:2] + b"\xff\xe1" + (len(turn) + 2).to_bytes(2, "big") + turn + data[2:]
    (root / "003").with_suffix(path.suffix).write_bytes(turned)
    assert jpeg_shape(data) == (40, 90, 3)
    assert jpeg_shape(turned) is None
    assert mmcv.imfrombytes(turned).shape == (90, 40, 3)
    ours, theirs = (make(root, standard()) for make in (build, build_stock))
    for seed in range(60):
        same(draw(ours, seed % 4, seed), draw(theirs, seed % 4, seed))


def test_only_what_is_seen_is_decoded(images, monkeypatch):
    decoded = []
    decode = mmcv.imfrombytes
    monkeypatch.setattr(mmcv, "imfrombytes", lambda *args, **kwargs: decoded.append(1) or decode(*args, **kwargs))
    count = 200
    for data, least, most in ((build_stock, 5.0, 5.0), (build, 1.0, 4.2)):
        decoded.clear()
        data = data(images, standard())
        for seed in range(count):
            draw(data, 0, seed)
        assert least <= len(decoded) / count <= most


@pytest.mark.parametrize("name", ["Mosaic", "MixUp"])
@pytest.mark.parametrize("others", [None, 0, 1, 2, 3, 5])
def test_other_numbers_of_images_to_mix(images, name, others):
    """What stock asserts is asserted, what it leaves out is left out."""
    data = StockCocoDataset(**inner(images, {}))
    outcomes = []
    for module in (transforms, stock_pipelines):
        sample = data[0] if others is None else {**data[0], "mix_results": [data[i] for i in range(1, others + 1)]}
        np.random.seed(3)
        try:
            result = getattr(module, name)(img_scale=(96, 96))(sample)
            outcomes.append((result["img"].tolist(), result["gt_bboxes"].tolist()))
        except (AssertionError, IndexError) as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("where", ["file", "instance", "class", "pipeline"])
def test_patches_of_loading_are_called(images, monkeypatch, where):
    calls = []

    def patch(thing, name):
        stock = getattr(thing, name)
        monkeypatch.setattr(thing, name, lambda *args, **kwargs: calls.append(name) or stock(*args, **kwargs))

    data = build(images, standard())
    if where == "file":
        patch(stock_pipelines.LoadImageFromFile, "__call__")
    elif where == "instance":
        patch(data.dataset, "prepare_train_img")
    elif where == "class":
        patch(StockCocoDataset, "prepare_train_img")
    else:
        own = type(
            "Own", (Compose,), {"__call__": lambda self, sample: calls.append(1) or super(Own, self).__call__(sample)}
        )
        Own = own
        data.dataset.pipeline = own(data.dataset.pipeline.transforms)
    same(draw(data, 0, 1), draw(build_stock(images, standard()), 0, 1))
    assert calls


def test_a_later_loader_has_its_own_seeds(images):
    data = build(images, standard())
    data.start_epoch(Moment(seed=0, epoch=0, rank=0))
    data.end_epoch()
    seen = []
    for seed in (1, 2):
        loader = DataLoader(data, num_workers=1, collate_fn=lambda samples: samples[0]["img"].data,
                            worker_init_fn=lambda worker, seed=seed: np.random.seed(seed))  # fmt: skip
        seen.append(next(iter(loader)))
    assert not torch.equal(*seen)


def test_without_any_step(images):
    ours, theirs = (make(images, []) for make in (build, build_stock))
    np.testing.assert_equal(ours[0], theirs[0])


def test_in_other_hands_a_mosaic_is_an_array(images):
    """Of somebody's own data set, or between other steps than the standard ones."""
    mosaic = transforms.Mosaic(img_scale=(96, 96))
    data = StockCocoDataset(**inner(images, {}))
    np.random.seed(1)
    result = mosaic({**data[0], "mix_results": [data[i] for i in (1, 2, 3)]})
    np.random.seed(1)
    expected = stock_pipelines.Mosaic(img_scale=(96, 96))({**data[0], "mix_results": [data[i] for i in (1, 2, 3)]})
    assert np.array_equal(result["img"], expected["img"])
    steps = [standard()[0], {"type": "Pad", "size_divisor": 7}, *standard()[3:]]
    ours, theirs = (make(images, steps) for make in (build, build_stock))
    same(draw(ours, 0, 3), draw(theirs, 0, 3))


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "garbage", "cut in the header"])
def test_an_unreadable_image_is_named(tmp_path, content):
    root = write_images(tmp_path / "bad", [(96, 96)])
    path = root / "000.jpg"
    path.write_bytes(path.read_bytes()[:40] if content is None else content)
    with pytest.raises(ValueError, match=r"000\.jpg is no readable image \(\d+ bytes\)"):
        draw(build(root, standard()), 0, 0)


def test_headers(images):
    for path in images.glob("*.jpg"):
        data = path.read_bytes()
        assert jpeg_shape(data) == cv2.imread(str(path)).shape
        for end in range(0, 300, 7):  # however short, nothing is read beyond the end
            assert jpeg_shape(data[:end]) in (None, jpeg_shape(data))
    assert jpeg_shape(b"") is None
    assert jpeg_shape(b"\xff\xd8" + b"\xff" * 50) is None
    assert jpeg_shape(b"\xff\xd8\xff\xe0\0\0" * 9) is None  # a segment of no length


def test_images_come_in_uint8_when_the_model_takes_them(images):
    ours, theirs = (make(images, standard()) for make in (build, build_stock))
    ours.start_epoch(Moment(seed=0, takes_uint8=True))
    sample, expected = draw(ours, 1, 1), draw(theirs, 1, 1)
    assert sample["img"].data.dtype == torch.uint8
    sample["img"] = DataContainer(sample["img"].data.float())
    same(sample, expected)


def kept(dataset, path):
    """The pixels that a data set's cache has of a file; None if it has none."""
    return dataset._cache.get(str(path), file_stamp(str(path)))


def make_alike(folder):
    """Of the same number of bytes, from the same moment: nothing but the place tells the images apart."""
    paths = list(folder.glob("**/*.jpg"))
    size = max(path.stat().st_size for path in paths)
    for path in paths:
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, ns=(1, 1))


def test_data_sets_of_the_same_names_share_no_pixels(tmp_path):
    """In one cache_dir."""
    roots = [write_images(tmp_path / name, [(96, 96)] * 3, seed=i) for i, name in enumerate("ab")]
    make_alike(tmp_path)
    cached = [build(root, standard(), cache="disk", cache_dir=str(tmp_path / "cache")) for root in roots]
    for data, root in zip(cached, roots, strict=True):
        for seed in range(12):
            same(draw(data, seed % 3, seed), draw(build(root, standard()), seed % 3, seed))


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("change", [lambda infos: infos[::-1], lambda infos: infos[3:] + infos[:1]])
def test_places_go_by_the_file(tmp_path, kind, change):
    images = write_images(tmp_path / "alike", [(96, 96)] * 6)
    make_alike(images)
    cached = build(images, standard(), cache=kind, cache_dir=str(tmp_path))
    for i in range(len(cached)):
        draw(cached, i, i)
    plain = build(images, standard())
    for data in (cached, plain):
        data.dataset.data_infos = change(data.dataset.data_infos)
    for seed in range(40):
        index = seed % len(plain.dataset)
        same(draw(cached, index, seed), draw(plain, index, seed))


def test_half_an_image_is_never_taken(images):
    """Between the first and the last pixel of a file, its place is nobody's; and of another state of the file it is not
    written over, as somebody may be looking at it."""
    cache = build(images, standard(), cache="ram")._cache
    name = str(images / "000.jpg")
    first = cv2.imread(name)

    class Watched(np.ndarray):
        def __array_finalize__(self, other):
            assert all(cache.get(name, stamp) is None for stamp in (7, 8) if watching)
            cache.put(name, 9, first)  # another worker at the same time has to leave it alone

    watching = False
    pixels = cache._pixels
    cache._pixels = lambda place: pixels(place).view(Watched)
    watching = True
    cache.put(name, 8, 255 - first)
    watching = False
    cache._pixels = pixels
    assert np.array_equal(cache.get(name, 8), 255 - first)
    cache.put(name, 7, first)
    assert np.array_equal(cache.get(name, 8), 255 - first)
    assert cache.get(name, 7) is cache.get(name, 9) is None
    cache._stamps[cache._place(name)] = BUSY
    cache.put(name, 8, first)
    assert cache.get(name, 8) is None


def test_the_processes_of_a_machine_share_its_memory(images, monkeypatch):
    """Each took half of it."""
    limits = []
    monkeypatch.setattr(caches, "_available_memory", lambda: 80_000)
    for processes in (1, 4):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        data = build(images, standard(), cache="ram")
        limits.append(len(data._cache._bytes))
    assert 30_000 < limits[0] <= 40_000
    assert 0 < limits[1] <= 10_000


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/a/b", {"a/memory.max": 1000, "a/memory.current": 300, "a/b/memory.max": "max"}, 700),
        ("0::/not/seen/from/inside", {"memory.max": 500, "memory.current": 100}, 400),
        ("4:memory:/x\n1:cpu:/", {"memory/x/memory.limit_in_bytes": 900, "memory/x/memory.usage_in_bytes": 850}, 50),
        ("9:cpu,memory:/x", {"memory/memory.limit_in_bytes": 7, "memory/memory.usage_in_bytes": 9}, 0),
        ("1:cpu:/\n0::/", {}, None),
    ],
    ids=["v2", "v2 in a container", "v1", "v1 in a container", "none"],
)  # fmt: skip
def test_limits_of_containers(tmp_path, monkeypatch, own, files, left):
    for name, number in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{number}\n")
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(caches, "CGROUPS", tmp_path)
    monkeypatch.setattr(caches, "OWN_CGROUPS", tmp_path / "own")
    assert caches._available_memory() == left or (left is None and caches._available_memory() > 10**6)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_cache_changes_nothing(images, tmp_path, kind, monkeypatch):
    plain = build(images, standard())
    cached = build(images, standard(), cache=kind, cache_dir=str(tmp_path))
    for seed in range(100):
        index = seed % len(plain)
        same(draw(cached, index, seed), draw(plain, index, seed))

    def decoded_again(*args, **kwargs):
        raise AssertionError("decoded again")

    expected = draw(plain, 2, 7)
    monkeypatch.setattr(mmcv, "imfrombytes", decoded_again)
    same(draw(cached, 2, 7), expected)
    if kind == "disk":  # a later run, or another process
        same(draw(build(images, standard(), cache=kind, cache_dir=str(tmp_path)), 2, 7), expected)


def test_a_cache_that_holds_a_part(images, tmp_path, caplog):
    count = len(SHAPES)
    size = 64 + 8 * count + sum(h * w * 3 for h, w in SHAPES[:5]) + 10
    plain = build(images, standard())
    with caplog.at_level("INFO", "yolox_plugin"):
        cached = build(images, standard(), cache="ram", cache_bytes=size)
    for seed in range(50):
        index = seed % count
        same(draw(cached, index, seed), draw(plain, index, seed))
    assert kept(cached, images / "004.jpg") is not None
    assert kept(cached, images / "005.jpg") is None
    [text] = [record.getMessage() for record in caplog.records if "cache" in record.getMessage()]
    assert f"room for 5 of {count} decoded images" in text
    assert f"cache_bytes is {size}" in text


def test_a_changed_file_is_read_again(tmp_path):
    root = write_images(tmp_path / "changing", [(96, 96)])
    cached = build(root, standard(), cache="disk")
    draw(cached, 0, 1)
    assert (tmp_path / "changing.cache").is_dir()
    assert cv2.imwrite(str(root / "000.jpg"), np.full((96, 96, 3), 77, np.uint8))
    os.utime(root / "000.jpg", ns=(1, 1))
    same(draw(cached, 0, 1), draw(build(root, standard()), 0, 1))
    # Of other annotations, which say other sizes: as it is on the disk, and not kept.
    path = root / "annotations.json"
    path.write_text(path.read_text().replace('"height": 96', '"height": 90'))
    cached = build(root, standard(), cache="disk")
    same(draw(cached, 0, 1), draw(build(root, standard()), 0, 1))
    assert kept(cached, root / "000.jpg") is None


def test_what_was_written_before_a_crash_of_the_machine_is_not_believed(images, tmp_path):
    draw(build(images, standard(), cache="disk", cache_dir=str(tmp_path)), 0, 1)
    [path] = tmp_path.glob("*.images")
    content = bytearray(path.read_bytes())
    content[:32] = b"\1" * 32  # another start of the machine
    content[64 + 8 * len(SHAPES) :] = bytes(len(content) - 64 - 8 * len(SHAPES))
    path.write_bytes(content)
    cached = build(images, standard(), cache="disk", cache_dir=str(tmp_path))
    assert not cached._cache._stamps.any()
    same(draw(cached, 0, 1), draw(build(images, standard()), 0, 1))


def test_sizes_that_nobody_has_memory_for(images):
    plain, cached = (build(images, standard(), **options) for options in ({}, {"cache": "ram"}))
    infos = [dict(info) for info in plain.dataset.data_infos]
    infos[1]["width"] = infos[2]["height"] = 10**9
    plain.dataset.data_infos = infos
    cache = caches.ImageCache({info["filename"]: (info["height"], info["width"]) for info in infos}, "ram", None, "")
    assert cache._count == 1
    same(draw(cached, 0, 1), draw(plain, 0, 1))


def test_what_a_cache_refuses(images):
    with pytest.raises(ValueError, match="cache must be one of ram, disk, got 'tape'"):
        build(images, standard(), cache="tape")
    with pytest.raises(ValueError, match="cache_bytes must be 1 or more, got 0"):
        build(images, standard(), cache="ram", cache_bytes=0)
    with pytest.raises(ValueError, match="needs a CocoDataset with LoadImageFromFile, LoadAnnotations alone"):
        build(images, standard(), {"to_float32": True}, cache="ram")
    import pickle

    with pytest.raises(TypeError, match="needs workers that are forked"):
        pickle.dumps(build(images, standard(), cache="ram"))


def test_no_step_writes_to_a_cached_image(images):
    cached = build(images, standard(), cache="ram")
    for seed in range(60):
        draw(cached, seed % len(cached), seed)
    for i in range(len(cached)):
        pixels = kept(cached, images / f"{i:03}.jpg")
        assert pixels is not None
        assert np.array_equal(pixels, cv2.imread(str(images / f"{i:03}.jpg")))


@pytest.mark.slow
def test_memory_of_the_workers_stays_flat_with_a_cache(tmp_path, private_bytes):
    """Every worker sees all images, and none has a copy: 36 MB decoded."""
    root = write_images(tmp_path / "flat", [(480, 640)] * 40)
    data = build(root, standard(), cache="ram")
    data.start_epoch(Moment(seed=0, epoch=0, rank=0))
    loader = DataLoader(data, batch_size=4, num_workers=2, persistent_workers=True, collate_fn=len, shuffle=True)
    held = []
    for _ in range(8):
        assert sum(loader) == 40
        held.append(sum(private_bytes(worker.pid) for worker in loader._iterator._workers) / 1e6)
    assert data._cache._stamps.all()  # which the workers filled
    assert held[-1] - held[1] < 5, held


def test_pixels_are_decoded_once(images):
    data = (images / "000.jpg").read_bytes()
    decoded = []
    image = EncodedImage("x", data, lambda data: decoded.append(mmcv.imfrombytes(data)) or decoded[-1])
    first = image.pixels()
    assert image.pixels() is first is decoded[0]
    assert len(decoded) == 1
    assert image.shape == first.shape
