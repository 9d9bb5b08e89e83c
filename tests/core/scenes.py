"""Images with objects, and what a trained network might say of them, for the tests of every host."""

import torch


def batch(seed, gts, size):
    """An image batch with as many gts as `gts` says for each image.

    None is so thin that it runs out of priors in box and centre: beyond those, costs carry +1e5, many are equal in
    float32, and which of them torch.topk takes is open. The operator tests cover that.
    """
    g = torch.Generator().manual_seed(seed)
    boxes, labels = [], []
    for count in gts:
        center = torch.rand(count, 2, generator=g) * size
        extent = torch.rand(count, 2, generator=g) ** 2 * size / 2 + 28
        boxes.append(torch.cat([center - extent / 2, center + extent / 2], 1))
        labels.append(torch.randint(80, (count,), generator=g))
    # Contrast of large parts, as photographs have it: bfloat16 loses white noise behind a few layers.
    parts = torch.rand(len(gts), 3, 20, 20, generator=g) * 255
    return torch.nn.functional.interpolate(parts, size=(size, size), mode="bilinear"), boxes, labels


def predictions(seed, boxes, labels, size, noise=0.1):
    """What a trained net might say: per level class scores, box predictions and objectness, as leaves."""
    g = torch.Generator().manual_seed(seed)
    levels = []
    for stride in (8, 16, 32):
        n = size // stride
        y, x = torch.meshgrid(torch.arange(n) * stride, torch.arange(n) * stride, indexing="ij")
        prior = torch.stack([x, y], -1).view(-1, 2).float()
        cls, box, obj = [], [], []
        for gt, label in zip(boxes, labels, strict=True):
            logits = torch.randn(n * n, 80, generator=g) - 5
            delta = torch.randn(n * n, 4, generator=g) * noise
            objectness = torch.randn(n * n, 1, generator=g) - 2
            if len(gt):
                center, extent = (gt[:, :2] + gt[:, 2:]) / 2, (gt[:, 2:] - gt[:, :2]).clamp(min=1)
                distance, nearest = torch.cdist(prior + stride / 2, center).min(1)
                delta[:, :2] += (center[nearest] - prior) / stride
                delta[:, 2:] += (extent[nearest] / stride).log()
                logits[torch.arange(n * n), label[nearest]] += 5
                objectness[:, 0] += 3 * (distance < 2 * stride)
            for rows, value in ((cls, logits), (box, delta), (obj, objectness)):
                rows.append(value.t().reshape(-1, n, n))
        levels.append([torch.stack(rows).requires_grad_() for rows in (cls, box, obj)])
    return tuple(zip(*levels, strict=True))
