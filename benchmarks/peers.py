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
    `otherwise` says what a peer of other semantics does instead: it is timed, not compared.
    """

    name: str
    prepare: Callable[..., Callable[[], Any]]
    convert: Callable[[Any], Any] = lambda raw: raw
    otherwise: str = ""


def ours(op: str, source: Any = yolox_ops, name: str = "yolox_ops") -> Peer:
    """The operator of yolox_ops, or of another `source` of the same functions."""
    if op == "box_iou_backward":
        return Peer(name, gradient(lambda *args: source.box_iou(*args)))
    if op == "batch_norm_silu_backward":
        return Peer(name, norm_gradient(lambda *args: source.batch_norm_silu(*args)))
    # Looked up at each call, so that a replaced operator is the one that gets checked and timed.
    return Peer(name, lambda *args: lambda: getattr(source, op)(*args))


def gradient(overlaps: Callable[..., Tensor]) -> Callable[..., Callable[[], Any]]:
    """`prepare` of box_iou_backward by autograd: the backward alone, through a graph that is made once."""

    def prepare(grad: Tensor, boxes1: Tensor, boxes2: Tensor, mode: str, aligned: bool) -> Callable[[], Any]:
        leaves = [boxes.clone().requires_grad_() for boxes in (boxes1, boxes2)]
        result = overlaps(*leaves, mode, aligned)
        return lambda: torch.autograd.grad(result, leaves, grad, retain_graph=True)

    return prepare


def norm_gradient(norm_silu: Callable[..., Tensor]) -> Callable[..., Callable[[], Any]]:
    """`prepare` of batch_norm_silu_backward by autograd, as that of box_iou_backward."""

    def prepare(grad: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Any:
        leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
        with torch.enable_grad():
            result = norm_silu(leaves[0], mean, var, *leaves[1:], *rest)
        return lambda: torch.autograd.grad(result, leaves, grad, retain_graph=True)

    return prepare


def torch_modules() -> dict[str, Peer]:
    def norm_silu(*args: Any) -> Tensor:
        return F.silu(F.batch_norm(*args))

    return {
        "batch_norm_silu": Peer("torch", lambda *args: lambda: norm_silu(*args)),
        "batch_norm_silu_backward": Peer("torch", norm_gradient(norm_silu)),
    }


MEGVII = "Megvii's semantics: centre region of 1.5 strides alone, so other assignments; not compared for parity"


def megvii_assign(scores: Tensor, centers: Tensor, boxes: Tensor, gts: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """SimOTA of one image as Megvii's YOLOX goes about it today, in plain torch: the gt of each prior [P], -1 for the
    background, and their IoU [P].

    Only priors within 1.5 strides of a gt's centre are candidates, inside of its box or not. Matrices are [G, V], the
    cross-entropy is [G, V, C].
    """
    gt_index = torch.full((len(centers),), -1, device=centers.device)
    matched_iou = torch.zeros(len(centers), device=centers.device)
    # 1. Geometry: which priors are near which gt's centre.
    gt_centre = (gts[:, None, :2] + gts[:, None, 2:]) / 2
    near = ((centers[:, :2] - gt_centre).abs() < 1.5 * centers[:, 2:]).all(-1)
    candidate = near.any(0).nonzero()[:, 0]
    if not len(candidate):
        return gt_index, matched_iou
    near, predicted = near[:, candidate], boxes[candidate]
    # 2. IoU of each gt with each candidate's box.
    low = torch.maximum(gts[:, None, :2], predicted[:, :2])
    high = torch.minimum(gts[:, None, 2:], predicted[:, 2:])
    inter = (high - low).prod(-1) * (low < high).all(-1)
    areas = [(side[:, 2:] - side[:, :2]).prod(-1) for side in (gts, predicted)]
    iou = inter / (areas[0][:, None] + areas[1] - inter)
    # 3. Cost: of the classes, of the IoU, and of a candidate that is near another gt only.
    shape = (len(gts), *scores[candidate].shape)
    target = F.one_hot(labels, shape[-1]).float()[:, None].expand(shape)
    cost = F.binary_cross_entropy(scores[candidate].sqrt().expand(shape), target, reduction="none").sum(-1)
    cost.sub_((iou + 1e-8).log_(), alpha=3.0).add_(~near, alpha=1e6)
    # 4. The dynamic k cheapest candidates of each gt.
    wanted = torch.zeros_like(near)
    ks = iou.topk(min(10, len(candidate)), 1).values.sum(1).int().clamp(min=1).tolist()
    for row, costs, k in zip(wanted, cost, ks, strict=True):
        row[costs.topk(k, largest=False).indices] = True
    # 5. A candidate of several gts goes to the cheapest of all.
    takers = wanted.sum(0)
    contested = (takers > 1).nonzero()[:, 0]
    wanted[:, contested] = False
    wanted[cost[:, contested].argmin(0), contested] = True
    taken = takers > 0
    owner = wanted[:, taken].int().argmax(0)
    gt_index[candidate[taken]] = owner
    matched_iou[candidate[taken]] = iou[owner, taken.nonzero()[:, 0]]
    return gt_index, matched_iou


def megvii() -> dict[str, Peer]:
    def prepare(
        scores: Tensor, centers: Tensor, boxes: Tensor, gts: Tensor, labels: Tensor, num_gts: Tensor, *_: Any
    ) -> Any:
        counts = num_gts.tolist()
        return lambda: [
            megvii_assign(scores[i], centers, boxes[i], gts[i, :n], labels[i, :n]) for i, n in enumerate(counts)
        ]

    return {"simota_assign": Peer("Megvii's steps", prepare, otherwise=MEGVII)}


def opencv() -> dict[str, Peer]:
    import cv2
    import numpy as np

    def blend(
        image: Tensor, partner: Tensor, canvas: Any, scaled: Any, offset: Any, flip: bool, pad: int, ipp: bool
    ) -> Any:
        levels, other, (y, x) = image.numpy(), partner.numpy(), offset

        def run() -> Any:
            picture = np.full((*canvas, 3), float(pad))
            picture[: other.shape[0], : other.shape[1]] = other
            picture = cv2.resize(picture, scaled[::-1])
            picture = picture[:, ::-1] if flip else picture
            seen = picture[y : y + levels.shape[0], x : x + levels.shape[1]].astype(np.uint8)
            whole = np.zeros_like(levels)
            whole[: seen.shape[0], : seen.shape[1]] = seen
            return ((levels.astype(np.uint16) + whole) >> 1).astype(np.uint8)

        return run

    return {"mixup_blend": Peer("cv2 + numpy", blend, torch.from_numpy)}


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

    def overlaps(boxes1: Tensor, boxes2: Tensor, mode: str, aligned: bool) -> Any:
        result = iou(boxes1, boxes2, mode, aligned)()
        return 1 - result if aligned else result

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
        "box_iou_backward": Peer("torchvision", gradient(overlaps)),
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
        import numpy as np
        from mmcv import ConfigDict
        from mmdet.core import ExpMomentumEMAHook, bbox_overlaps
        from mmdet.core.bbox.assigners import SimOTAAssigner
        from mmdet.datasets.pipelines import MixUp
        from mmdet.models import YOLOXHead

    class CostTaken(Exception):
        pass

    class CostOnly(SimOTAAssigner):
        """mmdet's assigner as far as its cost matrix."""

        def dynamic_k_matching(self, cost: Tensor, iou: Tensor, num_gt: int, valid: Tensor) -> None:
            raise CostTaken(cost, iou, valid)

    def cost(scores: Tensor, centers: Tensor, boxes: Tensor, gts: Tensor, labels: Tensor) -> Any:
        def run() -> Any:
            try:
                CostOnly()._assign(scores, centers, boxes, gts, labels)
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

    def assign(
        scores: Tensor,
        centers: Tensor,
        boxes: Tensor,
        gts: Tensor,
        labels: Tensor,
        num_gts: Tensor,
        radius: float,
        topk: int,
        cls_weight: float,
        iou_weight: float,
        _: bool,
    ) -> Any:
        assigner, counts = SimOTAAssigner(radius, topk, iou_weight=iou_weight, cls_weight=cls_weight), num_gts.tolist()
        return lambda: [
            assigner.assign(scores[i], centers, boxes[i], gts[i, :n], labels[i, :n]) for i, n in enumerate(counts)
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

    def blend(
        image: Tensor, partner: Tensor, canvas: Any, scaled: Any, offset: Any, flip: bool, pad: int, ipp: bool
    ) -> Any:
        factor = (scaled[0] + 0.5) / canvas[0]  # MMDetection rounds down
        mixup = MixUp(canvas, (factor, factor), float(flip), float(pad))
        box, label = np.array([[10, 20, 200, 300]], np.float32), np.zeros(1, np.int64)

        def run() -> Any:
            np.random.seed(0)  # by whose draws `mixup_case` has its offset
            mix = {"img": partner.numpy(), "gt_bboxes": box.copy(), "gt_labels": label}
            return mixup({"img": image.numpy(), "gt_bboxes": box, "gt_labels": label, "mix_results": [mix]})["img"]

        return run

    return {
        "box_iou": Peer("mmdet", iou),
        "box_iou_backward": Peer("mmdet", gradient(bbox_overlaps)),
        "mixup_blend": Peer("mmdet", blend, torch.from_numpy),
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
    for source in (mmdet, mmcv, torchvision, opencv, torch_foreach, torch_modules, megvii):
        try:
            found.append(source())
        except Exception as error:  # a library built for another torch fails in any way it likes
            missing[source.__name__] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found, missing
