"""What each of two processes does: in a module of its own, as a spawned process imports no test."""

import logging

import torch
import torch.distributed as dist
from batches import nano, train_data
from mmcv.runner import build_runner
from mmdet.apis.test import collect_results_cpu
from mmdet.models.detectors.yolox import YOLOX as StockYOLOX

from yolox_plugin.core.ranks import gather_in_turns
from yolox_plugin.mmdet2.ddp import CPUDistributedDataParallel
from yolox_plugin.protocol import Moment


def reduce_on_a_rank(rank, store, seed, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = nano()
    model.start_epoch(Moment(seed=3, iteration=100))
    losses = {"loss_a": torch.tensor(1.0 + rank), "loss_b": torch.tensor(10.0 * rank)}
    _, logged = model._parse_losses(losses)
    _, theirs = StockYOLOX._parse_losses(model, losses)
    runner = build_runner(
        {"type": "EpochBasedRunner", "max_epochs": 1},
        {"model": model, "logger": logging.getLogger("test"), "meta": {"seed": seed + rank}},
    )
    runner._agree_on_seed()
    results[rank] = ({k: float(v) for k, v in logged.items()}, dict(theirs), runner.meta["seed"])
    dist.destroy_process_group()


def gather_on_a_rank(rank, store, totals, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = []
    for total in totals:
        mine = [(rank + 2 * i) % max(total, 1) for i in range(-(-total // 2))]
        found.append(gather_in_turns(mine, total))
        assert found[-1] == collect_results_cpu(mine, total, f"{store}-{total}")  # MMDetection's, through a folder
    results[rank] = found
    dist.destroy_process_group()


def train_on_a_rank(rank, store, results):
    """An epoch in which one rank, the other, or both have no gt and so no positive."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = CPUDistributedDataParallel(nano(), broadcast_buffers=False)
    runner = build_runner(
        {"type": "EpochBasedRunner", "max_epochs": 1},
        {
            "model": model, "logger": logging.getLogger("test"), "meta": {"seed": 1},
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.001),
        },
    )  # fmt: skip
    runner.register_optimizer_hook({})
    counts = [((2, 1), (3, 0)), ((0, 0), (1, 0)), ((0, 4), (0, 0)), ((0, 0), (0, 0)), ((1, 1), (0, 0))]
    runner.run([[train_data(i, gts[rank]) for i, gts in enumerate(counts)]], [("train", 1)])
    results[rank] = [parameter.detach().numpy() for parameter in model.parameters()]
    dist.destroy_process_group()
