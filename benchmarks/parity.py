"""Do two implementations agree? Exactly where the result is a choice, but for ties closer than float32 rounding."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from yolox_ops import reference

# Of the positives of a case, at most this share may differ by near ties: more means that the costs are wrong.
NEAR_TIE_SHARE = 0.01


@dataclass
class Verdict:
    """What differed, in words; and how many choices differ between options that rounding cannot tell apart."""

    problems: list[str] = field(default_factory=list)
    near_ties: int = 0


def compare(op: str, args: tuple[Any, ...], mine: Any, other: Any) -> Verdict:
    """Compares the results (on the CPU) that two implementations of `op` gave for the same arguments."""
    verdict = Verdict()
    if op == "box_iou":
        close(verdict, "IoU", mine, other, 1e-5, 2e-6)
    elif op == "ema_update_":
        for i, (a, b) in enumerate(zip(mine, other, strict=True)):
            close(verdict, f"average {i}", a, b, 1e-6, 1e-8)
    elif op == "simota_cost":
        computed = ~other[0].isnan().any(1)  # a peer may compute the rows of candidates only
        if not computed.any():
            verdict.problems.append("the other side computed no row")
        close(verdict, "cost", mine[0][computed], other[0][computed], 1e-5, 1e-4)
        close(verdict, "IoU", mine[1][computed], other[1][computed], 1e-5, 2e-6)
    elif op == "simota_assign":
        compare_assignments(verdict, args, mine, other)
    elif op == "batched_nms":
        if mine.shape != other.shape or not mine.equal(other):
            both = set(mine.tolist()) & set(other.tolist())
            verdict.problems.append(f"kept {len(mine)} and {len(other)} boxes, {len(both)} of them the same")
    elif op == "yolox_detect":
        compare_detections(verdict, args, mine, other)
    else:
        raise ValueError(f"no comparison for {op}")
    return verdict


def close(verdict: Verdict, what: str, mine: Tensor, other: Tensor, rtol: float, atol: float) -> None:
    if mine.shape != other.shape:
        verdict.problems.append(f"{what}: shapes {tuple(mine.shape)} and {tuple(other.shape)}")
        return
    wrong = ~torch.isclose(mine, other, rtol, atol)  # NaN is close to nothing, and no case has one
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        verdict.problems.append(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} differ, first at {where}: {mine[where]:.7g} and"
            f" {other[where]:.7g}"
        )


def compare_assignments(verdict: Verdict, args: tuple[Any, ...], mine: Any, other: Any) -> None:
    scores, priors, boxes, gts, labels, counts = args
    if mine[0].shape != other[0].shape:
        verdict.problems.append(f"gt_index: shapes {tuple(mine[0].shape)} and {tuple(other[0].shape)}")
        return
    differs = mine[0] != other[0]
    for b in differs.any(1).nonzero()[:, 0].tolist():
        n = int(counts[b])
        unclear = decided_by_rounding(scores[b], priors, boxes[b], gts[b, :n], labels[b, :n])
        verdict.near_ties += int((differs[b] & unclear).sum())
        wrong = (differs[b] & ~unclear).nonzero()[:, 0]
        if len(wrong):
            p = int(wrong[0])
            verdict.problems.append(
                f"image {b}: {len(wrong)} priors have another gt, first prior {p}: {int(mine[0][b, p])} and"
                f" {int(other[0][b, p])}"
            )
    positives = int((mine[0] >= 0).sum())
    if verdict.near_ties > max(1, NEAR_TIE_SHARE * positives):
        verdict.problems.append(f"{verdict.near_ties} near ties among {positives} positives")
    close(verdict, "matched IoU", mine[1][~differs], other[1][~differs], 1e-5, 2e-6)


def decided_by_rounding(scores: Tensor, priors: Tensor, boxes: Tensor, gts: Tensor, labels: Tensor) -> Tensor:
    """Priors [P] whose gt hangs on two costs, or on a sum of IoUs, that are equal up to float32 rounding."""
    cost, iou = reference.simota_cost(scores, priors, boxes, gts, labels)
    centre = (gts[:, :2] + gts[:, 2:]) / 2
    xy, reach = priors[:, None, :2], 2.5 * priors[:, None, 2:]
    in_box = ((xy > gts[:, :2]) & (xy < gts[:, 2:])).all(-1)
    in_centre = ((xy - centre).abs() < reach).all(-1)
    candidate = (in_box | in_centre).any(1)
    # A cost of 1e5 and more, where the prior is not in both, has a float32 spacing of 1/128.
    slack = 1e-4 + 3e-7 * cost.abs()
    unclear = torch.zeros(len(priors), dtype=torch.bool)
    if cost.shape[1] > 1:  # the least cost over all gts, for a prior that several want
        low = cost.topk(2, 1, largest=False).values
        unclear |= low[:, 1] - low[:, 0] <= slack.amin(1)
    cost = cost.masked_fill(~candidate[:, None], torch.inf)
    ranked = cost.sort(0).values
    overlap = iou.masked_fill(~candidate[:, None], 0).topk(min(10, len(priors)), 0).values.sum(0)
    for g in range(len(gts)):
        # k may be either of two where the sum is next to an integer.
        for k in {max(int(overlap[g] - 1e-4), 1), max(int(overlap[g] + 1e-4), 1)}:
            edge = ranked[k - 1 : k + 1, g]
            at_edge = (cost[:, g] - edge[:1]).abs() <= slack[:, g]
            if len(edge) == 2 and (edge[1] - edge[0]) <= 1e-4 + 3e-7 * edge[0].abs():
                unclear |= at_edge
            if int(overlap[g] - 1e-4) != int(overlap[g] + 1e-4):
                unclear |= at_edge
    return unclear


def compare_detections(verdict: Verdict, args: tuple[Any, ...], mine: Any, other: Any) -> None:
    """The same boxes and labels in each image, scores equal to 1e-6, order free where scores are that close."""
    threshold = args[3]
    for b, (n, m) in enumerate(zip(mine[2].tolist(), other[2].tolist(), strict=True)):
        rows = [
            Counter((*box, label) for box, label in zip(d[b, :c, :4].tolist(), lab[b, :c].tolist(), strict=True))
            for (d, lab, _), c in ((mine, n), (other, m))
        ]
        scores = torch.cat([mine[0][b, :n, 4], other[0][b, :m, 4]])
        if rows[0] != rows[1]:
            # Only a score at the threshold may come and go with rounding.
            odd = sum(((rows[0] - rows[1]) + (rows[1] - rows[0])).values())
            at_threshold = int(((scores - threshold).abs() < 1e-6).sum())
            verdict.near_ties += min(odd, at_threshold)
            if odd > at_threshold:
                verdict.problems.append(f"image {b}: {n} and {m} detections, {odd} of them on one side only")
        elif not torch.allclose(scores[:n], scores[n:], rtol=1e-5, atol=1e-6):
            verdict.problems.append(f"image {b}: scores differ by up to {(scores[:n] - scores[n:]).abs().max():.3g}")
        if len(mine[1][b]) > n and (mine[1][b, n:] != -1).any():
            verdict.problems.append(f"image {b}: labels beyond {n} detections are not -1")
