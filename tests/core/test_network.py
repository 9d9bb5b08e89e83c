"""The network's faster parts compute what MMDetection's compute."""

import copy

import pytest
import torch
import torch.nn.functional as F

import yolox_plugin  # noqa: F401, before MMDetection: mmcv may have no compiled part

from mmcv.cnn.bricks import Swish  # isort: skip
from mmdet.models.backbones.csp_darknet import SPPBottleneck  # isort: skip

from yolox_plugin.network import ChainedSPP, FusedSwish, quicken


def pair(sizes=(5, 9, 13)):
    torch.manual_seed(0)
    stock = SPPBottleneck(8, 8, kernel_sizes=sizes)
    ours = copy.deepcopy(stock)
    quicken(ours)
    for module in stock.modules():
        if type(module) is Swish:  # whose last bits are others
            module.__class__ = FusedSwish
    return stock, ours


@pytest.fixture
def pools(monkeypatch):
    """The sizes of the pools that were taken since."""
    seen = []
    original = F.max_pool2d

    def spied(x, size, *args, **kwargs):
        seen.append(size)
        return original(x, size, *args, **kwargs)

    monkeypatch.setattr(F, "max_pool2d", spied)
    return seen


def results(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    wanted = [x, *model.parameters()]
    return y, torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), wanted)


@pytest.mark.parametrize("shape", [(2, 8, 20, 20), (1, 8, 13, 31), (3, 8, 2, 3), (2, 8, 1, 1)], ids=str)
@pytest.mark.parametrize("sizes", [(5, 9, 13), (3, 7), (5,), (5, 5), (1, 3)], ids=str)
def test_chained_pools_have_the_outputs_of_stock_and_its_gradients_where_nothing_ties(sizes, shape, pools):
    stock, ours = pair(sizes)
    assert type(ours) is ChainedSPP and list(ours.state_dict()) == list(stock.state_dict())
    if shape[2] == 1:  # batch norm wants more than a value
        stock.eval(), ours.eval()
    stock.double(), ours.double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    theirs, their_gradients = results(stock, x)
    assert pools == list(sizes)
    pools.clear()
    out, gradients = results(ours, x)
    assert not pools or max(pools) <= 5
    assert torch.equal(out, theirs)
    for gradient, expected in zip(gradients, their_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chained_pools_treat_ties_nan_and_infinities_as_stock(dtype):
    stock, ours = pair()
    stock.eval(), ours.eval()
    for model in (stock, ours):
        model.to(dtype)
        model.conv1 = torch.nn.Identity()
        model.conv2 = torch.nn.Identity()
    g = torch.Generator().manual_seed(2)
    x = torch.randint(-2, 3, (2, 8, 20, 20), generator=g).to(dtype)
    x[0, 0, 3, 4], x[0, 1, 9, 9], x[1, 2] = torch.nan, torch.inf, -torch.inf
    torch.testing.assert_close(ours(x), stock(x), rtol=0, atol=0, equal_nan=True)
    # Of ties, each window's gradient goes to one place, whichever.
    x = x[1:].nan_to_num().requires_grad_()
    assert torch.autograd.grad(ours(x).sum(), x)[0].sum() == torch.autograd.grad(stock(x).sum(), x)[0].sum()


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.poolings[1].register_forward_hook(lambda m, i, o: o + 1),
        lambda model: model.poolings[0].register_forward_pre_hook(lambda m, i: (i[0] + 1,)),
        lambda model: setattr(model.poolings, "1", torch.nn.AvgPool2d(9, 1, 4)),
        lambda model: setattr(model.poolings[1], "forward", lambda x: x + 1),
        lambda model: setattr(model.poolings[1], "ceil_mode", True),
        lambda model: model.poolings.insert(0, torch.nn.MaxPool2d(7, 1, 3)),
    ],
    ids=["hook", "pre-hook", "average", "patched", "ceil_mode", "falling"],
)
def test_pools_of_another_kind_or_with_listeners_are_taken_as_stock_takes_them(change, pools):
    models = pair()
    x = torch.randn(2, 8, 20, 20)
    outputs = []
    for model in models:
        model.conv2 = torch.nn.Identity()  # for any number of pools
        change(model)
        pools.clear()
        outputs.append((model(x), list(pools)))
    (theirs, seen), (ours, own) = outputs
    assert torch.equal(ours, theirs) and own == seen


def test_a_patch_and_a_listener_of_all_modules_that_come_later_are_asked(monkeypatch):
    _, ours = pair()
    x = torch.randn(2, 8, 20, 20)
    seen = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    ours(x)
    handle.remove()
    assert seen.count(torch.nn.MaxPool2d) == 3
    monkeypatch.setattr(SPPBottleneck, "forward", lambda self, x: x + 1)
    assert torch.equal(ours(x), x + 1)


def test_a_part_of_somebody_else_stays_and_all_stay_where_that_is_asked_for(monkeypatch):
    class Own(SPPBottleneck):
        pass

    own = Own(8, 8)
    quicken(own)
    assert type(own) is Own and any(type(module) is FusedSwish for module in own.modules())
    monkeypatch.setenv("YOLOX_PLUGIN_NETWORK", "off")
    _, same = pair()
    assert type(same) is SPPBottleneck and any(type(module) is Swish for module in same.modules())
    monkeypatch.setenv("YOLOX_PLUGIN_NETWORK", "never")
    with pytest.raises(ValueError, match="YOLOX_PLUGIN_NETWORK must be on or off, got 'never'"):
        pair()
