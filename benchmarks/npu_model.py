"""Models images a second of training on eight Ascend NPUs, from counted calls: python benchmarks/npu_model.py

Nothing of it was measured on an NPU: `make bench-npu` counted in simulation what a step of YOLOX-M asks of one, and
each call has a cost, which is assumed. A step takes

    max(launches * launch, device) + host syncs * wait + AICPU risk * ai-cpu:

the host launches ahead while the device works, so the slower of them sets the pace; in a wait, and while the AI CPU
works, neither gets on. (Around waits they overlap less than that: at worst, the faster one's time comes on top.) A step
at N gts is the counted one with the head's loss at N gts in the place of its own. Eight devices train eight times the
images of a step, but no more than the loader's workers make. Exchanging gradients takes no time.

Each figure has a range, from assumed costs doubled to halved: trust it to a factor of 2. Whoever has a device gives
measured costs on the command line. Exit status: 0, or 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from report import can_plot

FIGURES = Path(__file__).resolve().parents[1] / "docs/figures"
Data = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    what: str
    unit: str
    assumed: Mapping[str, float]  # by device


# All assumed: none was measured on an NPU or its host. The sample is the plugin's on one core of a Xeon, 58 a second.
COSTS = {
    "launch": Cost("a launch", "us", {"910A": 30, "A2": 12}),
    "wait": Cost("a wait for the device", "us", {"910A": 80, "A2": 60}),
    "ai-cpu": Cost("a call on the AI CPU", "us", {"910A": 150, "A2": 100}),
    "device": Cost("the kernels of a step of 8 images in float16", "ms", {"910A": 55, "A2": 42}),
    "sample": Cost("a sample of a loader's worker", "ms", {"910A": 17.2, "A2": 17.2}),
}
SECONDS = {"us": 1e-6, "ms": 1e-3}
DEVICES = 8
WORKERS = 4  # of the loader, on each device: MMDetection's config
# Images a second of YOLOX-M on eight devices. The ModelZoo names neither its NPU nor the competitor's device.
PUBLISHED = [
    ("ModelZoo 2022, NPU, 46.0 mAP", 175.0),
    ("ModelZoo 2022, competitor, 46.2 mAP", 244.7),
    ("ModelZoo 2024, NPU, 46.1 mAP", 238.0),
    ("ModelZoo 2024, competitor, 46.2 mAP", 322.0),
    ("MindSpore, Ascend 910, 46.7 mAP", 239.1),
]


@dataclass(frozen=True)
class Row:
    """Images a second: as expected, with assumed costs doubled, and halved."""

    what: str
    who: str  # published, mmdet, plugin or loader
    rate: float
    low: float
    high: float
    step: float | None = None  # seconds

    @property
    def kind(self) -> str:
        return {"published": "published", "loader": "assumed"}.get(self.who, "simulated + modelled")

    @property
    def number(self) -> str:
        return f"{self.rate:g}" if self.who == "published" else rounded(self.rate)


def rounded(value: float) -> str:
    """Two digits, as the model knows no more."""
    return f"{float(f'{value:.2g}'):,.0f}"


def costs(soc: str, given: Mapping[str, float]) -> list[dict[str, float]]:
    """In seconds: as expected, and those that are not given doubled, and halved."""
    return [
        {name: given.get(name, cost.assumed[soc] * factor) * SECONDS[cost.unit] for name, cost in COSTS.items()}
        for factor in (1, 2, 0.5)
    ]


def counted(run: Data, who: str) -> dict[int, dict[str, int]]:
    """What a step in float16 asks of the device, by gts an image."""
    found = {row["what"]: row for row in run["rows"] if row["who"] == who}
    losses = {int(what.split()[1]): row for what, row in found.items() if what.startswith("head.loss")}
    step, own = found["step, float16"], next(iter(losses.values()))  # the step was counted at the first gts
    columns = ("launches", "host syncs", "AICPU risk")
    return {gts: {name: step[name] - own[name] + loss[name] for name in columns} for gts, loss in losses.items()}


def step_time(counts: Mapping[str, int], cost: Mapping[str, float]) -> float:
    """Seconds of a step."""
    pace = max(counts["launches"] * cost["launch"], cost["device"])
    return pace + counts["host syncs"] * cost["wait"] + counts["AICPU risk"] * cost["ai-cpu"]


def loader(soc: str, given: Mapping[str, float], workers: int) -> Row:
    """What the loader makes, at most."""
    rates = (DEVICES * workers / cost["sample"] for cost in costs(soc, given))
    return Row(f"loader, {DEVICES} x {workers} workers", "loader", *rates)


def modelled(run: Data, given: Mapping[str, float], workers: int) -> list[Row]:
    """The rows of a device, one for all gts that ask the same of it."""
    soc, images = run["machine"]["SOC"], run["machine"]["images"]
    most = loader(soc, given, workers)
    rows = []
    for who in ("mmdet", "plugin"):
        for counts, same in groupby(counted(run, who).items(), key=lambda item: item[1]):
            gts = [str(number) for number, _ in same]
            what = f"{soc}, {who}, {' to '.join(dict.fromkeys((gts[0], gts[-1])))} gts"
            steps = [step_time(counts, cost) for cost in costs(soc, given)]
            rate, low, high = (DEVICES * images / step for step in steps)
            rows.append(Row(what, who, min(rate, most.rate), min(low, most.low), min(high, most.high), steps[0]))
    return rows


def all_rows(runs: Sequence[Data], given: Mapping[str, float], workers: int) -> list[Row]:
    """What is published, what is modelled of each device, and the loader, which is the same for all."""
    published = [Row(what, "published", rate, rate, rate) for what, rate in PUBLISHED]
    devices = [row for run in runs for row in modelled(run, given, workers)]
    return [*published, *devices, loader(runs[0]["machine"]["SOC"], given, workers)]


def assumptions(soc: str, given: Mapping[str, float]) -> str:
    """All costs of a device in a line."""
    parts = [
        f"{cost.what} {given.get(name, cost.assumed[soc]):g} {cost.unit}{' (given)' if name in given else ''}"
        for name, cost in COSTS.items()
    ]
    return f"{soc}: {', '.join(parts)}"


def table(runs: Sequence[Data], given: Mapping[str, float], workers: int) -> str:
    """The costs and all rows, as text that is Markdown, too."""
    cells = [(f"{DEVICES} devices", "", "ms a step", "images/s", "costs doubled to halved")]
    cells.append(("---", "---", "---:", "---:", "---:"))
    for row in all_rows(runs, given, workers):
        range_ = "" if row.who == "published" else f"{rounded(row.low)} to {rounded(row.high)}"
        cells.append((row.what, row.kind, rounded(row.step * 1e3) if row.step else "", row.number, range_))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        [
            "Modelled from simulated counts and assumed costs, not measured: trust it to a factor of 2. Costs:",
            *(f"- {assumptions(run['machine']['SOC'], given)}" for run in runs),
            "",
            *(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in cells),
        ]
    )


def plot(path: Path, rows: Sequence[Row]) -> None:
    """A horizontal bar for each row, with a line from costs doubled to costs halved."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"published": "#deddda", "mmdet": "#c64600", "plugin": "#1a5fb4", "loader": "#26a269"}
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.28 * len(rows)), layout="constrained")
    for y, row in enumerate(rows):
        hatch = "////" if row.who == "published" else None
        axes.barh(y, row.rate, height=0.75, color=colours[row.who], hatch=hatch, edgecolor="#77767b", linewidth=0)
        axes.plot((row.low, row.high), (y, y), color="#77767b", linewidth=2)
        axes.text(row.high, y, f"  {row.number} {row.kind}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row.what for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.14, y=0.02)
    axes.set_xlabel(f"images a second on {DEVICES} devices; lines: assumed costs doubled to halved", fontsize=9)
    figure.suptitle(
        "YOLOX-M, modelled from simulated counts and assumed costs, or published; nothing was measured here\n"
        "trust what is modelled to a factor of 2",
        fontsize=9,
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def counts(name: str) -> Data:
    """A run of npu_launch_bench.py that the assumed costs are for."""
    if not Path(name).is_file():
        raise argparse.ArgumentTypeError(f"{name} does not exist")
    run: Data = json.loads(Path(name).read_text())
    machine, known = run.get("machine", {}), COSTS["launch"].assumed
    if machine.get("SOC") not in known or machine.get("model") != "m":
        raise argparse.ArgumentTypeError(
            f"{name}: expected what npu_launch_bench.py --json writes of YOLOX-M on {' or '.join(known)}, got SOC"
            f" {machine.get('SOC')}, model {machine.get('model')}"
        )
    return run


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "counts", nargs="*", type=counts, metavar="COUNTS",
        help="JSON of npu_launch_bench.py; by default those of docs/figures",
    )  # fmt: skip
    for name, cost in COSTS.items():
        assumed = ", ".join(f"{soc} {value:g}" for soc, value in cost.assumed.items())
        help_ = f"{cost.what}, {cost.unit} (assumed: {assumed})"
        parser.add_argument(f"--{name}", type=float, metavar=cost.unit.upper(), help=help_)
    parser.add_argument("--workers", type=int, default=WORKERS, help=f"of the loader, a device (default {WORKERS})")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the rows as a PNG chart (needs matplotlib)")
    options = parser.parse_args(argv)
    options.counts = options.counts or [counts(str(FIGURES / name)) for name in ("npu_910a.json", "npu.json")]
    options.given = {name: value for name in COSTS if (value := getattr(options, name.replace("-", "_"))) is not None}
    for name, value in options.given.items():
        if not value > 0:
            parser.error(f"--{name} must be more than 0, got {value:g}")
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    if options.plot and not options.plot.resolve().parent.is_dir():
        parser.error(f"the folder of {options.plot} does not exist")
    if options.plot and not can_plot():
        parser.error("--plot needs matplotlib: pip install matplotlib")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    print(table(options.counts, options.given, options.workers))
    if options.plot:
        plot(options.plot, all_rows(options.counts, options.given, options.workers))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
