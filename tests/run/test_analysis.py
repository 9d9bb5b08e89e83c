"""The error analysis of an evaluation: numbers by hand, those of pycocotools, files."""

import contextlib
import csv
import io
import json
import shutil

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import HOST, sentence

from yolox_plugin.run import analysis, report
from yolox_plugin.run import evaluate as testing
from yolox_plugin.run.analysis_pictures import MOST_CLASSES, confused, draw_confusion, draw_precision_recall, draw_worst
from yolox_plugin.run.annotations import Source
from yolox_plugin.run.folders import check_replaceable
from yolox_plugin.run.messages import InputError

CLASSES = ("cat", "dog", "cow", "yak")
A, B, C, D = ([x, 10, x + 20, 30] for x in (0, 30, 60, 90))  # boxes (x1, y1, x2, y2), apart from each other
NEAR = [3, 10, 23, 30]  # IoU 17 / 23 with A
FAR = [0, 60, 20, 80]


def source_of(root, things, classes=CLASSES, images=3, unused=()):
    """An annotation file with (image, class, box, crowd), with ids that are no labels."""
    names = [*unused, *classes]
    content = {
        "images": [{"id": 10 * n, "file_name": f"{n}.png", "width": 120, "height": 90} for n in range(1, images + 1)],
        "categories": [{"id": 7 * len(names) - 7 * k, "name": name} for k, name in enumerate(names)],
    }
    ids = {category["name"]: category["id"] for category in content["categories"]}
    content["annotations"] = [
        {"id": n, "image_id": 10 * image, "category_id": ids[name], "area": 400, "iscrowd": int(crowd),
         "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
        for n, (image, name, box, crowd) in enumerate(things, 1)
    ]  # fmt: skip
    root.mkdir(exist_ok=True)
    for n in range(1, images + 1):
        cv2.imwrite(str(root / f"{n}.png"), np.full((90, 120, 3), 120, np.uint8))
    (root / "annotations.json").write_text(json.dumps(content))
    return Source("", "", root / "annotations.json", root, classes, training=False, sizes=False, keeps_empty=True,
                  min_size=0, byte_order_mark=False)  # fmt: skip


def found_of(things, classes=CLASSES, images=3):
    """Detections (image, class, box, score) as `analyse` takes them."""
    rows = [(10 * image, classes.index(name), [*box, score]) for image, name, box, score in things]
    return {
        id_: [np.array([row for i, k, row in rows if (i, k) == (id_, label)], np.float32).reshape(-1, 5)
              for label in range(len(classes))]
        for id_ in range(10, 10 * images + 1, 10)
    }  # fmt: skip


def draw_all(found, source, out):
    """Every file of an analysis."""
    out.mkdir()
    analysis.write_table(out / "classes.csv", found)
    draw_confusion(found, out / "confusion.png")
    draw_precision_recall(found, out / "precision_recall.png")
    draw_worst(found, source.folder, out / "worst.png")
    assert {path.name for path in out.iterdir()} == set(analysis.FILES.values())
    assert all(cv2.imread(str(path)).std() > 0 for path in out.glob("*.png"))
    return list(csv.DictReader((out / "classes.csv").open(newline="")))


def test_every_number_by_hand(tmp_path, capsys):
    source = source_of(tmp_path / "data", [
        (1, "cat", A, False), (1, "dog", B, False), (1, "cat", C, False), (1, "cow", D, True),
        (2, "cat", A, False), (2, "dog", B, False), (2, "cow", C, False),
    ], unused=("nothing of the config's",))  # fmt: skip
    found = analysis.analyse(source, found_of([
        (1, "cat", A, 0.9),  # right
        (1, "cat", NEAR, 0.8),  # once more, and no gt is left
        (1, "cat", B, 0.7),  # a dog
        (1, "dog", B, 0.2),  # right, but below the score
        (3, "dog", C, 0.25),  # neither, therefore
        (1, "cow", D, 0.9),  # a crowd, which counts nowhere
        (2, "dog", A, 0.95),  # a cat, which a less certain one gets right
        (2, "cat", A, 0.6),
        (2, "dog", NEAR, 0.85),
        (2, "cow", B, 0.5),  # a dog, of which the other cow is one of two
        (2, "dog", B, 0.3),  # right, at the score itself
        (2, "cow", C, 0.4),
        (3, "yak", FAR, 0.5),  # on the background
    ]), 0.3)  # fmt: skip
    assert found.confusion.tolist() == [
        [2, 0, 0, 0, 1],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0],
        [1, 2, 1, 1, 0],
    ]
    assert found.images.tolist() == [2, 2, 1, 0]
    rows = draw_all(found, source, tmp_path / "out")
    assert [tuple(row.values())[:3] + tuple(row.values())[5:] for row in rows] == [
        ("cat", "2", "3", "0.5", "0.666667", "1", "2"),
        ("dog", "2", "2", "0.333333", "0.5", "1", "2"),
        ("cow", "1", "1", "0.5", "1.0", "0", "1"),
        ("yak", "0", "0", "0.0", "", "0", "1"),
    ]
    # By hand: precisions 1, 1/2 and 2/4 after each right cat, of 3; the third is never found.
    assert float(rows[0]["AP50"]) == pytest.approx((34 * 1 + 33 * 0.5) / 101, abs=1e-6)
    assert float(rows[1]["AP"]) == pytest.approx(2 / 5, abs=1e-6)  # at its second right one of two
    assert float(rows[2]["AP"]) == pytest.approx(1 / 2, abs=1e-6)
    assert rows[3]["AP"] == rows[3]["AP50"] == ""
    assert [(image.name, len(image.missed), len(image.false)) for image in found.wrong] == [
        ("1.png", 2, 2), ("2.png", 0, 3), ("3.png", 0, 1),
    ]  # fmt: skip
    first = zip(found.wrong[0].missed_labels.tolist(), found.wrong[0].missed.tolist(), strict=True)
    assert sorted(first) == [(0, C), (1, B)]
    assert found.wrong[2].false.tolist() == [FAR] and found.wrong[2].false_labels.tolist() == [3]
    analysis.tell(found)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["dog", "cat", "cow"]
    assert "2 false" in lines[1] and "1 of 2 missed" in lines[1]


def test_a_confusion_takes_the_nearest_box_that_is_free_and_the_surest_detection_first(tmp_path):
    source = source_of(tmp_path / "data", [(1, "cat", A, False), (1, "dog", NEAR, False)])
    found = analysis.analyse(source, found_of([(1, "yak", A, 0.8), (1, "cow", A, 0.9), (1, "yak", A, 0.7)]), 0.7)
    assert found.confusion[:2].tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    assert found.confusion[-1].tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("classes", [("cat",), CLASSES], ids=["one class", "several"])
@pytest.mark.parametrize("annotated", [False, True])
@pytest.mark.parametrize("detected", [False, True])
def test_nothing_annotated_or_detected(tmp_path, capsys, classes, annotated, detected):
    source = source_of(tmp_path / "data", [(1, "cat", A, False)] * annotated, classes)
    found = analysis.analyse(source, found_of([(1, "cat", A, 0.9)] * detected, classes), 0.3)
    rows = draw_all(found, source, tmp_path / "out")
    assert rows[0]["AP"] == (str(float(detected)) if annotated else "")
    assert (rows[0]["missed"], rows[0]["false"]) == (str(int(annotated > detected)), str(int(detected > annotated)))
    assert found.confusion.sum() == (annotated or detected)
    analysis.tell(found)
    assert bool(capsys.readouterr().out) == (annotated and len(classes) > 1)


def test_many_classes_are_the_most_confused_and_the_others(tmp_path):
    classes = tuple(f"kind {k}" for k in range(40))
    source = source_of(tmp_path / "data", [(1, "kind 39", A, False), (2, "kind 5", A, False)], classes)
    found = analysis.analyse(source, found_of([(1, "kind 37", A, 0.9), (2, "kind 5", A, 0.9)], classes), 0.3)
    counts, names = confused(found)
    assert len(names) == MOST_CLASSES + 1 and names[-1] == "15 others" and {"kind 37", "kind 39"} < set(names)
    assert counts.shape == (MOST_CLASSES + 2,) * 2 and counts.sum() == found.confusion.sum() == 2
    assert counts[names.index("kind 39"), names.index("kind 37")] == 1
    draw_all(found, source, tmp_path / "out")


@pytest.mark.slow
def test_the_command_leaves_the_analysis_of_its_own_figures(learned, tmp_path, capfd, monkeypatch):
    data, config, checkpoint = learned
    kept = []
    analyse = analysis.analyse

    def keep(*arguments):
        kept.append((*arguments, analyse(*arguments)))
        return kept[-1][-1]

    monkeypatch.setattr(analysis, "analyse", keep)
    out = tmp_path / "out"
    options = [f"--data-path={data}", f"--config={config}", f"--pth-path={checkpoint}", "--device=cpu",
               "--batch-size=1", f"--work-dir={out}", "--score-thr=0.05"]  # fmt: skip
    assert testing.main(options) == 0
    printed = capfd.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert result["analysis"] == analysis.FILES
    assert {path.name for path in out.iterdir()} == {"result.json", *analysis.FILES.values()}
    assert f"Error Analysis : classes.csv, confusion.png, precision_recall.png, worst.png in {out}" in printed
    assert "classes of the lowest AP" in printed
    [(source, boxes, _, found)] = kept
    assert 0 < found.right.sum() <= found.gts.sum()
    # pycocotools' own figures of these detections are those that were printed, and the means over the classes.
    with contextlib.redirect_stdout(io.StringIO()):
        gts = COCO(str(source.path))
        ids = gts.getCatIds(catNms=source.classes)
        expected = COCOeval(gts, gts.loadRes(analysis.entries_of(boxes, ids)), "bbox")
        expected.params.catIds, expected.params.maxDets = ids, [100, 300, 1000]
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
    with (out / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(source.classes)
    assert all(row["AP"] for row in rows)
    for place, name in enumerate(("AP", "AP50")):
        mean = np.mean([float(row[name]) for row in rows])
        assert mean == pytest.approx(expected.stats[place], abs=1e-6)
        assert result[{"AP": "mAP"}.get(name, name)] == round(expected.stats[place], 4 if HOST == "mmdet2" else 3)
    assert [sum(int(row[name]) for row in rows) for name in ("gts", "missed")] == [
        found.gts.sum(), sum(len(image.missed) for image in found.wrong),
    ]  # fmt: skip
    # An evaluation replaces what another has left: here the same, of two processes.
    table = (out / "classes.csv").read_bytes()
    (out / "classes.csv").write_text("")
    assert testing.main([*options, "--devices=2"]) == 0
    assert (out / "classes.csv").read_bytes() == table
    # But nothing else.
    other = shutil.copytree(out, tmp_path / "other")
    (other / "result.json").write_text(json.dumps({"task": "test", "analysis": {"classes": "classes.csv"}}))
    before = {path: path.read_bytes() for path in other.iterdir()}
    capfd.readouterr()
    status = testing.main([*options, f"--work-dir={other}"])
    assert "has a confusion.png that would be overwritten: name another" in sentence(status, capfd.readouterr().err)
    (other / "result.json").unlink()
    with pytest.raises(InputError, match=r"has a classes\.csv that would be overwritten"):
        check_replaceable(other, analysis.FILES.values())
    assert all(path.read_bytes() == before[path] for path in other.iterdir())
    assert set(report.FIGURES) < set(result)
