"""What the detections of an evaluation get wrong: figures of each class, confusions, boxes that are missed or false.

AP and curves are pycocotools', of all detections. What is right, missed or false is counted at one score and at IoU
0.5: first within each class, by pycocotools. What that leaves is matched across the classes, the highest score first,
each detection with the gt of the largest IoU that is free: a confusion is a missed box of one class and a false one of
another. What pycocotools ignores, crowds and detections in them, counts nowhere.
"""

import contextlib
import csv
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval as SlowCOCOeval

from ..core.coco_eval import COCOeval
from .annotations import Source
from .survey import Array

FILES = {
    "classes": "classes.csv",
    "confusion": "confusion.png",
    "precision_recall": "precision_recall.png",
    "worst": "worst.png",
}
COLUMNS = ("class", "images", "gts", "AP", "AP50", "precision", "recall", "missed", "false")
IOU = 0.5
MAX_DETECTIONS = [100, 1000]  # an image and class: of mAP, and of the other figures that MMDetection reports
PRINTED = 5  # classes


class Wrong(NamedTuple):
    """An image with boxes that are missed or false."""

    name: str  # of its file, in the source's folder
    missed: Array  # [M, 4] (x1, y1, x2, y2), pixels
    missed_labels: Array  # [M]
    false: Array  # [F, 4]
    false_labels: Array  # [F]


class Analysis(NamedTuple):
    """Of C classes; NaN is what no figure can be given of."""

    classes: Sequence[str]
    score_thr: float
    images: Array  # [C] that have the class
    ap: Array  # [C] at IoU 0.50 to 0.95
    ap50: Array  # [C]
    curves: Array  # [2, 101, C] precision at IoU 0.5 and at 0.75, for recalls from 0 to 1
    confusion: Array  # [C + 1, C + 1] boxes: of the annotated class, or of none; as the detected one, or missed
    wrong: list[Wrong]  # the most missed and false boxes first

    @property
    def right(self) -> Any:
        """[C] boxes that are detected as what they are."""
        return np.diag(self.confusion)[:-1]

    @property
    def gts(self) -> Any:
        """[C] annotated boxes."""
        return self.confusion.sum(1)[:-1]

    @property
    def detected(self) -> Any:
        """[C] detections that count."""
        return self.confusion.sum(0)[:-1]

    @property
    def precision(self) -> Array:
        """[C] the share of the detections that are right."""
        return _share(self.right, self.detected)

    @property
    def recall(self) -> Array:
        """[C] the share of the annotated boxes that are detected."""
        return _share(self.right, self.gts)


def analyse(source: Source, found: Mapping[Any, Sequence[Array]], score_thr: float) -> Analysis:
    """Compares detections with an annotation file that `check_data` has passed.

    Args:
        found: by the image's id the boxes [N, 5] (x1, y1, x2, y2, score) of each label, pixels.
        score_thr: from which on a detection may be right, false or a confusion.
    """
    content = json.loads(source.path.read_bytes().decode("utf-8-sig"))
    categories = [category for category in content["categories"] if category["name"] in source.classes]
    ids = [category["id"] for category in categories]
    detections = entries_of(found, ids)
    gts = _index(content)
    everything = _evaluated(COCOeval, gts, detections, ids, maxDets=MAX_DETECTIONS)
    order = [list(everything.params.catIds).index(id_) for id_ in ids]  # they are sorted there
    precision = everything.eval["precision"][:, :, order, 0]
    precision = np.where(precision > -1, precision, np.nan)
    least = float(np.float32(score_thr))  # as scores are, and as they are compared where boxes are drawn
    certain = [detection for detection in detections if detection["score"] >= least]
    limits = {"iouThrs": np.array([IOU]), "maxDets": [max(len(certain), 1)]}
    near = _evaluated(SlowCOCOeval, gts, certain, ids, **limits)  # the fast one keeps no matches
    images, confusion, missed, false = _matched(near, gts, {id_: label for label, id_ in enumerate(ids)})
    wrong = []
    for image in content["images"]:
        sides = [_boxes(side.get(image["id"], ())) for side in (missed, false)]
        if len(sides[0][0]) + len(sides[1][0]):
            wrong.append(Wrong(image["file_name"], *sides[0], *sides[1]))
    wrong.sort(key=lambda image: -len(image.missed) - len(image.false))
    # The means that pycocotools' figures are; a class has either all of these precisions or none.
    return Analysis(
        [category["name"] for category in categories], score_thr, images,
        precision[:, :, :, 0].mean((0, 1)), precision[0, :, :, -1].mean(0), precision[[0, 5], :, :, -1],
        confusion, wrong,
    )  # fmt: skip


def entries_of(found: Mapping[Any, Sequence[Array]], ids: Sequence[Any]) -> list[dict[str, Any]]:
    """Detections (see `analyse`) as pycocotools takes them.

    Args:
        ids: of the categories, in the order of labels.
    """
    entries: list[dict[str, Any]] = []
    for image, results in found.items():
        for category, boxes in zip(ids, results, strict=False):  # the config may have more classes than the file
            for x1, y1, x2, y2, score in boxes.tolist():
                w, h = x2 - x1, y2 - y1
                entries.append({"id": len(entries) + 1, "image_id": image, "category_id": category, "score": score,
                                "bbox": [x1, y1, w, h], "area": w * h, "iscrowd": 0})  # fmt: skip
    return entries


def _index(content: dict[str, Any]) -> COCO:
    """pycocotools' view of the content of an annotation file, without its prints."""
    made = COCO()
    made.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        made.createIndex()
    return made


def _evaluated(kind: Any, gts: COCO, detections: Sequence[dict[str, Any]], ids: Sequence[Any], **options: Any) -> Any:
    """pycocotools' evaluation of boxes of any size, with these parameters."""
    found = _index({**gts.dataset, "annotations": detections})  # its own loadRes refuses an empty list
    evaluation = kind(gts, found, "bbox")
    params = evaluation.params
    vars(params).update(options, catIds=ids, areaRng=params.areaRng[:1], areaRngLbl=params.areaRngLbl[:1])
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


Boxes = dict[Any, list[tuple[int, dict[str, Any]]]]  # by image, with labels


def _matched(near: Any, gts: COCO, labels: Mapping[Any, int]) -> tuple[Array, Array, Boxes, Boxes]:
    """Images of each class, confusions (see `Analysis`), and what is missed and false in each image.

    Args:
        near: pycocotools' evaluation at one IoU.
        labels: by the categories' ids.
    """
    images = np.zeros(len(labels), np.int64)
    confusion = np.zeros((len(labels) + 1, len(labels) + 1), np.int64)
    missed: Boxes = defaultdict(list)
    false: Boxes = defaultdict(list)
    for part in filter(None, near.evalImgs):
        label = labels[part["category_id"]]
        counted = [
            (id_, match) for id_, match, ignored
            in zip(part["gtIds"], part["gtMatches"][0].tolist(), part["gtIgnore"], strict=True) if not ignored
        ]  # fmt: skip
        right = {match for _, match in counted if match}
        images[label] += bool(counted)
        confusion[label, label] += len(right)
        missed[part["image_id"]] += [(label, gts.anns[id_]) for id_, match in counted if not match]
        false[part["image_id"]] += [
            (label, near.cocoDt.anns[id_]) for id_, ignored in zip(part["dtIds"], part["dtIgnore"][0], strict=True)
            if id_ not in right and not ignored
        ]  # fmt: skip
    for image in missed.keys() | false.keys():
        pairs = _pairs(missed[image], false[image])
        for place, (label, _) in enumerate(missed[image]):
            confusion[label, pairs.get(place, -1)] += 1
        for label in [label for label, _ in false[image]]:
            confusion[-1, label] += 1
        for label in pairs.values():
            confusion[-1, label] -= 1  # which is no false one on the background
    return images, confusion, missed, false


def _pairs(missed: Sequence[tuple[int, dict[str, Any]]], false: Sequence[tuple[int, dict[str, Any]]]) -> dict[int, int]:
    """For places in `missed` the label of the one in `false` that is at the same place in the image."""
    if not missed or not false:
        return {}
    boxes = ([entry["bbox"] for _, entry in side] for side in (false, missed))
    overlaps = mask.iou(*boxes, [0] * len(missed))
    pairs: dict[int, int] = {}
    for place in sorted(range(len(false)), key=lambda place: -false[place][1]["score"]):
        best = int(overlaps[place].argmax())
        if overlaps[place, best] >= IOU:
            pairs[best] = false[place][0]
            overlaps[:, best] = -1  # taken
    return pairs


def _boxes(entries: Sequence[tuple[int, dict[str, Any]]]) -> tuple[Array, Array]:
    """Corners [N, 4] and labels [N]."""
    boxes = np.array([entry["bbox"] for _, entry in entries], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes, np.array([label for label, _ in entries], np.int64)


def _share(part: Array, whole: Array) -> Array:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def rows_of(found: Analysis) -> list[tuple[Any, ...]]:
    """A row a class, see COLUMNS; None is what no figure can be given of."""
    shares = [[None if np.isnan(share) else round(float(share), 6) for share in column]
              for column in (found.ap, found.ap50, found.precision, found.recall)]  # fmt: skip
    counts = [column.tolist() for column in (found.images, found.gts)]
    errors = [(whole - found.right).tolist() for whole in (found.gts, found.detected)]
    return list(zip(found.classes, *counts, *shares, *errors, strict=True))


def write_table(path: Path, found: Analysis) -> None:
    """Writes classes.csv."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows(rows_of(found))


def tell(found: Analysis) -> None:
    """Prints the classes of the lowest AP, if there is more than one."""
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in rows_of(found)]
    rows = sorted((row for row in rows if row["AP"] is not None), key=lambda row: row["AP"])
    if len(found.classes) == 1 or not rows:
        return
    print(f"classes of the lowest AP; precision, recall, missed and false boxes at a score of {found.score_thr:g}:")
    width = max(len(row["class"]) for row in rows[:PRINTED])
    for row in rows[:PRINTED]:
        precision = "none" if row["precision"] is None else f"{row['precision']:.3f}"
        print(
            f"    {row['class']:{width}}  AP {row['AP']:.3f}  AP50 {row['AP50']:.3f}  precision {precision}"
            f"  recall {row['recall']:.3f}  {row['missed']} of {row['gts']} missed  {row['false']} false"
        )
