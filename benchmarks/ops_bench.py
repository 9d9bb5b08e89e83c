"""Checks every operator against its reference and its peers, then times them: python benchmarks/ops_bench.py

Exit status: 0 all agree, 1 some result differs, 2 wrong arguments. Times never change it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import report
import torch
from cases import CASES, Case
from limits import Rates, lower_bounds, measure_rates
from machine import facts
from measure import extra_bytes, interleaved
from parity import compare
from peers import Peer, find_peers, ours

import yolox_ops
from yolox_ops import reference


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    operators = list(dict.fromkeys(case.op for case in CASES))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer shapes and samples")
    parser.add_argument("--only", metavar="OP", choices=operators, help=f"one operator of {', '.join(operators)}")
    parser.add_argument("--threads", type=int, default=2, help="threads that every contestant may use (default 2)")
    parser.add_argument("--device", default="cpu", help="cpu (default), or a device that yolox_ops has a backend for")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the times as a PNG chart (needs matplotlib)")
    options = parser.parse_args(argv)
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    for path in (options.json, options.plot):
        if path and not path.resolve().parent.is_dir():
            parser.error(f"the folder of {path} does not exist")
    if options.plot and not report.can_plot():
        parser.error("--plot needs matplotlib: pip install matplotlib")
    if options.device.split(":")[0] not in yolox_ops._C.backends:
        parser.error(f"--device {options.device}: this build has backends for {', '.join(yolox_ops._C.backends)} only")
    try:
        torch.empty(1, device=options.device)
    except Exception as error:
        parser.error(f"--device {options.device}: {str(error).splitlines()[0]}")
    return options


def to(value: Any, device: torch.device | str, copy: bool = False) -> Any:
    """Nested lists and tuples with their tensors on a device; `copy` makes those new even there."""
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=copy)
    return type(value)(to(item, device, copy) for item in value) if isinstance(value, (list, tuple)) else value


class Contestant:
    """One implementation at work on one case. An in-place operator gets a copy of its own to work on."""

    def __init__(self, peer: Peer, case: Case, args: tuple[Any, ...]) -> None:
        self.name, self.convert = peer.name, peer.convert
        self.updated = to(args[0], args[0][0].device, copy=True) if case.op == "ema_update_" else None
        self.run: Callable[[], Any] = peer.prepare(*(args if self.updated is None else (self.updated, *args[1:])))

    def result(self) -> Any:
        raw = self.run()
        return to(self.convert(raw) if self.updated is None else self.updated, "cpu", copy=True)


def bench_case(case: Case, peers: list[Peer], options: argparse.Namespace, rates: Rates) -> report.Row:
    """Parity of our result with the reference and each peer; then, if all agree, the times."""
    device = torch.device(options.device)
    on_cpu = case.make()
    args = to(on_cpu, device)
    us = Contestant(ours(case.op), case, args)
    row = report.Row(case.op, case.name)
    mine = us.result()
    contestants = [us]
    compared = [peer for peer in peers if case.timed or not peer.otherwise]
    for peer in [ours(case.op, reference, "reference"), *compared]:
        try:
            other = Contestant(peer, case, on_cpu if peer.name == "reference" else args)
            theirs = None if peer.otherwise else other.result()
        except Exception as error:
            if device.type == "cpu":
                raise
            row.absent[peer.name] = str(error).splitlines()[0]  # a peer without kernels for that device
            continue
        if peer.otherwise:
            row.otherwise[peer.name] = peer.otherwise
        else:
            row.verdicts[peer.name] = compare(case.op, on_cpu, mine, theirs, peer.name)
        if peer.name != "reference":
            contestants.append(other)
    if not case.timed or any(verdict.problems for verdict in row.verdicts.values()):
        return row
    with torch.no_grad():
        row.limits = lower_bounds(case.op, args, to(mine, device), rates)
        row.timings = interleaved({c.name: c.run for c in contestants}, device, 0.15 if options.quick else 0.6)
        row.extra = {c.name: extra_bytes(c.run, device) for c in contestants}
    return row


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    tables, missing = find_peers()
    rates = measure_rates(torch.device(options.device))
    machine = facts() | {
        "device": options.device,
        "threads": options.threads,
        "cpu_capability": yolox_ops.cpu_capability(),
        "missing": missing,
    }
    print(report.header(machine, rates), flush=True)
    rows = []
    for case in CASES:
        wanted = (case.quick or not options.quick) and options.only in (None, case.op)
        if wanted and (options.device == "cpu" or not case.cpu_only):
            rows.append(bench_case(case, [t[case.op] for t in tables if case.op in t], options, rates))
            print(report.lines(rows[-1]), flush=True)
    targets = report.targets(rows, options.only)
    print(report.summary(rows, targets))
    data = report.data(machine, rates, rows, targets)
    if options.json:
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.plot:
        report.plot(options.plot, data)
    return int(any(verdict.problems for row in rows for verdict in row.verdicts.values()))


if __name__ == "__main__":
    raise SystemExit(main())
