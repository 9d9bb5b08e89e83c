"""Networks for inference compute what they computed before."""

import copy
import functools

import pytest
import torch

from mmcv.cnn import ConvModule  # isort: skip
from mmdet.models.backbones.csp_darknet import CSPDarknet  # isort: skip

from yolox_plugin.inference import FoldedConvModule, fold, lower
from yolox_plugin.network import quicken
from yolox_plugin.precision import Precision


def trained(network):
    """In eval mode, with weights and statistics as training leaves them."""
    g = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            for tensor in (module.running_mean, module.bias):
                torch.nn.init.uniform_(tensor, -1, 1, generator=g)
            for tensor in (module.running_var, module.weight):
                torch.nn.init.uniform_(tensor, 0.5, 2, generator=g)
    quicken(network)
    network.eval()  # of which CSPDarknet returns nothing
    return network


def block(**options):
    torch.manual_seed(0)
    settings = {"norm_cfg": {"type": "BN", "momentum": 0.03, "eps": 0.001}, "act_cfg": {"type": "Swish"}, "padding": 1}
    return trained(ConvModule(8, 16, 3, **{**settings, **options}))


def backbone(**options):
    torch.manual_seed(0)
    return trained(CSPDarknet(deepen_factor=0.33, widen_factor=0.125, **options))


@torch.no_grad()
def outputs(network, x):
    found = network(x)
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("use_depthwise", [False, True])
def test_a_folded_backbone_computes_what_it_computed(use_depthwise):
    stock = backbone(use_depthwise=use_depthwise).double()
    folded = copy.deepcopy(stock)
    fold(folded)
    kinds = [type(module) for module in folded.modules()]
    assert FoldedConvModule in kinds and ConvModule not in kinds and torch.nn.BatchNorm2d not in kinds
    x = torch.rand(2, 3, 64, 96, dtype=torch.double) * 255
    for out, expected in zip(outputs(folded, x), outputs(stock, x), strict=True):
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"padding_mode": "reflect"}, {"groups": 4}], ids=str)
def test_a_folded_block(options):
    stock = block(**options).double()
    folded = copy.deepcopy(stock)
    fold(folded)
    assert type(folded) is FoldedConvModule
    x = torch.randn(2, 8, 9, 11, dtype=torch.double)
    given = x.clone()
    torch.testing.assert_close(outputs(folded, x), outputs(stock, x), rtol=1e-12, atol=1e-12)
    assert torch.equal(x, given)  # the activation in place is the convolution's output
    pre = folded(x, activate=False)
    torch.testing.assert_close(torch.nn.functional.silu(pre), outputs(stock, x)[0], rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="norm must be True"):
        folded(x, norm=False)


class OwnNorm(torch.nn.BatchNorm2d):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: block(act_cfg={"type": "ReLU"}),
        lambda: block(norm_cfg={"type": "GN", "num_groups": 4}),
        lambda: block(norm_cfg={"type": "BN", "track_running_stats": False}),
        lambda: block(order=("norm", "conv", "act")),
        lambda: block(with_spectral_norm=True),
        lambda: changed(lambda made: made.bn.register_forward_hook(lambda module, args, out: out + 1)),
        lambda: changed(lambda made: made.conv.register_forward_hook(lambda module, args, out: out + 1)),
        lambda: changed(lambda made: setattr(made.bn, "__class__", OwnNorm)),
    ],
    ids=["ReLU", "GN", "no statistics", "order", "spectral norm", "hook of norm", "hook of conv", "own norm"],
)
def test_other_blocks_stay_and_take_low_precision_of_others(make):
    made = make()
    network = torch.nn.Sequential(block(), trained(ConvModule(16, 8, 1, act_cfg=None)), made)
    expected = outputs(network, x := torch.randn(2, 8, 9, 11))
    before = copy.deepcopy(made)
    fold(network)
    assert type(network[0]) is FoldedConvModule and type(made) is type(before)
    torch.testing.assert_close(outputs(network, x), expected, rtol=1e-4, atol=1e-4)
    lower(network, torch.bfloat16)
    [out] = outputs(network, x)
    assert out.dtype == torch.float32
    error = (out - expected[0]).norm() / expected[0].norm()
    assert 0 < error < 0.02  # bfloat16 was there


def changed(change):
    made = block()
    change(made)
    return made


def wrapped(module):
    """As by whoever measures calls: functools.wraps lets it bear the name of torch's own."""
    forward = module.forward
    module.forward = functools.wraps(forward)(lambda *args, **kwargs: forward(*args, **kwargs) * 1.5)


@pytest.mark.parametrize("part", ["conv", "bn", "activate"])
def test_a_wrapped_part_is_called_before_and_after(part):
    made = changed(lambda made: wrapped(getattr(made, part)))
    stock = copy.deepcopy(made)
    stock.__class__ = ConvModule
    x = torch.randn(2, 8, 9, 11)
    for training in (True, False):
        made.train(training), stock.train(training)
        torch.testing.assert_close(outputs(made, x), outputs(stock, x), rtol=1e-4, atol=1e-5)
    fold(made)
    assert type(made) is not FoldedConvModule
    torch.testing.assert_close(outputs(made, x), outputs(stock, x), rtol=1e-4, atol=1e-5)


def test_a_block_with_a_forward_of_its_own_stays():
    made = block()
    forward = made.forward
    made.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    fold(made)
    assert type(made) is not FoldedConvModule
    made(torch.randn(2, 8, 9, 11))


def test_a_norm_that_still_trains_stays():
    made = block()
    made.bn.train()
    fold(made)
    assert type(made) is not FoldedConvModule


class UsesPart(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.block = block()
        self.inner = torch.nn.Sequential(block())

    def forward(self, x):
        return self.block(x) + self.block.conv(x) + self.inner[0].conv(x)


def test_the_blocks_of_a_module_that_nobody_knows_stay():
    network = torch.nn.Sequential(UsesPart()).eval()
    x = torch.randn(2, 8, 9, 11)
    expected = outputs(network, x)
    fold(network)
    assert torch.equal(outputs(network, x)[0], expected[0])


def test_an_activation_that_is_heard_or_changed_later_is_asked():
    made = block()
    fold(made)
    seen = []
    made.activate.register_forward_hook(lambda *args: seen.append(args))
    x = torch.randn(2, 8, 9, 11)
    made(x)
    assert len(seen) == 1
    made.activate = torch.nn.ReLU()
    assert made(x).min() == 0


class Attention(torch.nn.Module):
    """Takes keywords, and a weight that is a buffer."""

    def __init__(self):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
        self.register_buffer("kernel", torch.ones(16, 16, 1, 1))

    def forward(self, x):
        tokens = torch.nn.functional.conv2d(x, self.kernel).flatten(2).transpose(1, 2)
        return self.attention(query=tokens, key=tokens, value=tokens)[0]


def test_whatever_has_weights_gets_float32_beside_low_precision():
    network = torch.nn.Sequential(block(), Attention(), torch.nn.BatchNorm1d(99, affine=False)).eval()
    expected = outputs(network, x := torch.randn(2, 8, 9, 11))
    fold(network)
    lower(network, torch.bfloat16)
    [out] = outputs(network, x)
    assert out.dtype == torch.float32
    assert 0 < (out - expected[0]).norm() / expected[0].norm() < 0.02


def test_low_precision_of_another_type_than_float32():
    network = block().double()
    fold(network)
    with pytest.raises(ValueError, match=r"bfloat16 is for a network with weights in float32, got torch\.float64"):
        lower(network, torch.bfloat16)


def test_in_low_precision_the_blocks_of_a_backbone_are_within_its_digits():
    stock = backbone()
    x = torch.rand(2, 3, 64, 96) * 255
    expected = outputs(stock, x)
    low = copy.deepcopy(stock)
    Precision("bfloat16").prepare_for_inference(low, "cpu")
    for out, wanted in zip(outputs(low, x), expected, strict=True):
        assert out.dtype == torch.bfloat16 and out.is_contiguous(memory_format=torch.channels_last)
        assert (out - wanted).norm() / wanted.norm() < 0.03


def test_low_precision_for_a_network_without_a_block_for_it():
    with pytest.raises(ValueError, match="is for blocks whose norms can be folded, of which this network has none"):
        Precision("bfloat16").prepare_for_inference(block(act_cfg={"type": "ReLU"}), "cpu")


def test_a_precision_that_the_device_lacks_changes_nothing():
    stock = backbone()
    names = list(stock.state_dict())
    with pytest.raises(ValueError, match="float16' needs an accelerator"):
        Precision("float16").prepare_for_inference(stock, "cpu")
    assert list(stock.state_dict()) == names
