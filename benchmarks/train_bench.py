"""Times whole training steps, MMDetection's and the plugin's in turns: python benchmarks/train_bench.py

From the unmodified config, the same weights and batches; first makes sure that losses and gradients agree. Exit status:
0 they agree, 1 they differ, 2 wrong arguments. Times never change it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from cases import make_gts
from parity import NEAR_TIE_SHARE
from peers import quiet
from report import can_plot, stacked_bars
from torch import Tensor

with quiet():
    import mmcv
    import mmdet
    from mmcv import Config
    from mmcv.parallel import DataContainer
    from mmcv.runner import HOOKS, build_optimizer
    from mmdet.datasets import build_dataloader
    from mmdet.models import build_detector
    from mmdet.utils import build_dp

CONFIGS = Path(mmdet.__file__).parent / ".mim/configs/yolox"
STAGES = ("data wait", "forward", "assignment", "losses", "backward", "optimizer", "EMA")
STOCK, PLUGIN, BFLOAT16 = "mmdet", "plugin", "plugin bfloat16"
# (gts an image, side, what, at least so many times faster than MMDetection)
TARGETS = [
    (30, PLUGIN, "head loss", 40.0),
    (30, PLUGIN, "step", 1.15),
    (100, PLUGIN, "step", 1.8),
    (30, BFLOAT16, "step", 3.3),
    (100, BFLOAT16, "step", 5.0),
]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", default="yolox_m_8x8_300e_coco", help="name among MMDetection's YOLOX configs")
    parser.add_argument("--gts", type=int, nargs="+", default=[30, 100], help="gts in each image (default 30 100)")
    parser.add_argument("--batch", type=int, default=2, help="images a step (default 2)")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each side (default 7)")
    parser.add_argument("--threads", type=int, default=2, help="threads that each side may use (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--profile", action="store_true", help="also list the operators that a step spends its time in")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the steps as stacked bars (needs matplotlib)")
    options = parser.parse_args(argv)
    for name in ("batch", "rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if min(options.gts) < 0:
        parser.error(f"--gts must be at least 0, got {min(options.gts)}")
    if not (CONFIGS / f"{options.config}.py").is_file():
        known = ", ".join(sorted(path.stem for path in CONFIGS.glob("yolox*.py")))
        parser.error(f"--config must be one of {known}; got {options.config}")
    for path in (options.json, options.plot):
        if path and not path.resolve().parent.is_dir():
            parser.error(f"the folder of {path} does not exist")
    if options.plot and not can_plot():
        parser.error("--plot needs matplotlib: pip install matplotlib")
    return options


class Samples(torch.utils.data.Dataset[dict[str, Any]]):
    """Images with gts as mosaic leaves them, in the form in which MMDetection's pipeline ends."""

    def __init__(self, size: int, gts: int, length: int) -> None:
        self.size, self.gts, self.length = size, gts, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = torch.Generator().manual_seed(index)
        boxes, labels = make_gts(self.gts, rng, self.size)
        # Contrast of large parts, as photographs have it: white noise leaves bfloat16 little of it behind a few layers.
        parts = torch.rand(1, 3, 20, 20, generator=rng) * 255
        image = torch.nn.functional.interpolate(parts, size=(self.size, self.size), mode="bilinear")[0]
        meta = {"img_shape": (self.size, self.size, 3), "scale_factor": 1.0}
        return {
            "img": DataContainer(image, stack=True),
            "gt_bboxes": DataContainer(boxes),
            "gt_labels": DataContainer(labels),
            "img_metas": DataContainer(meta, cpu_only=True),
        }


class Stopwatch:
    """Seconds spent in the calls that it was wrapped around, since it was last read."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed

    def read(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Side:
    """One implementation: detector, optimizer and hooks as its own registries build them from the config."""

    def __init__(self, cfg: Config, name: str) -> None:
        self.name = name
        self.before_step: Callable[[], None] = lambda: None
        self.assigned: list[Tensor] = []  # for each image of the last step the gt of every prior
        model = cfg.model.copy()
        if name == BFLOAT16:
            model["autocast"] = "bfloat16"
        self.network = build_detector(model)
        self.network.train()
        self.head = self.network.bbox_head
        self.model = build_dp(self.network, "cpu", device_ids=[0])
        self.optimizer = build_optimizer(self.model, cfg.optimizer)
        self.optimizer_hook = mmcv.build_from_cfg({**cfg.optimizer_config, "type": "OptimizerHook"}, HOOKS)
        ema = next(hook for hook in cfg.custom_hooks if "EMA" in hook.type)
        self.ema_hook = mmcv.build_from_cfg({k: v for k, v in ema.items() if k != "priority"}, HOOKS)
        self.loss_watch, self.assign_watch, self.step_watch = Stopwatch(), Stopwatch(), Stopwatch()
        self.head.loss = self.loss_watch.around(self.head.loss)
        self.optimizer.step = self.step_watch.around(self.optimizer.step)
        self.runner = SimpleNamespace(
            model=self.model, optimizer=self.optimizer, iter=0, logger=logging.getLogger(), outputs={}
        )
        self.ema_hook.before_run(self.runner)
        self.batches: Iterator[dict[str, Any]] = iter(())

    def recorded(self, assign: Callable[..., Any], gts: Callable[[Any], Iterable[Tensor]]) -> Callable[..., Any]:
        """`assign`, timed, and what `gts` finds in its results kept."""
        timed = self.assign_watch.around(assign)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = timed(*args, **kwargs)
            self.assigned.extend(gts(result))
            return result

        return call

    def start(self, state: dict[str, Tensor], loader: Any) -> None:
        """Weights as in `state`, where it has them, no momentum, iteration 0."""
        self.network.load_state_dict({**self.network.state_dict(), **state})
        self.optimizer.state.clear()
        self.runner.iter = 0
        self.batches = iter(loader)

    def step(self) -> dict[str, float]:
        """One training step, as mmcv's runner goes about it; seconds of each stage."""
        self.before_step()
        self.assigned.clear()
        self.network._progress_in_iter = 0  # multi-scale training stays at the default size
        clock = [time.perf_counter()]
        batch = next(self.batches)
        clock.append(time.perf_counter())
        self.runner.outputs = self.model.train_step(batch, self.optimizer)
        clock.append(time.perf_counter())
        self.optimizer_hook.after_train_iter(self.runner)
        clock.append(time.perf_counter())
        self.ema_hook.after_train_iter(self.runner)
        clock.append(time.perf_counter())
        self.runner.iter += 1
        wait, train, optimize, ema = (b - a for a, b in itertools.pairwise(clock))
        loss, assignment, step = self.loss_watch.read(), self.assign_watch.read(), self.step_watch.read()
        return dict(
            zip(
                STAGES,
                (wait, train - loss, assignment, loss - assignment, optimize - step, step, ema),
                strict=True,
            )
        )

    def network_alone(self, batch: int, size: int) -> float:
        """Seconds of forward and backward with no loss: what a step cannot go below."""
        images = torch.rand(batch, 3, size, size) * 255
        start = time.perf_counter()
        if self.name == BFLOAT16:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.name == BFLOAT16):
            outputs = self.head(self.network.extract_feat(images))
        total = torch.stack([level.float().mean() for levels in outputs for level in levels]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return time.perf_counter() - start


def build_sides(cfg: Config) -> list[Side]:
    """MMDetection's classes first: importing the plugin replaces them in the registries."""

    stock = Side(cfg, STOCK)
    stock.head.assigner.assign = stock.recorded(stock.head.assigner.assign, lambda result: [result.gt_inds - 1])
    os.environ["YOLOX_PLUGIN"] = "on"
    import yolox_plugin

    head = yolox_plugin.head
    assign = vars(head)["assign"]
    sides = [Side(cfg, name) for name in (PLUGIN, BFLOAT16)]
    for side in sides:  # both sides share the function
        side.before_step = partial(setattr, head, "assign", side.recorded(assign, lambda result: result.gt_index))
    return [stock, *sides]


def compare(sides: list[Side]) -> tuple[list[str], int]:
    """What differs in losses and gradients after the sides' first step on the same weights and batch; and how many
    positives rounding gave to another prior or gt, two costs being equal up to it (ops_bench.py looks at each)."""
    stock, *others = sides
    problems, near_ties = [], 0
    for side in others:
        exact = side.name == PLUGIN
        for name, theirs in stock.runner.outputs["log_vars"].items():
            ours = float(side.runner.outputs["log_vars"][name])
            # In bfloat16 some gts take another number of priors, and all losses are means over those.
            if abs(ours - theirs) > (1e-3 if exact else 0.2) * abs(theirs):
                problems.append(f"{side.name}: {name} is {ours:.6g}, MMDetection's {theirs:.6g}")
        if not exact:
            continue  # single gradients of bfloat16 tell little; that it trains as well is for the demo to show
        if stock.assigned:
            their_gts, our_gts = torch.stack(stock.assigned), torch.stack(side.assigned)
            near_ties = int((their_gts != our_gts).sum())
            positives = int((their_gts >= 0).sum())
            if near_ties > max(2, NEAR_TIE_SHARE * positives):
                problems.append(f"{side.name}: {near_ties} priors have another gt, of {positives} positives")
        for (name, their), our in zip(stock.network.named_parameters(), side.network.parameters(), strict=True):
            if their.grad is None or our.grad is None:
                if (their.grad is None) != (our.grad is None):
                    problems.append(f"{side.name}: gradient of {name} on one side only")
                continue
            error = float((our.grad - their.grad).norm() / (their.grad.norm() + 1e-12))
            if error > (0.05 if near_ties else 1e-3):
                problems.append(f"{side.name}: gradient of {name} differs by {error:.2g} of its norm")
    return problems, near_ties


def bench(cfg: Config, sides: list[Side], gts: int, options: argparse.Namespace) -> dict[str, Any]:
    """Parity, then the timed rounds, for one number of gts."""
    size = cfg.model.input_size[0]
    state = {name: value.clone() for name, value in sides[0].network.state_dict().items() if "ema_" not in name}
    samples = Samples(size, gts, (options.rounds + 3) * options.batch)
    for side in sides:
        loader = build_dataloader(samples, options.batch, 1, dist=False, shuffle=False)
        side.start(state, loader)
    with_warm_up = [[side.step() for side in sides]]
    problems, near_ties = compare(sides)
    result: dict[str, Any] = {"gts": gts, "problems": problems, "near ties": near_ties, "sides": {}}
    if problems:
        return result
    alone: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(options.rounds):
        with_warm_up.append([side.step() for side in sides])
        for side in sides[1:]:
            alone[side.name].append(side.network_alone(options.batch, size))
    rounds = with_warm_up[1:]
    for i, side in enumerate(sides):
        steps = [row[i] for row in rounds]
        totals = [sum(step.values()) for step in steps]
        quartiles = statistics.quantiles(totals, n=4, method="inclusive") if len(totals) > 1 else totals * 3
        result["sides"][side.name] = {
            "stages": {stage: statistics.median(step[stage] for step in steps) for stage in STAGES},
            "head loss": statistics.median(step["assignment"] + step["losses"] for step in steps),
            "step": statistics.median(totals),
            "spread": (quartiles[2] - quartiles[0]) / quartiles[1],
            "network alone": statistics.median(alone[side.name]) if alone[side.name] else None,
        }
    return result


def profile(side: Side, rows: int = 12) -> str:
    """The operators that one step of a side spends most time in, as a table in Markdown."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        side.step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    lines = [f"\n| {side.name} | ms | share | calls |", "|---|---:|---:|---:|"]
    for event in events[:rows]:
        ms = event.self_cpu_time_total / 1e3
        lines.append(f"| {event.key} | {ms:.1f} | {event.self_cpu_time_total / total:.1%} | {event.count} |")
    lines.append(f"| all {sum(event.count for event in events)} calls | {total / 1e3:.1f} | | |")
    return "\n".join(lines)


def table(result: dict[str, Any]) -> str:
    """Milliseconds of each stage, and ratios to MMDetection."""
    lines = [f"\n{result['gts']} gts an image; {result['near ties']} priors differ by near ties"]
    lines.append(f"{'ms, median':16}" + "".join(f"{name:>18}" for name in result["sides"]))
    sides = list(result["sides"].values())
    for stage in STAGES:
        lines.append(f"{stage:16}" + "".join(f"{side['stages'][stage] * 1e3:18.1f}" for side in sides))
    for what in ("head loss", "step"):
        base = sides[0][what]
        cells = [f"{side[what] * 1e3:.1f} ({base / side[what]:.2f}x)" for side in sides]
        lines.append(f"{what:16}" + "".join(f"{cell:>18}" for cell in cells))
    lines.append(f"{'spread of step':16}" + "".join(f"{side['spread']:18.0%}" for side in sides))
    alone = [side["network alone"] for side in sides]
    cells = [f"{a * 1e3:.1f} ({side['step'] / a:.2f}x)" if a else "-" for a, side in zip(alone, sides, strict=True)]
    lines.append(f"{'network alone':16}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def targets(results: list[dict[str, Any]]) -> list[str]:
    found = []
    for gts, name, what, least in TARGETS:
        for result in results:
            if result["gts"] == gts and result["sides"]:
                ratio = result["sides"][STOCK][what] / result["sides"][name][what]
                verdict = "met" if ratio >= least else "NOT MET"
                found.append(f"target {name}, {gts} gts, {what}: >= {least:g}x mmdet: {ratio:.2f}x {verdict}")
    return found


def plot(path: Path, machine: dict[str, Any], results: list[dict[str, Any]]) -> None:
    bars = {
        f"{result['gts']} gts: {name}": {stage: side["stages"][stage] * 1e3 for stage in STAGES}
        for result in results
        for name, side in result["sides"].items()
    }
    title = f"{machine['config']}, batch {machine['batch']}, {machine['threads']} CPU threads, torch {machine['torch']}"
    stacked_bars(path, title, "milliseconds a step, median", bars)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cfg = Config.fromfile(str(CONFIGS / f"{options.config}.py"))
    machine = {
        "config": options.config,
        "batch": options.batch,
        "threads": options.threads,
        "torch": torch.__version__,
        "mmcv": mmcv.__version__,
        "mmdet": mmdet.__version__,
    }
    print("  ".join(f"{key}={value}" for key, value in machine.items()), flush=True)
    sides = build_sides(cfg)
    with quiet():
        sides[0].network.init_weights()
    results = []
    for gts in options.gts:
        results.append(bench(cfg, sides, gts, options))
        for problem in results[-1]["problems"]:
            print(f"MISMATCH at {gts} gts: {problem}")
        if results[-1]["sides"]:
            print(table(results[-1]), flush=True)
            if options.profile:
                print(*map(profile, sides), sep="\n", flush=True)
    problems = sum(len(result["problems"]) for result in results)
    print("", *targets(results), sep="\n")
    print(f"parity: {f'{problems} DIFFER' if problems else 'losses and gradients agree'}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    if options.plot and not problems:
        plot(options.plot, machine, results)
    return int(problems > 0)


if __name__ == "__main__":
    raise SystemExit(main())
