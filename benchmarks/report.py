"""The operators' table, targets, JSON and chart; and the chart of stacked bars that the other benchmarks draw."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from limits import Rates
from machine import caption
from measure import Timing
from parity import Verdict

US = "yolox_ops"
# (operator, case, peer, at least so many times faster)
SPEED = [
    ("simota_assign", "8400x40 trained-like", "mmdet", 150.0),
    ("simota_assign", "8400x40 untrained", "mmdet", 150.0),
    ("batched_nms", "8400, 80 classes", "torchvision", 15.0),
    ("batched_nms", "8400, 80 classes", "mmcv", 40.0),
    ("box_iou", "8400x40", "mmdet", 15.0),
    ("ema_update_", "YOLOX-M, 25.4 M values", "mmdet", 1.8),
    ("batch_norm_silu", "48x320x320, float32", "torch", 3.0),
    ("batch_norm_silu_backward", "48x320x320, float32", "torch", 2.0),
    ("batch_norm_silu", "48x320x320, bfloat16 channels_last", "torch", 2.0),
    ("batch_norm_silu_backward", "48x320x320, bfloat16 channels_last", "torch", 1.5),
]
# (operator, case, at most so many bytes)
MEMORY = [("simota_assign", "8400x100 trained-like", 8e6)]


@dataclass
class Row:
    """All that was found out about one case; only the verdicts when one of them is bad."""

    op: str
    case: str
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    otherwise: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)
    extra: dict[str, int | None] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)

    def ratio(self, peer: str) -> float | None:
        """How many times faster than the peer we are."""
        if US not in self.timings or peer not in self.timings:
            return None
        return self.timings[peer].median / self.timings[US].median


@dataclass(frozen=True)
class Target:
    what: str
    found: str
    met: bool | None  # None: not measured


def seconds(value: float) -> str:
    factor, unit = (1, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "us")
    return f"{f'{value * factor:#.3g}'.rstrip('.')} {unit}"


def megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f} MB"


def header(machine: dict[str, Any], rates: Rates) -> str:
    keys = ("cpu_capability", "threads", "device", "python")
    bandwidth = ", ".join(f"{size / 2**20:g} MiB {value / 1e9:.0f}" for size, value in rates.bandwidth.items())
    text = [
        caption(machine),
        "  ".join(f"{key}={machine[key]}" for key in keys),
        f"bandwidth in GB/s by working set: {bandwidth}; in 1e9/s: log {rates.log / 1e9:.2f}, divide"
        f" {rates.divide / 1e9:.2f}, sigmoid {rates.sigmoid / 1e9:.2f}",
        *(f"missing: {name} ({reason})" for name, reason in machine["missing"].items()),
        "ratio: time over ours. spread: interquartile range over median. extra: peak memory of a call beyond what was",
        "there, result included. limit: the largest part of the necessary work at those rates; our time over it.",
        "ties: differences that equal costs, a score at the threshold or IPP's rounding leave open.",
        "",
        f"{'operator':16} {'case':24} {'':15} {'median':>9} {'spread':>6} {'ratio':>7} {'extra':>10}  limit",
    ]
    return "\n".join(text)


def lines(row: Row) -> str:
    """The case's lines of the table."""
    text = [] if row.timings else [f"{row.op:16} {row.case:24} compared with {', '.join(row.verdicts)}"]
    for i, (name, timing) in enumerate(row.timings.items()):
        label = f"{row.op:16} {row.case:24}" if i == 0 else 41 * " "
        ratio = row.ratio(name) if i else None
        line = (
            f"{label} {name:15} {seconds(timing.median):>9} {timing.spread:6.0%} {f'{ratio:.1f}x' if ratio else '':>7}"
            f" {megabytes(row.extra[name]):>10}"
        )
        if i == 0:
            binding, limit = max(row.limits.items(), key=lambda item: item[1])
            line += f"  {seconds(limit)} {binding}, {timing.median / limit:.1f}x"
        text.append(line.rstrip())
    for name, reason in row.absent.items():
        text.append(f"{41 * ' '} {name:15} not on this device: {reason}")
    for name, verdict in row.verdicts.items():
        if verdict.ties:
            text.append(f"{41 * ' '} {name:15} {verdict.ties} ties")
        text += [f"MISMATCH {row.op} {row.case} with {name}: {problem}" for problem in verdict.problems]
    return "\n".join(text)


def targets(rows: list[Row], only: str | None) -> list[Target]:
    """The targets for the operators that ran."""
    by_case = {(row.op, row.case): row for row in rows}
    found = []
    for op, case, peer, least in SPEED:
        if only in (None, op):
            row = by_case.get((op, case))
            ratio = row.ratio(peer) if row else None
            what = f"{op} {case}: >= {least:g}x {peer}"
            found.append(
                Target(what, f"{ratio:.1f}x" if ratio else "not measured", None if ratio is None else ratio >= least)
            )
    for op, case, most in MEMORY:
        if only in (None, op):
            row = by_case.get((op, case))
            extra = row.extra.get(US) if row else None
            what = f"{op} {case}: <= {most / 1e6:g} MB extra"
            found.append(
                Target(
                    what,
                    "not measured" if extra is None else megabytes(extra),
                    None if extra is None else extra <= most,
                )
            )
    return found


def summary(rows: list[Row], targets: list[Target]) -> str:
    """The targets one by one, and the whole run in one line."""
    word = {True: "met", False: "NOT MET", None: "not measured"}
    text = ["", *(f"target {t.what}: {t.found if t.met is not None else ''} {word[t.met]}" for t in targets)]
    text += sorted({f"{name}: {what}" for row in rows for name, what in row.otherwise.items()})
    verdicts = [verdict for row in rows for verdict in row.verdicts.values()]
    bad = sum(bool(verdict.problems) for verdict in verdicts)
    ties = sum(verdict.ties for verdict in verdicts)
    parity = f"{bad} of {len(verdicts)} comparisons DIFFER" if bad else f"all {len(verdicts)} comparisons agree"
    met = sum(t.met is True for t in targets)
    text.append(f"parity: {parity} ({len(rows)} cases, {ties} ties); targets: {met} of {len(targets)} met")
    return "\n".join(text)


def data(machine: dict[str, Any], rates: Rates, rows: list[Row], targets: list[Target]) -> dict[str, Any]:
    """Everything of a run, for JSON."""
    return {
        "machine": machine,
        "rates": asdict(rates),
        "cases": [asdict(row) for row in rows],
        "targets": [asdict(target) for target in targets],
    }


def can_plot() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def plot(path: Path, data: dict[str, Any]) -> None:
    """A group of horizontal bars for each case, time on a logarithmic axis, each peer labelled with its ratio."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    colours = {US: "#1a5fb4", "mmdet": "#c64600", "mmcv": "#e5a50a", "torchvision": "#2ec27e"}
    colours |= {"Megvii's steps": "#813d9c", "torch foreach": "#77767b", "cv2 + numpy": "#986a44"}
    timed = [case for case in data["cases"] if case["timings"]]
    figure, axes = pyplot.subplots(figsize=(10, 1 + 0.24 * sum(len(case["timings"]) + 1 for case in timed)))
    y, ticks, names = 0.0, [], dict[str, str]()
    for case in timed:
        ticks.append((y + (len(case["timings"]) - 1) / 2, f"{case['op']}\n{case['case']}"))
        base = case["timings"][US]["median"]
        for name, timing in case["timings"].items():
            median = timing["median"]
            axes.barh(y, median * 1e3, height=0.85, color=colours.get(name, "#c0bfbc"))
            text = f" {seconds(median)}" + (f"  {median / base:.3g}x" if name != US else "")
            names[name] = name + "*" * (name in case["otherwise"])
            text += "*" * (name in case["otherwise"])
            axes.text(median * 1e3, y, text, va="center", fontsize=8, weight="bold" if name == US else "normal")
            y += 1
        y += 1
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 4)  # room for the last label
    axes.set_ylim(y - 0.5, -1)
    axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks], fontsize=8)
    notes = {f"* {what}" for case in timed for what in case["otherwise"].values()}
    axes.set_xlabel("\n".join(["milliseconds a call, median, logarithmic; shorter is better", *sorted(notes)]))
    machine = data["machine"]
    axes.set_title(f"{caption(machine)}, {machine['threads']} threads", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=colours.get(name, "#c0bfbc")) for name in names]
    figure.legend(handles, names.values(), loc="upper center", ncols=len(names), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def stacked_bars(path: Path, title: str, unit: str, bars: dict[str, dict[str, float]]) -> None:
    """Horizontal bars, each of the same parts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = ("#c0bfbc", "#99c1f1", "#c01c28", "#f66151", "#1a5fb4", "#e5a50a", "#26a269", "#813d9c")
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.4 * len(bars)), layout="constrained")
    parts: tuple[str, ...] = ()
    for y, values in enumerate(bars.values()):
        parts = tuple(values)
        left = 0.0
        for part, colour in zip(parts, colours, strict=False):
            axes.barh(y, values[part], left=left, color=colour, label=part if y == 0 else None)
            left += values[part]
        axes.text(left, y, f" {seconds(left / 1e3)}", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), list(bars), fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(unit, fontsize=9)
    figure.suptitle(title.replace("; ", "\n"), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, frameon=False, ncols=len(parts), loc="outside lower center")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
