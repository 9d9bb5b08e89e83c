"""`python -m yolox_ops`: what was built, and every operator against its specification on every device of this build."""

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import yolox_ops

from . import _C, reference
from ._device_report import NO_FALLBACK, build, report


def situation(gts: int = 12, size: int = 160, classes: int = 20) -> dict[str, Tensor]:
    """The arguments of `simota_assign` for two images: noisy predictions of random ground truths.

    No gt is so small that it takes priors from outside of its box: their costs carry +1e5 and may differ by float32
    rounding alone, so that devices could choose differently.
    """
    rng = torch.Generator().manual_seed(0)
    centers = reference.grid_centers(size)
    gt_center = torch.rand(2, gts, 2, generator=rng) * size
    half = torch.rand(2, gts, 2, generator=rng) * size / 6 + 10
    gt_boxes = torch.cat([gt_center - half, gt_center + half], -1)
    nearest = torch.cdist(centers[None, :, :2].expand(2, -1, -1), gt_center).argmin(-1)
    boxes = gt_boxes.gather(1, nearest[..., None].expand(-1, -1, 4))
    return {
        "scores": torch.rand(2, len(centers), classes, generator=rng),
        "centers": centers,
        "boxes": boxes + torch.randn(boxes.shape, generator=rng) * 6,
        "gt_boxes": gt_boxes,
        "gt_labels": torch.randint(classes, (2, gts), generator=rng),
        "num_gts": torch.tensor([gts, gts // 2]),
    }


def results(ops: Any, device: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each operator's name and a call of it, from the module `ops`, that returns its results on the CPU."""
    case = {name: value.to(device) for name, value in situation().items()}
    image = {name: value if name == "centers" else value[0] for name, value in case.items() if name != "num_gts"}
    boxes, gts, scores = image["boxes"], image["gt_boxes"], image["scores"]
    size = 16  # of a feature map, cells

    def iou_with_gradients() -> list[Tensor]:
        found = []
        for mode in ("iou", "iof", "giou"):
            leaves = [boxes.clone().requires_grad_(), gts.clone().requires_grad_()]
            iou = ops.box_iou(*leaves, mode)
            iou.square().sum().backward()
            found += [iou.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
        return found

    def ema() -> list[Tensor]:
        average = [boxes.clone(), scores.clone()]
        ops.ema_update_(average, [2 * boxes, scores.square()], 0.25)
        return average

    def norm_with_gradients() -> list[Tensor]:
        map_ = scores.t()[None, :, : size * size].reshape(1, -1, size, size) * 4 - 2
        leaf = map_.clone().requires_grad_()
        channels = scores.shape[1]
        running = [torch.zeros(channels, device=device), torch.ones(channels, device=device)]
        parameters = [scores[0].clone().requires_grad_(), scores[1].clone().requires_grad_()]
        out = ops.batch_norm_silu(leaf, *running, *parameters, training=True)
        (out * map_).sum().backward()
        return [out.detach(), *running, *(t.grad for t in (leaf, *parameters) if t.grad is not None)]

    def on_cpu(run: Callable[[], Any]) -> Callable[[], list[Tensor]]:
        def call() -> list[Tensor]:
            result = run()
            return [tensor.cpu() for tensor in ([result] if isinstance(result, Tensor) else result)]

        return call

    logits = case["scores"].logit()
    yield "box_iou", on_cpu(iou_with_gradients)
    yield "simota_cost", on_cpu(lambda: ops.simota_cost(**image))
    yield "simota_assign", on_cpu(lambda: ops.simota_assign(**case))
    yield "batched_nms", on_cpu(lambda: ops.batched_nms(boxes, scores[:, 0], scores.argmax(1), 0.5))
    yield "yolox_detect", on_cpu(lambda: ops.yolox_detect(logits, logits[..., 0], case["boxes"], 0.1, 0.65, 50))
    yield "ema_update_", on_cpu(ema)
    yield "batch_norm_silu", on_cpu(norm_with_gradients)
    if device == "cpu":  # the only one that prepares images
        picture = (scores[:300, :12].reshape(60, 20, 3) * 255).to(torch.uint8)
        yield "mixup_blend", on_cpu(lambda: ops.mixup_blend(picture, picture[:50], (70, 30), (77, 33), (9, 7), True))


def training(device: str) -> dict[str, Callable[[], object]]:
    """The operators that train, each with a call as training makes it, from tensors that are on the device already."""
    case: dict[str, Any] = {name: value.to(device) for name, value in situation().items()}
    boxes = case["boxes"][0]
    leaf = boxes.clone().requires_grad_()
    average, value = [boxes.clone()], [boxes + 1]
    return {
        "simota_assign": lambda: yolox_ops.simota_assign(**case),
        "box_iou": lambda: yolox_ops.box_iou(leaf, boxes, aligned=True).sum().backward(),  # type: ignore[no-untyped-call]
        "ema_update_": lambda: yolox_ops.ema_update_(average, value, 0.5),
    }


def devices() -> list[str]:
    """The CPU, and each accelerator with a backend in this build that is here."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found.append("cuda")
    if importlib.util.find_spec("torch_npu"):
        os.environ.setdefault(NO_FALLBACK, "1")
        import torch_npu

        if torch_npu.npu.is_available():
            found.append("npu")
    return found


def check(device: str) -> dict[str, str]:
    """Prints how each operator compares with its reference; returns the errors of those that do not agree."""
    failed = {}
    # An accelerator has fewer: the last one is the CPU's alone.
    for (name, run), (_, specification) in zip(results(yolox_ops, device), results(reference, "cpu"), strict=False):
        try:
            torch.testing.assert_close(run(), specification(), rtol=1e-5, atol=2e-4)
        except (AssertionError, RuntimeError) as error:  # another result, or none
            failed[name] = " ".join(str(error).split())
            print(f"{device}: {name} FAILED: {failed[name]}")
        else:
            print(f"{device}: {name} agrees with its reference")
    return failed


def main() -> int:
    print(f"yolox_ops {build()}, running under torch {torch.__version__}")
    print(f"CPU kernels: {', '.join(_C.cpu_capabilities)}; in use: {yolox_ops.cpu_capability()}")
    print(f"backends: {', '.join(_C.backends)}" + (f"; sanitizers: {_C.sanitizers}" if _C.sanitizers else ""))
    failed = {device: check(device) for device in devices()}
    failures = sum(map(len, failed.values()))
    for device in [*failed][1:]:
        operators = {name: run for name, run in training(device).items() if name not in failed[device]}
        print()
        for name, value in report(device, operators, failed[device]):
            failures += value.startswith("FAILED")
            print(f"{name + ':':13}{value}", flush=True)  # at once: the profiler, which comes last, may take long
    print(f"self-check: {f'{failures} FAILED' if failures else 'passed'}")
    return int(failures > 0)


if __name__ == "__main__":
    try:
        status = main()
        if sys.stdout:  # None where it was closed
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough: end as if the signal had ended it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        status = 128 + signal.SIGPIPE
    sys.exit(status)
