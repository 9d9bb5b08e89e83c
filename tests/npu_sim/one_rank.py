"""One rank of a data-parallel training through hccl: prints what its third step asked of the device, as JSON."""

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import device  # before mmcv
import torch
import torch.distributed as dist
import torch.nn.parallel.distributed as ddp
from mmcv.runner import HOOKS, Hook

import yolox_plugin  # noqa: F401
from yolox_plugin.mmdet2.ddp import prepare_parallel

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("work_dir", type=Path)
parser.add_argument("amp", choices=["float16", "float32"])
parser.add_argument("--scale", type=float, default=8.0, help="of the loss at first: with 8, no step overflows")
parser.add_argument("--epochs", type=int, default=1, help="of 4 steps each")
parser.add_argument("--kill-at", type=int, help="the step that is the last")
parser.add_argument("--resume", type=Path, help="a checkpoint")
options = parser.parse_args()

device.install()
torch.npu.set_device(0)
dist.init_process_group("hccl", rank=0, world_size=1, init_method=f"file://{options.work_dir}/rendezvous")
# It compares shapes by a kernel of hccl's, which the fake runtime has not.
ddp._verify_param_shape_across_processes = lambda *args, **kwargs: None

import steps  # noqa: E402

prepare_parallel(gradient_as_bucket_view=True)  # as yolox_plugin.train has it


class KillingHook(Hook):  # type: ignore[misc]
    """Ends the process as the kernel does when memory runs out."""

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == options.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


HOOKS.register_module(KillingHook)
os.environ["LOCAL_RANK"] = "0"
_, records = steps.train(
    options.work_dir,
    amp=None if options.amp == "float16" else options.amp,
    options={"fp16": {"loss_scale": {"init_scale": options.scale}}},
    hooks=[{"type": "KillingHook"}],
    distributed=True,
    epochs=options.epochs,
    resume=options.resume,
)
places = [str(call) for call in records[2].waits()]
print(json.dumps({**records[2].counts(), "places": places}), flush=True)
os._exit(0)  # the fake hccl has no orderly end
