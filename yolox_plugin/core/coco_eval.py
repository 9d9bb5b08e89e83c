"""pycocotools' evaluation of boxes, computed by faster-coco-eval where that is installed and gives the same figures."""

import logging
import math
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval as SlowCOCOeval

try:
    from faster_coco_eval import COCOeval_faster
except ImportError:
    COCOeval_faster = None

# What faster-coco-eval keeps of an id: it goes through float64.
LARGEST_ID = 2**53
PARAMETERS = ("imgIds", "catIds", "iouThrs", "recThrs", "maxDets", "areaRng", "areaRngLbl", "useCats")


class COCOeval(SlowCOCOeval):
    """pycocotools' class: its arguments, arrays in `eval`, figures in `stats` and printed table, but not `evalImgs`."""

    def evaluate(self) -> None:
        """See pycocotools. It includes `accumulate` where faster-coco-eval does the work."""
        self._is_accumulated = False
        if COCOeval_faster is None:
            super().evaluate()
            return
        problem = _outside_of_domain(self)
        if problem is None:
            # Not logging's own functions: they give the root logger a handler, and each line of the log comes twice.
            tell = logging.getLogger("yolox_plugin").debug
            fast = COCOeval_faster(self.cocoGt, self.cocoDt, self.params.iouType, print_function=tell)
            _copy_parameters(self.params, fast.params)
            try:
                fast.evaluate()
                fast.accumulate()
            # Whatever it is that faster-coco-eval cannot do, pycocotools decides whether it is an error.
            except Exception as error:
                problem = f"{type(error).__name__} in faster-coco-eval: {error}"
            else:
                _copy_parameters(fast.params, self.params)  # sorted now
                self.eval, self._is_accumulated = fast.eval, True
        if problem is not None:
            logging.getLogger("yolox_plugin").info(f"evaluating with pycocotools, which takes longer: {problem}")
            super().evaluate()

    def accumulate(self, p: Any = None) -> None:
        """See pycocotools."""
        if not self._is_accumulated or p is not None:
            super().accumulate(p)


def _copy_parameters(source: Any, target: Any) -> None:
    for name in PARAMETERS:
        setattr(target, name, getattr(source, name))


def _outside_of_domain(evaluation: SlowCOCOeval) -> str | None:
    """Why faster-coco-eval might find other figures than pycocotools, or fail where that does not; None if not."""
    ground_truth, params = evaluation.cocoGt, evaluation.params
    if params.iouType != "bbox":
        return f"the metric is {params.iouType}"
    for kind, ids in (("image", ground_truth.imgs), ("category", ground_truth.cats)):
        for id_ in ids:
            if not _is_id(id_):
                return f"{kind} id {id_!r} is not an integer from 0 to 2^53"
    for annotation in ground_truth.dataset.get("annotations", ()):
        problem = _odd_annotation(annotation)
        if problem is not None:
            return f"annotation {annotation.get('id')!r} {problem}"
    for detection in evaluation.cocoDt.dataset["annotations"]:
        if not _are_finite((detection["score"], *detection["bbox"])):
            return f"a detection of image {detection['image_id']!r} is not finite"
    return None


def _odd_annotation(annotation: dict[str, Any]) -> str | None:
    if not _is_id(annotation["id"]) or annotation["id"] == 0:
        return "has an id that is not an integer from 1 to 2^53"
    for field in ("area", "iscrowd"):
        if field not in annotation:
            return f"has no {field}"
    if annotation["iscrowd"] not in (0, 1):
        return f"has iscrowd={annotation['iscrowd']!r}"
    if not _are_finite((annotation["area"], *annotation["bbox"])):
        return "has an area or a bbox that is not finite"
    return None


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST_ID


def _are_finite(values: Any) -> bool:
    return all(isinstance(value, (int, float, np.number)) and math.isfinite(value) for value in values)
