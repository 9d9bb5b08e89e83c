"""What the entry points share: options, checks before anything is written, and the start of several processes."""

import argparse
import json
import os
import pickle
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import mmdet
import torch
from mmcv import Config, DictAction
from mmdet.datasets import DATASETS
from mmdet.models import build_detector
from mmdet.utils import get_device
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

CONFIG_DIRS = (Path(__file__).parent / "configs", Path(mmdet.__file__).parent / ".mim/configs/yolox")
SPLITS = {"train": "train2017", "val": "val2017", "test": "val2017"}
# Handed on to torchrun, for several machines.
TORCHRUN_OPTIONS = (
    "--nnodes", "--node-rank", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--rdzv-conf",
    "--master-addr", "--master-port",
)  # fmt: skip


class InputError(Exception):
    """Something that the user gave is missing or wrong; the message is one sentence for them."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of both entry points. Underscores may stand for hyphens (`options_of`)."""
    add = parser.add_argument
    add("--data-path", type=Path, required=True, metavar="DIR",
        help="COCO 2017 layout: annotations/instances_{train,val}2017.json, train2017/, val2017/")  # fmt: skip
    add("--config", default="yolox_m_8x8_300e_coco", metavar="NAME|FILE",
        help="a config file, or the name of one of MMDetection's or this plugin's (default: %(default)s)")  # fmt: skip
    add("--devices", type=positive, default=1, metavar="N", help="processes on this machine, one a device (default: 1)")
    add("--device", choices=("npu", "cuda", "cpu"), help="default: the first of these that is there")
    add("--work-dir", type=Path, metavar="DIR", help="where everything is written (default: work_dirs/NAME)")
    add("--batch-size", type=positive, metavar="N", help="images a device")
    add("--cfg-options", nargs="+", action=DictAction, default={}, metavar="KEY=VALUE", help="changes to the config")
    several = parser.add_argument_group("several machines", "handed on to torchrun; the same command on each machine")
    for option in TORCHRUN_OPTIONS:
        several.add_argument(option, metavar="...")


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def options_of(arguments: Sequence[str]) -> list[str]:
    """`--data_path=x` is `--data-path=x`."""
    changed = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        changed.append((name.replace("_", "-") if name.startswith("--") else name) + equals + value)
    return changed


def load_config(args: argparse.Namespace) -> Config:
    """The config that is asked for, with the options that the entry points share.

    Raises:
        InputError: no such config, or options of it that it does not have.
    """
    known = {path.stem: path for folder in CONFIG_DIRS for path in sorted(folder.glob("*.py"))}
    path = Path(args.config) if args.config.endswith(".py") else known.get(args.config)
    if path is None or not path.is_file():
        raise InputError(f"--config must be a file or one of {', '.join(known)}, got {args.config}")
    cfg = Config.fromfile(str(path))
    root = args.data_path
    for split, name in SPLITS.items():
        data = dataset_config(cfg, split)
        data.ann_file = str(root / "annotations" / f"instances_{name}.json")
        data.img_prefix = f"{root / name}/"
    cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = str(args.work_dir or Path("work_dirs") / path.stem)
    cfg.device = args.device or get_device()
    # So that the config that is written beside the checkpoints also works with MMDetection's own tools.
    cfg.custom_imports = {"imports": ["yolox_plugin"], "allow_failed_imports": False}
    return cfg


def dataset_config(cfg: Config, split: str) -> Any:
    """The data set that reads images, inside the one that mixes them if there is one."""
    data = cfg.data[split]
    return data.get("dataset", data)


def check_devices(device: str, count: int) -> None:
    """Raises InputError where `count` processes would not have a device, or a core, each."""
    if device == "cpu":
        there = os.cpu_count() or 1
    else:
        module = getattr(torch, device, None)
        there = module.device_count() if module is not None and module.is_available() else 0
    if there < count:
        unit = "cores" if device == "cpu" else f"{device} devices"
        raise InputError(f"--devices={count} --device={device}: this machine has {there} {unit}")


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Raises InputError unless annotations are there, fit the config, and every image file has an image's beginning."""
    for split in splits:
        data = dataset_config(cfg, split)
        path = Path(data.ann_file)
        root = path.parents[1]
        if not root.is_dir():
            raise InputError(f"--data-path {root} is not a folder")
        if not path.is_file():
            raise InputError(f"--data-path {root} has no annotations/{path.name}")
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise InputError(f"{path} is no JSON file: {error}") from error
        parts = ("images", "annotations", "categories")
        if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
            raise InputError(f"{path} must be an object with the lists {', '.join(parts)}")
        if not content["images"]:
            raise InputError(f"{path} lists no images")
        check_classes(cfg, data, path, {category["name"] for category in content["categories"]})
        check_images(Path(data.img_prefix), [image["file_name"] for image in content["images"]], path)


def check_classes(cfg: Config, data: Any, path: Path, found: set[str]) -> None:
    """Raises InputError if the annotations have none of the config's classes, or the head another number of them."""
    wanted = DATASETS.get(data.type).get_classes(data.get("classes"))
    if not found.intersection(wanted):
        raise InputError(
            f"{path} has none of the config's {len(wanted)} classes ({wanted[0]}, ...) but"
            f" {', '.join(sorted(found))[:80]}: name a --config with these `classes`"
        )
    heads = cfg.model.bbox_head.num_classes
    if heads != len(wanted):
        raise InputError(f"the config has {len(wanted)} classes but model.bbox_head.num_classes={heads}")


def check_images(folder: Path, names: Sequence[str], annotations: Path) -> None:
    """Raises InputError if files are missing or do not begin as images do."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    with ThreadPoolExecutor(16) as pool:  # waits for the disk more than it computes
        readable = list(pool.map(lambda name: cv2.haveImageReader(str(folder / name)), names))
    bad = [name for name, good in zip(names, readable, strict=True) if not good]
    if bad:
        problem = "is no readable image" if (folder / bad[0]).exists() else "does not exist"
        others = f", and {len(bad) - 1} more like it" if len(bad) > 1 else ""
        raise InputError(f"{folder / bad[0]}, which {annotations.name} lists, {problem}{others}")


def check_checkpoint(cfg: Config, path: Path) -> None:
    """Raises InputError unless the file has every tensor of the config's model, in its shape."""
    if not path.is_file():
        raise InputError(f"--pth-path {path} does not exist")
    try:
        found = torch.load(path, map_location="cpu")["state_dict"]
    # What torch.load says of files that are cut short, empty, garbage, or of something else.
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"--pth-path {path} is no checkpoint ({reason})") from error
    wanted = build_detector(cfg.model).state_dict()
    unfit = [name for name, value in wanted.items() if name not in found or found[name].shape != value.shape]
    if unfit:
        name = unfit[0]
        there = list(found[name].shape) if name in found else "nothing"
        raise InputError(
            f"--pth-path {path} is of another model than --config: {len(unfit)} of {len(wanted)} tensors do not fit,"
            f" first {name}: expected {list(wanted[name].shape)}, got {there}"
        )


def is_child() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def run_processes(module: str, arguments: Sequence[str], args: argparse.Namespace, device: str, restarts: int) -> int:
    """Runs `module` in --devices processes under torchrun, on a free port; its exit status.

    When a process ends with an error all are ended, and started again up to `restarts` times.
    """
    if device == "cpu":  # or each would use all cores
        os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // args.devices, 1)))
    # Or processes that start again may find the addresses of those before them in torchrun's store, and wait for ever.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    passed = [
        f"{option}={value}"
        for option in TORCHRUN_OPTIONS
        if (value := getattr(args, option[2:].replace("-", "_"))) is not None
    ]
    command = [f"--nproc-per-node={args.devices}", f"--max-restarts={restarts}", *(passed or ["--standalone"])]
    try:
        options = torchrun.parse_args([*command, "-m", module, *arguments])  # type: ignore[no-untyped-call]
        torchrun.run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        ending = failure.signal_name() if failure.exitcode < 0 else f"status {failure.exitcode}, its error is above"
        after = f" after {restarts} restarts" if restarts else ""
        print(f"error: process {rank} of {args.devices} ended with {ending}{after}", file=sys.stderr)
        return 1
    except SignalException as error:
        print(f"error: stopped by {error.sigval.name}", file=sys.stderr)
        return 128 + error.sigval
    return 0
