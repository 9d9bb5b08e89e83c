"""One rank of a data-parallel training through hccl: prints what its third step asked of the device, as JSON."""

import json
import os
import sys
import tempfile
from pathlib import Path

import device  # before mmcv
import torch
import torch.distributed as dist
import torch.nn.parallel.distributed as ddp

import yolox_plugin  # noqa: F401

device.install()
torch.npu.set_device(0)
dist.init_process_group("hccl", rank=0, world_size=1, init_method=f"file://{sys.argv[1]}")
# It compares shapes by a kernel of hccl's, which the fake runtime has not.
ddp._verify_param_shape_across_processes = lambda *args, **kwargs: None

import steps  # noqa: E402

os.environ["LOCAL_RANK"] = "0"
amp = None if sys.argv[2] == "float16" else sys.argv[2]
scaling = {"fp16": {"loss_scale": {"init_scale": 8.0}}}
with tempfile.TemporaryDirectory() as folder:
    _, records = steps.train(Path(folder), amp=amp, options=scaling, distributed=True)
places = [str(call) for call in records[2].waits()]
print(json.dumps({**records[2].counts(), "places": places}), flush=True)
os._exit(0)  # the fake hccl has no orderly end
