"""Counts what training YOLOX asks of an NPU, with MMDetection's code and with the plugin's: make bench-npu

Whole steps, from the loader's batch to the averaged weights and the log, and the head alone. Runs on a simulated device
(tests/npu_sim), which the environment's SOC chooses: A2 or 910A. Times say nothing and are not shown. Exit status: 0
both agree in their results, 1 they do not, 2 wrong environment.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("launches", "host syncs", "dynamic shapes", "AICPU risk", "copies", "strided")
# Of the plugin, at most so much: launches by device. Those of steps are YOLOX-M's.
TARGETS: dict[str, dict[str, Any]] = {
    "step, float16": {"launches": {"A2": 950, "910A": 1020}, "host syncs": 0, "AICPU risk": 0, "copies": 3},
    "step, float32": {"host syncs": 0, "AICPU risk": 0, "copies": 3},
    "head.loss, 30 gts": {"launches": {"A2": 100, "910A": 100}, "host syncs": 0, "AICPU risk": 0},
    "head.loss, 120 gts": {"launches": {"A2": 100, "910A": 100}, "host syncs": 0, "AICPU risk": 0},
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gts", type=int, nargs="+", default=[10, 30, 60, 120], help="gts in each image")
    parser.add_argument("--images", type=int, default=8, help="images in a batch (default 8)")
    parser.add_argument("--size", type=int, default=640, help="side of the images, pixels (default 640)")
    parser.add_argument("--model", default="m", choices=["nano", "tiny", "s", "m", "l", "x"], help="of the steps")
    parser.add_argument("--where", action="store_true", help="also list the calls that wait, with their places")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args(argv)
    if importlib.util.find_spec("torch_npu") is None:
        parser.error("torch_npu is not installed in this environment; `make bench-npu` sets one up")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    sys.path[:0] = [str(ROOT / "tests/npu_sim"), str(ROOT / "benchmarks")]
    import device  # before mmcv: stands in for its compiled part
    import steps
    import torch
    import torch_npu
    from cases import make_gts, trained
    from machine import facts
    from mmcv import ConfigDict
    from mmdet.core.bbox.assigners import AssignResult
    from mmdet.core.bbox.assigners.sim_ota_assigner import SimOTAAssigner as StockAssigner
    from mmdet.models.dense_heads import yolox_head as stock_module
    from mmdet.models.dense_heads.yolox_head import YOLOXHead as StockHead
    from parity import Verdict, compare_assignments, compare_boxes, compare_losses
    from peers import quiet

    import yolox_ops
    import yolox_plugin
    from yolox_ops.reference import grid_centers
    from yolox_plugin.mmdet2 import PARTS
    from yolox_plugin.mmdet2.head import YOLOXHead

    device.install()
    logging.disable(logging.INFO)

    def nms(boxes: Any, scores: Any, labels: Any, cfg: Any) -> Any:
        """In the place of mmcv's, which a plain mmcv-full has not for this device: one launch, whatever is inside."""
        with device.unrecorded("mmcv nms"):
            keep = yolox_ops.batched_nms(boxes, scores, labels, cfg.iou_threshold)
            return torch.cat([boxes[keep], scores[keep, None]], 1), keep

    stock_module.batched_nms = nms

    class Referee:
        """The operator in the place of MMDetection's assigner, with which it has to agree: where equal costs leave the
        choice open, losses of one and the same choice are compared."""

        def assign(self, scores: Any, priors: Any, boxes: Any, gts: Any, labels: Any) -> Any:
            args = (scores[None], priors, boxes[None], gts[None], labels[None], torch.tensor([len(gts)], device="npu"))
            index, iou = yolox_ops.simota_assign(*args)
            # On the CPU: a 910A would round the costs that MMDetection sorts.
            theirs = stock_assigner.assign(*(arg.cpu() for arg in (scores, priors, boxes, gts, labels)))
            other = (theirs.gt_inds[None] - 1, theirs.max_overlaps[None].clamp(min=0))
            compare_assignments(verdict, tuple(arg.cpu() for arg in args), (index.cpu(), iou.cpu()), other)
            return AssignResult(len(gts), index[0] + 1, iou[0], labels[index[0].clamp(min=0)])

    def head(kind: type) -> Any:
        made = kind(
            num_classes=80, in_channels=8, feat_channels=8,
            train_cfg=ConfigDict(assigner={"type": "SimOTAAssigner", "center_radius": 2.5}),
            test_cfg=ConfigDict(score_thr=0.01, nms={"type": "nms", "iou_threshold": 0.65}),
        )  # fmt: skip
        return made.to("npu")

    def batch(gts: int) -> tuple[list[list[Any]], list[Any], list[Any]]:
        """Predictions of a trained net for random gts, in the levels of the head's outputs, on the device."""
        rng = torch.Generator().manual_seed(gts)
        centers = grid_centers(options.size)
        images, boxes, labels = [], [], []
        for _ in range(options.images):
            gt, label = make_gts(gts, rng, options.size)
            cls, obj, box = trained(centers, gt, label, rng)
            corner, stride = centers[:, :2] - centers[:, 2:] / 2, centers[:, 2:]
            delta = torch.cat(
                [
                    ((box[:, :2] + box[:, 2:]) / 2 - corner) / stride,
                    ((box[:, 2:] - box[:, :2]).clamp(min=0.5) / stride).log(),
                ],
                1,
            )
            images.append((cls, delta, obj[:, None]))
            boxes.append(gt.to("npu"))
            labels.append(label.to("npu"))
        kinds: list[list[Any]] = []
        for parts in zip(*images, strict=True):
            levels, stacked = [], torch.stack(parts)
            begin = 0
            for step in (8, 16, 32):
                side = options.size // step
                level = stacked[:, begin : begin + side * side]
                levels.append(level.transpose(1, 2).reshape(len(parts), -1, side, side).contiguous().to("npu"))
                begin += side * side
            kinds.append(levels)
        return kinds, boxes, labels

    heads = {"mmdet": head(StockHead), "plugin": head(YOLOXHead)}
    stock_assigner = StockAssigner(center_radius=2.5)
    print("simulated NPU (fake CANN runtime, real torch_npu): counts, not speed")
    print(f"{device.SOC}, {options.images} images of {options.size} x {options.size}, 80 classes\n")
    print(f"{'':28}{'':8}" + "".join(f"{name:>16}" for name in COLUMNS))
    rows: list[dict[str, Any]] = []
    verdict = Verdict()

    def measure(what: str, name: str, run: Any) -> Any:
        run()  # what is made once (priors, constants) is made
        with device.recorded() as record:
            result = run()
        show(what, name, record)
        return result

    def show(what: str, name: str, record: Any) -> None:
        counts = record.counts()
        rows.append({"what": what, "who": name, **counts})
        print(f"{what:28}{name:8}" + "".join(f"{counts[column]:16}" for column in COLUMNS), flush=True)
        if options.where:
            print(device.by_place(record.waits()))

    def step(who: str, amp: str | None) -> Any:
        """What a step costs. Images are small, on which neither launches nor waits depend; from 1 MiB on, they are a
        copy of their own. The scale is one with which no step overflows: a step that is left out costs less."""
        scaling = {"fp16": {"loss_scale": {"init_scale": 8.0}}}
        dtype = torch.uint8 if who == "plugin" else torch.float32  # as the loader has them
        with tempfile.TemporaryDirectory() as folder, quiet():
            _, records = steps.train(
                Path(folder), f"yolox_{options.model}_8x8_300e_coco.py", amp, batch=options.images,
                gts=options.gts[0], dtype=dtype, options=scaling,
            )  # fmt: skip
        return records[2]  # the first ones allocate, the last one writes the log

    yolox_plugin.parts.revert()
    show("step, float16", "mmdet", step("mmdet", None))  # the only precision that MMDetection has on an NPU
    with quiet():
        yolox_plugin.parts.apply(PARTS)
    for precision, amp in (("float16", None), ("bfloat16", "bfloat16"), ("float32", "float32")):
        if (precision, device.SOC) != ("bfloat16", "910A"):  # which has none
            show(f"step, {precision}", "plugin", step("plugin", amp))

    metas = [{"scale_factor": [1.0] * 4}] * options.images
    for gts in options.gts:
        outputs, boxes, labels = batch(gts)
        heads["mmdet"].assigner = stock_assigner
        for name, h in heads.items():
            losses = measure(f"head.loss, {gts} gts", name, partial(h.loss, *outputs, boxes, labels, metas))
        heads["mmdet"].assigner = Referee()
        compare_losses(verdict, f"{gts} gts", losses, heads["mmdet"].loss(*outputs, boxes, labels, metas))
    detections = [
        measure("get_bboxes", name, partial(h.get_bboxes, *outputs, img_metas=metas, rescale=True))
        for name, h in heads.items()
    ]
    for i, (theirs, ours) in enumerate(zip(*detections, strict=True)):
        compare_boxes(verdict, f"image {i}", ours, theirs)
    for problem in verdict.problems:
        print(f"MISMATCH {problem}")
    print()
    for row in rows:
        counts = options.model == "m" or not row["what"].startswith("step")
        for column, most in TARGETS.get(row["what"], {}).items() if row["who"] == "plugin" and counts else ():
            limit = most[device.SOC] if isinstance(most, dict) else most
            met = "met" if row[column] <= limit else "NOT MET"
            print(f"target plugin {row['what']}: <= {limit} {column}: {row[column]} {met}")
    problems = len(verdict.problems)
    agree = f"assignments ({verdict.ties} ties), losses and detections agree"
    print(f"parity: {f'{problems} DIFFER' if problems else agree}")
    if options.json:
        machine = facts() | {"images": options.images, "size": options.size, "torch_npu": torch_npu.__version__}
        machine |= {"SOC": device.SOC, "model": options.model}
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    return int(problems > 0)


if __name__ == "__main__":
    raise SystemExit(main())
