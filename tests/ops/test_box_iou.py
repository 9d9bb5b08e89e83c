import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolox_ops import box_iou, reference

MODES = ("iou", "iof", "giou")


def boxes(seed, n, kind="plain", dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    xy = torch.rand(n, 2, generator=g) * 60
    out = torch.cat([xy, xy + torch.rand(n, 2, generator=g) * 40], 1)
    if kind == "grid":  # shared edges, equal boxes, empty boxes
        out = (out / 16).round() * 16
    elif kind == "inverted":
        out = out[:, [2, 1, 0, 3]]
    elif kind == "huge":
        out = out * 1e17
    elif kind == "strange":
        out.view(-1)[::7] = torch.nan
        out.view(-1)[::11] = torch.inf
    elif kind == "few values":  # in every combination: infinite sides, infinity times 0, infinity less infinity
        values = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, 5.0, 20.0])
        out = values[torch.randint(len(values), (n, 4), generator=g)]
    return out.to(dtype)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    m=st.integers(0, 40),
    n=st.integers(0, 70),
    kind=st.sampled_from(["plain", "grid", "inverted", "huge", "strange", "few values"]),
    mode=st.sampled_from(MODES),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    aligned=st.booleans(),
)
def test_equals_the_reference(seed, m, n, kind, mode, dtype, aligned):
    a, b = boxes(seed, m, kind, dtype), boxes(seed + 1, m if aligned else n, kind, dtype)
    ours, theirs = box_iou(a, b, mode, aligned), reference.box_iou(a, b, mode, aligned)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, equal_nan=True) if dtype.itemsize > 2 else (
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("aligned", [False, True])
def test_equals_mmdet(mode, aligned):
    overlaps = pytest.importorskip("mmdet.core").bbox_overlaps
    a, b = boxes(1, 300), boxes(2, 300 if aligned else 40)
    torch.testing.assert_close(box_iou(a, b, mode, aligned), overlaps(a, b, mode, aligned), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("kind", ["plain", "grid"])
def test_gradient(mode, aligned, kind):
    a = boxes(3, 12, kind, torch.float64).requires_grad_()
    b = boxes(4, 12 if aligned else 9, kind, torch.float64).requires_grad_()
    if kind == "plain":
        assert torch.autograd.gradcheck(lambda x, y: box_iou(x, y, mode, aligned), (a, b))
    weight = torch.rand(box_iou(a, b, mode, aligned).shape, generator=torch.Generator().manual_seed(5))
    ours = torch.autograd.grad((box_iou(a, b, mode, aligned) * weight).sum(), (a, b))
    theirs = torch.autograd.grad((reference.box_iou(a, b, mode, aligned) * weight).sum(), (a, b))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("scale", "eps"), [(1e9, 1e-6), (1e16, 1e-6), (1e-13, 0.0)])
def test_gradient_of_huge_and_tiny_boxes(mode, scale, eps):
    """Areas of 1e21 to 1e35, and of 1e-23: their squares are no float32."""
    a, b = boxes(13, 20) * scale, boxes(14, 30) * scale
    grads = []
    for function, dtype in ((box_iou, torch.float32), (reference.box_iou, torch.float64)):
        leaves = [t.to(dtype).requires_grad_() for t in (a, b)]
        found = torch.autograd.grad(function(*leaves, mode, eps=eps).sum(), leaves)
        grads.append([grad.double() * scale for grad in found])
    assert max(grad.abs().max() for grad in grads[1]) > 0.01
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_a_second_derivative_is_an_error():
    a, b = boxes(15, 5).requires_grad_(), boxes(16, 6).requires_grad_()
    grads = torch.autograd.grad(box_iou(a, b).sum(), (a, b), create_graph=True)
    with pytest.raises(RuntimeError, match="derivative for yolox_ops::box_iou_backward is not implemented"):
        sum(grad.sum() for grad in grads).backward()


def test_other_layouts_and_threads():
    a, b = boxes(5, 500), boxes(6, 60)
    expected = box_iou(a, b)
    assert torch.equal(box_iou(a.t().contiguous().t(), b.repeat(1, 2)[:, :4]), expected)
    assert torch.equal(box_iou(a[:1].expand(3, 4), b), expected[:1].expand(3, -1))
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(box_iou(a, b), expected)
    finally:
        torch.set_num_threads(threads)


def test_autocast_computes_in_float32():
    a, b = boxes(7, 5), boxes(8, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert box_iou(a.bfloat16(), b.bfloat16()).dtype == torch.float32


@pytest.mark.skipif(not hasattr(torch.library, "opcheck"), reason="torch 2.4 and newer")
def test_opcheck():
    for aligned in (False, True):
        a, b = boxes(9, 5).requires_grad_(), boxes(10, 5).requires_grad_()
        torch.library.opcheck(torch.ops.yolox_ops.box_iou.default, (a, b, "giou", aligned, 1e-6))


@pytest.mark.compile
def test_compiles_as_one_graph():
    a, b = boxes(11, 5), boxes(12, 6)
    compiled = torch.compile(lambda x, y: box_iou(x, y) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b), box_iou(a, b) * 2)


@pytest.mark.parametrize(
    ("a", "b", "options", "error", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(2, 4), {}, ValueError, r"boxes1 must be \[M, 4\], got \[3, 5\]"),
        (torch.zeros(3, 4), torch.zeros(4), {}, ValueError, r"boxes2 must be \[N, 4\], got \[4\]"),
        (
            torch.zeros(3, 4),
            torch.zeros(2, 4),
            {"aligned": True},
            ValueError,
            r"boxes2 must be \[3, 4\] when aligned",
        ),
        (
            torch.zeros(3, 4),
            torch.zeros(2, 4),
            {"mode": "diou"},
            ValueError,
            "mode must be iou, iof or giou, got diou",
        ),
        (torch.zeros(3, 4), torch.zeros(2, 4), {"eps": -1.0}, ValueError, "eps must be at least 0, got -1"),
        (torch.zeros(3, 4).long(), torch.zeros(2, 4), {}, TypeError, "boxes1 must be floating point"),
        (
            torch.zeros(3, 4).to(torch.float8_e5m2),
            torch.zeros(2, 4),
            {},
            TypeError,
            "boxes1 must be floating point of 16",
        ),
        (
            torch.zeros(3, 4),
            torch.zeros(2, 4).double(),
            {},
            TypeError,
            "boxes2 must have the dtype of boxes1",
        ),
        (
            torch.zeros(3, 4),
            torch.zeros(2, 4, device="meta"),
            {},
            ValueError,
            "boxes2 must be on cpu, got meta",
        ),
    ],
)
def test_bad_input(a, b, options, error, message):
    with pytest.raises(error, match=message):
        box_iou(a, b, **options)
