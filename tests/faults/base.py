"""What the commands are tried on: a data set, a config, a checkpoint and an image, all usual."""

import json
import shutil
from pathlib import Path

import cv2
import torch
from tiny import HOST, small

from yolox_plugin.core.checkpoint import newest_checkpoint
from yolox_plugin.run import train as training
from yolox_plugin.run.demo_data import make_dataset

# Processes take long to start.
if HOST == "mmdet2":
    from mmcv import Config

    WITHOUT_WORKERS = {"data.workers_per_gpu": 0, "data.persistent_workers": False}
else:
    from mmengine.config import Config

    WITHOUT_WORKERS = {
        f"{split}_dataloader.{key}": value
        for split in ("train", "val", "test")
        for key, value in (("num_workers", 0), ("persistent_workers", False))
    }


def plain(value):
    """Of dictionaries of Python's own."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [*map(plain, value)] if isinstance(value, list) else value


def make_base(root: Path) -> None:
    """Fills a folder."""
    data = root / "data"
    make_dataset(data, train=4, val=2)
    small.write_config(root / "written.py", data, epochs=20)
    cfg = Config.fromfile(str(root / "written.py"))
    cfg.merge_from_dict(WITHOUT_WORKERS)
    entries = plain({name: value for name, value in cfg.items() if not name.startswith("_")})
    (root / "config.py").write_text("".join(f"{name} = {value!r}\n" for name, value in entries.items()))
    options = [f"--data-path={data}", f"--config={root / 'config.py'}", "--device=cpu", f"--work-dir={root / 'run'}"]
    assert training.main([*options, "--epochs=1"]) == 0
    shutil.copy(newest_checkpoint(root / "run"), root / "some.pth")
    shutil.copy(data / "val2017/000001.jpg", root / "one.jpg")
    shutil.rmtree(root / "run")
    (root / "written.py").unlink()


class Base:
    """What `make_base` has made, as the grammars take it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        paths = {split: root / f"data/annotations/instances_{split}2017.json" for split in ("train", "val")}
        self.texts = {split: path.read_text() for split, path in paths.items()}
        self.checkpoint = (root / "some.pth").read_bytes()
        self.content = torch.load(root / "some.pth", weights_only=False)
        self.image = cv2.resize(cv2.imread(str(root / "one.jpg")), (160, 120))
        self.entries = plain(Config.fromfile(str(root / "config.py")).to_dict())
        assert json.loads(self.texts["train"])["images"]
