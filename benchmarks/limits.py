"""How fast this machine could be: rates measured in this process, and the work that each case cannot avoid."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import yolox_ops


@dataclass(frozen=True)
class Rates:
    """Measured peak rates per second. Bandwidth is a table, as most cases fit some cache: working set -> bytes/s."""

    bandwidth: dict[int, float]
    log: float
    divide: float
    sigmoid: float

    def bytes_per_second(self, working_set: int) -> float:
        """Rate for a working set: the best seen with that much data or more."""
        fitting = [rate for size, rate in self.bandwidth.items() if size >= working_set]
        return max(fitting or [self.bandwidth[max(self.bandwidth)]])


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def rate(work: float, run: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Work per second of the fastest of many runs."""
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(4):
            run()
        synchronize(device)
        best = min(best, (time.perf_counter() - start) / 4)
    return work / best


def measure_rates(device: torch.device, seconds: float = 0.08) -> Rates:
    """Peak rates at torch's current number of threads, `seconds` for each."""
    bandwidth = {}
    for exponent in (18, 20, 22, 24, 27):  # 256 KiB to 128 MiB
        count = 2**exponent // 12
        a, b, c = (torch.ones(count, device=device) for _ in range(3))
        # A triad moves 12 bytes an element; in place, as the EMA does it, none of them is a hidden read for ownership.
        triad = rate(12 * count, lambda a=a, b=b, c=c: torch.add(b, c, alpha=0.5, out=a), device, seconds)  # type: ignore[misc]
        in_place = rate(12 * count, lambda a=a, b=b: a.lerp_(b, 0.5), device, seconds)  # type: ignore[misc]
        copy = rate(8 * count, lambda a=a, b=b: a.copy_(b), device, seconds)  # type: ignore[misc]
        bandwidth[2**exponent] = max(triad, in_place, copy)
    count = 2**16  # 256 KiB a tensor: stays in the second-level cache
    a, b = torch.rand(2, count, device=device) + 0.5
    out = torch.empty_like(a)
    return Rates(
        bandwidth,
        log=rate(count, lambda: torch.log(a, out=out), device, seconds),
        divide=rate(count, lambda: torch.div(a, b, out=out), device, seconds),
        sigmoid=rate(count, lambda: torch.sigmoid(a, out=out), device, seconds),
    )


def size(value: Any) -> int:
    """Bytes of all tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(size(item) for item in value) if isinstance(value, (list, tuple)) else 0


def lower_bounds(op: str, args: tuple[Any, ...], result: Any, rates: Rates) -> dict[str, float]:
    """Seconds that each kind of necessary work takes at its peak rate; the largest is the case's limit."""
    moved = size(args) + size(result)
    logs = divides = sigmoids = 0
    pairs = 0.0
    if op == "box_iou_backward":
        divides = args[0].numel()
    elif op == "box_iou":
        divides = result.numel() * (2 if args[2] == "giou" else 1)
    elif op == "simota_cost":
        logs, divides = args[0].numel() + 2 * result[0].numel(), result[0].numel()
    elif op == "simota_assign":
        logs, divides, rows = assignment_work(args)
        moved -= size(args[0]) - 4 * rows * args[0].shape[2]  # scores of the other priors need not be read
    elif op == "batched_nms":
        pairs = sort_and_pairs(args[1], args[2], result, rates)
    elif op == "yolox_detect":
        likely = args[1].sigmoid() >= args[3]  # the objectness bounds the score, so other rows need not be read
        moved -= int((~likely).sum()) * 4 * (args[0].shape[2] + 4)
        sigmoids = args[1].numel() + int(likely.sum())
    elif op == "ema_update_":
        moved = 3 * size(args[1])  # read both, write the average
    return {
        "bytes": moved / rates.bytes_per_second(moved),
        "logs": logs / rates.log,
        "divides": divides / rates.divide,
        "sigmoids": sigmoids / rates.sigmoid,
        "sort + pairs": pairs,
    }


def assignment_work(args: tuple[Any, ...]) -> tuple[int, int, int]:
    """(logs, divides, rows of scores) that SimOTA needs: a row of C logs for each prior in box and centre of some gt,
    three logs for each such pair, a divide for each pair of a candidate and a gt that overlap."""
    scores, centers, boxes, gts, _, counts, radius, *_ = args
    logs = divides = rows = 0
    for b, n in enumerate(counts.tolist()):
        real = gts[b, :n]
        xy, reach = centers[:, None, :2], radius * centers[:, None, 2:]
        in_box = ((xy > real[:, :2]) & (xy < real[:, 2:])).all(-1)
        in_centre = ((xy - (real[:, :2] + real[:, 2:]) / 2).abs() < reach).all(-1)
        both = in_box & in_centre
        image_rows = int(both.any(1).sum())
        logs += image_rows * scores.shape[2] + 3 * int(both.sum())
        candidates = boxes[b][(in_box | in_centre).any(1)]
        divides += int((yolox_ops.box_iou(candidates, real) > 0).sum())
        rows += image_rows
    return logs, divides, rows


def sort_and_pairs(scores: Tensor, labels: Tensor, keep: Tensor, rates: Rates) -> float:
    """Seconds to sort the scores with torch, and to test each kept box against those kept before it in its class and
    every other box once, one divide a test."""
    kept = torch.bincount(labels[keep]).double()
    tests = float((kept * (kept - 1) / 2).sum()) + len(scores) - len(keep)
    sorts = rate(1, lambda: scores.sort(descending=True), scores.device, 0.02)
    return 1 / sorts + tests / rates.divide
