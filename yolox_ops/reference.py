"""Every operator once more in plain PyTorch: the specification that tests and benchmarks compare against."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .simota import DEFAULTS


def box_iou(boxes1: Tensor, boxes2: Tensor, mode: str = "iou", aligned: bool = False, eps: float = 1e-6) -> Tensor:
    dtype = boxes1.dtype
    if dtype in (torch.float16, torch.bfloat16):
        boxes1, boxes2 = boxes1.float(), boxes2.float()
    a, b = (boxes1, boxes2) if aligned else (boxes1[:, None], boxes2[None])
    floor = a.new_tensor(eps)
    wh = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    inter = wh[..., 0] * wh[..., 1]
    divisor = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    if mode == "iof":
        divisor = divisor.expand_as(inter)
    else:
        divisor = divisor + (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]) - inter
    divisor = torch.maximum(divisor, floor)
    iou = inter / divisor
    if mode == "giou":
        wh = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
        enclosing = torch.maximum(wh[..., 0] * wh[..., 1], floor)
        iou = iou - (enclosing - divisor) / enclosing
    return iou.to(dtype)


def grid_centers(size: int) -> Tensor:
    """`[P, 4]` (cx, cy, stride, stride) of all cells of a square image at strides 8, 16 and 32, in pixels."""
    levels = []
    for stride in (8, 16, 32):
        steps = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        levels.append(torch.stack([x, y, torch.full_like(x, stride), torch.full_like(x, stride)], -1).view(-1, 4))
    return torch.cat(levels)


def _regions(centers: Tensor, gt_boxes: Tensor, center_radius: float) -> tuple[Tensor, Tensor]:
    """`[P, G]` masks: prior inside the gt box, prior inside the gt's centre region. Borders are outside."""
    xy, reach = centers[:, None, :2], center_radius * centers[:, None, 2:]
    gt_center = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    in_box = ((xy - gt_boxes[:, :2] > 0) & (gt_boxes[:, 2:] - xy > 0)).all(-1)
    in_center = ((xy - (gt_center - reach) > 0) & (gt_center + reach - xy > 0)).all(-1)
    return in_box, in_center


def simota_cost(
    scores: Tensor,
    centers: Tensor,
    boxes: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    center_radius: float = DEFAULTS.center_radius,
    cls_weight: float = DEFAULTS.cls_weight,
    iou_weight: float = DEFAULTS.iou_weight,
) -> tuple[Tensor, Tensor]:
    scores, centers, boxes, gt_boxes = (t.detach().float() for t in (scores, centers, boxes, gt_boxes))
    iou = box_iou(boxes, gt_boxes).nan_to_num(nan=0.0)
    root = scores.sqrt()
    root = root.masked_fill((root < 0) | (root > 1), torch.nan)
    miss = -torch.log1p(-root).clamp(min=-100)  # [P, C], BCE with target 0
    hit = -root.log().clamp(min=-100)  # BCE with target 1
    one_hot = torch.nn.functional.one_hot(gt_labels, scores.shape[1]).bool()
    cls_cost = torch.where(one_hot, hit[:, None], miss[:, None]).sum(-1)
    in_box, in_center = _regions(centers, gt_boxes, center_radius)
    outside = (~(in_box & in_center)).float() * 100000.0
    cost = cls_cost * cls_weight + -(iou + 1e-7).log() * iou_weight + outside
    return cost.nan_to_num(nan=torch.inf, posinf=torch.inf), iou


def simota_assign(
    scores: Tensor,
    centers: Tensor,
    boxes: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    num_gts: Tensor,
    center_radius: float = DEFAULTS.center_radius,
    candidate_topk: int = DEFAULTS.candidate_topk,
    cls_weight: float = DEFAULTS.cls_weight,
    iou_weight: float = DEFAULTS.iou_weight,
    keep_every_gt: bool = DEFAULTS.keep_every_gt,
) -> tuple[Tensor, Tensor]:
    gt_index = torch.full(scores.shape[:2], -1)
    matched_iou = torch.zeros(scores.shape[:2])
    for b, count in enumerate(num_gts.tolist()):
        gts, labels = gt_boxes[b, :count].float(), gt_labels[b, :count]
        cost, iou = simota_cost(scores[b], centers, boxes[b], gts, labels, center_radius, cls_weight, iou_weight)
        in_box, in_center = _regions(centers.float(), gts, center_radius)
        candidates = (in_box | in_center).any(1).nonzero().squeeze(1)
        if not len(candidates):
            continue
        takers: dict[int, list[int]] = {}
        for g in range(count):
            top = iou[candidates, g].sort(descending=True).values[:candidate_topk]
            k = max(int(sum(top, torch.tensor(0.0))), 1)
            for prior in candidates[cost[candidates, g].sort(stable=True).indices[:k]].tolist():
                takers.setdefault(prior, []).append(g)
        for prior, wanted_by in takers.items():
            g = wanted_by[0] if len(wanted_by) == 1 else int(cost[prior].sort(stable=True).indices[0])
            gt_index[b, prior], matched_iou[b, prior] = g, iou[prior, g]
        for g in range(count if keep_every_gt else 0):
            free = ((in_box | in_center)[:, g] & (gt_index[b] < 0)).nonzero().squeeze(1)
            if len(free) and not (gt_index[b] == g).any():
                prior = free[cost[free, g].sort(stable=True).indices[0]]
                gt_index[b, prior], matched_iou[b, prior] = g, iou[prior, g]
    return gt_index, matched_iou


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    wide = torch.float64 in (boxes.dtype, scores.dtype)
    boxes = boxes.to(torch.float64 if wide else torch.float32)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = scores.sort(descending=True, stable=True).indices
    suppressed = torch.zeros(len(boxes), dtype=torch.bool)
    keep = []
    for i in order.tolist():
        if suppressed[i]:
            continue
        keep.append(i)
        wh = torch.minimum(boxes[i, 2:], boxes[:, 2:]) - torch.maximum(boxes[i, :2], boxes[:, :2])
        inter = wh.clamp(min=0).prod(-1)
        iou = inter / (area[i] + area - inter)
        suppressed |= (iou.double() > iou_threshold) & (labels == labels[i])
    return torch.tensor(keep, dtype=torch.int64)


def yolox_detect(
    cls_logits: Tensor,
    obj_logits: Tensor,
    boxes: Tensor,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    detections = torch.zeros(len(boxes), max_detections, 5, dtype=dtype)
    labels = torch.full((len(boxes), max_detections), -1)
    counts = torch.zeros(len(boxes), dtype=torch.int64)
    for b in range(len(boxes)):
        logit, label = cls_logits[b].to(dtype).max(-1)
        score = logit.sigmoid() * obj_logits[b].to(dtype).sigmoid()
        chosen = (score >= score_threshold).nonzero().squeeze(1)
        box, score, label = boxes[b, chosen].to(dtype), score[chosen], label[chosen]
        keep = batched_nms(box, score, label, iou_threshold)[:max_detections]
        detections[b, : len(keep)] = torch.cat([box[keep], score[keep, None]], dim=1)
        labels[b, : len(keep)] = label[keep]
        counts[b] = len(keep)
    return detections, labels, counts


def ema_update_(average: Sequence[Tensor], value: Sequence[Tensor], momentum: float) -> None:
    for a, v in zip(average, value, strict=True):
        a.mul_(1 - momentum).add_(v, alpha=momentum)


def mixup_blend(
    image: Tensor,
    partner: Tensor,
    canvas: tuple[int, int],
    scaled: tuple[int, int],
    offset: tuple[int, int] = (0, 0),
    flip: bool = False,
    pad: int = 114,
    ipp: bool = False,
) -> Tensor:
    """Without fused multiply-add, which IPP has: where a level is whole but for the last bit, it may be one less."""
    picture = torch.full((*canvas, 3), float(pad), dtype=torch.float64)
    picture[: partner.shape[0], : partner.shape[1]] = partner.double()
    for dim in (1, 0):
        step = canvas[dim] / scaled[dim] if ipp else 1 / (scaled[dim] / canvas[dim])
        at = (torch.arange(scaled[dim]) + 0.5).double() * step - 0.5
        at = at if ipp else at.float().double()
        first, second = (index.long().clamp(0, canvas[dim] - 1) for index in (at.floor(), at.floor() + 1))
        take = (at - at.floor()) * ((first < second) | (dim == 0 and not ipp))
        keep = 1 - take if ipp else (1 - take).float().double()
        keep, take = (weight.view(-1, *[1] * (2 - dim)) for weight in (keep, take))
        picture = picture.index_select(dim, first) * keep + picture.index_select(dim, second) * take
    if flip:
        picture = picture.flip(1)
    seen = picture[offset[0] :, offset[1] :][: image.shape[0], : image.shape[1]].to(torch.uint8)
    whole = torch.zeros_like(image)
    whole[: seen.shape[0], : seen.shape[1]] = seen
    return ((image.int() + whole.int()) // 2).to(torch.uint8)


def batch_norm_silu(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """In float32 at least; running statistics are changed in place."""
    x = input if input.dtype == torch.float64 else input.float()
    channels = (1, -1, 1, 1)
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        count = x.numel() / x.shape[1]
        for running, batch in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
            if running is not None:
                running.copy_((1 - momentum) * running.double() + momentum * batch.detach().double())
    elif running_mean is not None and running_var is not None:
        mean, var = running_mean.to(x.dtype), running_var.to(x.dtype)
    z = (x - mean.view(channels)) / (var.view(channels) + eps).sqrt()
    if weight is not None:
        z = z * weight.view(channels)
    if bias is not None:
        z = z + bias.view(channels)
    return (z * torch.sigmoid(z)).to(input.dtype)
