"""What the entry points share: options, the config that they ask for, and the start of several processes."""

import argparse
import copy
import os
import pprint
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmdet
from mmcv import Config, DictAction
from mmdet.utils import compat_cfg, get_device, replace_cfg_vals
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from .checks import InputError, described, leaves

CONFIG_DIRS = (Path(__file__).parents[1] / "configs", Path(mmdet.__file__).parent / ".mim/configs/yolox")
SPLITS = {"train": "train2017", "val": "val2017", "test": "val2017"}
# What MMDetection's training reads and a config may leave out, or have as None.
DEFAULTS: dict[str, Any] = {
    "auto_scale_lr": {}, "checkpoint_config": None, "custom_hooks": [], "load_from": None, "log_config": {},
    "log_level": "INFO", "lr_config": None, "optimizer_config": {}, "resume_from": None, "workflow": [("train", 1)],
}  # fmt: skip
# Handed on to torchrun, for several machines.
TORCHRUN_OPTIONS = (
    "--nnodes", "--node-rank", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--rdzv-conf",
    "--master-addr", "--master-port",
)  # fmt: skip


class KeyValues(DictAction):
    """mmcv's action, which fails for words without a `=`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if strange := [value for value in values if "=" not in value]:
            raise argparse.ArgumentError(self, f"must be KEY=VALUE, got {strange[0]}")
        super().__call__(parser, namespace, values, option_string)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of both entry points. Underscores may stand for hyphens (`options_of`)."""
    add = parser.add_argument
    add("--data-path", type=path, required=True, metavar="DIR",
        help="COCO 2017 layout: annotations/instances_{train,val}2017.json, train2017/, val2017/")  # fmt: skip
    add("--config", default="yolox_m_8x8_300e_coco", metavar="NAME|FILE",
        help="a config file, or the name of one of MMDetection's or this plugin's (default: %(default)s)")  # fmt: skip
    add("--devices", type=positive, default=1, metavar="N", help="processes on this machine, one a device (default: 1)")
    add("--device", choices=("npu", "cuda", "cpu"), help="default: the first of these that is there")
    add("--work-dir", type=path, metavar="DIR", help="where everything is written (default: work_dirs/NAME)")
    add("--batch-size", type=positive, metavar="N", help="images a device")
    add("--cfg-options", nargs="+", action=KeyValues, default={}, metavar="KEY=VALUE", help="changes to the config")
    several = parser.add_argument_group("several machines", "handed on to torchrun; the same command on each machine")
    for option in TORCHRUN_OPTIONS:
        several.add_argument(option, metavar="...")


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def path(text: str) -> Path:
    """A path, for argparse; `~` is the user's home, which no shell puts in after a `=`."""
    return Path(text).expanduser()


def whole(text: str) -> int:
    """A whole number of 0 or more, for argparse; not so large that random generators refuse it as a seed."""
    value = int(text)
    if not 0 <= value < 2**31:  # numpy takes less than 2**32, and each worker of each process adds its number
        raise argparse.ArgumentTypeError(f"must be from 0 to 2**31 - 1, got {value}")
    return value


def options_of(arguments: Sequence[str]) -> list[str]:
    """`--data_path=x` is `--data-path=x`."""
    changed = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        changed.append((name.replace("_", "-") if name.startswith("--") else name) + equals + value)
    return changed


def load_config(args: argparse.Namespace) -> Config:
    """The config that is asked for, with the options that the entry points share, in the form that MMDetection brings
    older ones into (`compat_cfg`), and with what it may leave out.

    Raises:
        InputError: no such config, or none that Python or mmcv can read.
    """
    known = {path.stem: path for folder in CONFIG_DIRS for path in sorted(folder.glob("*.py"))}
    file = path(args.config) if args.config.endswith(".py") else known.get(args.config)
    if file is None or not file.is_file():
        raise InputError(f"--config must be a file or one of {', '.join(known)}, got {args.config}")
    cfg = described(f"file {file}", lambda: replace_cfg_vals(Config.fromfile(str(file))))
    if not isinstance(cfg.get("data"), dict) or not isinstance(cfg.get("model"), dict):
        raise InputError(f"--config {args.config} must have model and data")
    for split, name in SPLITS.items():
        if cfg.get("data", {}).get(split) is None:
            raise InputError(f"--config {args.config} has no data.{split}")
        point_to(cfg, split, args.data_path.absolute(), name)
    described("--cfg-options", lambda: cfg.merge_from_dict(args.cfg_options))
    cfg = described("shape", lambda: compat_loaders(cfg))
    for key, value in DEFAULTS.items():
        if cfg.get(key) is None:
            cfg[key] = copy.deepcopy(value)
    cfg.work_dir = str(args.work_dir or Path("work_dirs") / file.stem)
    cfg.device = args.device or get_device()
    # So that the config that is written beside the checkpoints also works with MMDetection's own tools.
    imports = cfg.get("custom_imports") or {}
    names = [name for name in listed(imports.get("imports") or []) if name != "yolox_plugin"]
    cfg.custom_imports = {"allow_failed_imports": False, **imports, "imports": [*names, "yolox_plugin"]}
    return cfg


def text_of(cfg: Config) -> str:
    """A config as the Python file that it would be read from. mmcv's own text breaks at apostrophes and backslashes."""
    lines = (f"{name} = {pprint.pformat(value, width=120, sort_dicts=False)}\n" for name, value in cfg.items())
    # Two braces are in strings alone; mmcv, which reads them, has names to fill in there.
    return "".join(lines).replace("{{", r"{\x7b")


def point_to(cfg: Config, split: str, root: Path, name: str) -> None:
    """Lets a split read COCO's files under `root`, or, if it has several annotation files, those of the same names.

    These keep their place in relation to the config's data_root, as with MMDetection's MMDET_DATASETS.
    """
    parts = list(leaves(cfg.data[split]))
    if len(parts) == 1 and len(listed(parts[0].get("ann_file"))) == 1:
        parts[0].ann_file = str(root / "annotations" / f"instances_{name}.json")
        parts[0].img_prefix = f"{root / name}/"
        return
    for part in parts:
        before = part.get("data_root") or cfg.get("data_root") or ""
        for key in ("ann_file", "img_prefix"):
            moved = [str(root / old.removeprefix(before)) for old in listed(part.get(key) or "")]
            part[key] = moved if isinstance(part.get(key), (list, tuple)) else moved[0]


def listed(value: Any) -> Sequence[Any]:
    """One thing, or several, as a list."""
    return value if isinstance(value, (list, tuple)) else [value]


def compat_loaders(cfg: Config) -> Config:
    """MMDetection's `compat_cfg`, with the loaders that torch refuses mended.

    Raises:
        InputError: for what that asserts.
    """
    if "runner" not in cfg and "total_epochs" not in cfg:
        raise InputError("the config has no runner")
    epochs = cfg.get("total_epochs")
    if "runner" in cfg and epochs not in (None, cfg.runner.get("max_epochs")):
        raise InputError(f"the config has total_epochs={epochs} and another length in runner: leave one out")
    for key in ("samples_per_gpu", "persistent_workers"):
        if key in cfg.data and key in cfg.data.get("train_dataloader", {}):
            raise InputError(f"the config has {key} in data and in data.train_dataloader: leave one out")
    cfg = compat_cfg(cfg)
    cfg.data.pop("imgs_per_gpu", None)  # or it would be moved again
    cfg.pop("total_epochs", None)
    for name in ("train", "val", "test"):
        loader = cfg.data[f"{name}_dataloader"]
        if loader.get("workers_per_gpu") == 0:
            loader.persistent_workers = False
    return cfg


def is_child() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def interrupted() -> int:
    """The exit status after Ctrl-C. One of several processes leaves it to the command to say so."""
    if not is_child():
        print("error: stopped by SIGINT", file=sys.stderr)
    return 128 + signal.SIGINT


# A process of torchrun's, which finds modules where this one does: after `python -m` in the current folder as well, but
# not if a script has kept that out.
CHILD = "import runpy, sys; sys.path[:] = {path!r}; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"


def run_processes(module: str, arguments: Sequence[str], args: argparse.Namespace, device: str, restarts: int) -> int:
    """Runs `module` in --devices processes under torchrun, on a free port; its exit status.

    When a process ends with an error all are ended, and started again up to `restarts` times. Status 2, of an error
    that a process has explained, is passed on.
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
        program = [sys.executable, "-u", "-c", CHILD.format(path=sys.path, module=module)]
        options = torchrun.parse_args([*command, "--no-python", *program, *arguments])  # type: ignore[no-untyped-call]
        torchrun.run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == 2:
            return 2
        ending = failure.signal_name() if failure.exitcode < 0 else f"status {failure.exitcode}, its error is above"
        after = f" after {restarts} restarts" if restarts else ""
        print(f"error: process {rank} of {args.devices} ended with {ending}{after}", file=sys.stderr)
        return 1
    except SignalException as error:
        print(f"error: stopped by {error.sigval.name}", file=sys.stderr)
        return 128 + error.sigval
    return 0
