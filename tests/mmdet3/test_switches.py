"""What importing the plugin replaces in MMDetection 3, and how to keep it from doing so."""

import os
import pickle
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from outputs import printed

from yolox_plugin.core.checkpoint import UnsafeCheckpoint

PROGRAM = """
import yolox_plugin
import mmengine.runner.runner as runner
from mmdet.registry import DATASETS, MODELS, TASK_UTILS, TRANSFORMS
from mmdet.registry import HOOKS as MMDET_HOOKS
from mmengine.registry import HOOKS, LOOPS, MODEL_WRAPPERS, OPTIM_WRAPPERS, OPTIMIZERS
parts = {
    "assigner": [TASK_UTILS.get("SimOTAAssigner")],
    "head": [MODELS.get("YOLOXHead")],
    "training": [
        *map(MODELS.get, ("YOLOX", "DetDataPreprocessor", "BatchSyncRandomResize", "ExpMomentumEMA")),
        *map(MMDET_HOOKS.get, ("YOLOXModeSwitchHook", "SyncNormHook", "RuntimeInfoHook", "CheckpointHook")),
        *map(HOOKS.get, ("RuntimeInfoHook", "CheckpointHook")), OPTIMIZERS.get("SGD"),
        OPTIM_WRAPPERS.get("AmpOptimWrapper"),
        LOOPS.get("EpochBasedTrainLoop"), MODEL_WRAPPERS.get("MMDistributedDataParallel"),
        DATASETS.get("MultiImageMixDataset"), runner.save_checkpoint, runner.EpochBasedTrainLoop,
        runner.MMDistributedDataParallel, runner.init_dist,
    ],
    "pipeline": [*map(TRANSFORMS.get, ("Mosaic", "RandomAffine", "MixUp", "YOLOXHSVRandomAug"))],
}
for part, things in parts.items():
    modules = [getattr(thing, "__globals__", {"__name__": thing.__module__})["__name__"] for thing in things]
    ours = [module for module in modules if module.startswith("yolox_plugin")]
    assert len(ours) in (0, len(things)), (part, modules)
    if ours:
        print(part)
"""
NAMES = {
    "assigner": "SimOTAAssigner",
    "head": "YOLOXHead",
    "training": "YOLOX, DetDataPreprocessor, BatchSyncRandomResize, ExpMomentumEMA, YOLOXModeSwitchHook, SyncNormHook,"
    " RuntimeInfoHook, CheckpointHook, save_checkpoint, SGD, AmpOptimWrapper, EpochBasedTrainLoop,"
    " MMDistributedDataParallel, init_dist, CocoDataset, MultiImageMixDataset",
    "pipeline": "Mosaic, RandomAffine, MixUp, YOLOXHSVRandomAug",
}


def run(program=PROGRAM, **env):
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("off", [None, *NAMES])
def test_parts(off):
    result = run(**({f"YOLOX_PLUGIN_{off.upper()}": "off"} if off else {}))
    kept = [part for part in NAMES if part != off]
    assert printed(result).split() == kept, result.stderr
    [line] = [line for line in result.stderr.splitlines() if "yolox_plugin" in line]
    assert line.endswith(f"replaced in MMDetection: {', '.join(NAMES[part] for part in kept)}")


def test_all_is_off():
    result = run(YOLOX_PLUGIN="off")
    assert result.returncode == 0 and not printed(result), result.stderr
    assert "replaced in MMDetection: nothing (switched off)" in result.stderr


def test_a_typing_error_is_refused():
    result = run(YOLOX_PLUGIN_TRAINING="0")
    assert result.returncode != 0
    assert "YOLOX_PLUGIN_TRAINING must be on or off, got '0'" in result.stderr


def test_only_one_rank_speaks():
    result = run(RANK="3")
    assert printed(result).split() == list(NAMES)
    assert "yolox_plugin" not in result.stderr


AGAIN = "import yolox_plugin\nfrom yolox_plugin import mmdet3, parts\nparts.apply(mmdet3.PARTS)"
BACK = "import yolox_plugin\nfrom yolox_plugin import mmdet3, parts\nparts.revert()"


@pytest.mark.parametrize(
    ("way", "there"), [(AGAIN, True), (BACK, False), (f"{BACK}\nparts.apply(mmdet3.PARTS)", True)],
    ids=["a second time", "put back", "put back and there again"],
)  # fmt: skip
def test_what_is_replaced_can_be_put_back(way, there):
    result = run(PROGRAM.replace("import yolox_plugin", way, 1))
    assert result.returncode == 0, result.stderr
    assert printed(result).split() == (list(NAMES) if there else [])
    assert "left" not in result.stderr


OWN = """
import sys, types

class Operators(types.ModuleType):  # which mmcv-lite lacks: MMDetection's models could not come before the plugin
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return print

sys.modules["mmcv._ext"] = Operators("mmcv._ext")
import mmdet.datasets, mmdet.engine, mmdet.models, mmengine.hooks, mmengine.optim, mmengine.runner
from mmdet.registry import HOOKS as MMDET_HOOKS
from mmdet.registry import DATASETS, MODELS, TASK_UTILS, TRANSFORMS
from mmengine.registry import HOOKS, OPTIMIZERS

places = {
    "CheckpointHook": HOOKS, "RuntimeInfoHook": HOOKS, "SGD": OPTIMIZERS, "YOLOX": MODELS, "YOLOXHead": MODELS,
    "SimOTAAssigner": TASK_UTILS, "SyncNormHook": MMDET_HOOKS, "MultiImageMixDataset": DATASETS, "Mosaic": TRANSFORMS,
}
mine = {name: type(name, BASES, {"__module__": "__main__"}) for name, registry in places.items()}
for name, registry in places.items():
    registry.register_module(module=mine[name], force=True)
import yolox_plugin
for name, registry in places.items():
    assert registry.get(name) is mine[name], registry.get(name)
    print(name)
"""


@pytest.mark.parametrize("bases", ["()", "(registry.get(name),)"], ids=["", "of stock"])
def test_classes_of_the_users_own_are_left(bases):
    """Registered before the plugin comes, derived from stock's or from nothing."""
    result = run(OWN.replace("BASES", bases))
    assert result.returncode == 0, result.stderr
    [line] = [line for line in result.stderr.splitlines() if "replaced in MMDetection" in line]
    replaced, left = line.split("; left: ")
    names = printed(result).split()
    assert sorted(left.split(", ")) == sorted(f"{name} (registered is __main__.{name})" for name in names)
    assert not set(names) & set(replaced.rpartition(": ")[2].split(", "))


def test_a_function_of_the_users_own_is_left():
    program = """
import mmengine.runner.runner as runner
def mine(*args): pass
runner.save_checkpoint = mine
import yolox_plugin
assert runner.save_checkpoint is mine
"""
    result = run(program)
    assert result.returncode == 0, result.stderr
    assert "; left: save_checkpoint (registered is __main__.mine)" in result.stderr


def test_a_class_that_somebody_has_patched_stays():
    """Before the import; the patch would be lost with the class."""
    program = """
from mmengine.hooks import CheckpointHook, RuntimeInfoHook
RuntimeInfoHook.after_train_iter = lambda *args, **kwargs: None
CheckpointHook.__repr__ = lambda self: "a hook"  # of which the plugin has no code of its own
import yolox_plugin
from mmengine.registry import HOOKS
assert HOOKS.get("RuntimeInfoHook") is RuntimeInfoHook
assert HOOKS.get("CheckpointHook") is not CheckpointHook
"""
    result = run(program)
    assert result.returncode == 0, result.stderr
    assert "; left: RuntimeInfoHook (somebody has patched it)" in result.stderr


WRITE = """
import sys, torch
import numpy as np
from mmengine.logging import MessageHub
hub = MessageHub("stock")
for i in range(5):
    hub.update_scalar("train/lr", 0.1 * i)
    hub.update_scalar("train/loss", torch.tensor(float(i)))
hub.update_scalar("val/coco/bbox_mAP", np.float64(0.25))
hub.update_info("best", np.float64(0.5))
torch.save({"state_dict": {"w": torch.ones(2)}, "message_hub": hub.state_dict()}, sys.argv[1])
"""
READ = """
import sys, torch
import yolox_plugin
hub = torch.load(sys.argv[1])["message_hub"]
from mmengine.logging import HistoryBuffer, MessageHub
resumed = MessageHub("resumed")
resumed.load_state_dict(hub)
loss = resumed.get_scalar("train/loss")
assert type(loss) is HistoryBuffer
print(loss.mean(2), loss.statistics("max"), loss.current(), resumed.get_scalar("val/coco/bbox_mAP").min(),
      resumed.get_info("best"))
"""


def run_on(program, path, **env):
    return subprocess.run(
        [sys.executable, "-c", program, path], env=os.environ | env, capture_output=True, text=True, check=False
    )


def test_checkpoints_of_stock_load(tmp_path):
    """Under torch.load's default of weights alone, in a process that has made no history of its own; without the plugin
    mmengine's own do not."""
    path = tmp_path / "stock.pth"
    written = run_on(WRITE, path)
    assert written.returncode == 0, written.stderr
    read = run_on(READ, path)
    assert printed(read) == "3.5 4.0 4.0 0.25 0.5\n", read.stderr
    for switch in ("YOLOX_PLUGIN", "YOLOX_PLUGIN_TRAINING"):
        without = run_on(READ, path, **{switch: "off"})
        assert without.returncode != 0 and "Weights only load failed" in without.stderr


def test_checkpoints_of_stock_load_after_another_has_been_loaded(tmp_path):
    """onedl-mmengine adds classes to torch's list for each checkpoint that it loads, and removes them afterwards."""
    path = tmp_path / "stock.pth"
    written = run_on(WRITE, path)
    assert written.returncode == 0, written.stderr
    before = """
import sys, torch
import numpy as np
import yolox_plugin
from mmengine.logging import HistoryBuffer
with torch.serialization.safe_globals([getattr, np.dtype, np.ndarray, type(np.dtype("f8")), HistoryBuffer]):
    pass
"""
    read = run_on(before + READ, path)
    assert printed(read) == "3.5 4.0 4.0 0.25 0.5\n", read.stderr


class Attribute:
    """What a pickle asks getattr for."""

    def __init__(self, owner, name):
        self.asked = (owner, name)

    def __reduce__(self):
        return getattr, self.asked


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (HistoryBuffer, "__init__"),
        (HistoryBuffer, "register_statistics"),
        (HistoryBuffer, "update"),
        (np.ndarray, "tofile"),
        (np.ndarray, "min"),
    ],
)
def test_a_checkpoint_gets_no_attribute_but_a_statistic(tmp_path, owner, name):
    """By getattr, which mmengine's own checkpoints ask for, more could be had than numbers."""
    torch.save({"state_dict": {}, "more": Attribute(owner, name)}, tmp_path / "more.pth")
    with pytest.raises(pickle.UnpicklingError, match=f"the checkpoint asks for attribute '{name}'"):
        torch.load(tmp_path / "more.pth")
    torch.save({"state_dict": {}, "more": Attribute(HistoryBuffer, "mean")}, tmp_path / "mean.pth")
    assert torch.load(tmp_path / "mean.pth")["more"] is HistoryBuffer.mean


def test_a_resume_refuses_what_is_not_safe_to_load(tmp_path):
    """onedl-mmengine would load it with a warning."""
    torch.save({"state_dict": {}, "more": SimpleNamespace()}, tmp_path / "epoch_1.pth")
    for named in (str(tmp_path / "epoch_1.pth"), None):
        runner = SimpleNamespace(
            _resume=True, _has_loaded=False, _load_from=named, work_dir=str(tmp_path), logger=Mock()
        )
        with pytest.raises(UnsafeCheckpoint, match=r"epoch_1\.pth is whole, but torch does not load it"):
            HOOKS.get("CheckpointHook")(interval=1).before_run(runner)
