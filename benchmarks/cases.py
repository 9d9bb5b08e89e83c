"""Inputs of the benchmark: what YOLOX's operators see in training and evaluation, drawn from fixed seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolox_ops import SimOTAParameters
from yolox_ops.reference import grid_centers
from yolox_ops.simota import DEFAULTS

try:
    from cv2 import ipp
except ImportError:
    USES_IPP = False  # and there is nobody to compare with
else:
    USES_IPP = bool(ipp.useIPP())

CLASSES = 80
# Boxes lie on a grid of 1/16 pixel and scores differ. torchvision and mmcv separate classes by adding an offset in
# float32 to every coordinate; on this grid that addition is exact, so their NMS has to keep the very same boxes.
GRID = 16.0

# The 508 floating-point entries of YOLOX-M's state_dict: convolutions as out x in x kernel, each followed by the four
# vectors of its batch norm, and the predictors, each followed by its bias. tests/test_bench.py compares with mmdet.
YOLOX_M_CONVS = """
48x12x3 96x48x3 2*48x96x1 96x96x1 48x48x1 48x48x3 48x48x1 48x48x3 192x96x3 2*96x192x1 192x192x1 96x96x1 96x96x3
96x96x1 96x96x3 96x96x1 96x96x3 96x96x1 96x96x3 96x96x1 96x96x3 96x96x1 96x96x3 384x192x3 2*192x384x1 384x384x1
192x192x1 192x192x3 192x192x1 192x192x3 192x192x1 192x192x3 192x192x1 192x192x3 192x192x1 192x192x3 192x192x1
192x192x3 768x384x3 384x768x1 768x1536x1 2*384x768x1 768x768x1 384x384x1 384x384x3 384x384x1 384x384x3 384x768x1
192x384x1 2*192x768x1 384x384x1 192x192x1 192x192x3 192x192x1 192x192x3 2*96x384x1 192x192x1 96x96x1 96x96x3 96x96x1
96x96x3 192x192x3 384x384x3 2*192x384x1 384x384x1 192x192x1 192x192x3 192x192x1 192x192x3 2*384x768x1 768x768x1
384x384x1 384x384x3 384x384x1 384x384x3 192x192x1 192x384x1 192x768x1 12*192x192x3
"""
YOLOX_M_PREDICTORS = "3*80x192x1 3*4x192x1 3*1x192x1"


@dataclass(frozen=True)
class Case:
    """One row group of the table: an operator, a name for its shapes, and how to make its arguments on the CPU."""

    op: str
    name: str
    make: Callable[[], tuple[Any, ...]]
    quick: bool = False
    cpu_only: bool = False
    timed: bool = True


def yolox_m_shapes() -> list[tuple[int, ...]]:
    """Shapes of the tensors that the EMA of YOLOX-M averages (parameters and running statistics)."""
    shapes: list[tuple[int, ...]] = []
    for text, vectors in ((YOLOX_M_CONVS, 4), (YOLOX_M_PREDICTORS, 1)):
        for entry in text.split():
            count, _, conv = entry.rpartition("*")
            out, channels, kernel = map(int, conv.split("x"))
            shapes += int(count or 1) * [(out, channels, kernel, kernel), *vectors * [(out,)]]
    return shapes


def make_gts(count: int, rng: torch.Generator, size: int = 640) -> tuple[Tensor, Tensor]:
    """Boxes [G, 4] and labels [G] as COCO gives after mosaic: a third of them of one class, and of COCO's sizes.

    COCO says that 41% of its objects cover less than 32^2 pixels and 24% more than 96^2; a log-normal through these two
    points has a mean of 3.73 and a deviation of 1.18. A box is about 1.2 times as wide as that of its mask's area, and
    the standard config scales by 0.1 to 2.
    """
    side = (torch.randn(count, generator=rng) * 1.18 + 3.73 + 0.2).exp()
    side = (side * (0.1 + 1.9 * torch.rand(count, generator=rng))).clamp(6, size * 0.9)
    aspect = (torch.randn(count, generator=rng) * 0.4).exp().sqrt()
    half = torch.stack([side * aspect, side / aspect], -1).clamp(max=size) / 2
    centre = half + torch.rand(count, 2, generator=rng) * (size - 2 * half)
    labels = torch.randint(CLASSES, (count,), generator=rng)
    labels[torch.rand(count, generator=rng) < 0.3] = 0
    return torch.cat([centre - half, centre + half], -1), labels


def untrained(centers: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [P, C], objectness logits [P] and boxes [P, 4] of a fresh head: p near 0.01, boxes of about one stride."""
    count = len(centers)
    # The head adds its offsets to a prior's corner, half a stride from the centre given here.
    centre = centers[:, :2] + centers[:, 2:] * (torch.randn(count, 2, generator=rng) * 0.1 - 0.5)
    half = centers[:, 2:] * (torch.randn(count, 2, generator=rng) * 0.1).exp() / 2
    cls = torch.randn(count, CLASSES, generator=rng) * 0.1 - 4.595
    obj = torch.randn(count, generator=rng) * 0.1 - 4.595
    return cls, obj, torch.cat([centre - half, centre + half], -1)


def trained(centers: Tensor, gts: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """As `untrained`, but priors in a gt box or centre region predict a noisy copy of that gt with some confidence."""
    count = len(centers)
    cls, obj, boxes = untrained(centers, rng)
    cls += torch.randn(count, CLASSES, generator=rng) - 1.5
    obj += torch.randn(count, generator=rng) - 1.5
    gt_centre, gt_size = (gts[:, :2] + gts[:, 2:]) / 2, gts[:, 2:] - gts[:, :2]
    distance = (centers[:, None, :2] - gt_centre).abs()
    near = (distance < torch.maximum(gt_size / 2, 2.5 * centers[:, None, 2:])).all(-1)
    # Of several gts a prior takes the smallest, and predicts it better the better its level suits the gt's size.
    area = gt_size.prod(-1)
    owner = torch.where(near, area, torch.inf).argmin(1)
    misfit = (area[owner].sqrt() / centers[:, 2] / 5).log2().abs()
    noise = 0.04 + 0.06 * misfit[:, None]
    centre = gt_centre[owner] + gt_size[owner] * noise * torch.randn(count, 2, generator=rng)
    half = gt_size[owner] * (noise * torch.randn(count, 2, generator=rng)).exp() / 2
    positive = near.any(1)
    boxes = torch.where(positive[:, None], torch.cat([centre - half, centre + half], -1), boxes)
    obj = torch.where(positive, torch.randn(count, generator=rng) * 1.5 + 1.5 - 2 * misfit, obj)
    rows = positive.nonzero()[:, 0]
    cls[rows, labels[owner[rows]]] = torch.randn(len(rows), generator=rng) * 1.5 + 1.5
    return cls, obj, boxes


def predictions(kind: str, gt_count: int, seed: int, size: int = 640) -> tuple[Tensor, ...]:
    """(cls logits, objectness logits, boxes, centers, gt boxes, gt labels) of one image."""
    rng = torch.Generator().manual_seed(seed)
    centers = grid_centers(size)
    gts, labels = make_gts(gt_count, rng, size)
    heads = untrained(centers, rng) if kind == "untrained" else trained(centers, gts, labels, rng)
    return (*heads, centers, gts, labels)


def snap(boxes: Tensor, size: int = 640) -> Tensor:
    """Boxes clipped to the image and rounded to the grid, none thinner than a pixel."""
    low = (boxes[..., :2].clamp(0, size - 1) * GRID).round() / GRID
    high = (boxes[..., 2:].clamp(0, size) * GRID).round() / GRID
    return torch.cat([low, torch.maximum(high, low + 1)], -1)


def iou_case(m: int, n: int, mode: str = "iou", aligned: bool = False) -> tuple[Any, ...]:
    _, _, boxes, _, gts, _ = predictions("trained-like", n, seed=m + n)
    if aligned:
        rng = torch.Generator().manual_seed(m)
        gts = boxes + torch.randn(boxes.shape, generator=rng)
    gts = torch.cat([gts[:, :2], torch.maximum(gts[:, 2:], gts[:, :2] + 1)], -1)
    return boxes[:m].contiguous(), gts[:n].contiguous(), mode, aligned


def gradient_case(*args: Any) -> tuple[Any, ...]:
    """As `iou_case`, with the gradient of the overlaps in front."""
    boxes1, boxes2, mode, aligned = iou_case(*args)
    shape = (len(boxes1),) if aligned else (len(boxes1), len(boxes2))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)), boxes1, boxes2, mode, aligned


def cost_case(kind: str, gt_count: int) -> tuple[Any, ...]:
    cls, obj, boxes, centers, gts, labels = predictions(kind, gt_count, seed=gt_count)
    return cls.sigmoid() * obj.sigmoid()[:, None], centers, boxes, gts, labels


VARIATIONS = {
    "radius 1.5, top 13": SimOTAParameters(center_radius=1.5, candidate_topk=13),
    "radius 4, top 5": SimOTAParameters(center_radius=4.0, candidate_topk=5),
    "weights 2 and 0.5": SimOTAParameters(cls_weight=2.0, iou_weight=0.5),
    "weights 0 and 1, top 1": SimOTAParameters(candidate_topk=1, cls_weight=0.0, iou_weight=1.0),
}


def assign_case(kind: str, *gt_counts: int, parameters: SimOTAParameters = DEFAULTS) -> tuple[Any, ...]:
    """A batch whose images have these numbers of gts, padded to the largest."""
    images = [cost_case(kind, count) for count in gt_counts]
    scores, boxes = (torch.stack([image[i] for image in images]) for i in (0, 2))
    gts = torch.zeros(len(images), max(gt_counts), 4)
    labels = torch.zeros(len(images), max(gt_counts), dtype=torch.int64)
    for i, image in enumerate(images):
        gts[i, : gt_counts[i]], labels[i, : gt_counts[i]] = image[3:]
    return scores, images[0][1], boxes, gts, labels, torch.tensor(gt_counts), *parameters


def nms_case(count: int, classes: int) -> tuple[Any, ...]:
    """The `count` highest-scoring predictions of an image that has enough priors, in the order of the priors."""
    size = 640 if count <= 8400 else 1280
    cls, obj, boxes, *_ = predictions("trained-like", 40 * (size // 640) ** 2, seed=count, size=size)
    best, labels = cls.max(-1)
    scores = best.sigmoid() * obj.sigmoid()
    picked = scores.topk(count).indices.sort().values
    distinct = torch.empty(count)
    distinct[scores[picked].argsort()] = torch.linspace(0.001, 0.999, count)
    return snap(boxes[picked], size), distinct, labels[picked] % classes, 0.65


def detect_case(batch: int) -> tuple[Any, ...]:
    images = [predictions("trained-like", 10 + 4 * i, seed=1000 + i)[:3] for i in range(batch)]
    cls, obj, boxes = (torch.stack(parts) for parts in zip(*images, strict=True))
    return cls, obj, snap(boxes), 0.01, 0.65, 300


def mixup_case(factor: float, flip: bool, ipp: bool) -> tuple[Any, ...]:
    """A mosaic of 640 x 640 and a photograph of 640 x 480, whose canvas is enlarged by `factor`, where MMDetection's
    MixUp cuts it after `np.random.seed(0)`."""
    rng = torch.Generator().manual_seed(0)
    image, partner = (torch.randint(256, (h, 640, 3), generator=rng, dtype=torch.uint8) for h in (640, 480))
    side = int(640 * factor)
    draws = np.random.RandomState(0)
    draws.uniform(size=2)  # the factor and the flip, which MMDetection draws first
    offset = tuple(int(draws.randint(0, side - 640)) if side > 640 else 0 for _ in "yx")
    return image, partner, (640, 640), (side, side), offset, flip, 114, ipp


def ema_case() -> tuple[Any, ...]:
    rng = torch.Generator().manual_seed(0)
    value = [torch.randn(shape, generator=rng) * 0.05 for shape in yolox_m_shapes()]
    return [0.9 * v + 0.01 for v in value], value, 0.0001


def norm_case(channels: int, size: int, dtype: torch.dtype, layout: torch.memory_format) -> tuple[Any, ...]:
    """The norm behind one of YOLOX-M's convolutions, for two images, in training."""
    rng = torch.Generator().manual_seed(channels)
    x = (torch.randn(2, channels, size, size, generator=rng) * 2 + 0.5).to(dtype).contiguous(memory_format=layout)
    mean, var, weight, bias = (torch.rand(channels, generator=rng) + 0.5 for _ in range(4))
    return x, mean, var, weight, bias, True, 0.03, 1e-3


def norm_gradient_case(*args: Any) -> tuple[Any, ...]:
    """As `norm_case`, with the gradient of the result, which lies as it does, in front."""
    x, *rest = norm_case(*args)
    return torch.empty_like(x).copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(0))), x, *rest


NORMS = [
    (f"{channels}x{size}x{size}, {str(dtype)[6:]}{' channels_last' * last}", (channels, size, dtype, layout), quick)
    for dtype, last in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, True))
    for layout in [torch.channels_last if last else torch.contiguous_format]
    for channels, size, quick in ((48, 320, True), (192, 80, False), (768, 20, False))
]
CASES = [
    Case("box_iou", "8400x40", lambda: iou_case(8400, 40), quick=True),
    Case("box_iou", "8400x100", lambda: iou_case(8400, 100)),
    Case("box_iou", "1000x1000", lambda: iou_case(1000, 1000)),
    Case("box_iou", "8400 pairs, giou", lambda: iou_case(8400, 8400, "giou", aligned=True), quick=True),
    Case("box_iou_backward", "8400x40", lambda: gradient_case(8400, 40), quick=True),
    Case("box_iou_backward", "8400 pairs, giou", lambda: gradient_case(8400, 8400, "giou", True), quick=True),
    Case("simota_cost", "8400x40 trained-like", lambda: cost_case("trained-like", 40), quick=True),
    Case("simota_assign", "8400x5 trained-like", lambda: assign_case("trained-like", 5)),
    Case("simota_assign", "8400x5 untrained", lambda: assign_case("untrained", 5)),
    Case("simota_assign", "8400x40 trained-like", lambda: assign_case("trained-like", 40), quick=True),
    Case("simota_assign", "8400x40 untrained", lambda: assign_case("untrained", 40), quick=True),
    Case("simota_assign", "8400x100 trained-like", lambda: assign_case("trained-like", 100), quick=True),
    Case("simota_assign", "8400x100 untrained", lambda: assign_case("untrained", 100)),
    Case(
        "simota_assign",
        "8 images, 5-100 gts",
        lambda: assign_case("trained-like", 5, 12, 20, 30, 40, 55, 75, 100),
    ),
    *(
        Case("simota_assign", name, partial(assign_case, kind, 1, 7, 20, parameters=parameters), True, timed=False)
        for kind in ("trained-like", "untrained")
        for name, parameters in VARIATIONS.items()
    ),
    Case("batched_nms", "300, 80 classes", lambda: nms_case(300, 80)),
    Case("batched_nms", "1000, 80 classes", lambda: nms_case(1000, 80), quick=True),
    Case("batched_nms", "8400, 80 classes", lambda: nms_case(8400, 80), quick=True),
    Case("batched_nms", "8400, 1 class", lambda: nms_case(8400, 1)),
    Case("batched_nms", "20000, 80 classes", lambda: nms_case(20000, 80)),
    Case("batched_nms", "20000, 1 class", lambda: nms_case(20000, 1)),
    Case("yolox_detect", "8 images of 8400", lambda: detect_case(8), quick=True),
    Case("ema_update_", "YOLOX-M, 25.4 M values", ema_case, quick=True),
    *(Case("batch_norm_silu", name, partial(norm_case, *args), quick) for name, args, quick in NORMS),
    *(Case("batch_norm_silu_backward", name, partial(norm_gradient_case, *args), quick) for name, args, quick in NORMS),
    Case("mixup_blend", "640x640, enlarged", lambda: mixup_case(1.3, True, USES_IPP), quick=True, cpu_only=True),
    Case("mixup_blend", "640x640, reduced", lambda: mixup_case(0.8, False, USES_IPP), cpu_only=True),
]
