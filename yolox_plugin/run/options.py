"""The options that training and evaluation share."""

import argparse
import os
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
    "--local-addr", "--master-addr", "--master-port",
)  # fmt: skip


MODELS = ("nano", "tiny", "s", "m", "l", "x")


class KeyValues(DictAction):
    """mmcv's action, which fails for words without a `=`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if strange := [value for value in values if "=" not in value]:
            raise argparse.ArgumentError(self, f"must be KEY=VALUE, got {strange[0]}")
        super().__call__(parser, namespace, values, option_string)


MAX_NAME, MAX_PATH = 255, 4095  # bytes, of Linux

STANDARD = "yolox_m_8x8_300e_coco"


def add_options(parser: argparse.ArgumentParser, recorded: bool = False) -> None:
    """The options of both entry points. Underscores may stand for hyphens (`options_of`).

    Args:
        recorded: whether there is a checkpoint, which says what --data-path and --config do not.
    """
    add_data_options(parser, recorded)
    add = parser.add_argument
    add("--devices", type=positive, default=1, metavar="N", help="processes on this machine, one a device (default: 1)")
    add("--device", choices=("npu", "cuda", "cpu"), help="default: the first of these that is there")
    add("--work-dir", type=user_path, metavar="DIR", help="where everything is written (default: work_dirs/NAME)")
    add("--batch-size", type=positive, metavar="N", help="images a device")
    add("--cfg-options", nargs="+", action=KeyValues, default={}, metavar="KEY=VALUE", help="changes to the config")
    several = parser.add_argument_group(
        "several machines", "handed on to torchrun; the same command on each machine, with its own folders"
    )
    for option in TORCHRUN_OPTIONS:
        several.add_argument(option, metavar="...")


def add_data_options(parser: argparse.ArgumentParser, recorded: bool = False) -> None:
    """Those that say what is read, and in which way; see `add_options`."""
    here = " (default: that of the training)" if recorded else ""
    parser.add_argument("--data-path", type=user_path, required=not recorded, metavar="DIR",
        help="a data set with COCO's annotations: annotations/instances_{train,val}2017.json with train2017/, val2017/;"
        " annotations/{train,val}.json with train/, val/; {train,valid}/_annotations.coco.json; or one annotations.json"
        f" with images/{here}")  # fmt: skip
    config = parser.add_mutually_exclusive_group()
    config.add_argument("--config", default=None if recorded else STANDARD, metavar="NAME|FILE",
        help="a config file, or the name of one of MMDetection's or this plugin's; those of MMDetection 2 and of"
        f" MMDetection 3 are understood by both{here or ' (default: %(default)s)'}")  # fmt: skip
    config.add_argument("--model", dest="config", type=model, metavar="|".join(MODELS),
                        help="the standard config of this size")  # fmt: skip


def add_size_option(parser: argparse.ArgumentParser) -> None:
    """--img-size."""
    parser.add_argument("--img-size", type=size, metavar="N",
        help="side of images in evaluation, a multiple of 32; the recipe's other sizes change with it")  # fmt: skip


def model(text: str) -> str:
    """The name of the standard config of a model of this size, for argparse."""
    if text not in MODELS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(MODELS)}, got {text}")
    return f"yolox_{text}_8x8_300e_coco"


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def minutes(text: str) -> float:
    """A number larger than 0, for argparse."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be larger than 0, got {text}")
    return value


def share(text: str) -> float:
    """A number between 0 and 1, for argparse."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return value


def size(text: str) -> int:
    """The side of images, a multiple of the largest stride, for argparse."""
    value = positive(text)
    if value % 32:
        raise argparse.ArgumentTypeError(f"must be a multiple of 32, got {value}")
    return value


def user_path(text: str) -> Path:
    """A path, for argparse; `~` is the user's home, which no shell puts in after a `=`."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # OpenCV crashes at such names
        raise argparse.ArgumentTypeError(f"must be text in UTF-8, got {text!a}") from error
    path = Path(text).expanduser()
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    for length, most in ((longest, MAX_NAME), (len(os.fsencode(path)), MAX_PATH)):
        if length > most:
            raise argparse.ArgumentTypeError(f"{text:.80}... has a name of {length} bytes, of {most} that there may be")
    return path


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
        if name.startswith("--"):
            name = name.replace("_", "-")
            value = "./--" if value == "--" else value  # which argparse takes out, and gives an empty list
        changed.append(name + equals + value)
    return changed
