import random

import parity
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolox_ops import SimOTAParameters, reference, simota_assign, simota_cost

KINDS = ("trained", "untrained", "strange", "ties")


def one_image(case):
    return {k: v if k == "centers" else v[0] for k, v in case.items() if k != "num_gts"}


WEIGHTS = {
    "center_radius": [0.5, 1.0, 2.5, 5.0],
    "candidate_topk": [1, 3, 10, 20],
    "cls_weight": [0.0, 0.5, 1.0, 3.0],
    "iou_weight": [0.0, 1.0, 3.0, 5.0],
}


def assert_equal(ours, theirs):
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    gts=st.integers(0, 20),
    classes=st.sampled_from([1, 3, 16, 80]),
    kind=st.sampled_from(KINDS),
    batch=st.integers(0, 3),
)
def test_equals_the_reference(situation, seed, gts, classes, kind, batch):
    case = situation(seed, gts=gts, size=96, classes=classes, kind=kind, batch=batch)
    if batch:
        case["num_gts"][0] = gts // 2
        ours, theirs = simota_cost(**one_image(case)), reference.simota_cost(**one_image(case))
        torch.testing.assert_close(ours[0], theirs[0], rtol=2e-6, atol=2e-4)
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-6, atol=1e-6)
    ours, theirs = simota_assign(**case), reference.simota_assign(**case)
    if kind == "strange":  # 0 * inf and the like: orders may differ, indices may not leave their range
        assert ((ours[0] >= -1) & (ours[0] < case["num_gts"][:, None].clamp(min=1))).all()
    else:
        assert_equal(ours, theirs)


def random_cases(situation, seed, count, kinds):
    rng = random.Random(seed)
    for _ in range(count):
        case = situation(
            rng.randrange(10**6), gts=rng.randint(0, 20), size=rng.choice([64, 96, 160]),
            classes=rng.choice([1, 3, 20, 80]), kind=rng.choice(kinds),
        )  # fmt: skip
        yield case, {name: rng.choice(values) for name, values in WEIGHTS.items()}


MANY = [100, pytest.param(4000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", MANY)
def test_equals_the_reference_whatever_the_weights(situation, count):
    for case, weights in random_cases(situation, count, count, ["trained", "untrained", "ties"]):
        assert_equal(simota_assign(**case, **weights), reference.simota_assign(**case, **weights))


def stock_assignment(case, weights):
    """MMDetection's own, in the form of simota_assign, of the first image."""
    assigners = pytest.importorskip("mmdet.core.bbox.assigners.sim_ota_assigner")
    stock = assigners.SimOTAAssigner(**weights)._assign(**{
        "pred_scores": case["scores"][0], "priors": case["centers"], "decoded_bboxes": case["boxes"][0],
        "gt_bboxes": case["gt_boxes"][0], "gt_labels": case["gt_labels"][0],
    })  # fmt: skip
    return stock.gt_inds[None] - 1, torch.where(stock.gt_inds > 0, stock.max_overlaps, 0.0)[None]


@pytest.mark.parametrize("gts", [1, 10, 40, 100])
@pytest.mark.parametrize("kind", ["trained", "untrained"])
def test_equals_mmdet(situation, gts, kind):
    case = situation(gts, gts=gts, size=640, kind=kind)
    ours = simota_assign(**case)
    assert_equal(ours, stock_assignment(case, {"center_radius": 2.5}))
    assert (ours[0] >= 0).any()


@pytest.mark.parametrize("count", MANY)
def test_equals_mmdet_whatever_the_weights(situation, count):
    """Where costs are equal, MMDetection leaves it to torch.topk which of them is taken."""
    for case, weights in random_cases(situation, count, count, ["trained", "untrained"]):
        ours, theirs = simota_assign(**case, **weights), stock_assignment(case, weights)
        same = ours[0] == theirs[0]
        torch.testing.assert_close(ours[1][same], theirs[1][same], rtol=1e-6, atol=1e-6)
        verdict = parity.compare("simota_assign", (*case.values(), *SimOTAParameters(**weights)), ours, theirs)
        assert not verdict.problems, (verdict.problems, weights)


@pytest.fixture
def rivals(situation):
    """Two gts on the same box, of which the second is the cheaper for every prior."""
    case = situation(0, gts=2, size=96)
    case["gt_boxes"][0, :] = torch.tensor([10.0, 10.0, 80.0, 80.0])
    case["gt_labels"][0, :] = torch.tensor([3, 5])
    case["boxes"][0, :] = torch.tensor([10.0, 10.0, 80.0, 80.0])
    case["scores"].fill_(0.1)
    case["scores"][0, :, 5] = 0.9
    return case


def test_a_prior_that_two_gts_want_goes_to_the_cheaper(rivals):
    case = rivals
    gt_index, iou = simota_assign(**case)
    assert (gt_index[0] == 1).sum() == 10
    assert (gt_index[0] == 0).sum() == 0
    assert torch.equal(iou[0, gt_index[0] == 1], torch.ones(10))


def test_equal_costs_take_the_lowest_indices(situation):
    case = situation(0, gts=2, size=96)
    case["gt_boxes"][0, :] = torch.tensor([8.0, 8.0, 88.0, 88.0])
    case["gt_labels"].fill_(0)
    case["boxes"][0, :] = torch.tensor([8.0, 8.0, 88.0, 88.0])
    case["scores"].fill_(0.5)
    gt_index, _ = simota_assign(**case)
    both = torch.stack(reference._regions(case["centers"], case["gt_boxes"][0], 2.5)).all(0)[:, 0]
    assert (gt_index[0] == 0).nonzero().squeeze(1).tolist() == both.nonzero().squeeze(1)[:10].tolist()
    assert not (gt_index == 1).any()


def test_every_gt_of_a_tiny_size_still_gets_its_cheapest_candidate(situation):
    case = situation(1, gts=6, size=160, kind="untrained")
    case["gt_boxes"][..., 2:] = case["gt_boxes"][..., :2] + 0.5
    ours, theirs = simota_assign(**case), reference.simota_assign(**case)
    assert (ours[0] >= 0).any()
    assert_equal(ours, theirs)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), gts=st.integers(0, 30), kind=st.sampled_from(["trained", "untrained"]))
def test_every_gt_keeps_a_positive_on_demand(situation, seed, gts, kind):
    case = situation(seed, gts=gts, size=96, classes=3, kind=kind, batch=2)
    ours = simota_assign(**case, keep_every_gt=True)
    assert_equal(ours, reference.simota_assign(**case, keep_every_gt=True))
    stock, _ = simota_assign(**case)
    assert (ours[0][stock >= 0] == stock[stock >= 0]).all()  # nobody loses a prior by it
    for b in range(2):
        in_box, in_center = reference._regions(case["centers"], case["gt_boxes"][b], 2.5)
        for g in range(gts):
            own = (in_box | in_center)[:, g]
            assert (ours[0][b] == g).any() or not (own & (ours[0][b] < 0)).any()


def test_a_gt_whose_priors_all_go_to_another(rivals):
    """open-mmlab/mmdetection#8628: two gts, each of whose ten cheapest priors are the same."""
    case = rivals
    assert not (simota_assign(**case)[0] == 0).any()
    gt_index, iou = simota_assign(**case, keep_every_gt=True)
    assert (gt_index[0] == 1).sum() == 10
    [rescued] = (gt_index[0] == 0).nonzero()[:, 0].tolist()
    assert iou[0, rescued] == 1
    both = torch.stack(reference._regions(case["centers"], case["gt_boxes"][0], 2.5)).all(0)[:, 0].nonzero()[:, 0]
    assert rescued == both[10]  # the cheapest that is left, all costs in box and centre being equal


def test_padding_is_never_read(situation):
    case = situation(2, gts=5, batch=2)
    expected = simota_assign(**case)
    padded = dict(case)
    padded["gt_boxes"] = torch.cat([case["gt_boxes"], torch.full((2, 3, 4), torch.nan)], 1)
    padded["gt_labels"] = torch.cat([case["gt_labels"], torch.full((2, 3), 10**12)], 1)
    for ours, wanted in zip(simota_assign(**padded), expected, strict=True):
        assert torch.equal(ours, wanted)


def test_layouts_dtypes_threads_and_gradient(situation):
    case = situation(3, gts=30, size=320, batch=2)
    expected = simota_assign(**case)
    strided = {k: v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in case.items()}
    strided["scores"].requires_grad_()
    wide = {k: v.double() if v.is_floating_point() else v for k, v in case.items()}
    threads = torch.get_num_threads()
    try:
        for count, arguments in ((1, case), (3, case), (2, strided), (2, wide)):
            torch.set_num_threads(count)
            result = simota_assign(**arguments)
            assert torch.equal(result[0], expected[0])
            assert torch.equal(result[1], expected[1])
            assert not result[1].requires_grad
    finally:
        torch.set_num_threads(threads)
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in case.items()}
    rounded = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
    assert torch.equal(simota_assign(**half)[0], simota_assign(**rounded)[0])


@pytest.mark.skipif(not hasattr(torch.library, "opcheck"), reason="torch 2.4 and newer")
def test_opcheck(situation):
    case = situation(4, gts=3, size=64, batch=2)
    ops = torch.ops.yolox_ops
    torch.library.opcheck(ops.simota_assign.default, (*case.values(), *SimOTAParameters()))
    torch.library.opcheck(ops.simota_cost.default, (*one_image(case).values(), 2.5, 1.0, 3.0))


@pytest.mark.compile
def test_compiles_as_one_graph(situation):
    case = situation(5, gts=3, size=64)
    compiled = torch.compile(lambda **k: simota_assign(**k)[0] + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**case), simota_assign(**case)[0] + 1)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("scores", torch.zeros(84, 80), ValueError, r"scores must be \[B, P, C\], got \[84, 80\]"),
        ("centers", torch.zeros(80, 4), ValueError, r"centers must be \[84, 4\], got \[80, 4\]"),
        ("boxes", torch.zeros(1, 84, 5), ValueError, r"boxes must be \[1, 84, 4\], got \[1, 84, 5\]"),
        ("gt_boxes", torch.zeros(1, 3, 5), ValueError, r"gt_boxes must be \[1, G, 4\], got \[1, 3, 5\]"),
        ("gt_labels", torch.tensor([[0, 80, 1]]), ValueError, r"gt_labels must be in \[0, 80\), got 80"),
        ("gt_labels", torch.tensor([[0, -1, 1]]), ValueError, r"gt_labels must be in \[0, 80\), got -1"),
        ("gt_labels", torch.zeros(1, 3), TypeError, "gt_labels must be int64"),
        ("num_gts", torch.tensor([4]), ValueError, r"num_gts must be in \[0, 3\], got 4"),
        ("num_gts", torch.tensor([1, 1]), ValueError, r"num_gts must be \[1\], got \[2\]"),
        ("scores", torch.zeros(1, 84, 80).int(), TypeError, "scores must be floating point"),
        ("boxes", torch.zeros(1, 84, 4, device="meta"), ValueError, "boxes must be on cpu, got meta"),
        ("candidate_topk", 0, ValueError, "candidate_topk must be at least 1, got 0"),
        ("iou_weight", -1.0, ValueError, "iou_weight must be at least 0, got -1"),
    ],
)
def test_bad_input(situation, name, value, error, message):
    case = situation(6, gts=3, size=64)
    case[name] = value
    with pytest.raises(error, match=message):
        simota_assign(**case)
