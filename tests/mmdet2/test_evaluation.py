"""The plugin's COCO evaluation against pycocotools itself, on annotation files that nobody wrote by hand."""

import contextlib
import copy
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.coco import COCOeval as stock_coco_eval
from pycocotools.cocoeval import COCOeval as SlowCOCOeval

from yolox_plugin.core import coco_eval
from yolox_plugin.core.coco_eval import COCOeval


def evaluate(cls, labels, detections, max_detections=(100, 300, 1000), use_categories=1, metric="bbox"):
    """The evaluation, and the table that it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = copy.deepcopy(labels)
        ground_truth.createIndex()
        evaluation = cls(ground_truth, ground_truth.loadRes(copy.deepcopy(detections)), metric)
    evaluation.params.maxDets = list(max_detections)
    evaluation.params.useCats = use_categories
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    with contextlib.redirect_stdout(io.StringIO()) as table:
        evaluation.summarize()
    return evaluation, table.getvalue()


def check(labels, detections, **options):
    """Whether faster-coco-eval did it; raises where anything differs from pycocotools."""
    (ours, our_table), (theirs, their_table) = (
        evaluate(cls, labels, detections, **options) for cls in (COCOeval, SlowCOCOeval)
    )
    for name in ("precision", "recall", "scores"):  # precision: pycocotools adds 2^-52 to a divisor
        np.testing.assert_allclose(ours.eval[name], theirs.eval[name], rtol=0, atol=1e-14, err_msg=name)
    assert [f"{value:.4f}" for value in ours.stats] == [f"{value:.4f}" for value in theirs.stats]
    assert our_table == their_table
    return ours._is_accumulated


side = st.sampled_from([0, 0.5, 1, 5, 20, 40, 97])
box = st.tuples(*[st.integers(-5, 60)] * 2, side, side).map(list)
id_ = st.one_of(st.integers(1, 60), st.integers(2**31, 2**53 - 1))


@st.composite
def cases(draw, annotation_ids=id_):
    """A data set, and detections of which some lie on its boxes."""
    images = [{"id": i, "width": 100, "height": 100} for i in draw(st.sets(st.integers(0, 9), min_size=1, max_size=3))]
    categories = [{"id": i, "name": str(i)} for i in draw(st.sets(st.integers(0, 9), min_size=1, max_size=3))]
    image, category = (st.sampled_from([thing["id"] for thing in things]) for things in (images, categories))
    annotations = [
        {"id": i, "image_id": draw(st.one_of(image, image, st.just(77))), "category_id": draw(category),
         "bbox": draw(box), "area": draw(st.sampled_from([0, -3.0, 25, 1024, 9216.0, 1e12])),
         "iscrowd": draw(st.sampled_from([0, 0, 0, 1, True]))}
        | draw(st.sampled_from([{}, {}, {"ignore": 1}, {"lvis_mark": True}]))
        for i in draw(st.sets(annotation_ids, max_size=12))
    ]  # fmt: skip
    known = [(a["image_id"], a["category_id"], a["bbox"]) for a in annotations if a["image_id"] != 77]
    drawn = st.tuples(image, category, box)
    place = st.one_of(st.sampled_from(known), drawn) if known else drawn
    score = st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.75, 1.0])
    detections = [
        {"image_id": i, "category_id": c, "bbox": [v + draw(st.sampled_from([0, 0, 1, 0.5])) for v in b],
         "score": draw(score)}
        for i, c, b in draw(st.lists(place, min_size=1, max_size=20))
    ]  # fmt: skip
    return {"images": images, "categories": categories, "annotations": annotations}, detections


@settings(max_examples=300, deadline=None)
@given(cases(), st.sampled_from([(100, 300, 1000), (1, 10, 100), (3, 1, 2)]), st.sampled_from([0, 1]))
def test_figures_are_those_of_pycocotools(case, max_detections, use_categories):
    assert check(*case, max_detections=max_detections, use_categories=use_categories)


LABELS = {
    "images": [{"id": 1, "width": 100, "height": 100}],
    "categories": [{"id": 1, "name": "a"}],
    "annotations": [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [20 * i, 20, 15, 15], "area": 225, "iscrowd": 0}
        for i in (1, 2)
    ],
}
DETECTIONS = [
    {"image_id": 1, "category_id": 1, "bbox": [20 * i, 20, 15, 15 - i], "score": 0.5 + i / 10} for i in (1, 2, 3)
]


def changed(**fields):
    """LABELS with other fields of the first annotation; `None` removes one."""
    labels = copy.deepcopy(LABELS)
    first = labels["annotations"][0]
    first.update(fields)
    for name in [name for name, value in fields.items() if value is None]:
        del first[name]
    return labels


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (changed(id=0.5), "annotation 0.5 has an id that is not an integer from 1 to 2^53"),
        (changed(id=-7), "annotation -7 has an id that is not"),
        (changed(id="17"), "annotation '17' has an id that is not"),
        (changed(id=2**53), "annotation 9007199254740992 has an id that is not"),
        (changed(id=True), "annotation True has an id that is not"),
        (changed(iscrowd=2), "annotation 1 has iscrowd=2"),
        (changed(area=float("nan")), "annotation 1 has an area or a bbox that is not finite"),
        (changed(bbox=[20, float("inf"), 15, 15]), "annotation 1 has an area or a bbox that is not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_outside_of_its_domain_the_fast_one_is_not_asked(labels, reason, caplog):
    caplog.set_level("INFO", "yolox_plugin")
    assert not check(labels, DETECTIONS)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("evaluating with pycocotools, which takes longer: ")
    assert reason in line


@pytest.mark.parametrize("image_id", ["a", "1", -4, 2**60, 1.5], ids=repr)
def test_odd_image_ids(image_id, caplog):
    caplog.set_level("INFO", "yolox_plugin")
    labels, detections = copy.deepcopy(LABELS), copy.deepcopy(DETECTIONS)
    for thing in (*labels["annotations"], *detections):
        thing["image_id"] = image_id
    labels["images"][0]["id"] = image_id
    assert not check(labels, detections)
    assert f"image id {image_id!r} is not an integer from 0 to 2^53" in caplog.text


@pytest.mark.parametrize("field", ["area", "iscrowd"])
def test_what_pycocotools_refuses_is_refused(field):
    with pytest.raises(KeyError, match=field):
        evaluate(COCOeval, changed(**{field: None}), DETECTIONS)


def test_an_exception_in_the_fast_one_is_pycocotools_turn(monkeypatch, caplog):
    class Broken(coco_eval.COCOeval_faster):
        def accumulate(self):
            raise ZeroDivisionError("inside")

    caplog.set_level("INFO", "yolox_plugin")
    monkeypatch.setattr(coco_eval, "COCOeval_faster", Broken)
    assert not check(LABELS, DETECTIONS)
    assert "ZeroDivisionError in faster-coco-eval: inside" in caplog.text


def test_without_the_fast_one(monkeypatch, caplog):
    caplog.set_level("INFO", "yolox_plugin")
    monkeypatch.setattr(coco_eval, "COCOeval_faster", None)
    assert not check(LABELS, DETECTIONS)
    assert not caplog.records


def test_stock_data_sets_keep_their_evaluator(mixed_dataset):
    """Other data sets of the same process must not be evaluated by what ours uses."""
    import mmdet.datasets.coco as stock

    results = [[np.zeros((0, 5))] * 5 for _ in mixed_dataset.dataset.data_infos]
    results[0][0] = np.array([[1.0, 1, 30, 30, 0.5]])
    mixed_dataset.dataset.evaluate(results)
    assert stock.COCOeval is stock_coco_eval is SlowCOCOeval


def test_somebodys_own_evaluator_is_asked(mixed_dataset, monkeypatch):
    import mmdet.datasets.coco as stock

    class Mine(SlowCOCOeval):
        def summarize(self):
            super().summarize()
            self.stats[0] = 0.123

    monkeypatch.setattr(stock, "COCOeval", Mine)
    results = [[np.array([[1.0, 1, 30, 30, 0.5]])] * 5 for _ in mixed_dataset.dataset.data_infos]
    assert mixed_dataset.dataset.evaluate(results)["bbox_mAP"] == 0.123
    assert stock.COCOeval is Mine


def test_a_file_without_the_last_classes(data_root, caplog):
    """Detections of classes that the annotations do not have are none of the figures' business; stock fails at them."""
    from mmdet.datasets import build_dataset

    from yolox_plugin.run.demo_data import CLASSES

    dataset = build_dataset(
        {"type": "CocoDataset", "classes": [*CLASSES, "moon"], "pipeline": [], "test_mode": True,
         "ann_file": str(data_root / "annotations/instances_val2017.json"), "img_prefix": ""}
    )  # fmt: skip
    perfect = []
    for i in range(len(dataset)):
        gt = dataset.get_ann_info(i)
        found = [gt["bboxes"][gt["labels"] == label] for label in range(len(CLASSES))]
        perfect.append([np.c_[boxes, np.ones(len(boxes))] for boxes in (*found, np.ones((1, 4)))])
    assert dataset.evaluate(perfect)["bbox_mAP"] == 1.0
