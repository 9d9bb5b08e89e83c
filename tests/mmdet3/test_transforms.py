"""The augmentations against MMDetection's own on the same draws: equal boxes, labels and pixels."""

import copy
from pathlib import Path

import cv2
import mmcv
import mmdet
import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import MixUp, Mosaic
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import Config
from pairs import STOCK, build, build_stock, draw, inner, same, standard
from photographs import photograph, write_images

from yolox_plugin.core.images import DecodedImage, Deferred, pixels
from yolox_plugin.mmdet3 import transforms

OURS = {name: getattr(transforms, name) for name in STOCK}
OPTIONS = {
    "standard": {},
    "wide": {"size": (128, 64)},
    "boxes may leave": {"mosaic": {"bbox_clip_border": False}, "affine": {"bbox_clip_border": False},
                        "mixup": {"bbox_clip_border": False}},
    "half of them": {"mosaic": {"prob": 0.5, "center_ratio_range": (0.2, 1.9)}, "affine": {"border": (0, 0)}},
    "small partners": {"mixup": {"ratio_range": (0.3, 0.9), "pad_val": 7.0, "flip_ratio": 0.9, "max_iters": 1}},
    "half a level": {"mixup": {"pad_val": 113.5}},
    "whole levels": {"mixup": {"pad_val": 114}},  # which MMDetection then enlarges in uint8
    "strong": {"affine": {"max_rotate_degree": 80.0, "max_shear_degree": 30.0, "max_translate_ratio": 0.9,
                          "border_val": (1, 2, 250)}},
    "all flips": {"flip": {"prob": [0.3, 0.3, 0.3], "direction": ["horizontal", "vertical", "diagonal"]}},
    "all colours": {"hsv": {"hue_delta": 200, "saturation_delta": 300, "value_delta": 300}},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_samples_are_those_of_mmdet(images, name):
    ours, theirs = (make(inner(images), standard(**OPTIONS[name])) for make in (build, build_stock))
    assert {type(step) for step in ours.pipeline} >= set(OURS.values())
    counts = []
    for seed in range(300):
        index = seed % len(ours)
        counts.append(same(draw(ours, index, seed), draw(theirs, index, seed)))
    assert min(counts) == (0, 0)
    boxes, crowds = np.array(counts).T
    assert {0, 1} < set(boxes)
    assert crowds.max() > 1


def test_the_real_config(tmp_path):
    """Of which only the place of the images is another."""
    root = write_images(tmp_path / "full", [(480, 640), (640, 427), (375, 500), (480, 640), (612, 612)], crowds=True)
    config = Config.fromfile(Path(mmdet.__file__).parent / ".mim/configs/yolox/yolox_m_8xb8-300e_coco.py")
    data = config.train_dataset["dataset"].to_dict()
    data |= {"data_root": str(root), "ann_file": "annotations.json", "data_prefix": {"img": ""},
             "metainfo": {"classes": ("0", "1", "2")}}  # fmt: skip
    steps = [step.to_dict() for step in config.train_pipeline]
    ours, theirs = (make(data, steps) for make in (build, build_stock))
    assert ours[0]["inputs"].shape == (3, 640, 640)
    counts = [same(draw(ours, seed % 5, seed), draw(theirs, seed % 5, seed)) for seed in range(30)]
    assert np.mean(counts, 0).min() > 1


def test_the_last_epochs(images):
    skipped = ["Mosaic", "RandomAffine", "MixUp"]
    ours, theirs = (make(inner(images), standard(), skip_type_keys=skipped) for make in (build, build_stock))
    for seed in range(60):
        index = seed % len(ours)
        same(draw(ours, index, seed), draw(theirs, index, seed))


@pytest.mark.parametrize(
    "options",
    [
        {"load": {"to_float32": True}},
        {"load": {"backend_args": {"backend": "local"}}},
        {"load": {"imdecode_backend": "pillow"}},
        {"annotate": {"with_mask": False, "box_type": None}},
        {"serialize_data": False},
        {"indices": 7},
    ],
    ids=str,
)
def test_other_ways_of_loading(images, options):
    steps = standard()
    if "to_float32" in options.get("load", {}):
        steps = [steps[i] for i in (0, 1, 5, 6)]  # the others know bytes only
    pairs = [make(inner(images, **options), steps) for make in (build, build_stock)]
    for seed in range(40):
        index = seed % len(pairs[0])
        ours, theirs = (draw(dataset, index, seed) for dataset in pairs)
        if "inputs" in ours[0]:
            same(ours, theirs)
        else:
            np.testing.assert_equal(plain(ours[0]), plain(theirs[0]))


def plain(sample):
    """A sample with numpy's arrays for boxes, to be compared."""
    return sample | {"gt_bboxes": np.asarray(getattr(sample["gt_bboxes"], "tensor", sample["gt_bboxes"]))}


def test_all_that_a_sample_says(images):
    """Without the last step, which leaves most of it out."""
    pairs = [make(inner(images), standard()[:-1]) for make in (build, build_stock)]
    for seed in range(60):
        ours, theirs = (draw(dataset, seed % 14, seed) for dataset in pairs)
        assert ours[0].keys() == theirs[0].keys()
        np.testing.assert_equal(plain(ours[0]), plain(theirs[0]))
        assert ours[1] == theirs[1]


def test_grey_images_take_the_way_of_stock(images):
    """Of which MixUp and the change of colours fail, and so do these."""
    steps = standard()
    for some in ([0, 1, 5], [0, 1, 2, 5], [0, 1, 3]):
        outcomes = []
        for make in (build, build_stock):
            dataset = make(inner(images, load={"color_type": "grayscale"}), [steps[i] for i in some])
            try:
                outcomes.append([plain(draw(dataset, seed % 14, seed)[0]) for seed in range(20)])
            except (IndexError, cv2.error, ValueError) as error:
                outcomes.append(next(kind for kind in (IndexError, cv2.error, ValueError) if isinstance(error, kind)))
        np.testing.assert_equal(outcomes[0], outcomes[1])
        assert isinstance(outcomes[0], list) == (some == [0, 1, 5])


def test_masks_take_the_way_of_stock(tmp_path):
    root = write_images(tmp_path / "masks", [(60, 90)] * 4)
    changed = (root / "annotations.json").read_text().replace(
        '"iscrowd"', '"segmentation": [[1.0, 1.0, 30.0, 1.0, 30.0, 40.0]], "iscrowd"'
    )  # fmt: skip
    (root / "annotations.json").write_text(changed)
    for make in (build, build_stock):
        masked = inner(root, annotate={"with_mask": True})
        with pytest.raises(NotImplementedError, match=r"RandomAffine only supports bbox\."):
            make(masked, standard())[0]
        mosaic = draw(make(masked, standard()[:1]), 0, 5)[0]
        assert len(mosaic["gt_masks"]) == len(masked[0]["gt_masks"])  # stock leaves the masks of the first image
    mixed = [
        draw(make(inner(root, annotate={"with_mask": True}), standard()[2:3]), 0, 5) for make in (build, build_stock)
    ]
    assert np.array_equal(mixed[0][0]["img"], mixed[1][0]["img"])
    assert mixed[0][1] == mixed[1][1]


@pytest.mark.parametrize("transposed", [False, True])
def test_files_of_other_kinds(tmp_path, transposed):
    """PNG, grey JPEG, and a JPEG whose EXIF turns it."""
    root = write_images(tmp_path / "kinds", [(40, 90)] * 4, name="{:03}.png" if transposed else "{:03}.jpg")
    path = root / ("002.png" if transposed else "002.jpg")
    assert cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    data = cv2.imencode(".jpg", photograph(np.random.default_rng(1), 40, 90))[1].tobytes()
    turn = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = data[:2] + b"\xff\xe1" + (len(turn) + 2).to_bytes(2, "big") + turn + data[2:]
    (root / "003").with_suffix(path.suffix).write_bytes(turned)
    ours, theirs = (make(inner(root), standard()) for make in (build, build_stock))
    assert inner(root)[3]["ori_shape"] == (90, 40)
    for seed in range(40):
        same(draw(ours, seed % 4, seed), draw(theirs, seed % 4, seed))


# A step by itself


def loaded(images, count=4):
    """Samples of images of several shapes, the first one with its partners."""
    data = inner(images)
    first, *others = (data[i] for i in range(count))
    return first | {"mix_results": others}


def read_only(sample):
    """The sample with arrays that cannot be written to."""
    for part in (sample, *sample.get("mix_results", ())):
        for key in ("img", "gt_bboxes_labels", "gt_ignore_flags"):
            part[key].flags.writeable = False
    return sample


PARTNERS = {"Mosaic": 3, "RandomAffine": 0, "MixUp": 1, "YOLOXHSVRandomAug": 0}
SIZES = {"Mosaic": {"img_scale": (96, 80)}, "MixUp": {"img_scale": (96, 80)}}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("name", PARTNERS)
@pytest.mark.parametrize("way", ["arrays", "deferred", "stock's"])
def test_inputs_are_left_as_they_are(images, monkeypatch, name, way):
    stock = STOCK[name].transform
    if way == "stock's":
        monkeypatch.setattr(STOCK[name], "transform", lambda self, results: stock(self, results))
    ours, theirs = (steps[name](**SIZES.get(name, {})) for steps in (OURS, STOCK))
    for seed in range(4):
        sample = read_only(loaded(images, 1 + PARTNERS[name]))
        before, given = copy.deepcopy(sample), copy.deepcopy(sample)
        if way == "deferred":
            for part in (sample, *sample["mix_results"]):
                part["img"] = DecodedImage(part["img"])
        found, expected = (seeded(step, dict(results), seed) for step, results in ((ours, sample), (theirs, given)))
        for part, part_before in zip((sample, *sample["mix_results"]), (before, *before["mix_results"]), strict=True):
            assert torch.equal(part["gt_bboxes"].tensor, part_before["gt_bboxes"].tensor)
            for key in ("gt_bboxes_labels", "gt_ignore_flags"):
                assert np.array_equal(part[key], part_before[key])
            assert np.array_equal(pixels(part["img"]), part_before["img"])
        assert found.keys() == expected.keys()
        assert isinstance(found["img"], Deferred) == (way == "deferred" and name == "Mosaic")
        assert np.array_equal(pixels(found["img"]), expected["img"])
        assert found["img_shape"] == expected["img_shape"] == found["img"].shape[:2]
        assert torch.equal(found["gt_bboxes"].tensor, expected["gt_bboxes"].tensor)


def seeded(step, results, seed):
    np.random.seed(seed)
    return step(results)


@pytest.mark.parametrize("name", ["Mosaic", "MixUp"])
@pytest.mark.parametrize("others", [None, 0, 1, 2, 3, 5])
def test_other_numbers_of_images_to_mix(images, name, others):
    """What stock asserts is asserted, what it leaves out is left out."""
    outcomes = []
    for steps in (OURS, STOCK):
        sample = loaded(images, 1 + (others or 0))
        if others is None:
            del sample["mix_results"]
        np.random.seed(3)
        try:
            result = steps[name](img_scale=(96, 96))(sample)
            outcomes.append((result["img"].tolist(), result["gt_bboxes"].tensor.tolist()))
        except (AssertionError, IndexError) as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("boxes", ["array", "own"])
@pytest.mark.parametrize("name", ["Mosaic", "RandomAffine", "MixUp"])
def test_other_boxes_take_the_way_of_stock(images, name, boxes):
    class Own(HorizontalBoxes):
        projected = 0

        def project_(self, matrix):
            super().project_(matrix)
            type(self).projected += 1

    results = []
    for steps in (OURS, STOCK):
        sample = loaded(images, 1 + PARTNERS[name])
        for part in (sample, *sample["mix_results"]):
            part["gt_bboxes"] = part["gt_bboxes"].numpy() if boxes == "array" else Own(part["gt_bboxes"].tensor)
        step = steps[name](**SIZES.get(name, {}))
        np.random.seed(1)
        results.append(plain(step(copy.deepcopy(sample))))
        results[-1].pop("mix_results")
    np.testing.assert_equal(results[0], results[1])
    assert len(results[0]["gt_bboxes"])
    assert Own.projected == (2 if (name, boxes) == ("RandomAffine", "own") else 0)


def test_a_partner_without_boxes_changes_nothing(images):
    sample = loaded(images, 2)
    sample["mix_results"] = [inner(images)[4]]
    assert not len(sample["mix_results"][0]["gt_bboxes"])
    np.random.seed(0)
    assert np.array_equal(OURS["MixUp"](img_scale=(96, 96))(sample)["img"], sample["img"])
    np.random.seed(0)
    first = np.random.random()
    np.random.seed(0)
    OURS["MixUp"](img_scale=(96, 96))(sample)
    assert np.random.random() == first  # nothing is drawn


def test_partners_are_flipped_where_the_draw_is_above_flip_ratio(images):
    """So that 1.0 flips none, in stock's sense of it."""
    sample = loaded(images, 2)
    blank = sample | {"img": np.zeros((96, 96, 3), np.uint8)}
    steps = [OURS["MixUp"](img_scale=(96, 96), ratio_range=(1.0, 1.0), flip_ratio=ratio) for ratio in (0.0, 1.0)]
    flipped, kept = (step(blank)["img"] for step in steps)
    assert kept.any()
    assert not np.array_equal(flipped, kept)
    assert np.array_equal(flipped[:, ::-1], kept)


@pytest.mark.parametrize("name", STOCK)
def test_what_a_user_has_patched_is_called(images, monkeypatch, name):
    calls = []
    stock = STOCK[name].transform

    def patched(self, results):
        calls.append(isinstance(results["img"], np.ndarray))
        results["img"][:] = 1  # it may write
        return stock(self, results)

    monkeypatch.setattr(STOCK[name], "transform", patched)
    dataset = build(inner(images), standard())
    draw(dataset, 0, 1)
    assert calls == [True]


@pytest.mark.parametrize(
    ("name", "method"),
    [("Mosaic", "_mosaic_combine"), ("RandomAffine", "_get_random_homography_matrix"),
     ("YOLOXHSVRandomAug", "_get_hsv_gains")],
)  # fmt: skip
def test_what_a_subclass_changes_counts(images, name, method):
    calls = []

    def changed(self, *args):
        calls.append(method)
        return getattr(super(own, self), method)(*args)

    own = type("Own", (OURS[name],), {method: changed})
    own(**SIZES.get(name, {}))(loaded(images, 1 + PARTNERS[name]))
    assert calls == [method] * (4 if name == "Mosaic" else 1)


def test_only_what_is_seen_is_decoded(images, monkeypatch):
    """Stock decodes five images for a sample, and one or more only to see whether they have boxes."""
    decoded = []
    decode = mmcv.imfrombytes
    monkeypatch.setattr(mmcv, "imfrombytes", lambda *args, **kwargs: decoded.append(1) or decode(*args, **kwargs))
    count = 100
    for make, least, most in ((build_stock, 6.0, 7.0), (build, 1.0, 4.2)):
        dataset = make(inner(images), standard())
        decoded.clear()
        for seed in range(count):
            draw(dataset, 0, seed)
        assert least <= len(decoded) / count <= most, make


def test_a_choice_of_partners_is_that_of_stock(images):
    """Of a data set in which few images have boxes, and of a step that somebody else has written."""

    class Own(MixUp):
        def get_indexes(self, dataset):
            assert "img" in dataset[0]
            return super().get_indexes(dataset)

    dataset = build(inner(images), standard())
    for step in (dataset.pipeline[2], MixUp(), Own()):
        chosen = []
        for source in (dataset._partners_from(step), dataset.dataset):
            np.random.seed(7)
            chosen.append([step.get_indexes(source) for _ in range(30)] + [np.random.random()])
        assert chosen[0] == chosen[1]
        assert (dataset._partners_from(step) is dataset.dataset) == isinstance(step, Own)
    assert dataset._partners_from(Mosaic()) is dataset.dataset


@pytest.mark.parametrize("whose", ["steps", "data set"])
def test_each_part_alone(images, whose):
    """With the plugin's steps or its data set switched off."""
    steps = standard()
    ours, theirs = (make(inner(images), steps) for make in (build, build_stock))
    mixed = build(inner(images), steps) if whose == "data set" else build_stock(inner(images), steps)
    mixed.pipeline = theirs.pipeline if whose == "data set" else ours.pipeline
    for seed in range(40):
        same(draw(mixed, seed % 14, seed), draw(theirs, seed % 14, seed))
