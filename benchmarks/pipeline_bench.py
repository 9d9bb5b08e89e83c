"""Times training samples of the standard config, MMDetection's and the plugin's in turns: python
benchmarks/pipeline_bench.py

Of the MMDetection that is installed, on JPEGs of 640 x 480 that it makes; first makes sure that samples are equal. Exit
status: 0 they are, 1 they differ, 2 wrong arguments. Times never change it.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import sides
import torch
from figures import pipeline_chart
from machine import caption, facts
from peers import quiet
from report import can_plot
from sides import CACHED, PLUGIN, STOCK

from yolox_plugin.protocol import Moment

with quiet():
    import mmcv

host = sides.host()
STAGES = ("read, decode", "Mosaic", "RandomAffine", "MixUp", "YOLOXHSVRandomAug", "others", "copies")


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
    categories = [{"id": i, "name": name} for i, name in enumerate(host.CLASSES)]
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
        options = {"cache": "ram"} if name == CACHED else {}
        self.dataset = dataset = host.build_samples(root, **options)
        self.timed = copy.copy(dataset)
        if name == STOCK:
            self.timed.pipeline = [Timed(step, self.clock) for step in dataset.pipeline]
            sides.check_origin(name, [dataset, dataset.dataset, *dataset.pipeline])
        else:
            self.timed._transform = self.transform
            steps = [step for step in dataset.pipeline if stage_of(step) != "others"]
            sides.check_origin(name, [dataset, *steps])

    def transform(self, step: Any, sample: Any) -> Any:
        """The plugin's way through a step, which asks for the step's type, with the clock running."""
        with self.clock.stage(stage_of(step)):
            return self.dataset._transform(step, sample)

    def draw(self, dataset: Any, seed: int) -> Any:
        np.random.seed(seed)
        return dataset[seed % len(dataset)]

    def clocked(self, seed: int) -> None:
        """Draws a sample with the clock of its stages running."""

        def with_clock(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                with self.clock.stage("read, decode"):
                    return function(*args, **kwargs)

            return call

        with ExitStack() as stack:
            for place, name in host.READERS:
                stack.enter_context(mock.patch.object(place, name, with_clock(getattr(place, name))))
            with self.clock.stage("copies"):  # and the rest of the data set's own work
                self.draw(self.timed, seed)


def difference(ours: Any, theirs: Any) -> str | None:
    """In what two samples differ, if they do."""
    ours, theirs = host.contents(ours), host.contents(theirs)
    for name in theirs:
        a, b = ours[name].float(), theirs[name].float()
        if a.shape != b.shape or not torch.equal(a, b):
            return f"{name}, {tuple(a.shape)} and {tuple(b.shape)}"
    return None


def images_per_second(dataset: Any, workers: int, batches: int = 8) -> float:
    """Of a loader that nobody waits for."""
    loader = host.loader(dataset, 8, workers, shuffle=True)
    done, start, count = 0, 0.0, 0
    while done < batches + 2 * workers:
        for batch in loader:
            done += 1
            if done == 2 * workers:  # those that were ready at first
                start = time.perf_counter()
            count += len(host.unpack(batch)[0]) * (done > 2 * workers)
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
            **host.VERSIONS,
        }
        print(f"mmdet {host.VERSIONS['mmdet']}, {caption(machine)}")
        keys = ("images", "JPEG kB", "opencv", "IPP", "numpy", *host.VERSIONS)
        print("  ".join(f"{key}={machine[key]}" for key in keys), flush=True)
        with quiet():
            stock = Side(STOCK, root)
            sides.replace_classes()
            compared = [stock, Side(PLUGIN, root), Side(CACHED, root)]
        result = bench(compared, root, options)
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


def bench(compared: list[Side], root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Equality, then times, taking turns; prints the table."""
    problems = []
    for seed in range(options.samples):
        theirs = compared[0].draw(compared[0].dataset, seed)
        for side in compared[1:]:
            problem = difference(side.draw(side.dataset, seed), theirs)
            if problem:
                problems.append(f"MISMATCH of {side.name}, seed {seed}: {problem}")
    if problems:
        return {"problems": problems}
    encoded = [path.read_bytes() for path in sorted(root.glob("*.jpg"))]
    taken: dict[str, list[float]] = {side.name: [] for side in compared}
    decode = []
    for side in compared[1:]:
        side.dataset.start_epoch(Moment(seed=0, takes_uint8=True))  # as the runner asks for
    for seed in range(options.samples):
        for side in compared if seed % 2 == 0 else compared[::-1]:
            start = time.perf_counter()
            side.draw(side.dataset, seed)
            taken[side.name].append(time.perf_counter() - start)
            side.clocked(seed)
        start = time.perf_counter()
        for i in range(5):  # of MMDetection's sample
            mmcv.imfrombytes(encoded[(seed + i) % len(encoded)])
        decode.append(time.perf_counter() - start)
    rates: dict[str, dict[str, float]] = {side.name: {} for side in compared}
    for workers in options.workers:
        runs = [(side.name, images_per_second(side.dataset, workers)) for side in [*compared, *compared[::-1]]]
        for side in compared:
            rates[side.name][str(workers)] = statistics.fmean(rate for name, rate in runs if name == side.name)
    found: dict[str, Any] = {}
    for side in compared:
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
    columns = list(found.values())
    base = columns[0]["mean"]
    lines = ["", row("milliseconds a sample, one core", found)]
    for stage in STAGES:
        lines.append(row(f"  {stage}", [f"{side['stages'][stage]:.2f}" for side in columns]))
    lines.append(row("whole, mean", [f"{side['mean'] * 1e3:.2f} ({base / side['mean']:.2f}x)" for side in columns]))
    spreads = ["{:.2f} - {:.2f}".format(*(v * 1e3 for v in side["quartiles"])) for side in columns]
    lines.append(row("whole, quartiles", spreads))
    lines.append(row("samples/s a core", [f"{1 / side['mean']:.1f}" for side in columns]))
    lines.append(row(f"to decoding 5 JPEGs: {decode * 1e3:.2f}", [f"{side['mean'] / decode:.2f}x" for side in columns]))
    for workers in columns[0]["images a second"]:
        lines.append(row(f"images/s of {workers} worker{'s' * (workers != '1')}",
                         [f"{side['images a second'][workers]:.1f}" for side in columns]))  # fmt: skip
    lines.append("")
    for name, least in host.SAMPLE_TARGETS.items():
        ratio = base / found[name]["mean"]
        lines.append(f"target {name}: >= {least:g}x mmdet: {ratio:.2f}x {'met' if ratio >= least else 'NOT MET'}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
