"""Times whole training steps, MMDetection's and the plugin's in turns: python benchmarks/train_bench.py

From the unmodified config, the same weights and batches; first makes sure that losses and gradients agree. LibreYOLO,
where it is installed, trains its own YOLOX of that size on the same batches; its assignments are others, so it is timed
and not compared. Exit status: 0 they agree, 1 they differ, 2 wrong arguments. Times never change it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import itertools
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from cases import make_gts
from figures import train_chart
from machine import caption, facts
from parity import Verdict, compare_assignments
from peers import quiet
from report import can_plot
from torch import Tensor

import yolox_ops

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
STOCK, STOCK_BFLOAT16, PLUGIN, BFLOAT16 = "mmdet", "mmdet bfloat16", "plugin", "plugin bfloat16"
NETWORK = ("forward", "backward")
# Of the positives, at most this share may go to other priors as the networks' outputs differ by rounding.
ROUNDING_SHARE = 0.01
STANDARD = "yolox_m_8x8_300e_coco"
# Side: at most this share of a step of the standard config outside of the network's forward and backward.
TARGETS = {PLUGIN: 0.03, BFLOAT16: 0.07}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", default=STANDARD, help="name among MMDetection's YOLOX configs")
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


def in_bfloat16(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` under autocast, as a user of MMDetection would have it."""

    def lowered(*args: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return call(*args)

    return lowered


class Side:
    """One implementation: detector, optimizer and hooks as its own registries build them from the config."""

    def __init__(self, cfg: Config, name: str) -> None:
        self.name = name
        self.before_step: Callable[[], None] = lambda: None
        self.assigned: list[Any] = []  # of the last step, what `recorded` kept of each call
        model = cfg.model.copy()
        if name == BFLOAT16:
            model["autocast"] = "bfloat16"
        self.network = build_detector(model)
        self.network.train()
        self.head = self.network.bbox_head
        if name == STOCK_BFLOAT16:  # losses in float32, as with the plugin
            self.network.extract_feat = in_bfloat16(self.network.extract_feat)
            forward = in_bfloat16(self.head.forward)
            self.head.forward = lambda *args: tuple([level.float() for level in levels] for levels in forward(*args))
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

    def recorded(self, assign: Callable[..., Any], keep: Callable[[Any, Any], Any]) -> Callable[..., Any]:
        """`assign`, timed, with what `keep` makes of its arguments and result kept in `assigned`."""
        timed = self.assign_watch.around(assign)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = timed(*args, **kwargs)
            self.assigned.append(keep(args, result))
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
        if self.name in (PLUGIN, BFLOAT16):
            from yolox_plugin.protocol import Moment  # importing it replaces MMDetection's classes

            self.network.start_epoch(Moment(seed=0))  # multi-scale training stays at the default size
        else:
            self.network._progress_in_iter = 0
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
        return stages(clock, self.loss_watch, self.assign_watch, self.step_watch)

    def network_alone(self, images: Tensor) -> Tensor:
        """Forward with no loss: a number to go backward from."""
        if self.name == BFLOAT16:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.name == BFLOAT16):
            outputs = self.head(self.network.extract_feat(images))
        return torch.stack([level.float().mean() for levels in outputs for level in levels]).sum()


def stages(
    clock: list[float], loss_watch: Stopwatch, assign_watch: Stopwatch, step_watch: Stopwatch
) -> dict[str, float]:
    """Seconds of STAGES from the times before and after the loader, the forward, the optimizer and the average."""
    wait, train, optimize, ema = (b - a for a, b in itertools.pairwise(clock))
    loss, assignment, step = loss_watch.read(), assign_watch.read(), step_watch.read()
    seconds = (wait, train - loss, assignment, loss - assignment, optimize - step, step, ema)
    return dict(zip(STAGES, seconds, strict=True))


class Libre:
    """LibreYOLO's own YOLOX, the present way of Megvii's code, trained as its trainer does on a CPU."""

    def __init__(self, cfg: Config, size: str) -> None:
        model = importlib.import_module("libreyolo.models.yolox.nn").LibreYOLOXModel
        average = importlib.import_module("libreyolo.training.ema").ModelEMA
        version = importlib.metadata.version("libreyolo")
        self.name = f"LibreYOLO {'.'.join(version.split('.')[:2])}"
        self.network = model(size, cfg.model.bbox_head.num_classes).train()
        self.network.init_weights()
        self.head = self.network.head
        settings = {key: cfg.optimizer[key] for key in ("lr", "momentum", "weight_decay", "nesterov")}
        self.optimizer = torch.optim.SGD(self.network.parameters(), **settings)
        self.average = average(self.network)
        self.loss_watch, self.assign_watch, self.step_watch = Stopwatch(), Stopwatch(), Stopwatch()
        self.head.get_losses = self.loss_watch.around(self.head.get_losses)
        self.head.get_assignments = self.assign_watch.around(self.head.get_assignments)
        self.optimizer.step = self.step_watch.around(self.optimizer.step)  # type: ignore[method-assign]
        self.batches: Iterator[dict[str, Any]] = iter(())

    def start(self, state: dict[str, Tensor], loader: Any) -> None:
        """Its own weights go on; no momentum."""
        self.optimizer.state.clear()
        self.batches = iter(loader)

    def step(self) -> dict[str, float]:
        """One training step; seconds of each stage."""
        clock = [time.perf_counter()]
        batch = next(self.batches)
        boxes, labels = (torch.stack(batch[key].data[0]) for key in ("gt_bboxes", "gt_labels"))
        sides = boxes[..., 2:] - boxes[..., :2]
        targets = torch.cat([labels[..., None], boxes[..., :2] + sides / 2, sides], -1)
        clock.append(time.perf_counter())
        loss = self.network(batch["img"].data[0], targets)["total_loss"]
        clock.append(time.perf_counter())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        clock.append(time.perf_counter())
        self.average.update(self.network)
        clock.append(time.perf_counter())
        return stages(clock, self.loss_watch, self.assign_watch, self.step_watch)

    def network_alone(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head.forward_train_maps(self.network.backbone(images))[0]
        return outputs.mean()


def seconds_alone(side: Side | Libre, batch: int, size: int) -> float:
    """Seconds of forward and backward with no loss: what a step cannot go below."""
    images = torch.rand(batch, 3, size, size) * 255
    start = time.perf_counter()
    side.network_alone(images).backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - start


def build_sides(cfg: Config) -> list[Side]:
    """MMDetection's classes first: importing the plugin replaces them in the registries."""
    if "yolox_plugin" in sys.modules:
        raise RuntimeError("the plugin is imported already: MMDetection's side would be the plugin's")
    stock = [Side(cfg, name) for name in (STOCK, STOCK_BFLOAT16)]
    for side in stock:
        assigner = side.head.assigner
        assigner.assign = side.recorded(assigner.assign, lambda args, result: (args, result))
    os.environ["YOLOX_PLUGIN"] = "on"
    import yolox_plugin

    head = yolox_plugin.mmdet2.head
    assign = vars(head)["assign"]
    sides = [Side(cfg, name) for name in (PLUGIN, BFLOAT16)]
    for side in sides:  # both sides share the function
        recorded = side.recorded(assign, lambda args, result: result.gt_index)
        side.before_step = partial(setattr, head, "assign", recorded)
    return [*stock, *sides]


def find_libre(cfg: Config, config: str) -> list[Libre]:
    """LibreYOLO's side where it is installed."""
    try:
        return [Libre(cfg, config.removeprefix("yolox_")[0])]
    except ImportError as error:
        print(f"missing: LibreYOLO ({error})")
        return []


def assigned_by_operator(calls: list[Any]) -> list[str]:
    """In what the operator differs from MMDetection's assigner, on the very predictions that this saw."""
    verdict = Verdict()
    for (scores, centers, boxes, gts, labels, *_), result in calls:
        args = (scores[None], centers, boxes[None], gts[None], labels[None], torch.tensor([len(gts)]))
        theirs = result.gt_inds[None] - 1, result.max_overlaps[None].clamp(min=0)
        compare_assignments(verdict, args, yolox_ops.simota_assign(*args), theirs)
    return [f"simota_assign: {problem}" for problem in verdict.problems]


def compare(sides: list[Side]) -> tuple[list[str], int]:
    """What differs in losses and gradients after the sides' first step on the same weights and batch; and how many
    priors the plugin gave to another gt, as rounding in the network moved their costs."""
    stock, *others = sides
    problems, moved = assigned_by_operator(stock.assigned), 0
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
            their_gts = torch.stack([result.gt_inds - 1 for _, result in stock.assigned])
            moved = int((their_gts != side.assigned[0]).sum())
            positives = int((their_gts >= 0).sum())
            if moved > max(2, ROUNDING_SHARE * positives):
                problems.append(f"{side.name}: {moved} priors have another gt, of {positives} positives")
        for (name, their), our in zip(stock.network.named_parameters(), side.network.parameters(), strict=True):
            if their.grad is None or our.grad is None:
                if (their.grad is None) != (our.grad is None):
                    problems.append(f"{side.name}: gradient of {name} on one side only")
                continue
            error = float((our.grad - their.grad).norm() / (their.grad.norm() + 1e-12))
            if error > (0.05 if moved else 1e-3):
                problems.append(f"{side.name}: gradient of {name} differs by {error:.2g} of its norm")
    return problems, moved


def bench(
    cfg: Config, compared: list[Side], libre: list[Libre], gts: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Parity, then the timed rounds, for one number of gts."""
    size = cfg.model.input_size[0]
    state = {name: value.clone() for name, value in compared[0].network.state_dict().items() if "ema_" not in name}
    samples = Samples(size, gts, (options.rounds + 3) * options.batch)
    sides: list[Side | Libre] = [*compared, *libre]
    for side in sides:
        side.start(state, build_dataloader(samples, options.batch, 1, dist=False, shuffle=False))
        side.step()
    problems, moved = compare(compared)
    result: dict[str, Any] = {"gts": gts, "problems": problems, "moved by rounding": moved, "sides": {}}
    if problems:
        return result
    steps: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
    alone: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(options.rounds):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            steps[side.name].append(side.step())
            alone[side.name].append(seconds_alone(side, options.batch, size))
    for side in sides:
        taken = steps[side.name]
        totals = [sum(step.values()) for step in taken]
        quartiles = statistics.quantiles(totals, n=4, method="inclusive") if len(totals) > 1 else totals * 3
        outside = [1 - sum(step[stage] for stage in NETWORK) / sum(step.values()) for step in taken]
        result["sides"][side.name] = {
            "stages": {stage: statistics.median(step[stage] for step in taken) for stage in STAGES},
            "head loss": statistics.median(step["assignment"] + step["losses"] for step in taken),
            "step": statistics.median(totals),
            "spread": (quartiles[2] - quartiles[0]) / quartiles[1],
            "outside the network": statistics.median(outside),
            "network alone": statistics.median(alone[side.name]),
        }
    return result


def profile(side: Side, rows: int = 8) -> dict[str, Any]:
    """The operators that one step of a side spends most time in: milliseconds and calls of each, and of all."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        side.step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    return {
        "operators": {event.key: [event.self_cpu_time_total / 1e3, event.count] for event in events[:rows]},
        "all": [sum(event.self_cpu_time_total for event in events) / 1e3, sum(event.count for event in events)],
    }


def profile_table(name: str, found: dict[str, Any]) -> str:
    lines = [f"\n{name:44} {'ms':>9} {'calls':>7}"]
    for operator, (ms, calls) in [*found["operators"].items(), ("all", found["all"])]:
        lines.append(f"{operator:44} {ms:9.1f} {calls:7}")
    return "\n".join(lines)


def table(result: dict[str, Any]) -> str:
    """Milliseconds of each stage, and ratios to MMDetection."""
    lines = [f"\n{result['gts']} gts an image; {result['moved by rounding']} priors have another gt by rounding"]
    lines.append(f"{'ms, median':20}" + "".join(f"{name:>20}" for name in result["sides"]))
    sides = list(result["sides"].values())
    for stage in STAGES:
        lines.append(f"{stage:20}" + "".join(f"{side['stages'][stage] * 1e3:20.1f}" for side in sides))
    for what in ("head loss", "step"):
        base = sides[0][what]
        cells = [f"{side[what] * 1e3:.1f} ({base / side[what]:.2f}x)" for side in sides]
        lines.append(f"{what:20}" + "".join(f"{cell:>20}" for cell in cells))
    lines.append(f"{'spread of step':20}" + "".join(f"{side['spread']:20.0%}" for side in sides))
    lines.append(f"{'network alone':20}" + "".join(f"{side['network alone'] * 1e3:20.1f}" for side in sides))
    lines.append(f"{'outside the network':20}" + "".join(f"{side['outside the network']:20.1%}" for side in sides))
    return "\n".join(lines)


def targets(results: list[dict[str, Any]]) -> list[str]:
    found = []
    for result in results:
        for name, most in TARGETS.items() if result["sides"] else ():
            share = result["sides"][name]["outside the network"]
            verdict = "met" if share <= most else "NOT MET"
            what = f"target {name}, {result['gts']} gts: at most {most:.0%} of a step outside the network"
            found.append(f"{what}: {share:.1%} {verdict}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cfg = Config.fromfile(str(CONFIGS / f"{options.config}.py"))
    machine = facts() | {
        "config": options.config,
        "batch": options.batch,
        "size": cfg.model.input_size[0],
        "threads": options.threads,
        "mmcv": mmcv.__version__,
        "mmdet": mmdet.__version__,
    }
    print(caption(machine))
    print("  ".join(f"{key}={machine[key]}" for key in ("config", "batch", "threads", "mmcv", "mmdet")), flush=True)
    sides = build_sides(cfg)
    with quiet():
        sides[0].network.init_weights()
        libre = find_libre(cfg, options.config)
    results = []
    for gts in options.gts:
        result = bench(cfg, sides, libre, gts, options)
        results.append(result)
        for problem in result["problems"]:
            print(f"MISMATCH at {gts} gts: {problem}")
        if result["sides"]:
            print(table(result), flush=True)
            if options.profile:
                result["profile"] = {side.name: profile(side) for side in sides if side.name != STOCK_BFLOAT16}
                print(*itertools.starmap(profile_table, result["profile"].items()), sep="\n", flush=True)
    problems = sum(len(result["problems"]) for result in results)
    if options.config == STANDARD:
        print("", *targets(results), sep="\n")
    print(f"parity: {f'{problems} DIFFER' if problems else 'assignments, losses and gradients agree'}")
    data = {"machine": machine, "results": results}
    if options.json:
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.plot and not problems:
        train_chart(options.plot, data)
    return int(problems > 0)


if __name__ == "__main__":
    raise SystemExit(main())
