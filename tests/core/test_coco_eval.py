"""An evaluation in a process that logs as MMDetection's do."""

import subprocess
import sys

PROGRAM = """
import logging
from pycocotools.coco import COCO
from yolox_plugin.core import coco_eval

truth = COCO()
truth.dataset = {
    "images": [{"id": 1, "width": 64, "height": 64}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0}],
    "categories": [{"id": 1, "name": "disc"}],
}
truth.createIndex()
found = truth.loadRes([{"image_id": 1, "category_id": 1, "bbox": [8, 8, 40, 40], "score": 0.9}])
assert coco_eval.COCOeval_faster is not None
evaluation = coco_eval.COCOeval(truth, found, "bbox")
evaluation.evaluate()
evaluation.accumulate()
evaluation.summarize()
assert evaluation.stats[0] == 1
print(logging.root.handlers)
"""


def test_no_line_of_the_log_comes_twice():
    """As it would from a handler of the root logger."""
    process = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "[]"
