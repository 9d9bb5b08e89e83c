"""What each operator is compared with and timed against: the specification, and each other implementation installed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

import yolox_ops


@dataclass(frozen=True)
class Peer:
    """An implementation of one operator.

    prepare(*args) returns the call to time; convert turns what that call returned into what yolox_ops returns.
    """

    name: str
    prepare: Callable[..., Callable[[], Any]]
    convert: Callable[[Any], Any] = lambda raw: raw


def ours(op: str) -> Peer:
    # Looked up at each call, so that a replaced operator is the one that gets checked and timed.
    return Peer("yolox_ops", lambda *args: lambda: getattr(yolox_ops, op)(*args))


def megvii_assign(scores: Tensor, priors: Tensor, boxes: Tensor, gts: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """SimOTA of one image, step by step as the YOLOX paper (section 2.1) and its code go about it, in plain torch.

    Layout [G, V] and a [G, V, C] cross-entropy as there; constants, candidate rule and tie-breaking matrix are
    mmdet's (box OR centre region, eps 1e-7, least cost over all gts), so that the results can be compared.
    """
    # 1. Fixed centre prior: which priors lie in a gt and within 2.5 strides of its centre.
    x, y, stride = priors[None, :, 0], priors[None, :, 1], priors[None, :, 2]
    left, top, right, bottom = gts[:, :, None].unbind(1)
    in_box = torch.stack([x - left, y - top, right - x, bottom - y], -1).min(-1).values > 0
    centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
    reach = 2.5 * stride
    sides = [x - (centre_x - reach), y - (centre_y - reach), centre_x + reach - x, centre_y + reach - y]
    in_centre = torch.stack(sides, -1).min(-1).values > 0
    candidate = (in_box | in_centre).any(0)
    preferred = (in_box & in_centre)[:, candidate]
    gt_index = torch.full((len(priors),), -1, dtype=torch.int64, device=priors.device)
    matched_iou = torch.zeros(len(priors), device=priors.device)
    if not candidate.any():
        return gt_index, matched_iou
    # 2. Pairwise IoU and its cost.
    predicted = boxes[candidate]
    low = torch.max(gts[:, None, :2], predicted[:, :2])
    high = torch.min(gts[:, None, 2:], predicted[:, 2:])
    inter = (high - low).prod(2) * (low < high).all(2)
    gt_area, area = (gts[:, 2:] - gts[:, :2]).prod(1), (predicted[:, 2:] - predicted[:, :2]).prod(1)
    iou = inter / (gt_area[:, None] + area - inter)
    # 3. Classification cost of every (gt, prior, class).
    count, classes = len(predicted), scores.shape[1]
    target = F.one_hot(labels, classes).float().unsqueeze(1).repeat(1, count, 1)
    root = scores[candidate].unsqueeze(0).repeat(len(gts), 1, 1).sqrt_()
    cost = F.binary_cross_entropy(root, target, reduction="none").sum(-1)
    cost = cost - 3.0 * torch.log(iou + 1e-7) + 100000.0 * ~preferred
    # 4. Dynamic k, then the k cheapest candidates of each gt.
    dynamic_k = iou.topk(min(10, count), 1).values.sum(1).int().clamp(min=1)
    matching = torch.zeros_like(cost, dtype=torch.uint8)
    for gt in range(len(gts)):
        matching[gt][cost[gt].topk(int(dynamic_k[gt]), largest=False).indices] = 1
    # 5. A prior wanted by several gts goes to the cheapest.
    contested = matching.sum(0) > 1
    if contested.any():
        winner = cost[:, contested].argmin(0)
        matching[:, contested] = 0
        matching[winner, contested.nonzero()[:, 0]] = 1
    positive = matching.sum(0) > 0
    rows = candidate.nonzero()[positive.nonzero()[:, 0], 0]
    gt_index[rows] = matching[:, positive].argmax(0)
    matched_iou[rows] = (matching * iou).sum(0)[positive]
    return gt_index, matched_iou


def megvii() -> dict[str, Peer]:
    def prepare(scores: Tensor, priors: Tensor, boxes: Tensor, gts: Tensor, labels: Tensor, num_gts: Tensor) -> Any:
        counts = num_gts.tolist()
        return lambda: [
            megvii_assign(scores[i], priors, boxes[i], gts[i, :n], labels[i, :n]) for i, n in enumerate(counts)
        ]

    return {
        "simota_assign": Peer("Megvii's steps", prepare, lambda raw: tuple(map(torch.stack, zip(*raw, strict=True))))
    }


def torch_foreach() -> dict[str, Peer]:
    def prepare(average: list[Tensor], value: list[Tensor], momentum: float) -> Any:
        # torch's own EMA for AveragedModel; its third argument is the number of models averaged, which it ignores.
        update: Any = get_ema_multi_avg_fn(1 - momentum)  # type: ignore[no-untyped-call]
        return lambda: update(average, value, 1)

    return {"ema_update_": Peer("torch foreach", prepare)}


def torchvision() -> dict[str, Peer]:
    from torchvision.ops import batched_nms, box_iou, generalized_box_iou_loss

    def iou(boxes1: Tensor, boxes2: Tensor, mode: str, aligned: bool) -> Any:
        if aligned:  # torchvision has no aligned GIoU but as a loss, 1 - GIoU
            return lambda: generalized_box_iou_loss(boxes1, boxes2)
        return lambda: box_iou(boxes1, boxes2)

    def detect(cls: Tensor, obj: Tensor, boxes: Tensor, score_thr: float, iou_thr: float, limit: int) -> Any:
        def image(cls: Tensor, obj: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
            best, labels = cls.max(-1)
            scores = best.sigmoid() * obj.sigmoid()
            kept = scores >= score_thr
            boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
            keep = batched_nms(boxes, scores, labels, iou_thr)[:limit]
            return torch.cat([boxes[keep], scores[keep, None]], -1), labels[keep]

        return lambda: [image(*parts) for parts in zip(cls, obj, boxes, strict=True)]

    return {
        "box_iou": Peer("torchvision", iou, lambda raw: 1 - raw if raw.dim() == 1 else raw),
        "batched_nms": Peer("torchvision", lambda *args: lambda: batched_nms(*args)),
        "yolox_detect": Peer("torchvision", detect, pad_detections),
    }


def mmcv() -> dict[str, Peer]:
    with quiet():
        from mmcv.ops import batched_nms

    def prepare(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Any:
        return lambda: batched_nms(boxes, scores, labels, {"type": "nms", "iou_threshold": threshold})

    return {"batched_nms": Peer("mmcv", prepare, lambda raw: raw[1])}


def mmdet() -> dict[str, Peer]:
    with quiet():
        from mmcv import ConfigDict
        from mmdet.core import ExpMomentumEMAHook, bbox_overlaps
        from mmdet.core.bbox.assigners import SimOTAAssigner
        from mmdet.models import YOLOXHead

    class CostTaken(Exception):
        pass

    class CostOnly(SimOTAAssigner):
        """mmdet's assigner as far as its cost matrix."""

        def dynamic_k_matching(self, cost: Tensor, iou: Tensor, num_gt: int, valid: Tensor) -> None:
            raise CostTaken(cost, iou, valid)

    def cost(scores: Tensor, priors: Tensor, boxes: Tensor, gts: Tensor, labels: Tensor) -> Any:
        def run() -> Any:
            try:
                CostOnly()._assign(scores, priors, boxes, gts, labels)
            except CostTaken as taken:
                return taken.args

        return run

    def scatter(raw: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        """mmdet computes the rows of candidates only: NaN stands for the others."""
        valid = raw[2]
        full = [values.new_full((len(valid), values.shape[1]), torch.nan) for values in raw[:2]]
        for rows, values in zip(full, raw, strict=False):
            rows[valid] = values
        return tuple(full)

    def assign(scores: Tensor, priors: Tensor, boxes: Tensor, gts: Tensor, labels: Tensor, num_gts: Tensor) -> Any:
        assigner, counts = SimOTAAssigner(center_radius=2.5), num_gts.tolist()
        return lambda: [
            assigner.assign(scores[i], priors, boxes[i], gts[i, :n], labels[i, :n]) for i, n in enumerate(counts)
        ]

    def stack_assigned(raw: Any) -> tuple[Tensor, Tensor]:
        ious = torch.stack([result.max_overlaps for result in raw])
        return torch.stack([result.gt_inds for result in raw]) - 1, ious.clamp(min=0)

    def detect(cls: Tensor, obj: Tensor, boxes: Tensor, score_thr: float, iou_thr: float, limit: int) -> Any:
        head = YOLOXHead(num_classes=cls.shape[-1], in_channels=8, feat_channels=8)
        cfg = ConfigDict(score_thr=score_thr, nms={"type": "nms", "iou_threshold": iou_thr, "max_num": limit})

        def run() -> Any:
            # get_bboxes from behind the decoding of boxes, which yolox_detect does not do either.
            scores, factors = cls.sigmoid(), obj.sigmoid()
            return [head._bboxes_nms(scores[i], boxes[i], factors[i], cfg) for i in range(len(cls))]

        return run

    def ema(average: list[Tensor], value: list[Tensor], momentum: float) -> Any:
        model = torch.nn.Module()
        for i, tensor in enumerate(value):
            model.register_buffer(f"value{i}", tensor)
        hook = ExpMomentumEMAHook(momentum=momentum)
        # So late in training that the momentum has reached its constant: the exponential term is 0 exactly.
        runner = SimpleNamespace(model=model, iter=10**9)
        hook.before_run(runner)
        for i, tensor in enumerate(average):
            hook.model_buffers[f"ema_value{i}"].copy_(tensor)
            tensor.set_(hook.model_buffers[f"ema_value{i}"])
        return lambda: hook.after_train_iter(runner)

    def iou(boxes1: Tensor, boxes2: Tensor, mode: str, aligned: bool) -> Any:
        return lambda: bbox_overlaps(boxes1, boxes2, mode, aligned)

    return {
        "box_iou": Peer("mmdet", iou),
        "simota_cost": Peer("mmdet", cost, scatter),
        "simota_assign": Peer("mmdet", assign, stack_assigned),
        "yolox_detect": Peer("mmdet", detect, pad_detections),
        "ema_update_": Peer("mmdet", ema),
    }


def pad_detections(images: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Detections and labels of each image as yolox_detect returns them, as wide as the longest."""
    counts = torch.tensor([len(labels) for _, labels in images])
    pad = torch.nn.utils.rnn.pad_sequence
    boxes, labels = zip(*images, strict=True)
    return pad(list(boxes), batch_first=True), pad(list(labels), batch_first=True, padding_value=-1), counts


@contextmanager
def quiet() -> Iterator[None]:
    """mmcv 1.7 warns of its successor and of absent CUDA when imported: not this benchmark's news."""
    for chatty in ("torch.utils.cpp_extension", "mmcv"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def find_peers() -> tuple[list[dict[str, Peer]], dict[str, str]]:
    """The peers installed, each a table of operators, and for each one missing the reason."""
    found, missing = [], {}
    for source in (mmdet, mmcv, torchvision, torch_foreach, megvii):
        try:
            found.append(source())
        except Exception as error:  # a library built for another torch fails in any way it likes
            missing[source.__name__] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found, missing
