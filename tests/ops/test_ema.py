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


def test_strides():
    average, value = torch.randn(40, 30), torch.randn(30, 40)
    expected = average * 0.75 + value.t() * 0.25
    channels_last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    other = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)
    expected_last = channels_last * 0.75 + 0.25
    ema_update_([average, channels_last], [value.t(), other], 0.25)
    torch.testing.assert_close(average, expected)
    torch.testing.assert_close(channels_last, expected_last)


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
