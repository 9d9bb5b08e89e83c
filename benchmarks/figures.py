"""Redraws the figures of docs/ from the runs committed in docs/figures: python benchmarks/figures.py

Charts are drawn anew, tables are written between the markers of their run. `make measure`, on a machine that does
nothing else, first makes the runs: each is what a benchmark writes with `--json`.
Exit status: 0 all figures are drawn, 1 a run is missing.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import npu_model
import report
from machine import caption

DOCS = Path(__file__).resolve().parents[1] / "docs"
Data = dict[str, Any]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is words and whose others are numbers."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def setting(machine: Data) -> str:
    """A training step's machine and model."""
    size, config = machine["size"], f"mmdet {machine['mmdet']}, {machine['config']}"
    return f"{caption(machine)}; {config}, batch of {machine['batch']}, {size} x {size} pixels"


def train_chart(path: Path, data: Data) -> None:
    bars = {
        f"{result['gts']} gts: {name}": {stage: seconds * 1e3 for stage, seconds in side["stages"].items()}
        for result in data["results"]
        for name, side in result["sides"].items()
    }
    report.stacked_bars(path, setting(data["machine"]), "milliseconds a step, median of each stage", bars)


def train_tables(data: Data) -> str:
    parts = [f"One run on {setting(data['machine'])}."]
    for result in data["results"]:
        sides = list(result["sides"].values())
        rows = [[stage, *(f"{side['stages'][stage] * 1e3:.1f}" for side in sides)] for stage in sides[0]["stages"]]
        for what in ("head loss", "step"):
            base = sides[0][what]
            rows.append([what, *(f"{side[what] * 1e3:.1f} ({base / side[what]:.2f}x)" for side in sides)])
        alone = [side["network alone"] for side in sides]
        rows.append(["network alone", *(f"{seconds * 1e3:.1f}" if seconds else "-" for seconds in alone)])
        rows.append(["outside the network", *(f"{side['outside the network']:.1%}" for side in sides)])
        parts += [f"{result['gts']} gts an image:", markdown(["ms, median", *result["sides"]], rows)]
    profiled = next((result for result in data["results"] if "profile" in result), None)
    if profiled:
        parts.append(f"The operators behind a step at {profiled['gts']} gts, milliseconds and calls:")
        parts.append(profile_table(profiled["profile"]))
    return "\n\n".join(parts)


def profile_table(profile: Data) -> str:
    columns = []
    for side in profile.values():
        cells = [(name.removeprefix("aten::"), ms, count) for name, (ms, count) in side["operators"].items()]
        columns.append([*cells, ("all", *side["all"])])
    rows = [
        [cell for name, ms, count in row for cell in (name, f"{ms:.1f} ({count})")]
        for row in zip(*columns, strict=True)
    ]
    head = [cell for name in profile for cell in (name, "")]
    return "\n".join(
        [f"| {' | '.join(head)} |", "|" + "---|---:|" * len(profile), *(f"| {' | '.join(row)} |" for row in rows)]
    )


def pipeline_setting(machine: Data) -> str:
    ipp = "with" if machine["IPP"] else "without"
    return (
        f"{caption(machine)}; mmdet {machine['mmdet']}, one core, JPEGs of {machine['JPEG kB']} kB, OpenCV"
        f" {machine['opencv']} {ipp} IPP"
    )


def pipeline_chart(path: Path, data: Data) -> None:
    bars = {name: side["stages"] for name, side in data["sides"].items()}
    report.stacked_bars(path, pipeline_setting(data["machine"]), "milliseconds a sample, mean", bars)


def pipeline_table(data: Data) -> str:
    sides = list(data["sides"].values())
    base = sides[0]["mean"]
    rows = [[stage, *(f"{side['stages'][stage]:.1f}" for side in sides)] for stage in sides[0]["stages"]]
    rows.append(["whole", *(f"{side['mean'] * 1e3:.1f} ({base / side['mean']:.2f}x)" for side in sides)])
    rows.append(["to decoding 5 JPEGs alone", *(f"{side['mean'] / data['decode']:.2f}x" for side in sides)])
    for workers in sides[0]["images a second"]:
        plural = "s" if workers != "1" else ""
        rates = (side["images a second"][workers] for side in sides)
        rows.append([f"images/s of {workers} worker{plural}", *(f"{rate:.0f}" for rate in rates)])
    table = markdown(["ms a sample, mean", *data["sides"]], rows)
    return f"One run on {pipeline_setting(data['machine'])}.\n\n{table}"


def npu_table(data: Data) -> str:
    columns = [name for name in data["rows"][0] if name not in ("what", "who")]
    rows = [[row["what"], row["who"], *(str(row[name]) for name in columns)] for row in data["rows"]]
    machine = data["machine"]
    size = machine["size"]
    table = markdown(["", "", *columns], rows).replace("|---|---:|", "|---|---|", 1)
    return (
        f"Simulated Ascend {machine['SOC']}: steps of YOLOX-{machine['model'].upper()} from the loader's batch on; the"
        f" head at {machine['images']} images of {size} x {size}, 80 classes. torch and torch_npu"
        f" {machine['torch_npu']}, {machine['date']}. Counts, not speed.\n\n{table}"
    )


def npu_model_table(runs: Data) -> str:
    return npu_model.table(list(runs.values()), {}, npu_model.WORKERS)


def npu_model_chart(path: Path, runs: Data) -> None:
    npu_model.plot(path, npu_model.all_rows(list(runs.values()), {}, npu_model.WORKERS))


# Name of the run: (the page with its table, what makes the table), and (its chart, what draws it).
TABLES: dict[str, tuple[str, Callable[[Data], str]]] = {
    "train": ("training.md", train_tables),
    "pipeline": ("training.md", pipeline_table),
    "train_mmdet3": ("mmdet3.md", train_tables),
    "pipeline_mmdet3": ("mmdet3.md", pipeline_table),
    "npu": ("npu.md", npu_table),
    "npu_910a": ("npu.md", npu_table),
    "npu_model": ("npu.md", npu_model_table),
}
CHARTS: dict[str, tuple[str, Callable[[Path, Data], None]]] = {
    "ops": ("ops_bench.png", report.plot),
    "train": ("train_bench.png", train_chart),
    "pipeline": ("pipeline_bench.png", pipeline_chart),
    "npu_model": ("npu_model.png", npu_model_chart),
}
# What is made of several runs.
SEVERAL = {"npu_model": ("npu_910a", "npu")}


def files(name: str) -> list[str]:
    return [f"{run}.json" for run in SEVERAL.get(name, (name,))]


def read(name: str) -> Data:
    """A run, or several by their files' names."""
    found: Data = {file: json.loads((DOCS / "figures" / file).read_text()) for file in files(name)}
    return found if name in SEVERAL else found[f"{name}.json"]


def with_tables(page: str, runs: dict[str, Data]) -> str:
    """The text of a page of docs/ with the tables of these runs."""
    text = (DOCS / page).read_text()
    for name, data in runs.items():
        if name in TABLES and TABLES[name][0] == page:
            source = " and ".join(files(name))
            begin, end = f"<!-- {source}: python benchmarks/figures.py -->", f"<!-- end of {source} -->"
            table = f"{begin}\n{TABLES[name][1](data)}\n{end}"
            text, count = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: table, text, flags=re.DOTALL)  # noqa: B023
            if count != 1:
                raise ValueError(f"docs/{page} must have {begin} and {end} once, has them {count} times")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    description = __doc__.splitlines()[0] if __doc__ else None
    argparse.ArgumentParser(description=description).parse_args(argv)
    names = dict.fromkeys([*TABLES, *CHARTS])
    wanted = dict.fromkeys(file for name in names for file in files(name))
    missing = [file for file in wanted if not (DOCS / "figures" / file).exists()]
    runs = {name: read(name) for name in names if not set(missing).intersection(files(name))}
    for page in {page for page, _ in TABLES.values()}:
        (DOCS / page).write_text(with_tables(page, runs))
    for name, (chart, draw) in CHARTS.items():
        if name in runs:
            draw(DOCS / chart, runs[name])
    for file in missing:
        print(f"docs/figures/{file} is missing: `make measure`")
    return int(bool(missing))


if __name__ == "__main__":
    raise SystemExit(main())
