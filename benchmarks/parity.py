"""Do two implementations agree? Exactly where the result is a choice, unless the options of that choice are equal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from yolox_ops import SimOTAParameters, reference


@dataclass
class Verdict:
    """What differed, in words; and how many choices differ between options that are equal."""

    problems: list[str] = field(default_factory=list)
    ties: int = 0


def compare(op: str, args: tuple[Any, ...], mine: Any, other: Any, peer: str = "") -> Verdict:
    """Compares the results (on the CPU) that two implementations of `op` gave for the same arguments."""
    verdict = Verdict()
    if op == "box_iou":
        close(verdict, "IoU", mine, other, 1e-5, 2e-6)
    elif op == "box_iou_backward":
        for i, (a, b) in enumerate(zip(mine, other, strict=True)):
            # A box's gradient is a sum over all boxes of the other side, in another order in each implementation.
            close(verdict, f"gradient of boxes{i + 1}", a, b, 1e-4, 1e-5 * float(b.abs().max()))
    elif op.startswith("batch_norm_silu"):
        # bfloat16 is rounded once by us, and between norm and SiLU by torch, too.
        rtol = 1e-4 if args[0].dtype == torch.float32 else 0.02
        pairs = zip(mine, other, strict=True) if op.endswith("backward") else [(mine, other)]
        for name, (a, b) in zip(("input", "weight", "bias"), pairs, strict=False):
            what = f"gradient of {name}" if op.endswith("backward") else "output"
            close(verdict, what, a, b, rtol, rtol * float(b.abs().max()))
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
    elif op == "mixup_blend":
        compare_pictures(verdict, mine, other, ipp=args[-1] and peer == "reference")
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
    """The same gt for every prior, unless equal costs leave the choice between the two open."""
    scores, centers, boxes, gts, labels, counts, *parameters = args
    if mine[0].shape != other[0].shape:
        verdict.problems.append(f"gt_index: shapes {tuple(mine[0].shape)} and {tuple(other[0].shape)}")
        return
    differs = mine[0] != other[0]
    for b in differs.any(1).nonzero()[:, 0].tolist():
        n = int(counts[b])
        allowed = outcomes(scores[b], centers, boxes[b], gts[b, :n], labels[b, :n], SimOTAParameters(*parameters))
        every = torch.arange(len(centers))
        tied = allowed[every, mine[0][b]] & allowed[every, other[0][b]]  # index -1, the background, is the last column
        verdict.ties += int((differs[b] & tied).sum())
        wrong = (differs[b] & ~tied).nonzero()[:, 0]
        if len(wrong):
            p = int(wrong[0])
            verdict.problems.append(
                f"image {b}: {len(wrong)} priors have another gt, first prior {p}: {int(mine[0][b, p])} and"
                f" {int(other[0][b, p])}"
            )
    close(verdict, "matched IoU", mine[1][~differs], other[1][~differs], 1e-5, 2e-6)


def outcomes(
    scores: Tensor,
    centers: Tensor,
    boxes: Tensor,
    gts: Tensor,
    labels: Tensor,
    parameters: SimOTAParameters,
) -> Tensor:
    """Which gts, the last column being none, SimOTA may give to each prior of an image, [P, G + 1]: one, but for costs
    of the reference that are equal in float32. `keep_every_gt` is not considered."""
    center_radius, candidate_topk, cls_weight, iou_weight, _ = parameters
    cost, iou = reference.simota_cost(scores, centers, boxes, gts, labels, center_radius, cls_weight, iou_weight)
    in_box, in_centre = reference._regions(centers, gts, center_radius)
    candidate = (in_box | in_centre).any(1, keepdim=True)
    if not candidate.any():
        return torch.cat([torch.zeros_like(in_box), ~candidate], 1)
    rank = cost.masked_fill(~candidate, torch.inf)
    overlaps = iou.masked_fill(~candidate, 0).topk(min(candidate_topk, int(candidate.sum())), 0).values
    k = overlaps.sum(0).int().clamp(min=1).long()
    edge = rank.sort(0).values.gather(0, k[None] - 1)
    wanted = (rank <= edge) & candidate
    # With more priors at the k-th cost than places are left, each of them may be taken or not.
    certain = wanted & ~((rank == edge) & (wanted.sum(0) > k))
    sure = certain.sum(1, keepdim=True)
    alone = wanted & (sure == certain)
    cheapest = (cost == cost.amin(1, keepdim=True)) & (wanted.sum(1, keepdim=True) > 1)
    return torch.cat([alone | cheapest, sure == 0], 1)


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
            verdict.ties += min(odd, at_threshold)
            if odd > at_threshold:
                verdict.problems.append(f"image {b}: {n} and {m} detections, {odd} of them on one side only")
        elif not torch.allclose(scores[:n], scores[n:], rtol=1e-5, atol=1e-6):
            verdict.problems.append(f"image {b}: scores differ by up to {(scores[:n] - scores[n:]).abs().max():.3g}")
        if len(mine[1][b]) > n and (mine[1][b, n:] != -1).any():
            verdict.problems.append(f"image {b}: labels beyond {n} detections are not -1")


def compare_pictures(verdict: Verdict, mine: Tensor, other: Tensor, ipp: bool) -> None:
    """The same levels; `ipp` where the other side lacks IPP's fused multiply-add, which moves a level that is whole but
    for the last bit."""
    if mine.shape != other.shape:
        verdict.problems.append(f"picture: shapes {tuple(mine.shape)} and {tuple(other.shape)}")
        return
    apart = (mine.int() - other.int()).abs()
    wrong = int((apart > 0).sum())
    if ipp and int(apart.max()) <= 1 and wrong <= 1e-3 * apart.numel():
        verdict.ties += wrong
    elif wrong:
        verdict.problems.append(f"{wrong} of {apart.numel()} levels differ, by up to {int(apart.max())}")


# A loss sums some million float32 terms, pairwise: 20 roundings in a row on either side, and as many in each term.
LOSS_TOLERANCE = 80 * 2.0**-23


def compare_losses(verdict: Verdict, what: str, mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Losses of the same names, equal up to float32 rounding."""
    if mine.keys() != other.keys():
        verdict.problems.append(f"{what}: {sorted(mine)} and {sorted(other)}")
        return
    for name in other:
        close(verdict, f"{what}: {name}", mine[name].cpu(), other[name].cpu(), LOSS_TOLERANCE, 0.0)


def compare_boxes(verdict: Verdict, what: str, mine: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    """Detections [N, 5] and labels [N] of one image, in any order: each of one side has one of the other, of its label,
    its corners to 1e-3 pixels and its score to 1e-5."""
    (a, a_labels), (b, b_labels) = ([part.cpu() for part in side] for side in (mine, other))
    near = (a[:, None] - b).abs() <= torch.tensor([1e-3] * 4 + [1e-5])
    pair = near.all(-1) & (a_labels[:, None] == b_labels)
    odd = int((~pair.any(1)).sum()) + int((~pair.any(0)).sum())
    if odd or len(a) != len(b):
        verdict.problems.append(f"{what}: {len(a)} and {len(b)} detections, {odd} of them on one side only")
