"""Every operator with arguments that nobody would choose: it has to give what its reference gives, or to say what is
wrong; it writes to nothing but what it is to change. Run under the sanitizers too.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import parity
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import yolox_ops
from yolox_ops import SimOTAParameters, reference

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DTYPES = (*FLOATS, torch.float8_e4m3fn, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64)
STRANGE = (math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-42, 1e-7, 1.0, -1.0, 3.3e38, -1e38, 1e18)
SENTINEL = 119
Arguments = dict[str, Any]


# Tensors. A layout takes a packed tensor and gives one of the same shape, dtype and, if it can, values, in memory that
# is larger than it.


def roomy(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A part of a larger tensor."""
    whole = torch.full([size + 3 for size in shape], SENTINEL).to(dtype)
    return whole[tuple(slice(1, 1 + size) for size in shape)]


def in_middle(t):
    memory = torch.full((t.numel() + 12,), SENTINEL).to(t.dtype)
    return memory[5 : 5 + t.numel()].view(t.shape).copy_(t)


def in_slice(t):
    return roomy(t.shape, t.dtype).copy_(t)


def in_steps(t):
    wide = roomy([2 * size for size in t.shape], t.dtype)
    return wide[tuple(slice(None, None, 2) for _ in t.shape)].copy_(t)


def reversed_dims(t):
    dims = tuple(range(t.dim()))[::-1]
    return in_middle(t.permute(dims)).permute(dims)


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else reversed_dims(t)


def expanded(t):
    """All rows are the first one: other values."""
    return in_slice(t[:1]).expand(t.shape) if t.dim() and len(t) else t


def overlapping(t):
    """Each element lies one after the one before it, in every dimension: other values."""
    length = 1 + sum(size - 1 for size in t.shape)
    if not t.numel():
        return t
    memory = torch.full((length + 6,), SENTINEL).to(t.dtype)
    memory[3 : 3 + length] = t.flatten()[:length]
    return memory.as_strided(t.shape, [1] * t.dim(), 3)


OWN_MEMORY = {f.__name__: f for f in (torch.clone, in_middle, in_slice, in_steps, reversed_dims, channels_last)}
LAYOUTS = OWN_MEMORY | {f.__name__: f for f in (expanded, overlapping)}


def memory_of(t: torch.Tensor) -> torch.Tensor:
    """All bytes that this tensor is a part of."""
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())


def tensors_in(value: Any) -> list[torch.Tensor]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [value] if isinstance(value, torch.Tensor) else [t for inner in values for t in tensors_in(inner)]


@contextlib.contextmanager
def writes_only(tensors, changed=()):
    """Checks that nothing else is written to."""
    on_cpu = [t for t in tensors if lies_here(t)]
    before = [memory_of(t).clone() for t in on_cpu]
    yield
    for t in changed:
        for other, old in zip(on_cpu, before, strict=True):
            if other.untyped_storage().data_ptr() == t.untyped_storage().data_ptr():
                as_before = torch.empty(0, dtype=t.dtype).set_(
                    old.untyped_storage(), t.storage_offset(), t.shape, t.stride()
                )
                as_before.copy_(t.detach().clone())
    for t, old in zip(on_cpu, before, strict=True):
        assert torch.equal(memory_of(t), old), "memory was written to that is not an operator's own"


def lies_here(t: torch.Tensor) -> bool:
    return t.device.type == "cpu" and t.layout == torch.strided


def plain(value: Any) -> Any:
    """A copy with packed tensors, those of [N, C, H, W] in the order that they are in."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, torch.Tensor) and lies_here(value):
        order = torch._prims_common.suggest_memory_format(value) if value.dim() == 4 else torch.contiguous_format
        return value.detach().clone(memory_format=order)
    return value


def same_bits(a, b) -> bool:
    """Of tensors or lists of them; any NaN is any other."""
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_bits, a, b))
    if a is None or b is None:
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.is_complex():
        return same_bits(torch.view_as_real(a), torch.view_as_real(b))
    if not a.is_floating_point():
        return torch.equal(a, b)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    different = a.contiguous().view(bits) != b.contiguous().view(bits)
    return bool((~different | (a.isnan() & b.isnan())).all())


def close(ours, theirs, rtol=1e-6, atol=1e-6):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, equal_nan=True)


# Arguments


sizes = st.sampled_from([0, 1, 2, 3]) | st.integers(4, 70)
small = st.sampled_from([0, 1, 2]) | st.integers(3, 12)
seeds = st.integers(0, 10**6)


class Draw:
    """What the arguments are drawn with: hypothesis draws few numbers, the rest is made of a seed."""

    def __init__(self, draw):
        self.draw = draw
        self.generator = torch.Generator().manual_seed(draw(seeds))
        self.strange = draw(st.booleans())
        self.ties = draw(st.booleans())

    def one_of(self, values):
        return self.draw(st.sampled_from(list(values)))

    def rand(self, *shape):
        return torch.rand(torch.Size(shape), generator=self.generator, dtype=torch.float64)

    def spoilt(self, t):
        if self.strange and t.numel():
            where = torch.randint(t.numel(), (max(t.numel() // 9, 1),), generator=self.generator)
            which = torch.randint(len(STRANGE), where.shape, generator=self.generator)
            t.view(-1)[where] = torch.tensor(STRANGE, dtype=torch.float64)[which]
        return t

    def laid(self, t, layouts=LAYOUTS):
        """Somewhere in memory."""
        t = layouts[self.one_of(layouts)](t)
        return t.detach().requires_grad_() if t.is_floating_point() and self.draw(st.booleans()) else t

    def boxes(self, *shape):
        """Some of them upside down."""
        start = self.rand(*shape, 2) * 60
        boxes = torch.cat([start, start + self.rand(*shape, 2) * 40 - 4], -1)
        return self.spoilt((boxes / 16).round() * 16 if self.ties else boxes)

    def int64(self, low, high, *shape):
        return torch.randint(low, high, shape, generator=self.generator)


@st.composite
def box_iou_arguments(draw):
    d = Draw(draw)
    dtype, aligned = d.one_of(FLOATS), draw(st.booleans())
    m = draw(sizes)
    n = m if aligned else draw(sizes)
    mode, eps = d.one_of(("iou", "iof", "giou")), d.one_of((1e-6, 1e-3, 1.0))
    boxes1, boxes2 = (d.laid(d.boxes(count).to(dtype)) for count in (m, n))
    return {"boxes1": boxes1, "boxes2": boxes2, "mode": mode, "aligned": aligned, "eps": eps}


def box_iou_and_gradient(function):
    def run(boxes1, boxes2, mode, aligned, eps):
        leaves = [boxes1.detach().requires_grad_(), boxes2.detach().requires_grad_()]
        overlaps = function(*leaves, mode, aligned, eps)
        steps = torch.arange(overlaps.numel(), dtype=torch.float64).sin().view(overlaps.shape)
        return [overlaps.detach(), *torch.autograd.grad(overlaps, leaves, steps.to(overlaps.dtype))]

    return run


def box_iou_same(ours, theirs, arguments):
    half = arguments["boxes1"].dtype.itemsize == 2
    close(ours[0], theirs[0], *((None, None) if half else ()))
    smooth = 1e-9 < arguments["eps"] < 1e9 and all(t.isfinite().all() for t in tensors_in(arguments))
    if arguments["boxes1"].dtype == torch.float64 and smooth:
        close(ours[1:], theirs[1:], 1e-7, 1e-7)
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]


@st.composite
def simota_arguments(draw, batched):
    d = Draw(draw)
    priors, classes, gts = draw(sizes | st.just(1100)), draw(st.integers(1, 20)), draw(small)
    batch = [draw(st.integers(0, 3))] if batched else []
    stride = 8.0 * (1 + d.int64(0, 3, priors, 1))
    centers = d.spoilt(torch.cat([d.rand(priors, 2) * 70, stride.expand(-1, 2)], 1).double())
    boxes, gt_boxes = d.boxes(*batch, priors), d.boxes(*batch, gts)
    scores = d.rand(*batch, priors, classes)
    scores = d.spoilt((scores * 4).round() / 4 if d.ties else scores)
    laid = {
        name: d.laid(t.to(d.one_of(FLOATS)))
        for name, t in (("scores", scores), ("centers", centers), ("boxes", boxes), ("gt_boxes", gt_boxes))
    } | {"gt_labels": d.laid(d.int64(0, classes, *batch, gts))}
    if batched:
        laid["num_gts"] = d.laid(d.int64(0, gts + 1, *batch))
    numbers = SimOTAParameters(
        d.one_of((2.5, 0.0, 0.5, 1e4, -1.0)),
        d.one_of((10, 1, 3, 1000, 2**40)),
        d.one_of((1.0, 0.0, 3.0)),
        d.one_of((3.0, 0.0, 1.0)),
        draw(st.booleans()),
    )._asdict()
    if not batched:
        del numbers["candidate_topk"], numbers["keep_every_gt"]
    return laid | numbers


def simota_cost_same(ours, theirs, arguments):
    close(ours[0], theirs[0], 2e-6, 2e-4)
    close(ours[1], theirs[1])


def simota_assign_same(ours, theirs, arguments):
    index, count = ours[0], arguments["num_gts"][:, None]
    assert ((index >= -1) & (index < count.clamp(min=1))).all()
    if all(t.isfinite().all() and t.abs().max() < 1e5 for t in tensors_in(arguments) if t.numel()):
        verdict = parity.compare("simota_assign", tuple(arguments.values()), ours, theirs)
        assert not verdict.problems, verdict.problems


@st.composite
def nms_arguments(draw):
    d = Draw(draw)
    count = draw(sizes | st.just(300))
    boxes, scores = d.boxes(count).to(d.one_of(FLOATS)), d.rand(count)
    scores = d.spoilt((scores * 4).round() / 4 if d.ties else scores).to(d.one_of(FLOATS))
    labels = d.int64(-3, 3, count) * d.one_of((1, 10**15, 2**61))
    threshold = d.one_of((0.0, 0.3, 0.5, 0.65, 1.0))
    return {"boxes": d.laid(boxes), "scores": d.laid(scores), "labels": d.laid(labels), "iou_threshold": threshold}


def exactly(ours, theirs, arguments):
    assert same_bits(ours, theirs)


@st.composite
def detect_arguments(draw):
    d = Draw(draw)
    batch, priors, classes = draw(st.integers(0, 3)), draw(sizes | st.just(300)), draw(st.integers(1, 20))
    cls, obj = (d.rand(batch, priors, *rest) * 12 - 6 for rest in ((classes,), ()))
    cls, obj = (d.spoilt(t.round() if d.ties else t).to(d.one_of(FLOATS)) for t in (cls, obj))
    boxes = d.boxes(batch, priors).to(d.one_of(FLOATS))
    return {
        "cls_logits": d.laid(cls),
        "obj_logits": d.laid(obj),
        "boxes": d.laid(boxes),
        "score_threshold": d.one_of((0.1, 0.0, 0.37, 1.0, 1.5, -1.0, math.nan, math.inf, -math.inf)),
        "iou_threshold": d.one_of((0.65, 0.0, 0.5, 1.0)),
        "max_detections": d.one_of((100, 0, 1, 7)),
    }


def detect_same(ours, theirs, arguments):
    for mine, specified in zip(ours, theirs, strict=True):
        close(mine, specified)


@st.composite
def mixup_arguments(draw):
    d = Draw(draw)
    canvas = (draw(st.integers(1, 70)), draw(st.integers(1, 70)))
    shapes = (draw(sizes), draw(sizes), 3), (*(draw(st.integers(0, size)) for size in canvas), 3)
    image, partner = (d.laid(d.int64(0, 256, *shape).to(torch.uint8)) for shape in shapes)
    return {
        "image": image,
        "partner": partner,
        "canvas": canvas,
        "scaled": (draw(st.integers(1, 99)), draw(st.integers(1, 99))),
        "offset": tuple(draw(st.sampled_from([0, 0, 1, 7, 60, 2**31, 2**63 - 1])) for _ in range(2)),
        "flip": draw(st.booleans()),
        "pad": d.one_of((114, 0, 255)),
        "ipp": draw(st.booleans()),
    }


def mixup_same(ours, theirs, arguments):
    assert ours.dtype == torch.uint8 and ours.shape == theirs.shape
    assert not ours.numel() or (ours.int() - theirs.int()).abs().max() <= arguments["ipp"]


@st.composite
def norm_arguments(draw):
    d = Draw(draw)
    dtype = d.one_of(FLOATS)
    parameters = d.one_of({dtype, torch.float32 if dtype.itemsize == 2 else dtype})
    training = draw(st.booleans())
    counts = st.sampled_from([0, 1, 2, 3, 7])
    shape = draw(counts), draw(sizes | st.just(600)), draw(counts), draw(sizes)
    if training and shape[0] * shape[2] * shape[3] == 1:
        shape = (2, *shape[1:])
    x = d.spoilt(d.rand(*shape) * 6 - 2)
    channels = {name: d.rand(shape[1]) + 0.2 for name in ("running_mean", "running_var", "weight", "bias")}
    empty = not math.prod(shape)
    if training and not empty and draw(st.booleans()):
        channels |= {"running_mean": None, "running_var": None}
    for name in ("weight", "bias"):
        if draw(st.booleans()):
            channels[name] = None
    laid = {
        name: t if t is None else d.laid(t.to(parameters), OWN_MEMORY if "running" in name else LAYOUTS)
        for name, t in channels.items()
    }
    for name in ("running_mean", "running_var"):
        laid[name] = laid[name] if laid[name] is None else laid[name].detach()
    return {"input": d.laid(x.to(dtype))} | laid | {
        "training": training, "momentum": d.one_of((0.03, 0.0, 1.0)), "eps": d.one_of((1e-3, 1e-5)),
    }  # fmt: skip


def norm_and_gradient(function):
    def run(**arguments):
        leaves = {name: arguments[name] for name in ("input", "weight", "bias")}
        leaves = {name: t.detach().requires_grad_() for name, t in leaves.items() if t is not None}
        y = function(**arguments | leaves)
        steps = torch.arange(y.numel(), dtype=torch.float64).sin().view(y.shape).to(y.dtype)
        gradients = torch.autograd.grad(y, [*leaves.values()], steps)
        return [y.detach(), arguments["running_mean"], arguments["running_var"], *gradients]

    return run


def specified_norm(**arguments):
    """Of no values there are no statistics, and the running ones stay."""
    empty = not arguments["input"].numel()
    return norm_and_gradient(reference.batch_norm_silu)(**arguments | ({"training": False} if empty else {}))


def norm_same(ours, theirs, arguments):
    found = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in found)
    dtype = arguments["input"].dtype
    if all((t.abs() < 1e3).all() for t in tensors_in(arguments)):
        tolerance = {torch.float64: 1e-8, torch.float32: 1e-3}.get(dtype, 0.2)
        for a, b in found if dtype == torch.float64 else found[:1]:
            close(a, b, tolerance, tolerance)


@st.composite
def ema_arguments(draw):
    d = Draw(draw)
    average, value = [], []
    for _ in range(draw(st.integers(0, 5))):
        shape = draw(st.lists(small, max_size=4))
        dtype = d.one_of(FLOATS)
        average.append(OWN_MEMORY[d.one_of(OWN_MEMORY)](d.spoilt(d.rand(*shape) * 2 - 1).to(dtype)))
        value.append(d.laid(d.spoilt(d.rand(*shape) * 2 - 1).to(dtype)))
    return {"average": average, "value": value, "momentum": d.one_of((0.0, 1e-4, 0.5, 1.0))}


def changed_average(function):
    def run(average, value, momentum):
        with torch.no_grad():
            function(average, value, momentum)
        return average

    return run


def ema_same(ours, theirs, arguments):
    for mine, specified in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, specified, equal_nan=True)


@dataclass
class Operator:
    run: Callable[..., Any]
    reference: Callable[..., Any]
    arguments: st.SearchStrategy[Arguments]
    same: Callable[[Any, Any, Arguments], None]
    changed: tuple[str, ...] = ()


ops = yolox_ops
OPERATORS = {
    "box_iou": Operator(
        box_iou_and_gradient(ops.box_iou), box_iou_and_gradient(reference.box_iou), box_iou_arguments(), box_iou_same
    ),
    "simota_cost": Operator(ops.simota_cost, reference.simota_cost, simota_arguments(False), simota_cost_same),
    "simota_assign": Operator(ops.simota_assign, reference.simota_assign, simota_arguments(True), simota_assign_same),
    "batched_nms": Operator(ops.batched_nms, reference.batched_nms, nms_arguments(), exactly),
    "yolox_detect": Operator(ops.yolox_detect, reference.yolox_detect, detect_arguments(), detect_same),
    "mixup_blend": Operator(ops.mixup_blend, reference.mixup_blend, mixup_arguments(), mixup_same),
    "batch_norm_silu": Operator(
        norm_and_gradient(ops.batch_norm_silu), specified_norm, norm_arguments(), norm_same,
        ("running_mean", "running_var"),
    ),
    "ema_update_": Operator(
        changed_average(ops.ema_update_), changed_average(reference.ema_update_), ema_arguments(), ema_same,
        ("average",),
    ),
}  # fmt: skip


def run(operator: Operator, arguments: Arguments) -> Any:
    """The result, after which everything but what the operator changes in place is as it was."""
    changed = tensors_in([arguments[name] for name in operator.changed])
    with writes_only(tensors_in(arguments), changed):
        return operator.run(**arguments)


def specified(operator: Operator, arguments: Arguments) -> Any:
    return operator.reference(**plain(arguments))


@pytest.mark.parametrize("name", OPERATORS)
@given(data=st.data())
def test_good_arguments(name, data):
    """In any memory and with any values: as the reference has it, and with the bits of packed tensors, by any number of
    threads."""
    operator = OPERATORS[name]
    arguments = data.draw(operator.arguments)
    packed, theirs = plain(arguments), specified(operator, arguments)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(data.draw(st.integers(1, 3)))
        ours = run(operator, arguments)
        torch.set_num_threads(1)
        expected = run(operator, packed)
    finally:
        torch.set_num_threads(threads)
    assert same_bits(ours, expected)
    operator.same(ours, theirs, arguments)


def longer(t, dim):
    return torch.cat([t, t.narrow(dim, 0, min(1, t.shape[dim]))], dim)


def spoil_tensor(draw, t, changed=False):
    """Something that may be wrong with a tensor."""
    t = t.detach()
    dim = draw(st.integers(0, t.dim() - 1)) if t.dim() else None
    ways = {
        "dtype": lambda: t.to(draw(st.sampled_from(DTYPES))),
        "one more dimension": lambda: t[None],
        "another last dimension": lambda: t[..., None],
        "no dimensions": lambda: t.flatten()[0] if t.numel() else t.new_zeros(()),
        "nothing": lambda: t.new_empty(0),
        "meta": lambda: t.to("meta"),
        "sparse": lambda: t.to_sparse(),
    }
    if t.is_floating_point() and not changed:  # for tensors that change, torch has no way that our operators could take
        ways["negated"] = lambda: torch._neg_view(t)
    if dim is not None:
        ways |= {
            "longer": lambda: longer(t, dim),
            "shorter": lambda: t.narrow(dim, 0, max(t.shape[dim] - 1, 0)),
            "flat": lambda: t.flatten(),
            "turned": lambda: t.transpose(0, dim),
            "one size": lambda: t.narrow(dim, 0, min(1, t.shape[dim])).expand(t.shape) if t.shape[dim] else t,
        }
    if t.dtype == torch.int64:
        extreme = draw(st.sampled_from([-1, 10**6, 2**31, 2**63 - 1, -(2**63)]))
        ways["out of range"] = lambda: t.clone().fill_(extreme)
    return ways[draw(st.sampled_from(list(ways)))]()


HUGE = (2**24 + 1, 2**31, 2**32 + 1, 2**63 - 1, -(2**63))


def spoil(draw, name, value, changed):
    if isinstance(value, torch.Tensor):
        return spoil_tensor(draw, value, changed)
    if value is None:
        return torch.ones(draw(st.integers(0, 4)))
    if isinstance(value, list):  # of tensors
        if not value or draw(st.booleans()):
            return [*value, torch.ones(3)] if draw(st.booleans()) else value[1:]
        i = draw(st.integers(0, len(value) - 1))
        return [*value[:i], spoil_tensor(draw, value[i], changed), *value[i + 1 :]]
    if isinstance(value, tuple):
        ways = [(), value[:1], (*value, 1), *((value[0], extreme) for extreme in (0, -1, *HUGE)), (1.5, 2)]
        return draw(st.sampled_from(ways))
    if isinstance(value, str):
        return draw(st.sampled_from(["", "IOU", "giou ", "iou\0"]))
    if isinstance(value, bool):
        return draw(st.sampled_from([0, 1, 2]))
    if isinstance(value, int):
        # Not so many detections as there is memory for.
        ways = [0, -1, 1.5, 2**62, 2**64, *HUGE[3:]] if name == "max_detections" else [0, -1, 1.5, 2**64, *HUGE]
        return draw(st.sampled_from(ways))
    return draw(st.sampled_from([0.0, -1.0, 2.0, math.nan, math.inf, -math.inf, 1e300, -1e-300, 5e-324]))


def says_what_is_wrong(error: Exception) -> bool:
    text = str(error)
    return len(text) > 10 and not any(words in text for words in ("INTERNAL ASSERT", "report a bug", "std::"))


@pytest.mark.parametrize("name", OPERATORS)
@given(data=st.data())
def test_an_argument_that_may_be_wrong(name, data):
    """Nothing but the result of the reference, or an error that says what is wrong and leaves everything as it was."""
    operator = OPERATORS[name]
    arguments = data.draw(operator.arguments)
    which = data.draw(st.sampled_from(list(arguments)))
    arguments[which] = spoil(data.draw, which, arguments[which], which in operator.changed)
    kept = plain(arguments)
    try:
        ours = run(operator, arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        assert says_what_is_wrong(error), error
        assert same_bits(*([t for t in tensors_in(value) if lies_here(t)] for value in (plain(arguments), kept)))
        return
    if any(t.device.type == "meta" for t in tensors_in(ours)):
        return
    operator.same(ours, operator.reference(**kept), kept)


@given(data=st.data())
def test_averages_and_values_that_lie_in_one_memory(data):
    """One after the other, each from what is there then; or an error, and nothing has changed."""
    length = data.draw(st.sampled_from([100, 1 << 17]))
    memory = torch.rand(length, generator=torch.Generator().manual_seed(data.draw(seeds)))

    def view():
        """The size is the same in a pair."""
        step = data.draw(st.sampled_from([1, 1, 2]))
        return data.draw(st.integers(0, length - step * size)), step

    pairs = []
    for _ in range(data.draw(st.integers(1, 4))):
        size = data.draw(st.integers(0, length // 2))
        pairs.append((size, view(), view()))

    def lists(memory):
        views = [[memory[begin:][: size * step : step] for begin, step in two] for size, *two in pairs]
        return [a for a, _ in views], [v for _, v in views]

    expected, threads = memory.clone(), torch.get_num_threads()
    for a, v in zip(*lists(expected), strict=True):
        a.copy_(a * 0.75 + v * 0.25)
    before = memory.clone()
    torch.set_num_threads(data.draw(st.integers(1, 3)))
    try:
        yolox_ops.ema_update_(*lists(memory), 0.25)
    except RuntimeError as error:
        assert "refer to a single memory location" in str(error)
        assert torch.equal(memory, before)
    else:
        close(memory, expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", OPERATORS)
@given(data=st.data())
def test_without_data(name, data):
    """On the meta device: shapes and dtypes."""
    operator = OPERATORS[name]
    arguments = data.draw(operator.arguments)
    function = getattr(yolox_ops, name)
    to_meta = {
        key: [t.to("meta") for t in value] if isinstance(value, list)
        else value.detach().to("meta") if isinstance(value, torch.Tensor) else value
        for key, value in arguments.items()
    }  # fmt: skip
    if name == "batched_nms":  # the size of whose result is known with the data alone
        with pytest.raises(RuntimeError):
            function(**to_meta)
        return
    expected, found = tensors_in(function(**plain(arguments))), tensors_in(function(**to_meta))
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in expected]
