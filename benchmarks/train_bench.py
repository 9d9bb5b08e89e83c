"""Times whole training steps, MMDetection's and the plugin's in turns: python benchmarks/train_bench.py

From the unmodified config of the MMDetection that is installed, the same weights and batches; first makes sure that
losses and gradients agree. LibreYOLO, where it is installed, trains its own YOLOX of that size on the same batches; its
assignments are others, so it is timed and not compared. Exit status: 0 they agree, 1 they differ, 2 wrong arguments.
Times never change it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import itertools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import profiles
import sides
import torch
from cases import make_gts
from figures import train_chart
from machine import caption, facts
from parity import Verdict, compare_assignments
from peers import quiet
from report import can_plot
from sides import BFLOAT16, PLUGIN, STOCK, STOCK_BFLOAT16, Detector, Training
from torch import Tensor

import yolox_ops
from yolox_plugin.core import head as plugin_head

host = sides.host()
NETWORK = ("forward", "backward")
# Of the positives, at most this share may go to other priors as the networks' outputs differ by rounding.
ROUNDING_SHARE = 0.01


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", default=host.STANDARD, help="name among MMDetection's YOLOX configs")
    parser.add_argument("--gts", type=int, nargs="+", default=[30, 100], help="gts in each image (default 30 100)")
    parser.add_argument("--batch", type=int, default=2, help="images a step (default 2)")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each side (default 7)")
    parser.add_argument("--threads", type=int, default=2, help="threads that each side may use (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--profile", action="store_true", help="also the time and the memory of operators")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the steps as stacked bars (needs matplotlib)")
    options = parser.parse_args(argv)
    for name in ("batch", "rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if min(options.gts) < 0:
        parser.error(f"--gts must be at least 0, got {min(options.gts)}")
    known = sorted(path.stem for path in host.CONFIGS.glob("yolox_*_8x*.py"))
    if options.config not in known:
        parser.error(f"--config must be one of {', '.join(known)}; got {options.config}")
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
        sample: dict[str, Any] = host.pack(image, boxes, labels)
        return sample


class Libre(Training):
    """LibreYOLO's own YOLOX, the present way of Megvii's code, trained as its trainer does on a CPU."""

    def __init__(self, cfg: Any, size: str) -> None:
        model = importlib.import_module("libreyolo.models.yolox.nn").LibreYOLOXModel
        average = importlib.import_module("libreyolo.training.ema").ModelEMA
        version = importlib.metadata.version("libreyolo")
        network = model(size, cfg.model.bbox_head.num_classes).train()
        network.init_weights()
        settings = {key: host.sgd_settings(cfg)[key] for key in ("lr", "momentum", "weight_decay", "nesterov")}
        optimizer = torch.optim.SGD(network.parameters(), **settings)
        super().__init__(f"LibreYOLO {'.'.join(version.split('.')[:2])}", network, network.head, optimizer)
        self.average = average(network)
        self.head.get_losses = self.loss_watch.around(self.head.get_losses)
        self.head.get_assignments = self.assign_watch.around(self.head.get_assignments)

    def start(self, state: Mapping[str, Tensor], loader: Any) -> None:
        """Its own weights go on."""
        super().start({}, loader)

    def step(self) -> dict[str, float]:
        """See the base class."""
        clock = [time.perf_counter()]
        images, *gts = host.unpack(next(self.batches))
        images, boxes, labels = (torch.stack(list(tensors)) for tensors in (images, *gts))
        lengths = boxes[..., 2:] - boxes[..., :2]
        targets = torch.cat([labels[..., None], boxes[..., :2] + lengths / 2, lengths], -1)
        clock.append(time.perf_counter())
        loss = self.network(images.float(), targets)["total_loss"]
        clock.append(time.perf_counter())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        clock.append(time.perf_counter())
        self.average.update(self.network)
        clock.append(time.perf_counter())
        return self.stages(*(b - a for a, b in itertools.pairwise(clock)))

    def network_alone(self, images: Tensor) -> Tensor:
        """See the base class."""
        outputs: Tensor = self.head.forward_train_maps(self.network.backbone(images))[0]
        return outputs.mean()


def seconds_alone(side: Training, batch: int, size: int) -> float:
    """Seconds of forward and backward with no loss: what a step cannot go below."""
    images = torch.rand(batch, 3, size, size) * 255
    start = time.perf_counter()
    side.network_alone(images).backward()  # type: ignore[no-untyped-call]
    taken = time.perf_counter() - start
    side.optimizer.zero_grad()  # mmengine's step begins without
    return taken


def build_sides(cfg: Any) -> list[Detector]:
    """MMDetection's first, as the plugin then takes its place in the registries."""
    stock = [host.Side(cfg, name) for name in (STOCK, STOCK_BFLOAT16)]
    for side in stock:
        assigner = side.head.assigner
        assigner.assign = side.recorded(assigner.assign, host.assigned)
    sides.replace_classes()
    plugin = [host.Side(cfg, name) for name in (PLUGIN, BFLOAT16)]
    assign = vars(plugin_head)["assign"]
    for side in plugin:  # both share the function
        recorded = side.recorded(assign, lambda result, *_, **__: result.gt_index)
        side.before_step = partial(setattr, plugin_head, "assign", recorded)
    return [*stock, *plugin]


def find_libre(cfg: Any, config: str) -> list[Libre]:
    """LibreYOLO's side where it is installed."""
    try:
        return [Libre(cfg, config.removeprefix("yolox_")[0])]
    except ImportError as error:
        print(f"missing: LibreYOLO ({error})")
        return []


def assigned_by_operator(calls: list[Any]) -> list[str]:
    """In what the operator differs from MMDetection's assigner, on the very predictions that this saw."""
    verdict = Verdict()
    for (scores, centers, boxes, gts, labels), gt_index, overlaps in calls:
        args = (scores[None], centers, boxes[None], gts[None], labels[None], torch.tensor([len(gts)]))
        compare_assignments(verdict, args, yolox_ops.simota_assign(*args), (gt_index[None], overlaps[None]))
    return [f"simota_assign: {problem}" for problem in verdict.problems]


def compare(compared: list[Detector], gradients: list[dict[str, Tensor | None]]) -> tuple[list[str], int]:
    """What differs in losses and gradients after the sides' first step on the same weights and batch; and how many
    priors the plugin gave to another gt, as rounding in the network moved their costs."""
    stock, *others = compared
    problems, moved = assigned_by_operator(stock.assigned), 0
    for side, ours in zip(others, gradients[1:], strict=True):
        exact = side.name == PLUGIN
        for name, value in stock.losses.items():
            our_loss, their_loss = float(side.losses[name]), float(value)
            # In bfloat16 some gts take another number of priors, and all losses are means over those.
            if not abs(our_loss - their_loss) <= (1e-3 if exact else 0.2) * abs(their_loss):  # nor NaN
                problems.append(f"{side.name}: {name} is {our_loss:.6g}, MMDetection's {their_loss:.6g}")
        if not exact:
            continue  # single gradients of bfloat16 tell little; that it trains as well is for the demo to show
        if stock.assigned:
            their_gts = torch.stack([gt_index for _, gt_index, _ in stock.assigned])
            moved = int((their_gts != side.assigned[0]).sum())
            positives = int((their_gts >= 0).sum())
            if moved > max(2, ROUNDING_SHARE * positives):
                problems.append(f"{side.name}: {moved} priors have another gt, of {positives} positives")
        for name, their in gradients[0].items():
            our = ours[name]
            if their is None or our is None:
                if (their is None) != (our is None):
                    problems.append(f"{side.name}: gradient of {name} on one side only")
                continue
            error = float((our - their).norm() / (their.norm() + 1e-12))
            if not error <= (0.05 if moved else 1e-3):
                problems.append(f"{side.name}: gradient of {name} differs by {error:.2g} of its norm")
    return problems, moved


def bench(
    cfg: Any, compared: list[Detector], libre: list[Libre], gts: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Parity, then the timed rounds, for one number of gts."""
    size = host.image_size(cfg)
    state = {name: value.clone() for name, value in compared[0].network.state_dict().items() if "ema_" not in name}
    samples = Samples(size, gts, (options.rounds + 3) * options.batch)
    every: list[Training] = [*compared, *libre]
    for side in every:
        side.start(state, host.loader(samples, options.batch))
    problems, moved = compare(compared, [side.step_with_gradients() for side in compared])
    for side in libre:
        side.step()
    result: dict[str, Any] = {"gts": gts, "problems": problems, "moved by rounding": moved, "sides": {}}
    if problems:
        return result
    steps: dict[str, list[dict[str, float]]] = {side.name: [] for side in every}
    alone: dict[str, list[float]] = {side.name: [] for side in every}
    for turn in range(options.rounds):
        for side in every if turn % 2 == 0 else every[::-1]:
            steps[side.name].append(side.step())
            alone[side.name].append(seconds_alone(side, options.batch, size))
    for side in every:
        taken = steps[side.name]
        totals = [sum(step.values()) for step in taken]
        quartiles = statistics.quantiles(totals, n=4, method="inclusive") if len(totals) > 1 else totals * 3
        outside = [1 - sum(step[stage] for stage in NETWORK) / sum(step.values()) for step in taken]
        result["sides"][side.name] = {
            "stages": {stage: statistics.median(step.get(stage, 0.0) for step in taken) for stage in host.STAGES},
            "head loss": statistics.median(step["assignment"] + step["losses"] for step in taken),
            "step": statistics.median(totals),
            "spread": (quartiles[2] - quartiles[0]) / quartiles[1],
            "outside the network": statistics.median(outside),
            "network alone": statistics.median(alone[side.name]),
        }
    return result


def profile_table(name: str, found: dict[str, Any]) -> str:
    lines = [f"\n{name:44} {'ms':>9} {'calls':>7}"]
    for operator, (ms, calls) in [*found["operators"].items(), ("all", found["all"])]:
        lines.append(f"{operator:44} {ms:9.1f} {calls:7}")
    return "\n".join(lines)


def table(result: dict[str, Any]) -> str:
    """Milliseconds of each stage, and ratios to MMDetection."""
    lines = [f"\n{result['gts']} gts an image; {result['moved by rounding']} priors have another gt by rounding"]
    lines.append(f"{'ms, median':20}" + "".join(f"{name:>20}" for name in result["sides"]))
    columns = list(result["sides"].values())
    for stage in host.STAGES:
        cells = [f"{side['stages'][stage] * 1e3:.1f}" for side in columns]
        lines.append(f"{stage:20}" + "".join(f"{cell:>20}" for cell in cells))
    for what in ("head loss", "step"):
        base = columns[0][what]
        cells = [f"{side[what] * 1e3:.1f} ({base / side[what]:.2f}x)" for side in columns]
        lines.append(f"{what:20}" + "".join(f"{cell:>20}" for cell in cells))
    lines.append(f"{'spread of step':20}" + "".join(f"{side['spread']:20.0%}" for side in columns))
    lines.append(f"{'network alone':20}" + "".join(f"{side['network alone'] * 1e3:20.1f}" for side in columns))
    lines.append(f"{'outside the network':20}" + "".join(f"{side['outside the network']:20.1%}" for side in columns))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cfg = host.read_config(options.config)
    machine = facts() | {
        "config": options.config,
        "batch": options.batch,
        "size": host.image_size(cfg),
        "threads": options.threads,
        **host.VERSIONS,
    }
    print(f"mmdet {host.VERSIONS['mmdet']}, {caption(machine)}")
    print("  ".join(f"{key}={machine[key]}" for key in ("config", "batch", "threads", *host.VERSIONS)), flush=True)
    compared = build_sides(cfg)
    with quiet():
        compared[0].network.init_weights()
        libre = find_libre(cfg, options.config)
    results = []
    for gts in options.gts:
        result = bench(cfg, compared, libre, gts, options)
        results.append(result)
        for problem in result["problems"]:
            print(f"MISMATCH at {gts} gts: {problem}")
        if result["sides"]:
            print(table(result), flush=True)
            if options.profile:
                result["profile"] = {side.name: profiles.of(side.step) for side in [*compared, *libre]}
                print(profiles.table(result["profile"]))
                print(*itertools.starmap(profile_table, result["profile"].items()), sep="\n", flush=True)
    problems = sum(len(result["problems"]) for result in results)
    if options.config == host.STANDARD:
        targets = [
            target for found in results if found["sides"] for target in host.targets(found["gts"], found["sides"])
        ]
        lines = [f"target {target.what}: {target.found} {'met' if target.met else 'NOT MET'}" for target in targets]
        print("", *lines, sep="\n")
    print(f"parity: {f'{problems} DIFFER' if problems else 'assignments, losses and gradients agree'}")
    data = {"machine": machine, "results": results}
    if options.json:
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.plot and not problems:
        train_chart(options.plot, data)
    return int(problems > 0)


if __name__ == "__main__":
    raise SystemExit(main())
