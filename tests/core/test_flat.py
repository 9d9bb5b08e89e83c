"""Tensors side by side: the same contents, and as few pieces as possible."""

import copy

import pytest
import torch

from yolox_plugin.core.flat import gradients_together, joined, lay_together, merged

SHAPES = ((3, 4), (1,), (), (8,), (5, 2, 1, 1), (0,), (32,))


def tensors(seed, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
def test_contents_stay_and_one_kernel_serves_all(dtype):
    lists = [tensors(seed, dtype) for seed in range(2)]
    before = copy.deepcopy(lists)
    for part in lists:
        lay_together(part)
    for part, expected in zip(lists, before, strict=True):
        for ours, theirs in zip(part, expected, strict=True):
            assert torch.equal(ours, theirs)
            assert ours.data_ptr() % 32 == 0
    firsts, seconds = merged(*lists)
    assert len(firsts) == len(seconds) == 1
    firsts[0].add_(seconds[0])
    for ours, a, b in zip(lists[0], *before, strict=True):
        assert torch.equal(ours, a + b)


def test_a_list_with_another_order_is_not_merged_wrongly():
    a, b = tensors(0), tensors(1)
    before = copy.deepcopy((a, b))
    lay_together(a)
    lay_together(b[::-1])
    for ours, theirs in zip(*merged(a, b), strict=True):
        ours.add_(theirs)
    for ours, first, second in zip(a, *before, strict=True):
        assert torch.equal(ours, first + second)


def test_what_lies_elsewhere_stays_apart():
    """Tensors of their own, strided ones, other dtypes, a neighbour of another size."""
    a = [*tensors(0), torch.randn(4, 6).t(), torch.randn(3, dtype=torch.float64)]
    before = copy.deepcopy(a)
    assert len(merged(a)[0]) == len(a) - 1  # an empty one is nothing to work on
    lay_together(a)
    assert a[-2].stride() == (1, 6)
    for ours, theirs in zip(a, before, strict=True):
        assert torch.equal(ours, theirs)
    [pieces] = merged(a)
    assert len(pieces) == 3
    for piece in pieces:
        piece.mul_(2)
    for ours, theirs in zip(a, before, strict=True):
        assert torch.equal(ours, theirs * 2)


def test_parameters_stay_themselves():
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    parameters = list(network.parameters())
    expected = copy.deepcopy(network.state_dict())
    lay_together(parameters)
    assert [id(p) for p in network.parameters()] == [id(p) for p in parameters]
    torch.testing.assert_close(network.state_dict(), expected, rtol=0, atol=0)
    network(torch.randn(4, 3)).sum().backward()
    flat = joined([p.grad for p in parameters])
    [whole] = merged(parameters)[0]
    assert flat.shape == whole.shape
    whole.sub_(flat)
    for ours, (name, before) in zip(parameters, ((n, expected[n]) for n, _ in network.named_parameters()), strict=True):
        assert torch.equal(ours, before - ours.grad), name


def test_gradients_become_parts_of_one():
    """Of whatever layout they were: whoever changes the whole changes them."""
    parameters = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    apart = torch.nn.Parameter(torch.randn(2, 3))
    lay_together(parameters)
    for parameter in (*parameters, apart):
        parameter.grad = (
            torch.randn(parameter.shape[::-1]).t() if parameter.dim() == 2 else torch.randn(parameter.shape)
        )
    before = [parameter.grad.clone() for parameter in (*parameters, apart)]
    for run in (parameters, [apart]):
        gradients_together(run).mul_(2)
    for parameter, gradient in zip((*parameters, apart), before, strict=True):
        assert torch.equal(parameter.grad, gradient * 2)


def test_nothing():
    lay_together([])
    assert merged([], []) == [[], []]
