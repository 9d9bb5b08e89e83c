"""What the sides of a benchmark have in common, whichever MMDetection is installed: `host()` has what is its own.

Importing this imports the plugin, from which MMDetection may want operators, and puts MMDetection's classes back.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from peers import quiet
from torch import Tensor

with quiet():
    from yolox_plugin import parts
    from yolox_plugin.hosts import find_host

parts.revert()

STOCK, STOCK_BFLOAT16, PLUGIN, BFLOAT16 = "mmdet", "mmdet bfloat16", "plugin", "plugin bfloat16"
CACHED = "plugin, cache=ram"
OURS = (PLUGIN, BFLOAT16, CACHED)
STAGES = ("data wait", "forward", "assignment", "losses", "backward", "optimizer", "EMA")


def host() -> Any:
    """The module for the MMDetection that is installed."""
    return importlib.import_module(f"sides_{find_host()}")


def replace_classes() -> None:
    """From now on MMDetection's registries build the plugin's classes."""
    os.environ["YOLOX_PLUGIN"] = "on"
    with quiet():
        parts.apply(importlib.import_module(f"yolox_plugin.{find_host()}").PARTS)


class WrongSide(RuntimeError):
    """A side has something of another one: a switch YOLOX_PLUGIN_* is off, or a config has classes of its own."""


def check_origin(side: str, things: Iterable[Any]) -> None:
    """Makes sure that a side has what it is named for.

    Raises:
        WrongSide: MMDetection's side has something of the plugin's, or the plugin's something of MMDetection's.
    """
    for thing in things:
        if (type(thing).__module__.partition(".")[0] == "yolox_plugin") != (side in OURS):
            raise WrongSide(f"the side {side} has {type(thing).__module__}.{type(thing).__qualname__}")


class Stopwatch:
    """Seconds spent in the calls that it was wrapped around, since it was last read."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed

    def read(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def in_bfloat16(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` under autocast, as a user of MMDetection would have it."""

    def lowered(*args: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return call(*args)

    return lowered


class Training:
    """One implementation of the training step. Whoever builds it puts `loss_watch` around the head's loss and
    `assign_watch` around the assignment."""

    def __init__(self, name: str, network: Any, head: Any, optimizer: Any) -> None:
        self.name, self.network, self.head, self.optimizer = name, network, head, optimizer
        self.loss_watch, self.assign_watch, self.step_watch = Stopwatch(), Stopwatch(), Stopwatch()
        optimizer.step = self.step_watch.around(optimizer.step)
        self.batches: Iterator[Any] = iter(())

    def start(self, state: Mapping[str, Tensor], loader: Any) -> None:
        """Weights as in `state`, no momentum, iteration 0."""
        self.optimizer.state.clear()
        self.batches = iter(loader)

    def step(self) -> dict[str, float]:
        """One training step; seconds of each stage."""
        raise NotImplementedError

    def network_alone(self, images: Tensor) -> Tensor:
        """Forward with no loss: a number to go backward from."""
        raise NotImplementedError

    def stages(self, wait: float, train: float, update: float, average: float) -> dict[str, float]:
        """Seconds of STAGES: `train` are those of forward and losses, `update` those of backward and optimizer."""
        loss, assignment, step = self.loss_watch.read(), self.assign_watch.read(), self.step_watch.read()
        seconds = (wait, train - loss, assignment, loss - assignment, update - step, step, average)
        return dict(zip(STAGES, seconds, strict=True))


class Detector(Training):
    """MMDetection's training step, or the plugin's."""

    def __init__(self, name: str, network: Any, optimizer: Any) -> None:
        super().__init__(name, network, network.bbox_head, optimizer)
        self.before_step: Callable[[], None] = lambda: None
        self.assigned: list[Any] = []  # of the last step, what `recorded` kept of each call
        self.losses: Mapping[str, Any] = {}  # of the last step
        if name == STOCK_BFLOAT16:  # losses in float32, as with the plugin
            network.extract_feat = in_bfloat16(network.extract_feat)
            forward = in_bfloat16(self.head.forward)
            self.head.forward = lambda *args: tuple([level.float() for level in levels] for levels in forward(*args))

    def recorded(self, assign: Callable[..., Any], keep: Callable[..., Any]) -> Callable[..., Any]:
        """`assign`, timed, with what `keep` makes of its result and its arguments kept in `assigned`."""
        timed = self.assign_watch.around(assign)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = timed(*args, **kwargs)
            self.assigned.append(keep(result, *args, **kwargs))
            return result

        return call

    def start(self, state: Mapping[str, Tensor], loader: Any) -> None:
        """See the base class; what `state` lacks stays."""
        super().start(state, loader)
        self.network.load_state_dict({**self.network.state_dict(), **state})

    def step_with_gradients(self) -> dict[str, Tensor | None]:
        """One training step; the gradients in it, which mmengine drops behind the optimizer."""
        gradients = {}

        def keep(*_: Any) -> None:
            gradients.update({name: parameter.grad for name, parameter in self.network.named_parameters()})

        handle = self.optimizer.register_step_post_hook(keep)
        self.step()
        handle.remove()
        return gradients

    def network_alone(self, images: Tensor) -> Tensor:
        """See the base class."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.name == BFLOAT16):
            outputs = self.head(self.network.extract_feat(images))
        return torch.stack([level.float().mean() for levels in outputs for level in levels]).sum()
