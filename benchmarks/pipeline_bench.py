"""Times training samples of the standard config, MMDetection's and the plugin's in turns: python
benchmarks/pipeline_bench.py

On JPEGs of 640 x 480 that it makes; first makes sure that samples are equal. Exit status: 0 they are, 1 they differ, 2
wrong arguments. Times never change it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from figures import pipeline_chart
from machine import caption, facts
from peers import quiet

with quiet():
    import yolox_plugin  # noqa: F401  before MMDetection, which may want operators from it

import cv2
import mmcv
import mmdet
import numpy as np
import torch
from mmcv import Config
from mmdet.datasets import build_dataloader, pipelines
from mmdet.datasets.coco import CocoDataset as StockCocoDataset
from report import can_plot

from yolox_plugin.mmdet2.dataset import CocoDataset, MultiImageMixDataset
from yolox_plugin.protocol import Moment

# Under MMDetection's own name there is the plugin's.
StockMultiImageMixDataset: Any = MultiImageMixDataset.__base__
CONFIG = Path(mmdet.__file__).parent / ".mim/configs/yolox/yolox_m_8x8_300e_coco.py"
STOCK, PLUGIN, CACHED = "mmdet", "plugin", "plugin, cache=ram"
STAGES = ("read, decode", "Mosaic", "RandomAffine", "MixUp", "YOLOXHSVRandomAug", "others", "copies")
TARGETS = {PLUGIN: 2.0, CACHED: 4.0}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=200, help="samples of each side, compared and timed")
    parser.add_argument("--images", type=int, default=64, help="JPEGs in the data set")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, os.cpu_count() or 1], help="loaders to time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the samples as stacked bars (needs matplotlib)")
    options = parser.parse_args(argv)
    for name, least in (("samples", 2), ("images", 4)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    if any(count < 1 for count in options.workers):
        parser.error(f"--workers must be at least 1, got {min(options.workers)}")
    for path in (options.json, options.plot):
        if path and not path.resolve().parent.is_dir():
            parser.error(f"the folder of {path} does not exist")
    if options.plot and not can_plot():
        parser.error("--plot needs matplotlib: pip install matplotlib")
    return options


def photograph(rng: np.random.Generator, height: int = 480, width: int = 640) -> np.ndarray[Any, Any]:
    """An image with the falling spectrum of photographs, and edges."""
    image = np.zeros((height, width, 3))
    for octave in range(1, 8):
        shape = (max(height >> octave, 1), max(width >> octave, 1), 3)
        image += cv2.resize(rng.normal(0, 2.5 * 1.6**octave, shape), (width, height))
    for _ in range(12):
        x, y, w, h = rng.integers(0, [width, height, width // 3, height // 3])
        image[y : y + h, x : x + w] += rng.normal(0, 40, 3)
    return (image + 115 + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)


def make_images(root: Path, count: int) -> int:
    """A COCO data set with seven gts an image, as COCO has on average; bytes of its files."""
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    written = 0
    for i in range(count):
        path = root / f"{i:06}.jpg"
        if not cv2.imwrite(str(path), photograph(rng)):
            raise OSError(f"cannot write {path}")
        written += path.stat().st_size
        images.append({"id": i, "file_name": path.name, "height": 480, "width": 640})
        for _ in range(7):
            w, h = rng.uniform(10, [300, 220])
            box = [rng.uniform(0, 640 - w), rng.uniform(0, 480 - h), w, h]
            annotations.append({"id": len(annotations), "image_id": i, "category_id": int(rng.integers(80)),
                                "bbox": box, "area": w * h, "iscrowd": 0})  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in enumerate(StockCocoDataset.CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(content))
    return written


class Clock:
    """Seconds in each stage, those of stages within it left out."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._inner = [0.0]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self._inner.append(0.0)
        yield
        taken = time.perf_counter() - start
        self.seconds[name] += taken - self._inner.pop()
        self._inner[-1] += taken


class Timed:
    """A step with a clock, which MMDetection's data set takes for the step."""

    def __init__(self, step: Any, clock: Clock) -> None:
        self._step, self._clock = step, clock
        if hasattr(step, "get_indexes"):
            self.get_indexes = step.get_indexes

    def __call__(self, results: Any) -> Any:
        with self._clock.stage(stage_of(self._step)):
            return self._step(results)


def stage_of(step: Any) -> str:
    name = type(step).__name__
    return name if name in STAGES else "others"


class Side:
    """One way to make samples. `clock` has the seconds of `timed`, whose samples are made a little slower by it."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.clock = name, Clock()
        cfg = Config.fromfile(str(CONFIG)).data.train
        steps = [dict(step) for step in cfg.pipeline]
        inner = {"ann_file": str(root / "annotations.json"), "img_prefix": str(root), "filter_empty_gt": False,
                 "pipeline": [dict(step) for step in cfg.dataset.pipeline]}  # fmt: skip
        clock = self.clock
        if name == STOCK:
            data = StockCocoDataset(**inner)
            self.dataset = StockMultiImageMixDataset(dataset=data, pipeline=steps)
            self.dataset.pipeline = [getattr(pipelines, step.pop("type"))(**step) for step in steps]
            self.timed = StockMultiImageMixDataset(dataset=data, pipeline=[])
            self.timed.pipeline = [Timed(step, clock) for step in self.dataset.pipeline]
            self.timed.pipeline_types = self.dataset.pipeline_types
        else:

            class Measured(MultiImageMixDataset):
                def _transform(self, transform: Any, sample: Any) -> Any:
                    with clock.stage(stage_of(transform)):
                        return super()._transform(transform, sample)

            options: dict[str, Any] = {"cache": "ram"} if name == CACHED else {}
            data = CocoDataset(**inner)
            self.dataset = MultiImageMixDataset(dataset=data, pipeline=steps, **options)
            self.timed = Measured(dataset=data, pipeline=steps)
            self.timed._cache = self.dataset._cache

    def draw(self, dataset: Any, seed: int) -> Any:
        np.random.seed(seed)
        return dataset[seed % len(dataset)]

    def clocked(self, seed: int) -> None:
        """Draws a sample with the clock of its stages running."""
        decode, read = mmcv.imfrombytes, mmcv.FileClient.get

        def with_clock(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                with self.clock.stage("read, decode"):
                    return function(*args, **kwargs)

            return call

        mmcv.imfrombytes, mmcv.FileClient.get = with_clock(decode), with_clock(read)
        try:
            with self.clock.stage("copies"):  # and the rest of the data set's own work
                self.draw(self.timed, seed)
        finally:
            mmcv.imfrombytes, mmcv.FileClient.get = decode, read


def difference(ours: Any, theirs: Any) -> str | None:
    """In what two samples differ, if they do."""
    for name in ("gt_bboxes", "gt_labels", "img"):
        a, b = ours[name].data.float(), theirs[name].data.float()
        if a.shape != b.shape or not torch.equal(a, b):
            return f"{name}, {tuple(a.shape)} and {tuple(b.shape)}"
    return None


def images_per_second(dataset: Any, workers: int, batches: int = 8) -> float:
    """Of a loader that nobody waits for."""
    loader = build_dataloader(dataset, 8, workers, dist=False, shuffle=True, seed=0, persistent_workers=True)
    done, start, count = 0, 0.0, 0
    while done < batches + 2 * workers:
        for _ in loader:
            done += 1
            if done == 2 * workers:  # those that were ready at first
                start = time.perf_counter()
            count += 8 * (done > 2 * workers)
            if done == batches + 2 * workers:
                break
    return count / (time.perf_counter() - start)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # as in a worker
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        written = make_images(root, options.images)
        machine = facts() | {
            "images": options.images,
            "JPEG kB": round(written / options.images / 1e3),
            "opencv": cv2.__version__,
            "IPP": cv2.ipp.useIPP(),
            "numpy": np.__version__,
            "mmdet": mmdet.__version__,
        }
        print(caption(machine))
        print("  ".join(f"{key}={machine[key]}" for key in ("images", "JPEG kB", "opencv", "IPP", "numpy", "mmdet")))
        with quiet():
            sides = [Side(name, root) for name in (STOCK, PLUGIN, CACHED)]
        result = bench(sides, root, options)
    if result["problems"]:
        print(*result["problems"], sep="\n")
        print(f"parity: {len(result['problems'])} DIFFER")
        return 1
    print(f"parity: {options.samples} samples are equal, bit by bit")
    data = {"machine": machine, **result}
    if options.json:
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.plot:
        pipeline_chart(options.plot, data)
    return 0


def bench(sides: list[Side], root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Equality, then times, taking turns; prints the table."""
    problems = []
    for seed in range(options.samples):
        theirs = sides[0].draw(sides[0].dataset, seed)
        for side in sides[1:]:
            problem = difference(side.draw(side.dataset, seed), theirs)
            if problem:
                problems.append(f"MISMATCH of {side.name}, seed {seed}: {problem}")
    if problems:
        return {"problems": problems}
    encoded = [path.read_bytes() for path in sorted(root.glob("*.jpg"))]
    taken: dict[str, list[float]] = {side.name: [] for side in sides}
    decode = []
    for side in sides[1:]:
        side.dataset.start_epoch(Moment(seed=0, takes_uint8=True))  # as the runner asks for
        side.timed.start_epoch(Moment(seed=0, takes_uint8=True))
    for seed in range(options.samples):
        for side in sides if seed % 2 == 0 else sides[::-1]:
            start = time.perf_counter()
            side.draw(side.dataset, seed)
            taken[side.name].append(time.perf_counter() - start)
            side.clocked(seed)
        start = time.perf_counter()
        for i in range(5):  # of MMDetection's sample
            mmcv.imfrombytes(encoded[(seed + i) % len(encoded)])
        decode.append(time.perf_counter() - start)
    rates: dict[str, dict[str, float]] = {side.name: {} for side in sides}
    for workers in options.workers:
        runs = [(side.name, images_per_second(side.dataset, workers)) for side in [*sides, *sides[::-1]]]
        for side in sides:
            rates[side.name][str(workers)] = statistics.fmean(rate for name, rate in runs if name == side.name)
    found: dict[str, Any] = {}
    for side in sides:
        low, middle, high = statistics.quantiles(taken[side.name], n=4, method="inclusive")
        found[side.name] = {
            "mean": statistics.fmean(taken[side.name]),
            "median": middle,
            "quartiles": [low, high],
            "stages": {name: seconds / options.samples * 1e3 for name, seconds in side.clock.seconds.items()},
            "images a second": rates[side.name],
        }
    print(table(found, statistics.fmean(decode)))
    return {"problems": [], "sides": found, "decode": statistics.fmean(decode)}


def row(title: str, cells: Iterable[str]) -> str:
    return f"{title:34}" + "".join(f"{cell:>20}" for cell in cells)


def table(found: dict[str, Any], decode: float) -> str:
    sides = list(found.values())
    base = sides[0]["mean"]
    lines = ["", row("milliseconds a sample, one core", found)]
    for stage in STAGES:
        lines.append(row(f"  {stage}", [f"{side['stages'][stage]:.2f}" for side in sides]))
    lines.append(row("whole, mean", [f"{side['mean'] * 1e3:.2f} ({base / side['mean']:.2f}x)" for side in sides]))
    spreads = ["{:.2f} - {:.2f}".format(*(v * 1e3 for v in side["quartiles"])) for side in sides]
    lines.append(row("whole, quartiles", spreads))
    lines.append(row("samples/s a core", [f"{1 / side['mean']:.1f}" for side in sides]))
    lines.append(row(f"to decoding 5 JPEGs: {decode * 1e3:.2f}", [f"{side['mean'] / decode:.2f}x" for side in sides]))
    for workers in sides[0]["images a second"]:
        lines.append(row(f"images/s of {workers} worker{'s' * (workers != '1')}",
                         [f"{side['images a second'][workers]:.1f}" for side in sides]))  # fmt: skip
    lines.append("")
    for name, least in TARGETS.items():
        ratio = base / found[name]["mean"]
        lines.append(f"target {name}: >= {least:g}x mmdet: {ratio:.2f}x {'met' if ratio >= least else 'NOT MET'}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
