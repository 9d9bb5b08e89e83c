"""Times evaluation, MMDetection's and the plugin's in turns:

    python benchmarks/eval_bench.py --data-path=coco2017 --pth-path=latest.pth

The options are those of `python -m yolox_plugin.test`. Each round and side evaluates val once, from the image files to
the boxes; MMDetection's side has its own classes in the loop of its tools/test.py. First makes sure that mAP agrees: to
3 decimals in float32, to 0.02 in bfloat16. Exit status: 0 it does, 1 it does not, 2 wrong arguments. Times never
change it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import profiles
import sides
import torch
from machine import caption, facts
from peers import quiet
from sides import BFLOAT16, PLUGIN, STOCK, Stopwatch

from yolox_plugin.run import evaluate as testing
from yolox_plugin.run.messages import InputError
from yolox_plugin.run.options import options_of, positive

host = sides.host()
# What mAP may differ by, MMDetection's own figures having three decimals. Few images have a noisy one.
TOLERANCE = {STOCK: 0.0, PLUGIN: 0.0005, BFLOAT16: 0.02}
BFLOAT16_TARGET = 0.002
# Of a side: at least so many times faster than MMDetection's.
TARGETS = {PLUGIN: 1.3, BFLOAT16: 2.0}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(parents=[testing.parser()], conflict_handler="resolve", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="of each side (default 5)")
    parser.add_argument("--threads", type=positive, default=2, metavar="N", help="of each side (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args(None if argv is None else options_of(argv))
    if options.json and (options.json.is_dir() or not options.json.resolve().parent.is_dir()):
        parser.error(f"--json {options.json} is a folder, or its folder does not exist")
    if options.device not in (None, "cpu") or options.devices != 1 or options.amp != "float32":
        parser.error("all sides have one CPU, and each its own precision: leave out --device, --devices and --amp")
    return options


class Side:
    """One implementation of an evaluation."""

    def __init__(self, name: str, cfg: Any, options: argparse.Namespace) -> None:
        amp = "bfloat16" if name == BFLOAT16 else "float32"
        with quiet():
            self.evaluation = testing.host.Evaluation(cfg, options.pth_path, options.batch_size, amp)
        model = self.evaluation.model
        sides.check_origin(name, [model, model.bbox_head])
        self.evaluation.shows_progress = False
        self.name, self.watch = name, Stopwatch()
        model.extract_feat = self.watch.around(model.extract_feat)
        model.bbox_head.forward = self.watch.around(model.bbox_head.forward)
        self.seconds: list[float] = []
        self.in_network: list[float] = []

    def round(self) -> Any:
        """Evaluates once; what `detect` found."""
        self.watch.read()
        start = time.perf_counter()
        found = self.evaluation.detect()
        self.seconds.append(time.perf_counter() - start)
        self.in_network.append(self.watch.read())
        return found

    def figures(self) -> dict[str, float | None]:
        """COCO's, of a round that is not timed."""
        found = self.round()
        self.seconds.clear()
        self.in_network.clear()
        with quiet():
            figures: dict[str, float | None] = self.evaluation.figures(found)
        return figures


def build_sides(options: argparse.Namespace) -> list[Side]:
    """MMDetection's first, as the plugin then takes its place in the registries."""
    stock = Side(STOCK, testing.host.load_config(options), options)
    sides.replace_classes()
    return [stock, *(Side(name, testing.host.load_config(options), options) for name in (PLUGIN, BFLOAT16))]


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    options.device, options.devices = "cpu", 1
    try:
        cfg = testing.host.load_config(options)
        testing.host.check(options, cfg)
        compared = build_sides(options)
    except (InputError, sides.WrongSide) as error:
        print(f"error: {error}")
        return 2
    images, batch = len(compared[0].evaluation.dataset), compared[0].evaluation.batch_size
    machine = facts() | {"config": options.config, "images": images, "batch": batch, "threads": options.threads}
    print(f"mmdet {host.VERSIONS['mmdet']}, {caption(machine)}")
    print(f"config={options.config}  images={images}  batch={batch}  threads={options.threads}", flush=True)
    found = [side.figures() for side in compared]
    problems = [
        f"{side.name}: mAP is {figures['mAP']}, MMDetection's {found[0]['mAP']}"
        for side, figures in zip(compared, found, strict=True)
        if not abs((figures["mAP"] or 0.0) - (found[0]["mAP"] or 0.0)) <= TOLERANCE[side.name]
    ]
    if not found[0]["mAP"]:
        problems.append(f"MMDetection's mAP is {found[0]['mAP']}, which says nothing: name a checkpoint that detects")
    for problem in problems:
        print(f"MISMATCH: {problem}")
    for turn in range(options.rounds):
        for side in compared if turn % 2 == 0 else compared[::-1]:
            side.round()
            print(".", end="", flush=True)
    print(f"\n{'ms an image, median':20}" + "".join(f"{side.name:>20}" for side in compared))
    totals = [statistics.median(side.seconds) / images * 1e3 for side in compared]
    networks = [statistics.median(side.in_network) / images * 1e3 for side in compared]
    for what, row in (("evaluation", totals), ("network", networks)):
        print(f"{what:20}" + "".join(f"{f'{ms:.1f} ({row[0] / ms:.2f}x)':>20}" for ms in row))
    print(f"{'mAP':20}" + "".join(f"{figures['mAP'] or 0.0:20.4f}" for figures in found))
    kinds = {side.name: profiles.of(side.round) for side in compared}
    print(profiles.table(kinds))
    for name, least in TARGETS.items():
        ratio = totals[0] / totals[[side.name for side in compared].index(name)]
        print(f"target {name}: {least}x MMDetection's: {ratio:.2f}x {'met' if ratio >= least else 'NOT MET'}")
    moved = abs((found[-1]["mAP"] or 0.0) - (found[0]["mAP"] or 0.0))
    met = "met" if moved <= BFLOAT16_TARGET else "NOT MET"
    print(f"target {BFLOAT16}: mAP within {BFLOAT16_TARGET}: {moved:.4f} {met}")
    print(f"parity: {f'{len(problems)} DIFFER' if problems else 'mAP agrees'}")
    if options.json:
        rows = {
            side.name: {"ms an image": total, "network": network, "mAP": figures["mAP"], **kinds[side.name]}
            for side, total, network, figures in zip(compared, totals, networks, found, strict=True)
        }
        options.json.write_text(json.dumps({"machine": machine, "sides": rows}, indent=1) + "\n")
    return int(bool(problems))


if __name__ == "__main__":
    raise SystemExit(main())
