import pytest
import torch

from yolox_ops import ema_update_, reference


def weights(seed, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    shapes = [(), (0,), (7,), (64, 3, 3, 3), (300, 301)]
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("momentum", [0.0, 0.0001, 0.5, 1.0])
def test_equals_the_reference(dtype, momentum):
    ours, theirs, value = weights(1, dtype), weights(1, dtype), weights(2, dtype)
    ema_update_(ours, value, momentum)
    reference.ema_update_(theirs, value, momentum)
    torch.testing.assert_close(ours, theirs)


LAYOUTS = {  # of a matrix's copy
    "packed": lambda t: t.clone(),
    "transposed": lambda t: t.t().clone(memory_format=torch.contiguous_format).t(),
    "with gaps": lambda t: torch.stack([t, t], -1)[..., 0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_graph_that_saved_an_average_notices(dtype, layout):
    average = LAYOUTS[layout](torch.ones(3, 4, dtype=dtype))
    view = average[0]
    leaf = torch.ones_like(average).requires_grad_()
    loss = (leaf * average).sum()
    value = torch.zeros(3, 4, dtype=dtype)
    ema_update_([average], [value], 0.5)
    assert torch.equal(average, torch.full_like(average, 0.5))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert average._version == view._version == 1
    assert value._version == 0


def test_leaves_the_graphs_of_parameters_alone():
    parameter = torch.nn.Parameter(torch.ones(3))
    loss = (2 * parameter).sum()
    ema_update_([parameter], [torch.zeros(3)], 0.5)
    assert parameter.is_leaf and parameter.requires_grad
    loss.backward()
    assert torch.equal(parameter.grad, torch.full((3,), 2.0))


def test_inference_tensors():
    with torch.inference_mode():
        average = torch.ones(3)
        ema_update_([average], [torch.zeros(3)], 0.5)
    assert average.tolist() == [0.5] * 3
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode"):
        ema_update_([average], [torch.zeros(3)], 0.5)
    assert average.tolist() == [0.5] * 3


def test_lists_that_can_be_read_once():
    average = torch.ones(3)
    ema_update_((t for t in [average]), (torch.zeros(3) for _ in range(1)), 0.25)
    assert average.tolist() == [0.75] * 3


@pytest.mark.parametrize("count", [7, 1 << 20])
def test_an_average_that_is_listed_twice_is_updated_twice(count):
    """As stock does it for tied weights: one after the other."""
    average, value = torch.zeros(count), torch.ones(count)
    ema_update_([average, torch.zeros(3), average.view(-1), average[: count // 2]], [value, torch.ones(3), value,
                value[: count // 2]], 0.25)  # fmt: skip
    once, twice, thrice = (1 - 0.75**times for times in (1, 2, 3))
    assert once < twice < thrice
    torch.testing.assert_close(average[: count // 2], torch.full((count // 2,), thrice))
    torch.testing.assert_close(average[count // 2 :], torch.full((count - count // 2,), twice))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_average_that_is_another_ones_value_is_read_as_it_is_then(layout):
    """One after the other, for any number of threads and any strides."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            first, second = torch.zeros(300, 301), LAYOUTS[layout](torch.ones(300, 301))
            ema_update_([first, second], [second, first], 0.25)
            assert (first == 0.25).all() and (second == 0.8125).all()
    finally:
        torch.set_num_threads(before)


def test_nothing_is_changed_if_one_pair_is_refused():
    memory, average = torch.arange(4.0), torch.zeros(3)
    with pytest.raises(RuntimeError, match="refer to a single memory location"):
        ema_update_([average, average, memory[:3]], [torch.ones(3), torch.ones(3), memory[1:]], 0.5)
    assert average.tolist() == [0, 0, 0] and memory.tolist() == [0, 1, 2, 3]


def test_overlapping_memory_is_refused():
    with pytest.raises(ValueError, match=r"average\[0\] must have memory for each element, got strides \[0\]"):
        ema_update_([torch.ones(1).expand(3)], [torch.ones(3)], 0.5)
    memory = torch.arange(4.0)
    with pytest.raises(RuntimeError, match="refer to a single memory location"):
        ema_update_([memory[:3]], [memory[1:]], 0.5)
    assert memory.tolist() == [0, 1, 2, 3]
    ema_update_([memory], [memory], 0.5)
    assert memory.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_strides_do_not_change_the_result(dtype):
    """Half types are computed in float32 and rounded after each step, as mul_ and add_ do it."""
    average, value = weights(7, dtype)[-1], weights(8, dtype)[-1]
    wide = torch.promote_types(dtype, torch.float32)
    kept = (average.to(wide) * 0.75).to(dtype)
    expected = (kept.to(wide) + value.to(wide) * 0.25).to(dtype)
    for ours in LAYOUTS.values():
        for theirs in LAYOUTS.values():
            changed = ours(average)
            ema_update_([changed], [theirs(value)], 0.25)
            assert torch.equal(changed, expected)


def test_strides():
    average, value = torch.randn(40, 30), torch.randn(30, 40)
    expected = average * 0.75 + value.t() * 0.25
    channels_last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    other = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)
    expected_last = channels_last * 0.75 + 0.25
    ema_update_([average, channels_last], [value.t(), other], 0.25)
    torch.testing.assert_close(average, expected)
    torch.testing.assert_close(channels_last, expected_last)


@pytest.mark.skipif(not hasattr(torch.library, "opcheck"), reason="torch 2.4 and newer")
def test_opcheck():
    torch.library.opcheck(torch.ops.yolox_ops.ema_update_.default, (weights(3), weights(4), 0.1))


@pytest.mark.parametrize(
    ("average", "value", "momentum", "error", "message"),
    [
        ([torch.zeros(2)], [], 0.1, ValueError, "value must be a list of 1 tensors, got 0"),
        ([torch.zeros(2)], [torch.zeros(3)], 0.1, ValueError, r"value\[0\] must be \[2\], got \[3\]"),
        (
            [torch.zeros(2)],
            [torch.zeros(2).double()],
            0.1,
            TypeError,
            r"value\[0\] must be float, got double",
        ),
        (
            [torch.zeros(2).long()],
            [torch.zeros(2).long()],
            0.1,
            TypeError,
            r"average\[0\] must be floating point",
        ),
        (
            [torch.ones(2).to(torch.float8_e5m2)],
            [torch.ones(2).to(torch.float8_e5m2)],
            0.1,
            TypeError,
            "of 16, 32 or 64 bits, got c10::Float8_e5m2",
        ),
        ([torch.zeros(2)], [torch.zeros(2)], 1.5, ValueError, r"momentum must be in \[0, 1\], got 1.5"),
        (
            [torch.zeros(2)],
            [torch.zeros(2, device="meta")],
            0.1,
            ValueError,
            r"value\[0\] must be on cpu, got meta",
        ),
        (
            [torch.zeros(2), torch.zeros(2, device="meta")],
            [torch.zeros(2), torch.zeros(2, device="meta")],
            0.1,
            ValueError,
            r"average\[1\] must be on cpu, got meta",
        ),
    ],
)
def test_bad_input(average, value, momentum, error, message):
    with pytest.raises(error, match=message):
        ema_update_(average, value, momentum)
