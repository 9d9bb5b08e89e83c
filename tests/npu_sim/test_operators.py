"""Every operator on the simulated NPU against the CPU kernels, hard cases included, and what it costs a device."""

import pytest
import torch
from device import SOC, recorded
from devices import on_cpu, random_boxes, same_assignment

import yolox_ops
from yolox_ops import _C

KINDS = ("trained", "untrained", "ties", "strange")
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if SOC == "A2" else [])]  # which a 910A has not
# Of simota_assign. A 910A finds each of the ten best by a reduction of its own, where topk rounds.
MOST_LAUNCHES = {"A2": 90, "910A": 130}[SOC]


def on_npu(value):
    if isinstance(value, torch.Tensor):
        return value.to("npu")
    if isinstance(value, dict):
        return {key: on_npu(item) for key, item in value.items()}
    return type(value)(map(on_npu, value)) if isinstance(value, (list, tuple)) else value


def test_this_build_has_the_backend():
    assert _C.backends == ("cpu", "npu", "cuda")
    for name in ("box_iou", "box_iou_backward", "simota_cost", "simota_assign", "batched_nms", "yolox_detect"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"yolox_ops::{name}", "PrivateUse1")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
@pytest.mark.parametrize(
    ("m", "n", "aligned"), [(50, 20, False), (30, 30, True), (0, 5, False), (5, 0, False), (0, 0, True)]
)
@pytest.mark.parametrize("strange", [False, True])
def test_box_iou(m, n, aligned, mode, dtype, strange):
    if strange and dtype == torch.float16 and SOC == "910A":
        pytest.skip("its float16 has no infinities")
    a, b = random_boxes(1, m, strange).to(dtype), random_boxes(2, n, strange).to(dtype)
    with recorded() as record:
        ours = yolox_ops.box_iou(on_npu(a), on_npu(b), mode, aligned)
    torch.testing.assert_close(ours.cpu(), yolox_ops.box_iou(a, b, mode, aligned), equal_nan=True)
    assert not [call for call in record.waits() if "box_iou" in call.place]


@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
@pytest.mark.parametrize("aligned", [False, True])
def test_box_iou_gradient(mode, aligned):
    pairs = []
    for move in (lambda t: t.clone(), on_npu):
        leaves = [move(random_boxes(seed, 30)).requires_grad_() for seed in (1, 2)]
        iou = yolox_ops.box_iou(*leaves, mode, aligned)
        weights = torch.linspace(-1, 1, iou.numel()).view(iou.shape)
        (iou * move(weights)).sum().backward()
        pairs.append([leaf.grad.cpu() for leaf in leaves])
    torch.testing.assert_close(pairs[1], pairs[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gts", [0, 1, 13, 40])
@pytest.mark.parametrize("keep_every_gt", [False, True])
def test_simota(situation, kind, gts, keep_every_gt):
    case = situation(gts, gts=gts, size=128, kind=kind, batch=3)
    case["num_gts"][0] = gts // 2
    image = {k: v if k == "centers" else v[1] for k, v in case.items() if k != "num_gts"}
    ours, theirs = yolox_ops.simota_cost(**on_npu(image)), yolox_ops.simota_cost(**image)
    torch.testing.assert_close(on_cpu(ours), theirs, rtol=1e-5, atol=2e-3)
    moved = on_npu(case)
    with recorded() as record:
        ours = yolox_ops.simota_assign(**moved, keep_every_gt=keep_every_gt)
    assert not record.waits(), record.waits()
    assert not record.aicpu(), record.aicpu()
    assert not record.copies(), record.copies()
    if not keep_every_gt:
        assert len(record.launches()) <= MOST_LAUNCHES
    theirs = yolox_ops.simota_assign(**case, keep_every_gt=keep_every_gt)
    if kind == "strange":  # 0 * inf and the like: orders may differ, indices may not leave their range
        assert ((ours[0].cpu() >= -1) & (ours[0].cpu() < case["num_gts"][:, None].clamp(min=1))).all()
    else:
        same_assignment(case, on_cpu(ours), theirs)


def test_equal_costs_take_the_lowest_indices(situation):
    case = situation(0, gts=2, size=96)
    case["gt_boxes"][0, :] = case["boxes"][0, :] = torch.tensor([8.0, 8.0, 88.0, 88.0])
    case["gt_labels"].fill_(0)
    case["scores"].fill_(0.5)
    assert torch.equal(yolox_ops.simota_assign(**on_npu(case))[0].cpu(), yolox_ops.simota_assign(**case)[0])


def test_labels_out_of_range_read_nothing_out_of_bounds(situation):
    case = situation(0, gts=4, size=96, classes=5)
    case["gt_labels"][0] = torch.tensor([-7, 10**9, 2, 4])
    near = {**case, "gt_labels": case["gt_labels"].clamp(0, 4)}
    assert torch.equal(yolox_ops.simota_assign(**on_npu(case))[0].cpu(), yolox_ops.simota_assign(**near)[0])


@pytest.mark.parametrize("strange", [False, True])
def test_nms(strange):
    g = torch.Generator().manual_seed(3)
    boxes, scores, labels = (
        random_boxes(3, 400, strange),
        torch.rand(400, generator=g),
        torch.randint(5, (400,), generator=g),
    )
    scores[::9] = 0.5
    expected = yolox_ops.batched_nms(boxes, scores, labels * 2**40, 0.5)
    ours = yolox_ops.batched_nms(*on_npu((boxes, scores, labels * 2**40)), 0.5)
    assert ours.device.type == "npu"
    assert torch.equal(ours.cpu(), expected)


@pytest.mark.parametrize("strange", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_detect_copies_once_down_and_once_back(batch, strange):
    g = torch.Generator().manual_seed(4)
    cls, obj = torch.randn(batch, 300, 80, generator=g), torch.randn(batch, 300, generator=g)
    if strange and batch:
        cls[0, 5, 3], cls[0, 6, 0], obj[0, 7] = torch.nan, torch.inf, torch.nan
    boxes = random_boxes(5, 300 * batch, strange).view(batch, 300, 4)
    arguments = on_npu((cls, obj, boxes))
    with recorded() as record:
        ours = yolox_ops.yolox_detect(*arguments, 0.1, 0.6, 50)
    theirs = yolox_ops.yolox_detect(cls, obj, boxes, 0.1, 0.6, 50)
    assert ours[0].device.type == ours[1].device.type == "npu"
    torch.testing.assert_close(on_cpu(ours), theirs, equal_nan=True)
    if batch:
        assert sorted(call.copy for call in record.copies()) == ["to device", "to host"]
        assert len(record.waits()) <= 2
        assert not record.aicpu(), record.aicpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_ema(dtype):
    average = [torch.randn(shape).to(dtype) for shape in ((), (0,), (3, 4), (100, 10))]
    value = [torch.randn(t.shape).to(dtype) for t in average]
    moved, other = on_npu(average), on_npu(value)
    with recorded() as record:
        yolox_ops.ema_update_(moved, other, 0.25)
    assert not record.waits()
    yolox_ops.ema_update_(average, value, 0.25)
    torch.testing.assert_close(on_cpu(moved), average)
    yolox_ops.ema_update_([], [], 0.25)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm_silu(dtype, training):
    """Two launches forward; backward two more than torch's two, for what it does not keep."""
    g = torch.Generator().manual_seed(6)
    x, grad = (torch.randn(2, 5, 6, 7, generator=g).to(dtype) for _ in range(2))
    channels = [torch.rand(5, generator=g) + 0.5 for _ in range(4)]
    found = []
    for move in (lambda t: t.clone(), on_npu):
        leaves = [move(t).requires_grad_() for t in (x, *channels[2:])]
        running, upstream = [move(t) for t in channels[:2]], move(grad)
        with recorded() as record:
            y = yolox_ops.batch_norm_silu(leaves[0], *running, *leaves[1:], training)
        forward = len(record.launches())
        with recorded() as backward:
            y.backward(upstream)
        found.append([t.detach().cpu() for t in (y, *running, *(leaf.grad for leaf in leaves))])
    assert not (record.waits() or record.aicpu() or backward.waits() or backward.aicpu())
    assert forward <= (2 if training else 5) and len(backward.launches()) <= 4
    precision = torch.finfo(dtype).eps
    for a, b in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(a, b, rtol=20 * precision, atol=20 * precision)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda t: yolox_ops.box_iou(t(3, 5), t(3, 4)), r"boxes1 must be \[M, 4\], got \[3, 5\]"),
        (lambda t: yolox_ops.box_iou(t(3, 4), torch.rand(3, 4)), "boxes2 must be on npu:0, got cpu"),
        (lambda t: yolox_ops.batched_nms(t(3, 4), t(2), t(3).long(), 0.5), r"scores must be \[3\], got \[2\]"),
        (lambda t: yolox_ops.yolox_detect(t(1, 3, 0), t(1, 3), t(1, 3, 4), 0.1, 0.5, 3), "cls_logits must be"),
        (lambda t: yolox_ops.ema_update_([t(2)], [t(3)], 0.5), r"value\[0\] must be \[2\], got \[3\]"),
    ],
)
def test_bad_input(run, message):
    with pytest.raises(ValueError, match=message):
        run(lambda *shape: torch.rand(*shape).to("npu"))


def test_a_kernel_that_is_not_simulated_fails(monkeypatch):
    import torch_npu

    with pytest.raises(RuntimeError):
        torch_npu.npu_giou(torch.rand(4, 8).to("npu"), torch.rand(4, 8).to("npu"), trans=True)
