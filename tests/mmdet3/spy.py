"""Imported by a config: writes down what each rank sees in each iteration, or ends the run like a power cut."""

import json
import os
import signal
import threading
from pathlib import Path

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper


@HOOKS.register_module()
class Spy(Hook):
    priority = "VERY_HIGH"

    def before_run(self, runner):
        self.lines = []
        network = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.own = {}
        network.register_forward_hook(self.remember, with_kwargs=True)

    def remember(self, network, args, kwargs, losses):
        if isinstance(losses, dict):
            image = args[0] if args else kwargs["inputs"]
            self.own = {name: float(value) for name, value in losses.items()}
            self.own["size"] = list(image.shape[2:])
            self.own["pixels"] = float(image.double().sum())

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        logged = {name: float(value) for name, value in outputs.items()}
        self.lines.append({"epoch": runner.epoch, "own": self.own, "logged": logged})

    def after_run(self, runner):
        network = runner.model.module if is_model_wrapper(runner.model) else runner.model
        means = {name: value.tolist() for name, value in network.state_dict().items() if "running_mean" in name}
        rank = os.environ.get("RANK", "0")
        Path(runner.work_dir, f"rank{rank}.json").write_text(json.dumps({"lines": self.lines, "means": means}))


@HOOKS.register_module()
class Killed(Hook):
    """SIGKILL for the run and its workers, KILLED_AFTER seconds after iteration KILLED_AT, where that is set."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == int(os.environ.get("KILLED_AT", "0")):
            delay = float(os.environ.get("KILLED_AFTER", "0"))
            kill = threading.Timer(delay, os.killpg, (os.getpgrp(), signal.SIGKILL))
            kill.start()
            if not delay:
                kill.join()


def equal(one, other):
    """Whether two trees of tensors, numbers and containers are the same to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other
