"""What the commands do with a config, whichever MMDetection it is for."""

import argparse
import os
import pprint
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from .messages import InputError
from .options import user_path

# What one recipe's configs are called in MMDetection 2 and in MMDetection 3.
RECIPES = ("_8x8_300e_coco", "_8xb8-300e_coco")


def config_file(name: str, folders: Sequence[Path]) -> Path:
    """The file that --config asks for.

    Args:
        folders: those of configs that have a name.

    Raises:
        InputError: there is none.
    """
    known = {path.stem: path for folder in folders for path in sorted(folder.glob("*.py"))}
    for path in list(known.values()):
        for one, other in (RECIPES, RECIPES[::-1]):
            known.setdefault(path.stem.replace(one, other), path)
    file = user_path(name) if name.endswith(".py") else known.get(name)
    if file is None or not os.path.isfile(file):
        there = dict.fromkeys(path.stem for path in known.values())
        raise InputError(f"--config must be a file or one of {', '.join(there)}, got {name}")
    return file


LIST, TEXT = (list, tuple), (str, NoneType)
PART, SEVERAL = (dict, NoneType), (dict, list, tuple, NoneType)
OF_DATA_SETS: dict[str, tuple[type, ...]] = {
    "pipeline": (*LIST, NoneType), "pipeline.*": (dict,), "data_root": TEXT, "metainfo": PART, "data_prefix": PART,
    "data_prefix.**": TEXT, "filter_cfg": PART, "ann_file": (str, *LIST), "img_prefix": (str, *LIST, NoneType),
    "classes": (str, *LIST, NoneType), "metainfo.classes": (str, *LIST, NoneType),
}  # fmt: skip
WORDS = {dict: "a dict", list: "a list", tuple: "a tuple", str: "a text", bool: "a bool", NoneType: "None"}


def check_kinds(named: str, entries: Any, kinds: Mapping[str, tuple[type, ...]]) -> None:
    """Raises InputError for what whoever reads it would find to be of another kind.

    Args:
        named: what to call the config.
        kinds: by the names of a part and those around it, with * for each of several things, or one alone, and ** for
            each entry of a dict. What is not there is left alone.
    """
    for name, wanted in kinds.items():
        for place, value in found_at(entries, name.split(".")):
            check_kind(named, place, value, wanted)


def check_kind(named: str, place: str, value: Any, wanted: tuple[type, ...]) -> None:
    """See `check_kinds`."""
    if not isinstance(value, wanted):
        words = " or ".join(WORDS[kind] for kind in wanted)
        raise InputError(f"{named}: {place} must be {words}, got {value!r:.60}")


def found_at(entries: Any, names: Sequence[str], around: str = "") -> Iterator[tuple[str, Any]]:
    """Where parts of these names are in a config, and what is there."""
    name, *inner = names
    if name == "*":
        found = list(enumerate(entries)) if isinstance(entries, LIST) else [("", entries)]
    else:
        known = entries if isinstance(entries, dict) else {}
        found = [(key, value) for key, value in known.items() if name in (key, "**")]
    for key, value in found:
        place = f"{around}.{key}".strip(".")
        if inner:
            yield from found_at(value, inner, place)
        else:
            yield place, value


def check_data_set(named: str, place: str, data: Any) -> None:
    """Raises InputError for a data set, or several, that is no such thing, at any depth."""
    if isinstance(data, LIST):
        for number, part in enumerate(data):
            check_data_set(named, f"{place}.{number}", part)
        return
    check_kind(named, place, data, (dict,))
    check_kinds(f"{named}, {place}", data, OF_DATA_SETS)
    inner = [key for key in ("dataset", "datasets") if key in data]
    for key in inner:
        check_data_set(named, f"{place}.{key}", data[key])
    if not inner and "ann_file" not in data:
        raise InputError(f"{named}: {place} has no ann_file")


def with_plugin(imports: dict[str, Any] | None) -> dict[str, Any]:
    """A config's custom_imports with the plugin among them, so that the config that is written beside the checkpoints
    also works with MMDetection's own tools."""
    imports = imports or {}
    names = [name for name in listed(imports.get("imports") or []) if name != "yolox_plugin"]
    return {"allow_failed_imports": False, **imports, "imports": [*names, "yolox_plugin"]}


def text_of(entries: Iterable[tuple[str, Any]]) -> str:
    """A config as the Python file that it would be read from. mmcv's own text breaks at apostrophes and backslashes."""
    lines = (f"{name} = {pprint.pformat(value, width=120, sort_dicts=False)}\n" for name, value in entries)
    # Two braces are in strings alone; mmcv, which reads them, has names to fill in there.
    return "".join(lines).replace("{{", r"{\x7b")


def class_of(part: Any, registry: Any) -> Any:
    """The class that a part of a config has for its type, by its name or itself; None if there is none."""
    named = part.get("type")
    found = registry.get(named) if isinstance(named, str) else named
    return found if isinstance(found, type) else None


def heads_of(cfg: Any) -> int | None:
    """For how many classes the config's head is, if it says so."""
    heads: int | None = cfg.model.get("bbox_head", {}).get("num_classes")
    return heads


def length_of(args: argparse.Namespace, runner: Any) -> dict[str, int]:
    """How many epochs, or iterations, a training by this command has in all.

    Args:
        runner: the part of the config that has max_epochs or max_iters.
    """
    if args.iterations:
        return {"iter": args.iterations}
    if "max_epochs" not in runner:
        return {} if args.performance else {"iter": runner.max_iters}
    return {"epoch": args.epochs or (1 if args.performance else runner.max_epochs)}


def in_words(length: dict[str, int]) -> str:
    """What `length_of` says."""
    names = {"iter": "iteration", "epoch": "epoch"}
    words = [f"{number} {names[unit]}{'s' if number > 1 else ''}" for unit, number in length.items()]
    return " ".join(words) or "once through the data"


def asked_lengths(args: argparse.Namespace, runner: Any, per_epoch: int) -> tuple[int | None, int | None]:
    """Epochs that the recipe is to fit into, and iterations to stop after, as far as the command says so; --performance
    stands for one epoch, or for `per_epoch` iterations."""
    if args.performance and not args.epochs and not args.iterations:
        return (1, None) if "max_epochs" in runner else (None, per_epoch)
    return args.epochs, args.iterations


def mid_epoch_option(args: argparse.Namespace) -> str:
    """The option that asks for checkpoints in the middle of epochs, if there is one."""
    given = {"--checkpoint-minutes": args.checkpoint_minutes, "--checkpoint-iterations": args.checkpoint_iterations}
    return next((f"{name}={value:g}" for name, value in given.items() if value is not None), "")


def listed(value: Any) -> Sequence[Any]:
    """One thing, or several, as a list."""
    return value if isinstance(value, (list, tuple)) else [value]


def leaves(data: Any) -> Iterator[Any]:
    """The configs of the data sets that read annotations, inside those that mix, repeat or join them."""
    if isinstance(data, (list, tuple)):
        for part in data:
            yield from leaves(part)
    elif "datasets" in data or "dataset" in data:
        yield from leaves(data.get("datasets", data.get("dataset")))
    else:
        yield data


def data_sets(data: Any) -> Iterator[Any]:
    """The configs of the data sets that have a pipeline, around and inside one another."""
    if isinstance(data, (list, tuple)):
        for part in data:
            yield from data_sets(part)
        return
    if data.get("pipeline") is not None:
        yield data
    for key in ("datasets", "dataset"):
        if data.get(key) is not None:
            yield from data_sets(data[key])


def shrunk(value: Any, share: float) -> Any:
    """A length of a recipe, or several, in a share of its time; 0 and less stand for none."""
    if isinstance(value, list):
        return [shrunk(part, share) for part in value]
    return max(round(value * share), 1) if value > 0 else value
