"""The options that training and evaluation share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..hosts import find_host

if find_host() == "mmdet2":
    from mmcv import DictAction
else:
    from mmengine.config import DictAction

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
    add("--data-path", type=user_path, required=True, metavar="DIR",
        help="COCO 2017 layout: annotations/instances_{train,val}2017.json, train2017/, val2017/")  # fmt: skip
    add("--config", default="yolox_m_8x8_300e_coco", metavar="NAME|FILE",
        help="a config file, or the name of one of MMDetection's or this plugin's; those of MMDetection 2 and of"
        " MMDetection 3 are understood by both (default: %(default)s)")  # fmt: skip
    add("--devices", type=positive, default=1, metavar="N", help="processes on this machine, one a device (default: 1)")
    add("--device", choices=("npu", "cuda", "cpu"), help="default: the first of these that is there")
    add("--work-dir", type=user_path, metavar="DIR", help="where everything is written (default: work_dirs/NAME)")
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


def user_path(text: str) -> Path:
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
