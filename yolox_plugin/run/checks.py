"""What is checked before a run writes anything, whichever MMDetection is here: devices, precision, checkpoints."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import mid_epoch
from ..core.checkpoint import (
    EVALUATION_DUE,
    MID_EPOCH,
    DamagedCheckpoint,
    UnsafeCheckpoint,
    is_numbered,
    read_checkpoint,
    read_newest,
)
from ..detector import PreparedDetector
from ..precision import has_bfloat16
from .annotations import in_words
from .messages import InputError, described, warn


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


def check_precision(device: str, precision: str | None, option: bool, detector: str | None, other: str | None) -> None:
    """Raises InputError for a precision that the device, or the detector, does not have.

    Args:
        precision: the detector's `autocast`, which --amp has set if `option`.
        detector: the config's, if it is another than the plugin's.
        other: the words for what else in the config asks for float16.
    """
    named = f"--amp={precision}" if option else f"the config's model.autocast={precision!r}"
    if precision is not None and detector:
        raise InputError(f"{named} is for the plugin's YOLOX: the config's detector is MMDetection's {detector}")
    if precision not in (None, "float32", "bfloat16", "float16"):
        raise InputError(f"{named} must be 'float32', 'bfloat16' or 'float16'")
    if device == "cpu":
        if precision == "float16":
            raise InputError(f"{named} needs an accelerator: on a CPU use --amp=bfloat16")
        if precision is None and other:
            raise InputError(f"{other} needs an accelerator: on a CPU use --amp=float32 or --amp=bfloat16")
    elif precision == "bfloat16" and not has_bfloat16(device):
        raise InputError(f"{named}: this {device} device has no bfloat16, use --amp=float16")


def check_file_names(option: str, template: Any) -> None:
    """Raises InputError for a template of checkpoints' names by which a resume would not find them."""
    number = 12345  # as of an iteration
    if not is_numbered(described(option, lambda: template.format(number)), number):
        raise InputError(
            f"the config's {option} must be as 'epoch_{{}}.pth', 'iter_{{}}.pth' or 'NAME_epoch_{{}}.pth', which"
            f" --resume finds again, got {template!r:.60}"
        )


def prepare_for_inference(model: Any, device: str, precision: str) -> None:
    """Lets a detector that has its weights detect as fast as it can.

    Raises:
        InputError: it cannot in the precision of --amp.
    """
    if isinstance(model, PreparedDetector):
        try:
            model.prepare_for_inference(device, precision)
        except ValueError as error:
            raise InputError(f"--amp={precision}: {error}") from error
    elif precision != "float32":
        raise InputError(f"--amp={precision} is for the plugin's YOLOX: the detector is {type(model).__name__}")


def content_of(option: str, path: Path) -> dict[str, Any]:
    """What is in a checkpoint file.

    Raises:
        InputError: it is not there, or `DamagedCheckpoint` or `UnsafeCheckpoint` from it.
    """
    if not os.path.isfile(path):
        raise InputError(f"{option} {path} does not exist")
    try:
        content = read_checkpoint(path)
        meta = content.get("meta")
        if not isinstance(meta, (dict, NoneType)):
            raise InputError(f"{option} {path}: meta must be a dict, got {type(meta).__name__}")
        return content
    except (DamagedCheckpoint, UnsafeCheckpoint) as error:
        kind = "" if isinstance(error, UnsafeCheckpoint) else " is no checkpoint"
        raise InputError(f"{option}{kind}: {error}") from error
    except OSError as error:
        raise InputError(f"{option} {path} cannot be read: {error.strerror}") from error


def check_checkpoint(model: Any, option: str, path: Path) -> dict[str, Any]:
    """What is in a checkpoint file that has every tensor of `model`, in its shape.

    Raises:
        InputError: the file is another one; `DamagedCheckpoint` from it if it is none at all.
    """
    content = content_of(option, path)
    found, wanted = content["state_dict"], model.state_dict()
    unfit = [name for name, value in wanted.items() if not _fits(found.get(name), value)]
    if unfit:
        name = unfit[0]
        there = list(found[name].shape) if isinstance(found.get(name), Tensor) else type(found.get(name)).__name__
        if name not in found:
            there = "nothing"
        raise InputError(
            f"{option} {path} is of another model than --config: {len(unfit)} of {len(wanted)} tensors do not fit,"
            f" first {name}: expected {list(wanted[name].shape)}, got {there}"
        )
    return content


def _fits(value: Any, wanted: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == wanted.shape


class Built(NamedTuple):
    """What a config's recipe is made of, for checks alone."""

    model: Any
    optimizer: Any


def check_resumable(
    built: Built, option: str, path: Path, length: dict[str, int], labels: dict[str, int]
) -> dict[str, Any]:
    """The meta of the checkpoint that is gone on from: of a damaged one, the runner goes back to the one before.

    Args:
        built: of `check_parts`.
        length: how many of "epoch" or "iter" the training has.
        labels: of `check_data`.

    Raises:
        InputError: for a checkpoint of another model, optimizer or data set, for one that torch does not load, and if
            nothing is left to train.
    """
    try:
        content = check_checkpoint(built.model, option, path)
    except InputError as error:
        if not isinstance(error.__cause__, DamagedCheckpoint):
            raise
        try:
            path, _ = read_newest(path, tell=lambda _: None)  # the runner tells
        except ValueError as none:
            raise InputError(f"{option}: {none}") from none
        content = check_checkpoint(built.model, option, path)
    meta: dict[str, Any] = content.get("meta") or {}
    if not {"epoch", "iter"} <= meta.keys():
        raise InputError(f"{option} {path} has weights alone, of no training that could go on: name it as load_from")
    for unit in ("epoch", "iter"):
        if type(meta[unit]) is not int or meta[unit] < 0:
            raise InputError(f"{option} {path}: meta[{unit!r}] must be a whole number, got {meta[unit]!r:.40}")
    seed = meta.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**32):
        raise InputError(f"{option} {path}: meta['seed'] must be a whole number below 2**32, got {seed!r:.40}")
    try:
        mid_epoch.check(meta)
    except ValueError as error:
        raise InputError(f"{option} {path}: {error}") from error
    for unit, number in length.items():
        if meta[unit] > number or (meta[unit] == number and not meta.get(EVALUATION_DUE)):
            raise InputError(
                f"{option} {path} has {meta[unit]} of {number} {unit}s: nothing is left to train;"
                " python -m yolox_plugin.test evaluates it"
            )
    check_labels_of(meta, option, path, labels)
    state = content.get("optimizer")
    if state is not None and groups_in(state) != groups_in(built.optimizer.state_dict()):
        raise InputError(f"{option} {path} is of a training with other groups of parameters in its optimizer")
    return meta


def check_goes_on(newest: Path | None, within_epochs: bool) -> None:
    """Raises InputError for a checkpoint in the middle of an epoch where the config's runner begins epochs anew."""
    if newest is not None and newest.resolve().name == MID_EPOCH and not within_epochs:
        raise InputError(
            f"--resume: {newest.resolve()} was written in the middle of an epoch, from which this config's runner, or"
            " MMDetection without the plugin, cannot go on: remove it to go on from the epoch before"
        )


def groups_in(state: Any) -> list[int] | None:
    """How many parameters each group of an optimizer's state has; None if it is no such state."""
    groups = state.get("param_groups") if isinstance(state, dict) else None
    if not isinstance(groups, list) or not isinstance(state.get("state"), dict):
        return None
    known = [group.get("params") for group in groups if isinstance(group, dict)]
    return [len(params) for params in known if isinstance(params, list)]


def check_labels_of(meta: dict[str, Any], option: str, path: Path, labels: dict[str, int]) -> None:
    """Raises InputError if a class has another label in a checkpoint of this plugin's than in the annotations."""
    named = meta.get("LABELS")
    for label, name in enumerate(map(str, named if isinstance(named, (list, tuple)) else ())):
        if labels.get(name, label) != label:
            raise InputError(
                f"{option} {path} was trained with {name} as label {label}, but the annotations make it {labels[name]},"
                " as MMDetection numbers the classes that a file has in its order: give both the same categories"
            )


def check_initial_weights(model: Any, option: str, name: str | None) -> None:
    """Raises InputError for a file that is no checkpoint, or of quite another model; addresses of other stores are left
    to mmcv."""
    if not name or "://" in name:
        return
    if not os.path.isfile(name):
        raise InputError(f"the config's {option}={name!r} does not exist")
    try:
        found = read_checkpoint(name)["state_dict"]
    except (DamagedCheckpoint, UnsafeCheckpoint) as error:
        raise InputError(f"the config's {option}: {error}") from error
    except OSError as error:
        raise InputError(f"the config's {option}={name!r} cannot be read: {error.strerror}") from error
    if not found.keys() & model.state_dict().keys():
        raise InputError(f"the config's {option}={name!r} has no tensor of the config's model")


def check_trained_classes(trained: Sequence[str], wanted: Sequence[str]) -> None:
    """Warns of a model that was trained on other classes than the config's, if it says on which."""
    if trained and list(trained) != list(wanted):
        warn(f"the checkpoint was trained on {in_words(trained)}, the config's classes are {in_words(wanted)}")
