import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolox_ops import batched_nms, reference, yolox_detect


def candidates(seed, n, classes=5, kind="plain"):
    g = torch.Generator().manual_seed(seed)
    xy = torch.rand(n, 2, generator=g) * 100
    boxes = torch.cat([xy, xy + torch.rand(n, 2, generator=g) * 40], 1)
    scores = torch.rand(n, generator=g)
    if kind == "ties":
        scores, boxes = (scores * 3).round() / 3, (boxes / 20).round() * 20
    if kind == "strange" and n:
        scores[::3], scores[1::5] = torch.nan, -torch.inf
        boxes.view(-1)[::7] = torch.nan
        boxes.view(-1)[::5] = 3e38
    labels = torch.randint(-classes, classes, (n,), generator=g) * 10**15
    return boxes, scores, labels


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 300),
    classes=st.sampled_from([1, 5, 80]),
    kind=st.sampled_from(["plain", "ties"]),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.65, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
)
def test_equals_the_reference(seed, n, classes, kind, threshold, dtype):
    boxes, scores, labels = candidates(seed, n, classes, kind)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    assert torch.equal(
        batched_nms(boxes, scores, labels, threshold), reference.batched_nms(boxes, scores, labels, threshold)
    )


@pytest.mark.parametrize("n", [0, 1, 300, 8400])
@pytest.mark.parametrize("threshold", [0.45, 0.65])
def test_equals_torchvision(n, threshold):
    ops = pytest.importorskip("torchvision.ops")
    boxes, scores, _ = candidates(n, n)
    scores = (scores.argsort() + 1) / (n + 1)  # no ties: torchvision leaves their order open
    labels = torch.randint(80, (n,), generator=torch.Generator().manual_seed(1))
    expected = torch.cat([torch.arange(0)] + [
        (labels == c).nonzero().squeeze(1)[ops.nms(boxes[labels == c], scores[labels == c], threshold)]
        for c in range(80)
    ])  # fmt: skip
    expected = expected[scores[expected].argsort(descending=True)]
    assert torch.equal(batched_nms(boxes, scores, labels, threshold), expected)


def test_equals_mmcv():
    nms = pytest.importorskip("mmcv.ops").batched_nms
    boxes, scores, _ = candidates(3, 2000)
    scores = (scores.argsort() + 1) / 2001
    labels = torch.randint(80, (2000,), generator=torch.Generator().manual_seed(2))
    # mmcv shifts boxes by class; whole numbers keep their IoUs exact under the shift
    boxes = boxes.round()
    _, keep = nms(boxes, scores, labels, {"type": "nms", "iou_threshold": 0.65})
    assert torch.equal(batched_nms(boxes, scores, labels, 0.65), keep)


def test_a_box_at_the_threshold_stays_and_one_just_over_goes():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 5.01]])
    assert batched_nms(boxes, torch.tensor([0.9, 0.8, 0.1]), torch.tensor([0, 0, 1]), 0.5).tolist() == [
        0,
        1,
        2,
    ]
    assert batched_nms(boxes, torch.tensor([0.9, 0.1, 0.8]), torch.tensor([0, 1, 0]), 0.5).tolist() == [0, 1]


def test_strange_values_end_with_valid_indices_and_nan_first():
    boxes, scores, labels = candidates(4, 100, kind="strange")
    keep = batched_nms(boxes, scores, labels, 0.5)
    assert len(keep.unique()) == len(keep) and keep.min() >= 0 and keep.max() < 100
    assert scores[keep[0]].isnan()


def test_layouts_and_threads():
    boxes, scores, labels = candidates(5, 3000, 40)
    expected = batched_nms(boxes, scores, labels, 0.5)
    assert torch.equal(batched_nms(boxes.t().contiguous().t(), scores, labels, 0.5), expected)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(batched_nms(boxes, scores, labels, 0.5), expected)
    finally:
        torch.set_num_threads(threads)


def logits(seed, batch=2, priors=400, classes=20):
    g = torch.Generator().manual_seed(seed)
    boxes = torch.stack([candidates(seed + b, priors)[0] for b in range(batch)])
    return (
        torch.randn(batch, priors, classes, generator=g) * 3,
        torch.randn(batch, priors, generator=g) * 3,
        boxes,
    )


@pytest.mark.parametrize("limit", [0, 7, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_detect_equals_the_reference(limit, dtype):
    arguments = [t.to(dtype) for t in logits(6)]
    for ours, theirs in zip(
        yolox_detect(*arguments, 0.3, 0.65, limit),
        reference.yolox_detect(*arguments, 0.3, 0.65, limit),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_detect_equals_mmdet():
    head = pytest.importorskip("mmdet.models.dense_heads.yolox_head").YOLOXHead
    config = pytest.importorskip("mmcv").Config({"score_thr": 0.1, "nms": {"type": "nms", "iou_threshold": 0.65}})
    cls, obj, boxes = logits(7)
    boxes = boxes.round()
    detections, labels, counts = yolox_detect(cls, obj, boxes, 0.1, 0.65, 400)
    for b in range(2):
        theirs, their_labels = head._bboxes_nms(None, cls[b].sigmoid(), boxes[b], obj[b].sigmoid(), config)
        assert int(counts[b]) == len(theirs) > 0
        torch.testing.assert_close(detections[b, : counts[b]], theirs)
        assert torch.equal(labels[b, : counts[b]], their_labels)
        assert (labels[b, counts[b] :] == -1).all()


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, torch.int32), (torch.float64, torch.int64)])
def test_scores_are_within_4_ulp_of_torch_sigmoid(dtype, bits):
    """Ours has the same bits on every instruction set, torch's has not."""
    ends = [0.0, -0.0, 1e-40, 87.0, -87.0, 100.0, -100.0, 800.0, -800.0, torch.inf, -torch.inf]
    logit = torch.cat([torch.linspace(-40, 40, 40001, dtype=dtype), torch.tensor(ends, dtype=dtype)])
    count = len(logit)
    corner = torch.arange(count, dtype=dtype)[:, None] * 16
    boxes = torch.cat([corner, corner, corner + 8, corner + 8], 1)[None]
    everything = yolox_detect(logit[None, :, None], torch.full((1, count), 100, dtype=dtype), boxes, 0.0, 0.5, count)
    scores = torch.empty(count, dtype=dtype)
    scores[(everything[0][0, :, 0] / 16).long()] = everything[0][0, :, 4]
    theirs = logit.sigmoid()
    assert int(everything[2]) == count
    assert (scores.view(bits) - theirs.view(bits)).abs().max() <= 4
    threshold = float(scores[30000])
    counts = [int(yolox_detect(logit[None, :, None], torch.full((1, count), 100, dtype=dtype), boxes, t, 0.5, count)[2])
              for t in (threshold, threshold * (1 + 2e-7))]  # fmt: skip
    assert counts[0] == (scores >= threshold).sum() > counts[1]  # a score at the threshold stays


def test_detect_drops_nan_scores():
    cls, obj, boxes = logits(8)
    obj[0] = torch.nan
    assert yolox_detect(cls, obj, boxes, 0.0, 0.65, 10)[2].tolist() == [0, 10]


@pytest.mark.skipif(not hasattr(torch.library, "opcheck"), reason="torch 2.4 and newer")
def test_opcheck():
    torch.library.opcheck(torch.ops.yolox_ops.batched_nms.default, (*candidates(9, 20), 0.5))
    torch.library.opcheck(torch.ops.yolox_ops.yolox_detect.default, (*logits(10), 0.1, 0.5, 30))


@pytest.mark.compile
def test_compiles_as_one_graph():
    arguments = logits(11)
    compiled = torch.compile(lambda *a: yolox_detect(*a, 0.1, 0.5, 30)[2] + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), yolox_detect(*arguments, 0.1, 0.5, 30)[2] + 1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boxes": torch.zeros(8, 5)}, ValueError, r"boxes must be \[N, 4\], got \[8, 5\]"),
        ({"scores": torch.zeros(7)}, ValueError, r"scores must be \[8\], got \[7\]"),
        ({"labels": torch.zeros(8)}, TypeError, "labels must be int64"),
        ({"iou_threshold": 1.5}, ValueError, r"iou_threshold must be in \[0, 1\], got 1.5"),
        ({"scores": torch.zeros(8, device="meta")}, ValueError, "scores must be on cpu, got meta"),
    ],
)
def test_bad_input(change, error, message):
    boxes, scores, labels = candidates(12, 8)
    with pytest.raises(error, match=message):
        batched_nms(**({"boxes": boxes, "scores": scores, "labels": labels, "iou_threshold": 0.5} | change))


@pytest.mark.parametrize("place", [0, 1, 19])
def test_detect_drops_a_prior_with_a_nan_class_logit(place):
    cls, obj = torch.zeros(1, 3, 20), torch.full((1, 3), 5.0)
    cls[0, 1, place] = torch.nan
    boxes = torch.tensor([[[0.0, 0, 9, 9], [20, 20, 29, 29], [40, 40, 49, 49]]])
    ours, theirs = (detect(cls, obj, boxes, 0.1, 0.5, 5) for detect in (yolox_detect, reference.yolox_detect))
    assert ours[2].tolist() == [2]
    for mine, specified in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, specified)
