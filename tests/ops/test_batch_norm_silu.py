import copy

import pytest
import torch
import torch.nn.functional as F

from yolox_ops import batch_norm_silu, reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "with gaps": lambda t: torch.stack([t, t], -1)[..., 0],
    "slice of channels": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "transposed": lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
}
# Fewer values than a vector has, pieces that are whole and that are not, more channels than a piece has, many parts.
SHAPES = [(2, 1, 1, 1), (3, 5, 1, 1), (1, 3, 1, 2), (2, 16, 8, 8), (2, 7, 9, 5), (3, 48, 7, 31), (2, 600, 3, 5),
          (1, 1030, 2, 2), (2, 24, 64, 65)]  # fmt: skip


def inputs(shape, dtype=torch.float32, seed=0, parameters=None):
    """The input, its upstream gradient, and running mean and variance, weight and bias."""
    g = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    channels = torch.randn(4, shape[1], generator=g, dtype=torch.float64)
    rest = [channels[0], channels[1] ** 2 + 0.1, channels[2] + 0.5, channels[3]]
    return (x * 2 + 0.5).to(dtype), grad.to(dtype), *(t.to(parameters or dtype) for t in rest)


def with_gradients(function, x, grad, mean, var, weight, bias, **kwargs):
    """Output, running statistics and gradients."""
    leaves = [t if t is None else t.detach().clone().requires_grad_() for t in (weight, bias)]
    x = x.detach().requires_grad_()
    mean, var = copy.deepcopy(mean), copy.deepcopy(var)
    y = function(x, mean, var, *leaves, **kwargs)
    y.backward(grad)
    return [y.detach(), mean, var, x.grad, *(t if t is None else t.grad for t in leaves)]


def pair(x, mean, var, weight, bias, **kwargs):
    return F.silu(F.batch_norm(x, mean, var, weight, bias, **kwargs))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_torchs_two_and_the_reference(shape, layout, training):
    x, grad, *channels = inputs(shape, torch.float64)
    x, grad = LAYOUTS[layout](x), LAYOUTS[layout](grad)
    ours, theirs, specified = (
        with_gradients(function, x, grad, *channels, training=training, momentum=0.03, eps=1e-3)
        for function in (batch_norm_silu, pair, reference.batch_norm_silu)
    )
    for a, b, c in zip(ours, theirs, specified, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-9)
    changed = not torch.equal(ours[1], channels[0])
    assert changed == training
    y = batch_norm_silu(x, *channels, training=training)
    assert y.is_contiguous(memory_format=torch._prims_common.suggest_memory_format(x))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("dtype", "parameters"),
    [("float32", "float32"), ("float16", "float16"), ("float16", "float32"), ("bfloat16", "bfloat16"),
     ("bfloat16", "float32")],
)  # fmt: skip
def test_is_as_near_to_float64_as_torchs_two_are(dtype, parameters, layout, training):
    dtype, parameters = getattr(torch, dtype), getattr(torch, parameters)
    x, grad, *channels = inputs((3, 48, 17, 31), dtype, 1, parameters)
    x, grad = LAYOUTS[layout](x), LAYOUTS[layout](grad)
    ours, theirs = (
        with_gradients(function, x, grad, *channels, training=training, momentum=0.03, eps=1e-3)
        for function in (batch_norm_silu, pair)
    )
    wide = [t.double() for t in (x, grad, *channels)]
    true = with_gradients(pair, *wide, training=training, momentum=0.03, eps=1e-3)
    eps = torch.finfo(dtype).eps
    for a, b, c in zip(ours, theirs, true, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        distance = (a.double() - c).abs().max()
        assert distance <= (b.double() - c).abs().max() + 2 * eps * c.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_half_types_cancel_as_torchs_do(dtype):
    """Of two values that are far apart the gradients are near 0: what is left of a sum that was subtracted."""
    g = torch.Generator().manual_seed(5)
    x, grad = ((torch.randn(1, 513, 1, 2, generator=g) * scale).to(dtype) for scale in (50, 1))
    weight, bias = torch.randn(2, 513, generator=g)
    found = []
    for function, up in ((batch_norm_silu, dtype), (pair, dtype), (pair, torch.float64)):
        parameters = [t.double() if up == torch.float64 else t for t in (weight, bias)]
        results = with_gradients(function, x.to(up), grad.to(up), None, None, *parameters, training=True)
        found.append(results[3].double())
    ours, theirs, true = found
    assert (ours - true).abs().max() <= 2 * (theirs - true).abs().max() + 1e-6


@pytest.mark.parametrize("offset", [0, 1000, 1e6])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_sums_are_as_exact_as_those_of_torchs_contiguous_kernel(layout, offset):
    """Mean and variance of float32 against float64, also where the mean is large beside the deviations."""
    x = (inputs((4, 19, 80, 81), torch.float32, 2)[0] + offset).float()
    ours, theirs = ([torch.zeros(19), torch.zeros(19)] for _ in range(2))
    batch_norm_silu(LAYOUTS[layout](x), *ours, training=True, momentum=1.0)
    F.batch_norm(x, *theirs, training=True, momentum=1.0)
    for a, b, true in zip(ours, theirs, torch.var_mean(x.double(), (0, 2, 3))[::-1], strict=True):
        distance = (a.double() / true - 1).abs().max()
        assert distance <= max((b.double() / true - 1).abs().max(), 2**-23)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constant_channels_and_the_first_value_far_from_the_others(dtype, layout):
    x = torch.full((2, 3, 8, 9), 1e6)
    x[:, 1] = torch.randn(2, 8, 9)
    x[0, 1, 0, 0] = 3e4
    x = LAYOUTS[layout](x.to(dtype))
    y = batch_norm_silu(x, None, None, bias=torch.ones(3, dtype=dtype), training=True)
    torch.testing.assert_close(y.double(), pair(x.double(), None, None, None, torch.ones(3).double(), training=True),
                               rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)  # fmt: skip


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_gradcheck(layout, training):
    x, _, *channels = inputs((2, 3, 4, 3), torch.float64)
    mean, var, weight, bias = channels

    def function(x, weight, bias):
        return batch_norm_silu(x, mean.clone(), var.clone(), weight, bias, training=training)

    leaves = [LAYOUTS[layout](x).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("affine", ["weight", "bias", "neither"])
@pytest.mark.parametrize("tracked", [True, False])
def test_without_parameters_or_running_statistics(affine, tracked, training):
    x, grad, mean, var, weight, bias = inputs((2, 5, 6, 7), torch.float64)
    if not tracked and not training:
        with pytest.raises(ValueError, match="running_mean and running_var must be given unless training, got None"):
            batch_norm_silu(x, None, None)
        return
    arguments = [mean if tracked else None, var if tracked else None, weight if affine == "weight" else None,
                 bias if affine == "bias" else None]  # fmt: skip
    ours, theirs = (
        with_gradients(function, x, grad, *arguments, training=training) for function in (batch_norm_silu, pair)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_frozen_parameters_and_inputs_get_no_gradient():
    x, _, mean, var, weight, bias = inputs((2, 5, 6, 7))
    y = batch_norm_silu(x, mean, var, weight.requires_grad_(), bias, training=True)
    (gradient,) = torch.autograd.grad(y.sum(), weight)
    assert gradient.abs().sum() > 0 and bias.grad is None and x.grad is None
    assert not batch_norm_silu(x, mean, var, bias, bias, training=True).requires_grad
    with torch.no_grad():
        assert not batch_norm_silu(x, mean, var, weight, bias, training=True).requires_grad


def test_a_gradient_of_other_strides():
    x, grad, *channels = inputs((2, 5, 6, 7), torch.float64)
    for upstream in (grad[:1, :1].expand(2, 5, 6, 7), LAYOUTS["channels_last"](grad), LAYOUTS["transposed"](grad)):
        for layout in ("contiguous", "channels_last"):
            laid = LAYOUTS[layout](x)
            ours, theirs = (
                with_gradients(function, laid, upstream, *channels, training=True)
                for function in (batch_norm_silu, pair)
            )
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_pass_as_through_torchs_two(dtype, layout):
    x, grad, *channels = inputs((2, 4, 6, 7), dtype)
    x[0, 0, 2, 3], x[1, 1, 0, 0], x[1, 2, 5, 6] = torch.nan, torch.inf, -torch.inf
    x = LAYOUTS[layout](x)
    for training in (True, False):
        ours, theirs = (
            with_gradients(function, x, grad, *channels, training=training) for function in (batch_norm_silu, pair)
        )
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.isinf(), b.isinf())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_whole_range_of_silu(dtype):
    """With a norm that changes nothing."""
    z = torch.cat([torch.linspace(-120, 120, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38])]).to(dtype)
    x = z.view(1, 1, 1, -1).requires_grad_()
    still = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    y = batch_norm_silu(x, *still, eps=0)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    wide = z.double().requires_grad_()
    expected = F.silu(wide)
    (slope,) = torch.autograd.grad(expected.sum(), wide)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.flatten().double(), expected, rtol=4 * eps, atol=1e-30)
    torch.testing.assert_close(gradient.flatten().double(), slope, rtol=4 * eps, atol=16 * eps)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same_bits(dtype, layout):
    x, grad, *channels = inputs((3, 40, 61, 59), dtype)
    x, grad = LAYOUTS[layout](x), LAYOUTS[layout](grad)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(with_gradients(batch_norm_silu, x, grad, *channels, training=True))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_autocast_changes_nothing():
    x, grad, *channels = inputs((2, 5, 6, 7), torch.bfloat16, 0, torch.float32)
    expected = with_gradients(batch_norm_silu, x, grad, *channels, training=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(batch_norm_silu, x, grad, *channels, training=True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        x, _, *channels = inputs((2, 5, 6, 7))
        assert batch_norm_silu(x, *channels, training=True).dtype == torch.float32


def test_empty_input():
    x, _, *channels = inputs((0, 5, 6, 7))
    mean = channels[0].clone()
    y = batch_norm_silu(x.requires_grad_(), *channels, training=True)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 5, 6, 7) and torch.equal(channels[0], mean)
    assert batch_norm_silu(torch.ones(2, 0, 3, 3), None, None, training=True).shape == (2, 0, 3, 3)


def test_a_graph_that_saved_running_statistics_notices():
    x, _, mean, var, *_ = inputs((2, 5, 6, 7))
    loss = (torch.ones(5, requires_grad=True) * mean).sum()
    batch_norm_silu(x, mean, var)
    assert mean._version == var._version == 0
    batch_norm_silu(x, mean, var, training=True)
    assert mean._version == var._version == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_second_derivatives(training, frozen):
    x, _, mean, var, weight, bias = inputs((2, 3, 3, 2), torch.float64)

    def function(x, *parameters):
        return batch_norm_silu(x, mean.clone(), var.clone(), *(parameters or (weight, bias)), training=training)

    leaves = [x.requires_grad_()] if frozen else [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    assert torch.autograd.gradgradcheck(function, leaves)
    x, _, mean, var, weight, bias = inputs((2, 3, 6, 7), torch.bfloat16, 0, torch.float32)
    found = []
    for call in (batch_norm_silu, pair):
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(call(leaf, mean, var, weight, bias).square().sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), leaf)[0])
    torch.testing.assert_close(found[0], found[1], rtol=0.1, atol=0.05 * found[1].abs().max().item())


@pytest.mark.skipif(not hasattr(torch.library, "opcheck"), reason="torch 2.4 and newer")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "with gaps"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_opcheck(layout, training):
    x, grad, mean, var, weight, bias = inputs((2, 5, 6, 7))
    x = LAYOUTS[layout](x)
    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    ops = torch.ops.yolox_ops
    torch.library.opcheck(ops.batch_norm_silu.default, (x, weight, bias, mean, var, training, 0.1, 1e-5))
    torch.library.opcheck(ops.batch_norm_silu.default, (x, None, None, mean, var, training, 0.1, 1e-5))
    _, mean, invstd = ops.batch_norm_silu(x, weight, bias, mean, var, training, 0.1, 1e-5)
    arguments = [t.detach() for t in (grad, x, weight, bias, mean, invstd)]
    torch.library.opcheck(ops.batch_norm_silu_backward.default, (*arguments, training))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": torch.ones(2, 3)}, ValueError, r"input must be \[N, C, H, W\], got \[2, 3\]"),
        ({"input": torch.ones(2, 3, 4, 4).long()}, TypeError,
         "input must be floating point of 16, 32 or 64 bits, got torch.Long"),
        ({"input": torch.ones(2, 3, 4, 4).to(torch.float8_e5m2)}, TypeError, "got torch.Float8_e5m2"),
        ({"input": torch.ones(1, 3, 1, 1)}, ValueError,
         r"input must have more than 1 value in each channel when training, got \[1, 3, 1, 1\]"),
        ({"weight": torch.ones(4)}, ValueError, r"weight must be \[3\], got \[4\]"),
        ({"bias": torch.ones(3, 1)}, ValueError, r"bias must be \[3\], got \[3, 1\]"),
        ({"running_mean": torch.ones(2)}, ValueError, r"running_mean must be \[3\], got \[2\]"),
        ({"running_var": torch.ones(3).double()}, TypeError, "running_var must be float, got double"),
        ({"running_var": torch.ones(1).expand(3)}, ValueError,
         r"running_var must have memory for each element, got strides \[0\] for \[3\]"),
        ({"running_var": None}, ValueError, "running_mean and running_var must both be given or neither"),
        ({"weight": torch.ones(3).half()}, TypeError, "weight must be float, got c10::Half"),
        ({"input": torch.ones(2, 3, 4, 4).bfloat16(), "weight": torch.ones(3).double()}, TypeError,
         "weight must be c10::BFloat16 or float, got double"),
        ({"momentum": 1.5}, ValueError, r"momentum must be in \[0, 1\], got 1.5"),
        ({"momentum": float("nan")}, ValueError, r"momentum must be in \[0, 1\], got nan"),
        ({"eps": -1e-5}, ValueError, "eps must be at least 0, got -1e-05"),
        ({"weight": torch.ones(3, device="meta")}, ValueError, "weight must be on cpu, got meta"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_input(changes, error, message):
    x, _, mean, var, weight, bias = inputs((2, 3, 4, 4))
    given = {"input": x, "running_mean": mean, "running_var": var, "weight": weight, "bias": bias, "training": True}
    kept = mean.clone()
    with pytest.raises(error, match=message):
        batch_norm_silu(**(given | changes))
    assert torch.equal(mean, kept)
