"""Prints a digest of what every operator returns, in every dtype and layout, as JSON: see test_capability.py."""

import hashlib
import json

import numpy as np
import torch

import yolox_ops as ops

# From numpy: torch's normal numbers depend on its instruction set.
rng = np.random.default_rng(1)
HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALF)
LAYOUTS = {
    "packed": lambda t: t,
    "transposed": lambda t: t.t(),
    "with gaps": lambda t: torch.stack([t, t], -1)[..., 0],
}


def rand(*shape):
    return torch.from_numpy(rng.random(shape, np.float32))


def calls():
    """(name, function that returns tensors)"""
    xy = rand(2000, 2) * 600
    boxes = torch.cat([xy, xy + rand(2000, 2) * 99 + 1], 1)
    near = boxes[:300] + rand(300, 4) * 20
    centers = torch.cat([xy, torch.full((2000, 2), 16.0)], 1)
    scores, labels = rand(2000, 21), torch.from_numpy(rng.integers(0, 21, 2000))
    gts, gt_labels = near[:20], labels[:20]
    logits = ((rand(2, 2000, 21) - 0.6) * 12, (rand(2, 2000) - 0.4) * 12, boxes.repeat(2, 1, 1))
    image = torch.from_numpy(rng.integers(0, 256, (60, 50, 3), np.uint8))
    average, value = rand(300, 401) - 0.5, rand(300, 401) - 0.5

    def box_iou(dtype, mode, aligned):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (boxes[:300], near)]
        result = ops.box_iou(*leaves, mode, aligned)
        (result * 3).sum().backward()
        return [result.detach(), *(leaf.grad for leaf in leaves)]

    def ema_update_(dtype, ours, theirs):
        changed = LAYOUTS[ours](average.to(dtype, copy=True))
        other = value.to(dtype).t().contiguous().t() if theirs != ours else LAYOUTS[ours](value.to(dtype))
        ops.ema_update_([changed], [other], 0.3)
        return [changed]

    maps = [torch.cat([rand(2, 19, 37, 41) * 4 - 1, rand(2, 1, 37, 41) * 400 - 200], 1) for _ in range(2)]
    channels = [rand(20) + 0.5 for _ in range(4)]

    def batch_norm_silu(dtype, layout, training):
        x, grad = (t.to(dtype).contiguous(memory_format=layout).detach().clone() for t in maps)
        leaves = [x.requires_grad_(), *(t.to(dtype, copy=True).requires_grad_() for t in channels[2:])]
        running = [t.to(dtype, copy=True) for t in channels[:2]]
        y = ops.batch_norm_silu(leaves[0], *running, *leaves[1:], training)
        y.backward(grad)
        return [y.detach(), *running, *(leaf.grad for leaf in leaves)]

    batch = (scores[None], centers, boxes[None], gts[None], gt_labels[None], torch.tensor([20]))
    yield "simota_cost", lambda: ops.simota_cost(scores, centers, boxes, gts, gt_labels)
    yield "simota_assign", lambda: ops.simota_assign(*batch)
    for dtype in DTYPES:
        yield f"batched_nms {dtype}", lambda t=dtype: [ops.batched_nms(boxes.to(t), scores[:, 0].to(t), labels, 0.5)]
        yield f"yolox_detect {dtype}", lambda t=dtype: ops.yolox_detect(*(x.to(t) for x in logits), 0.0, 0.65, 2000)
        for mode in ("iou", "iof", "giou"):
            for aligned in (False, True):
                yield f"box_iou {dtype} {mode} {aligned}", lambda t=dtype, m=mode, a=aligned: box_iou(t, m, a)
        for layout in LAYOUTS:
            yield f"ema_update_ {dtype} {layout}", lambda t=dtype, n=layout: ema_update_(t, n, n)
        for layout in (torch.contiguous_format, torch.channels_last):
            for training in (True, False):
                arguments = (dtype, layout, training)
                yield f"batch_norm_silu {arguments}", lambda a=arguments: batch_norm_silu(*a)
        yield f"ema_update_ {dtype} mixed", lambda t=dtype: ema_update_(t, "packed", "transposed")
    mixed = (logits[0].bfloat16(), logits[1].double(), logits[2])
    yield "yolox_detect mixed", lambda: ops.yolox_detect(*mixed, 0.0, 0.65, 2000)
    for ipp in (False, True):
        arguments = (image, image[:40], (70, 50), (91, 65), (3, 5), True, 114, ipp)
        yield f"mixup_blend {ipp}", lambda a=arguments: [ops.mixup_blend(*a)]


def main():
    digests = {}
    for name, call in calls():
        found = set()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            data = b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in call())
            found.add(hashlib.sha256(data).hexdigest())
        digests[name] = found.pop() if len(found) == 1 else "depends on the number of threads"
    print(json.dumps({"capability": ops.cpu_capability(), "digests": digests}))


if __name__ == "__main__":
    main()
