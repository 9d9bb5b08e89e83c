"""Every operator on a GPU beside the CPU kernels, hard cases included; those of training make the host wait for
nothing."""

import pytest
import torch
from devices import on_cpu, random_boxes, same_assignment
from gpu import needs_gpu, no_waits, on_gpu

import yolox_ops
from yolox_ops import SimOTAParameters
from yolox_ops.__main__ import main

pytestmark = needs_gpu
KINDS = ("trained", "untrained", "ties", "strange")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
@pytest.mark.parametrize(
    ("m", "n", "aligned"), [(50, 20, False), (30, 30, True), (0, 5, False), (5, 0, False), (0, 0, True)]
)
@pytest.mark.parametrize("strange", [False, True])
def test_box_iou(m, n, aligned, mode, dtype, strange):
    a, b = random_boxes(1, m, strange).to(dtype), random_boxes(2, n, strange).to(dtype)
    arguments = on_gpu((a, b))
    with no_waits():
        ours = yolox_ops.box_iou(*arguments, mode, aligned)
    assert ours.is_cuda and ours.dtype == dtype
    torch.testing.assert_close(ours.cpu(), yolox_ops.box_iou(a, b, mode, aligned), equal_nan=True)


@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
@pytest.mark.parametrize("aligned", [False, True])
def test_box_iou_gradient(mode, aligned):
    pairs = []
    for move in (on_cpu, on_gpu):
        leaves = [move(random_boxes(seed, 30)).requires_grad_() for seed in (1, 2)]
        iou = yolox_ops.box_iou(*leaves, mode, aligned)
        weights = torch.linspace(-1, 1, iou.numel()).view(iou.shape)
        (iou * move(weights)).sum().backward()
        pairs.append([leaf.grad.cpu() for leaf in leaves])
    torch.testing.assert_close(pairs[1], pairs[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lower", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_computes_in_float32(lower):
    a, b = on_gpu((random_boxes(1, 5).to(lower), random_boxes(2, 6).to(lower)))
    with torch.autocast("cuda", lower):
        assert yolox_ops.box_iou(a, b).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gts", [0, 1, 13, 40])
@pytest.mark.parametrize("keep_every_gt", [False, True])
def test_simota(situation, kind, gts, keep_every_gt):
    case = situation(gts, gts=gts, size=128, kind=kind, batch=3)
    case["num_gts"][0] = gts // 2
    image = {k: v if k == "centers" else v[1] for k, v in case.items() if k != "num_gts"}
    ours, theirs = yolox_ops.simota_cost(**on_gpu(image)), yolox_ops.simota_cost(**image)
    torch.testing.assert_close(on_cpu(ours), theirs, rtol=1e-5, atol=2e-3)
    moved = on_gpu(case)
    with no_waits():
        ours = yolox_ops.simota_assign(**moved, keep_every_gt=keep_every_gt)
    theirs = yolox_ops.simota_assign(**case, keep_every_gt=keep_every_gt)
    if kind == "strange":  # 0 * inf and the like: orders may differ, indices may not leave their range
        assert ((ours[0].cpu() >= -1) & (ours[0].cpu() < case["num_gts"][:, None].clamp(min=1))).all()
    else:
        same_assignment(case, on_cpu(ours), theirs)


@pytest.mark.parametrize("kind", ["trained", "untrained"])
@pytest.mark.parametrize("gts", [10, 100, 200])
def test_simota_of_a_whole_batch(situation, kind, gts, record_property):
    case = situation(gts, gts=gts, size=640, kind=kind, batch=8)
    ours, theirs = yolox_ops.simota_assign(**on_gpu(case)), yolox_ops.simota_assign(**case)
    positives = int((theirs[0] >= 0).sum())
    moved = same_assignment(case, on_cpu(ours), theirs)
    print(f"{kind}, 8 x {gts} gts: {moved} of {positives} positives moved by rounding")
    assert moved <= 0.01 * positives
    again = yolox_ops.simota_assign(**on_gpu(case))
    assert all(map(torch.equal, ours, again))


def test_equal_costs_take_the_lowest_indices(situation):
    case = situation(0, gts=2, size=96)
    case["gt_boxes"][0, :] = case["boxes"][0, :] = torch.tensor([8.0, 8.0, 88.0, 88.0])
    case["gt_labels"].fill_(0)
    case["scores"].fill_(0.5)
    assert torch.equal(yolox_ops.simota_assign(**on_gpu(case))[0].cpu(), yolox_ops.simota_assign(**case)[0])


def test_labels_out_of_range_read_nothing_out_of_bounds(situation):
    case = situation(0, gts=4, size=96, classes=5)
    case["gt_labels"][0] = torch.tensor([-7, 10**9, 2, 4])
    near = {**case, "gt_labels": case["gt_labels"].clamp(0, 4)}
    assert torch.equal(yolox_ops.simota_assign(**on_gpu(case))[0].cpu(), yolox_ops.simota_assign(**near)[0])


@pytest.mark.parametrize("strange", [False, True])
def test_nms(strange):
    g = torch.Generator().manual_seed(3)
    boxes, scores = random_boxes(3, 400, strange), torch.rand(400, generator=g)
    labels = torch.randint(5, (400,), generator=g)
    scores[::9] = 0.5
    expected = yolox_ops.batched_nms(boxes, scores, labels * 2**40, 0.5)
    ours = yolox_ops.batched_nms(*on_gpu((boxes, scores, labels * 2**40)), 0.5)
    assert ours.is_cuda
    assert torch.equal(ours.cpu(), expected)


@pytest.mark.parametrize("strange", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_detect(batch, strange, dtype):
    g = torch.Generator().manual_seed(4)
    cls, obj = torch.randn(batch, 300, 80, generator=g), torch.randn(batch, 300, generator=g)
    if strange and batch:
        cls[0, 5, 3], cls[0, 6, 0], obj[0, 7] = torch.nan, torch.inf, torch.nan
    boxes = random_boxes(5, 300 * batch, strange).view(batch, 300, 4)
    arguments = cls.to(dtype), obj.to(dtype), boxes
    ours = yolox_ops.yolox_detect(*on_gpu(arguments), 0.1, 0.6, 50)
    theirs = yolox_ops.yolox_detect(*arguments, 0.1, 0.6, 50)
    assert ours[0].is_cuda and ours[1].is_cuda and not ours[2].is_cuda
    torch.testing.assert_close(on_cpu(ours), theirs, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_ema(dtype):
    average = [torch.randn(shape).to(dtype) for shape in ((), (0,), (3, 4), (100, 10))]
    value = [torch.randn(t.shape).to(dtype) for t in average]
    moved, other = on_gpu((average, value))
    with no_waits():
        yolox_ops.ema_update_(moved, other, 0.25)
    yolox_ops.ema_update_(average, value, 0.25)
    torch.testing.assert_close(on_cpu(moved), average)
    yolox_ops.ema_update_([], [], 0.25)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda t: yolox_ops.box_iou(t(3, 5), t(3, 4)), r"boxes1 must be \[M, 4\], got \[3, 5\]"),
        (lambda t: yolox_ops.box_iou(t(3, 4), torch.rand(3, 4)), "boxes2 must be on cuda:0, got cpu"),
        (lambda t: yolox_ops.batched_nms(t(3, 4), t(2), t(3).long(), 0.5), r"scores must be \[3\], got \[2\]"),
        (lambda t: yolox_ops.yolox_detect(t(1, 3, 0), t(1, 3), t(1, 3, 4), 0.1, 0.5, 3), "cls_logits must be"),
        (lambda t: yolox_ops.ema_update_([t(2)], [t(3)], 0.5), r"value\[0\] must be \[2\], got \[3\]"),
    ],
)
def test_bad_input(run, message):
    with pytest.raises(ValueError, match=message):
        run(lambda *shape: torch.rand(*shape).cuda())


@pytest.mark.skipif(not hasattr(torch.library, "opcheck"), reason="torch 2.4 and newer")
def test_opcheck(situation):
    case = on_gpu(situation(4, gts=3, size=64, batch=2))
    image = [value if name == "centers" else value[0] for name, value in case.items() if name != "num_gts"]
    boxes, scores, labels = on_gpu((random_boxes(1, 20), torch.rand(20), torch.randint(5, (20,))))
    ops, check = torch.ops.yolox_ops, torch.library.opcheck
    check(ops.simota_assign.default, (*case.values(), *SimOTAParameters()))
    check(ops.simota_cost.default, (*image, 2.5, 1.0, 3.0))
    check(ops.batched_nms.default, (boxes, scores, labels, 0.5))
    check(ops.yolox_detect.default, (torch.rand(1, 20, 3).cuda(), scores[None], boxes[None], 0.1, 0.5, 5))
    check(ops.ema_update_.default, ([scores], [scores + 1], 0.5))
    for aligned in (False, True):
        check(ops.box_iou.default, (boxes.requires_grad_(), boxes.detach() + 1, "giou", aligned, 1e-6))


def test_the_self_check(capsys):
    assert main() == 0
    printed = capsys.readouterr().out
    assert f"\ndevice:      {torch.cuda.get_device_name()}\n" in printed
    assert "\ntopk:        exact in float32; simota_assign uses it\n" in printed
    assert "\nwaits:       0 noticed by set_sync_debug_mode in simota_assign, box_iou, ema_update_\n" in printed
    assert printed.endswith("\nself-check: passed\n")


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_takes_the_operators_into_one_graph(situation):
    case = on_gpu(situation(8, gts=5, size=96))

    def step(boxes):
        gt_index, iou = yolox_ops.simota_assign(**{**case, "boxes": boxes.detach()})
        giou = yolox_ops.box_iou(boxes[0, :20] * 2, case["gt_boxes"][0] * 2, mode="giou")
        keep = yolox_ops.batched_nms(boxes[0], iou[0] + 0.5, gt_index[0].clamp(min=0), 0.5)
        return (giou * giou).sum() + iou.sum(), keep

    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        boxes = case["boxes"].clone().requires_grad_()
        loss, keep = function(boxes)
        loss.backward()
        results.append((loss.detach(), keep, boxes.grad))
    torch.testing.assert_close(results[1], results[0])
    assert results[0][2].abs().sum() > 0
