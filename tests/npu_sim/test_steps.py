"""Whole training steps on the simulated NPU, from the loader's batch on: what they cost, and what they leave behind."""

import copy
import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from device import SOC, recorded
from mmcv import Config
from mmcv.runner import HOOKS, Hook
from mmdet.models import build_detector
from same import same
from steps import CONFIGS, train
from torch import nn

from yolox_plugin.core.batch import send
from yolox_plugin.core.flat import merged
from yolox_plugin.core.forward import in_few_launches
from yolox_plugin.core.sgd import SGD

# Of a step. The plugin's loss scaler needs torch 2.3; torch_npu's, in its place before that, reads from the device, and
# a 910A checks gradients one by one for it.
HAS_SCALER = hasattr(torch.amp, "GradScaler")
MOST_LAUNCHES = {"A2": 1000, "910A": 1050 if HAS_SCALER else 1400}[SOC]
MOST_PARALLEL = MOST_LAUNCHES + 300  # of a data-parallel one
MOST_WAITS, MOST_COPIES = (0, 3) if HAS_SCALER else (7, 4)  # in float16
AMPS = ["float32", None, *(["bfloat16"] if SOC == "A2" else [])]  # None is float16 with loss scaling


@pytest.mark.parametrize("amp", AMPS, ids=str)
def test_a_step_waits_for_nothing(tmp_path, amp, record_property):
    """YOLOX-nano has more layers than YOLOX-M, so it stands for its launches."""
    _, records = train(tmp_path, amp=amp, batch=2, options={"fp16": {"loss_scale": {"init_scale": 8.0}}})
    record = records[2]  # the first ones allocate, the last one writes the log
    record_property(f"a step of YOLOX-nano on {SOC}, {amp}", record.counts())
    waits = [str(call) for call in record.waits()]
    assert len(waits) <= (MOST_WAITS if amp is None else 0), "\n".join(waits)
    for calls in (record.dynamic(), record.aicpu()):
        assert not calls, "\n".join(map(str, calls))
    assert record.runtime_waits == 0
    assert len(record.copies()) <= MOST_COPIES
    assert len(record.launches()) <= MOST_LAUNCHES


def test_the_image_size_changes_without_a_wait(tmp_path):
    """`upsample_bilinear2d` and the boxes that go with it."""
    options = {"model.input_size": (96, 96), "model.random_size_range": (2, 4), "model.random_size_interval": 1}
    _, records = train(tmp_path, steps=6, options=options)
    resized = [record for record in records if any("upsample_bilinear2d" in str(call) for call in record.calls)]
    assert resized
    for record in records[1:-1]:
        # Constants of a size travel once.
        assert not record.waits(), "\n".join(map(str, record.waits()))
        assert not record.aicpu(), "\n".join(map(str, record.aicpu()))


@torch.no_grad()
def test_a_network_for_inference_launches_less(record_property):
    """The norms are in the convolutions, on the device as well; the layout stays the device's own."""
    cfg = Config.fromfile(str(CONFIGS / "yolox_nano_8x8_300e_coco.py"))
    torch.manual_seed(0)
    before = build_detector(cfg.model).eval()
    g = torch.Generator().manual_seed(0)
    for name, buffer in before.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=g) + ("var" in name) * 0.5)
    after = copy.deepcopy(before)
    after.prepare_for_inference("npu")
    img = torch.rand(2, 3, 96, 96, generator=g) * 255
    launches, outputs = [], []
    for model in (before, after):
        model.to("npu")
        with recorded() as record:
            levels = model.bbox_head(model.extract_feat(img.to("npu")))
        outputs.append([level.cpu() for part in levels for level in part])
        launches.append(len(record.launches()))
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in before.modules())
    record_property(f"a forward of YOLOX-nano on {SOC}", {"launches": launches[0], "folded": launches[1]})
    assert launches[1] <= launches[0] - norms and norms > 100
    for ours, theirs in zip(*outputs[::-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert all(value.is_contiguous() for value in after.parameters())


def one_rank(work_dir, amp, *options):
    """A process that trains through NPUDistributedDataParallel and hccl."""
    work_dir.mkdir()
    command = [sys.executable, "-P", str(Path(__file__).with_name("one_rank.py")), str(work_dir), amp]
    there = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, env=there, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["float32", "float16"])
def test_a_data_parallel_step_waits_for_nothing(tmp_path, amp, record_property):
    done = one_rank(tmp_path / "one", amp)
    assert "Reducer buckets have been rebuilt" in done.stdout + done.stderr, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    places = counts.pop("places")
    record_property(f"data-parallel, {amp}", counts)
    assert len(places) == counts["host syncs"] <= (MOST_WAITS if amp == "float16" else 0), places
    assert counts["dynamic shapes"] == counts["AICPU risk"] == 0
    assert counts["copies"] <= MOST_COPIES
    # Gradients go to the reducer's buckets and are parts of them from then on: not back.
    assert counts["launches"] <= MOST_PARALLEL


@pytest.mark.slow
def test_a_data_parallel_training_that_is_killed_ends_with_the_same_bits(tmp_path):
    """In float16; the first steps overflow, so that the scale is another one at the checkpoint."""
    common = ["float16", "--scale=16777216", "--epochs=2"]
    whole = one_rank(tmp_path / "whole", *common)
    assert whole.returncode == 0, whole.stderr
    killed = one_rank(tmp_path / "killed", *common, "--kill-at=6")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed/epoch_2.pth").exists()
    resumed = one_rank(tmp_path / "resumed", *common, f"--resume={tmp_path / 'killed/epoch_1.pth'}")
    assert resumed.returncode == 0, resumed.stderr
    ours, theirs, before = (
        torch.load(tmp_path / name, map_location="cpu")
        for name in ("resumed/epoch_2.pth", "whole/epoch_2.pth", "killed/epoch_1.pth")
    )
    for part in ("state_dict", "optimizer"):
        same(ours[part], theirs[part], part)
    assert ours["meta"]["fp16"] == theirs["meta"]["fp16"]
    assert before["meta"]["fp16"]["loss_scaler"]["scale"] < 2**24
    assert any(not torch.equal(value, ours["state_dict"][name]) for name, value in before["state_dict"].items())


class SpyingHook(Hook):
    """Keeps what every step left behind."""

    seen: ClassVar[list[dict[str, Any]]] = []

    def after_train_iter(self, runner):
        [scaler] = [hook.loss_scaler for hook in runner.hooks if hasattr(hook, "loss_scaler")]
        momenta = [state.get("momentum_buffer") for state in runner.optimizer.state.values()]
        self.seen.append(
            {
                "scale": float(scaler.get_scale()),
                "weights": [p.detach().cpu().clone() for p in runner.model.parameters()],
                "momenta": [m.cpu().clone() for m in momenta if m is not None],
            }
        )


HOOKS.register_module(SpyingHook, force=True)


def test_an_overflow_leaves_weights_and_momenta_as_they_are(tmp_path):
    """A scale with which gradients overflow, halved until they do not: then weights change. An Ascend 910A knows no
    infinities, and sees it by its flag."""
    SpyingHook.seen.clear()
    options = {"fp16": {"loss_scale": {"init_scale": 2.0**18, "backoff_factor": 2.0**-6}}}
    train(tmp_path, amp=None, steps=5, options=options, hooks=[{"type": "SpyingHook", "priority": 99}])
    scales = [2.0**18, *(seen["scale"] for seen in SpyingHook.seen)]
    overflows = [after < before for before, after in pairwise(scales)]
    assert overflows[0]
    assert not overflows[-1]
    for (before, after), overflowed in zip(pairwise(SpyingHook.seen), overflows[1:], strict=True):
        for name in ("weights", "momenta"):
            # Where the scaler leaves out whole steps, the first one that it does not makes the momenta.
            equal = [torch.equal(a, b) for a, b in zip(before[name], after[name], strict=overflowed)]
            assert all(equal) if overflowed else sum(equal) < len(after[name]) // 2, name
    assert all(value.isfinite().all() for value in SpyingHook.seen[-1]["weights"] + SpyingHook.seen[-1]["momenta"])


def networks():
    """The same small network on the CPU and on the device, and groups of parameters as MMDetection makes them."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.Conv2d(7, 5, 1), nn.Conv2d(5, 2, 1))
    return copy.deepcopy(ours), ours.to("npu")


def groups(network):
    return [{"params": [p], "weight_decay": 0.0 if p.dim() == 1 else 5e-4} for p in network.parameters()]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("settings", [{}, {"nesterov": True}, {"momentum": 0.0}, {"maximize": True}], ids=str)
def test_sgd_is_that_of_torch(settings, scaled):
    """With steps left out, a parameter without a gradient now and then, and the state from a checkpoint in between."""
    theirs, ours = networks()
    settings = {"lr": 0.1, "momentum": 0.9, **settings}
    stock, own = torch.optim.SGD(groups(theirs), **settings), SGD(groups(ours), **settings)
    assert len(merged(list(ours.parameters()))[0]) == 1
    for step in range(6):
        g = torch.Generator().manual_seed(step)
        for i, (their, our) in enumerate(zip(theirs.parameters(), ours.parameters(), strict=True)):
            their.grad = None if (step, i) in ((1, 0), (3, 4)) else torch.randn(their.shape, generator=g)
            our.grad = None if their.grad is None else their.grad.to("npu")
            if scaled and step in (0, 2) and i == 2:
                our.grad.view(-1)[0] = torch.inf if step else torch.nan
        if step == 4:
            own.load_state_dict(copy.deepcopy(own.state_dict()))
        if scaled:
            assert own.takes_found_inf()
            own.found_inf = torch.tensor(float(step in (0, 2)), device="npu")
        if not scaled or step not in (0, 2):
            stock.step()
        with recorded() as record:
            own.step()
        assert not record.waits(), "\n".join(map(str, record.waits()))
        for their, our in zip(theirs.parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(our.detach().cpu(), their.detach(), rtol=1e-6, atol=1e-7)
            if their.grad is not None and not (scaled and step in (0, 2)):  # for whoever looks at it later
                torch.testing.assert_close(our.grad.cpu(), their.grad, rtol=0, atol=0)
    for their, our in zip(theirs.parameters(), ours.parameters(), strict=True):
        expected = stock.state.get(their, {}).get("momentum_buffer")
        if expected is not None:
            torch.testing.assert_close(own.state[our]["momentum_buffer"].cpu(), expected, rtol=1e-6, atol=1e-6)


def test_dampening_is_not_left_to_the_device():
    _, network = networks()
    optimizer = SGD(groups(network), lr=0.1, momentum=0.9, dampening=0.5)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert not optimizer.takes_found_inf()


def test_other_scalers_step_it_as_they_step_torchs():
    """torch_npu's own, which MMDetection 3 uses: it hands itself over to optimizers that torch's scalers may hand
    `found_inf`, and they are not meant."""
    theirs, ours = networks()
    stock, own = torch.optim.SGD(groups(theirs), lr=0.1), SGD(groups(ours), lr=0.1)
    scaler = torch.npu.amp.GradScaler(init_scale=4.0)
    scaler.scale(ours(torch.ones(2, 3, 8, 8, device="npu")).square().mean()).backward()
    theirs(torch.ones(2, 3, 8, 8)).square().mean().backward()
    scaler.step(own)
    scaler.update()
    stock.step()
    for their, our in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(our.detach().cpu(), their.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not HAS_SCALER, reason="before torch 2.3")
@pytest.mark.skipif(SOC == "910A", reason="gradients of float32 that overflow do not set its flag")
def test_the_scale_is_that_of_torchs_scaler():
    from yolox_plugin.core.scaling import DeviceGradScaler

    theirs, ours = networks()
    settings = {"init_scale": 16.0, "growth_factor": 4.0, "backoff_factor": 0.25, "growth_interval": 2}
    stock, own = torch.amp.GradScaler("cpu", **settings), DeviceGradScaler(**settings)
    optimizers = torch.optim.SGD(theirs.parameters(), lr=0.01), SGD(ours.parameters(), lr=0.01)
    images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8).sin()
    for step in range(9):
        for scaler, network, optimizer in zip((stock, own), (theirs, ours), optimizers, strict=True):
            device = next(network.parameters()).device
            optimizer.zero_grad()
            loss = network(images.to(device)).square().mean() * (torch.inf if step in (3, 6) else 1)
            with recorded() as record:
                scaler.backward(loss) if scaler is own else scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            if scaler is own:
                assert not record.waits(), "\n".join(map(str, record.waits()))
        assert own.state_dict() == {**stock.state_dict(), "dynamic": True}, step
        for their, our in zip(theirs.parameters(), ours.parameters(), strict=True):
            if step not in (3, 6):  # gradients are unscaled, for whoever looks at them later
                torch.testing.assert_close(our.grad.cpu(), their.grad, rtol=1e-4, atol=1e-5)
    for their, our in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(our.detach().cpu(), their.detach(), rtol=1e-5, atol=1e-6)
    again = DeviceGradScaler()
    again.load_state_dict(own.state_dict())
    again.backward(ours(torch.ones(1, 3, 8, 8, device="npu")).sum())
    assert again.state_dict() == own.state_dict()


def test_a_batch_arrives_by_two_copies_and_nobody_waits():
    g = torch.Generator().manual_seed(0)
    large = torch.randint(0, 256, (2, 3, 600, 600), dtype=torch.uint8, generator=g)
    batch = (
        {"img": [large], "boxes": [torch.rand(3, 4, generator=g), torch.rand(0, 4), torch.rand(5, 4).half()]},
        {
            "labels": (torch.arange(7), torch.tensor(True), torch.arange(12).view(3, 4).t()),
            "metas": [{"name": "a"}, None],
        },
    )
    with recorded() as record:
        there = send(batch, torch.device("npu"))
    assert [call.copy for call in record.copies()] == ["to device"] * 2
    assert not record.waits(), "\n".join(map(str, record.waits()))
    assert not record.launches(), "\n".join(map(str, record.launches()))
    assert there[1]["metas"] == batch[1]["metas"]
    pairs = zip(
        [large, *batch[0]["boxes"], *batch[1]["labels"]],
        [*there[0]["img"], *there[0]["boxes"], *there[1]["labels"]],
        strict=True,
    )
    for here, arrived in pairs:
        assert (arrived.device.type, arrived.dtype, arrived.shape) == ("npu", here.dtype, here.shape)
        assert torch.equal(arrived.cpu(), here)
    assert isinstance(there[1]["labels"], tuple)
    assert send({"nothing": []}, torch.device("npu")) == {"nothing": []}


@pytest.mark.parametrize("autocast", [False, True])
def test_weights_that_are_cast_together_give_the_same_bits(autocast):
    _, network = networks()
    network[3].weight = network[2].weight.__class__(network[3].weight.detach())
    network[2].requires_grad_(False)
    SGD(groups(network), lr=0.1)
    found = []
    for together in (False, True):
        network.zero_grad()
        network[1].reset_running_stats()
        images = torch.linspace(-1, 1, 2 * 3 * 8 * 8, device="npu").view(2, 3, 8, 8)
        names = [name for name, _ in network.named_parameters()]
        with torch.autocast("npu", torch.float16, enabled=autocast):
            if together:
                with in_few_launches(network, "npu"):
                    out = network(images)
            else:
                out = network(images)
        assert [name for name, _ in network.named_parameters()] == names
        out.float().square().sum().backward()
        gradients = [None if p.grad is None else p.grad.cpu() for p in network.parameters()]
        found.append((out.cpu(), gradients, {name: value.cpu() for name, value in network.state_dict().items()}))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert found[1][2]["1.num_batches_tracked"] == 1


def test_parameters_come_back_after_an_error():
    _, network = networks()
    expected = list(network.named_parameters())
    counter = network[1].num_batches_tracked
    with pytest.raises(ZeroDivisionError), torch.autocast("npu", torch.float16), in_few_launches(network, "npu"):
        raise ZeroDivisionError
    assert [(name, id(p)) for name, p in network.named_parameters()] == [(name, id(p)) for name, p in expected]
    assert network[1].num_batches_tracked is counter
    assert int(counter) == 0
