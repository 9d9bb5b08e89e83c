"""The network's faster parts compute what MMDetection's compute."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F

from mmcv.cnn import ConvModule  # isort: skip
from mmcv.cnn.bricks import Swish  # isort: skip
from mmdet.models.backbones.csp_darknet import CSPDarknet, SPPBottleneck  # isort: skip

from yolox_plugin import network
from yolox_plugin.network import ChainedSPP, FusedConvModule, FusedSwish, quicken
from yolox_plugin.precision import Precision


def pair(sizes=(5, 9, 13)):
    torch.manual_seed(0)
    stock = SPPBottleneck(8, 8, kernel_sizes=sizes)
    ours = copy.deepcopy(stock)
    quicken(ours)
    for module in stock.modules():
        if type(module) is ConvModule:  # whose last bits are others
            module.__class__ = FusedConvModule
            module.activate.__class__ = FusedSwish
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


BLOCK = {"norm_cfg": {"type": "BN", "momentum": 0.03, "eps": 0.001}, "act_cfg": {"type": "Swish"}}


def block(**changes):
    """mmcv's block with weights and statistics that are not those of a new one, and the plugin's."""
    torch.manual_seed(0)
    stock = ConvModule(3, 6, 3, padding=1, **(BLOCK | changes)).double()
    if stock.with_norm:
        for tensor in (stock.norm.weight, stock.norm.bias, stock.norm.running_mean):
            if tensor is not None:
                torch.nn.init.normal_(tensor)
    ours = copy.deepcopy(stock)
    quicken(ours)
    assert type(ours) is FusedConvModule and type(stock) is ConvModule
    return stock, ours


@pytest.fixture
def fused(monkeypatch):
    """The calls of the operator since."""
    calls = []
    original = network.batch_norm_silu

    def spied(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(network, "batch_norm_silu", spied)
    return calls


def image(seed=3):
    return torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def assert_same(stock, ours, steps=2):
    """Outputs, gradients and what is saved, after a few steps."""
    for step in range(steps):
        theirs, their_gradients = trainable_results(stock, image(step))
        out, gradients = trainable_results(ours, image(step))
        torch.testing.assert_close(out, theirs, rtol=1e-9, atol=1e-9)
        for gradient, expected in zip(gradients, their_gradients, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)
    assert list(ours.state_dict()) == list(stock.state_dict())
    for name, value in stock.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-12, atol=1e-12)


def trainable_results(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    return y, torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), wanted)


@pytest.mark.parametrize("act", ["Swish", "SiLU"])
@pytest.mark.parametrize(
    "change",
    [
        lambda block: None,
        lambda block: block.eval(),
        lambda block: block.norm.eval(),
        lambda block: setattr(block.norm, "momentum", None),
        lambda block: block.norm.requires_grad_(False),
        lambda block: [setattr(block.norm, name, None) for name in ("running_mean", "running_var")],
        lambda block: setattr(block.norm, "track_running_stats", False),
        lambda block: block._modules.update(bn=torch.nn.BatchNorm2d(6, affine=False).double()),
        lambda block: block._modules.update(bn=torch.nn.BatchNorm2d(6, track_running_stats=False).double()),
        lambda block: block._modules.update(bn=torch.nn.BatchNorm2d(6, track_running_stats=False).double().eval()),
    ],
    ids=["training", "eval", "norm in eval", "cumulative", "frozen", "no statistics", "untracked", "no affine",
         "never tracked", "never tracked, eval"],
)  # fmt: skip
def test_a_block_computes_what_mmcvs_does(change, act, fused):
    stock, ours = block(act_cfg={"type": act})
    change(stock), change(ours)
    assert_same(stock, ours)
    assert len(fused) == 2
    for options in ({"activate": False}, {"norm": False}, {"activate": False, "norm": False}):
        torch.testing.assert_close(ours(image(), **options), stock(image(), **options), rtol=1e-12, atol=1e-12)
    assert len(fused) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"order": ("conv", "act", "norm")},
        {"order": ("norm", "conv", "act")},
        {"norm_cfg": {"type": "GN", "num_groups": 2}},
        {"norm_cfg": None},
        {"act_cfg": None},
        {"act_cfg": {"type": "ReLU"}},
        {"act_cfg": {"type": "HSwish"}},
    ],
    ids=str,
)
def test_a_block_of_another_kind_is_mmcvs(changes, fused):
    torch.manual_seed(0)
    stock = ConvModule(3, 6, 3, padding=1, **(BLOCK | changes)).double()
    ours = copy.deepcopy(stock)
    quicken(ours)
    assert_same(stock, ours)
    assert not fused


class Doubled(torch.nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "change",
    [
        lambda block: block.norm.register_forward_hook(lambda m, i, o: o + 1),
        lambda block: block.norm.register_forward_pre_hook(lambda m, i: (i[0] + 1,)),
        lambda block: block.norm.register_full_backward_hook(lambda m, i, o: (i[0] * 2,)),
        lambda block: block.activate.register_forward_hook(lambda m, i, o: o + 1),
        lambda block: block.activate.register_full_backward_pre_hook(lambda m, o: (o[0] * 2,)),
        lambda block: setattr(block.norm, "forward", lambda x: x + block.norm.weight.sum() + block.norm.bias.sum()),
        lambda block: setattr(block.activate, "forward", lambda x: x + 1),
        lambda block: setattr(block.norm, "__class__", Doubled),
        lambda block: setattr(block.norm, "__class__", torch.nn.SyncBatchNorm) or block.eval(),
        lambda block: setattr(block, "activate", torch.nn.ReLU()),
    ],
    ids=["hook", "pre-hook", "backward hook", "hook of act", "backward pre-hook of act", "patched norm", "patched act",
         "subclass", "SyncBatchNorm", "ReLU"],
)  # fmt: skip
def test_listeners_and_other_parts_that_come_later_are_heard(change, fused):
    stock, ours = block()
    change(stock), change(ours)
    assert_same(stock, ours)
    assert not fused


def test_a_patch_of_mmcvs_block_and_a_listener_of_all_modules_are_heard(monkeypatch, fused):
    _, ours = block()
    seen = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    ours(image())
    handle.remove()
    assert torch.nn.BatchNorm2d in seen and FusedSwish in seen and not fused
    monkeypatch.setattr(ConvModule, "forward", lambda self, x, *_: x + 1)
    assert torch.equal(ours(image()), image() + 1)


def test_bad_shapes_end_as_with_mmcv():
    stock, ours = block()
    for x in (torch.randn(3, 9, 11).double(), torch.randn(1, 3, 1, 1).double()):
        errors = []
        for model in (stock, ours):
            with pytest.raises(ValueError, match=r"expected 4D input|more than 1 value") as error:
                model(x)
            errors.append(error.type)
        assert errors[0] is errors[1]


def test_a_traced_block_has_torchs_operators(fused):
    stock, ours = block()
    stock.eval(), ours.eval()
    traced = torch.jit.trace(ours, image(), check_trace=False)
    assert not fused
    torch.testing.assert_close(traced(image()), stock(image()), rtol=1e-12, atol=1e-12)


def test_a_block_can_be_copied_and_saved(fused):
    stock, ours = block()
    saved = io.BytesIO()
    torch.save(ours, saved)
    saved.seek(0)
    assert_same(stock, torch.load(saved, weights_only=False))
    assert_same(*block())
    assert len(fused) == 4


def test_of_a_block_stays_one_tensor_less(fused):
    """Beside the convolution's input and weight and the block's output, which the next convolution keeps."""
    stock, ours = block()
    for module in stock.modules():
        if type(module) is Swish:
            module.__class__ = FusedSwish
    kept = {}
    for name, model in (("stock", stock), ("ours", ours)):
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = model(image().requires_grad_())
        kept[name] = sizes.count(y.numel())
    assert kept == {"stock": 2, "ours": 1}


def test_with_the_switch_off_blocks_are_mmcvs(monkeypatch):
    monkeypatch.setenv("YOLOX_PLUGIN_NETWORK", "off")
    module = torch.nn.Sequential(ConvModule(3, 6, 3, **BLOCK))
    quicken(module)
    assert type(module[0]) is ConvModule


def backbone(**changes):
    torch.manual_seed(0)
    model = CSPDarknet(deepen_factor=0.33, widen_factor=0.125, **changes)
    quicken(model)
    return model


def is_last(model):
    return model.stem.conv.conv.weight.is_contiguous(memory_format=torch.channels_last)


in_float32 = pytest.mark.skipif(
    not network._CPU_HAS_FMA or network._IS_AARCH64, reason="no channels_last in float32 on this CPU"
)


@in_float32
@pytest.mark.parametrize("depthwise", [False, True])
def test_float32_trains_in_channels_last_on_a_cpu(depthwise):
    first, last = backbone(use_depthwise=depthwise), backbone(use_depthwise=depthwise)
    precision = Precision(None)
    precision.prepare(last, "cpu")
    assert is_last(last) and not is_last(first)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert precision.laid_out(x).is_contiguous(memory_format=torch.channels_last)
    first.double(), last.double()
    for a, b in zip(first(x.double()), last(precision.laid_out(x.double())), strict=True):
        assert b.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
    # Random numbers fill a tensor in the order of its memory.
    for model in (first, last):
        torch.manual_seed(1)
        with precision.in_stock_layout(last):
            model.init_weights()
    assert is_last(last)
    for name, value in first.named_parameters():
        assert torch.equal(last.get_parameter(name), value), name


class Watched(torch.nn.Conv2d):
    """Somebody else's."""


@pytest.mark.parametrize(
    ("device", "change"),
    [
        ("npu", lambda model: None),
        ("cuda", lambda model: None),
        ("cpu", lambda model: setattr(model.stem.conv, "activate", torch.nn.ReLU())),
        ("cpu", lambda model: setattr(model.stem.conv, "bn", torch.nn.SyncBatchNorm(8))),
        ("cpu", lambda model: model.stem.conv.bn.register_forward_hook(print)),
        ("cpu", lambda model: setattr(model.stem.conv.conv, "__class__", Watched)),
        ("cpu", lambda model: model.add_module("extra", torch.nn.BatchNorm2d(3))),
    ],
    ids=["npu", "cuda", "activation", "SyncBN", "hook", "convolution", "norm alone"],
)
def test_float32_keeps_the_layout_of_stock_elsewhere(device, change):
    model = backbone()
    change(model)
    precision = Precision("float32")
    precision.prepare(model, device)
    x = torch.ones(1, 3, 8, 8)
    assert not is_last(model) and precision.laid_out(x) is x


def test_float32_keeps_the_layout_of_stock_with_the_switch_off(monkeypatch):
    monkeypatch.setenv("YOLOX_PLUGIN_NETWORK", "off")
    model = backbone()
    Precision(None).prepare(model, "cpu")
    assert not is_last(model)
