"""What each of two processes does that stand for machines: in a module of its own, as a spawned process imports no
test."""

import os

import torch.distributed as dist

from yolox_plugin.run import machines, sharing
from yolox_plugin.run.messages import InputError


def as_machine(rank, store, asked, answers):
    """For each folder and size of chunks that is asked, the newest checkpoint, or the sentence that ends a command."""
    os.environ |= {"GROUP_RANK": str(rank), "GROUP_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    machines.here = lambda: machines.Machine(rank, "ab"[rank])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for folder, sharing.CHUNK in iter(asked.get, None):
        try:
            answers.put(sharing.newest_of_all(folder))
        except InputError as error:
            answers.put(f"error: {error}")
    dist.destroy_process_group()
