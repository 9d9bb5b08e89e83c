"""Several machines that share no folder: each has its own data, code and options, which have to be the same."""

import argparse
import hashlib
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

import yolox_ops

from ..core.checkpoint import read_checkpoint
from ..core.ranks import gathered
from . import report
from .annotations import Source
from .messages import InputError
from .options import TORCHRUN_OPTIONS

T = TypeVar("T")

# Options that each machine may have its own way with, or that are compared by what they have made of the config.
OWN = {"cfg_options", "config", "data_path", "device", "devices", "load_from", "pth_path", "save_dir", "work_dir",
       *(option[2:].replace("-", "_") for option in TORCHRUN_OPTIONS)}  # fmt: skip
# Of the config, files and folders that are compared by what is in them.
PLACES = re.compile(r"(.+\.)?(work_dir|load_from|resume_from|ann_file|data_root|img_prefix|data_prefix\..+)(\.\d+)?")
SWITCH = re.compile(r"YOLOX_PLUGIN(_[A-Z]+)?|YOLOX_OPS_CPU_CAPABILITY")
MOST = 5  # differences in a sentence


class Machine(NamedTuple):
    """Where a process runs."""

    node: int
    host: str

    def __str__(self) -> str:
        return f"{self.host} (node {self.node})"


def here() -> Machine:
    """This process's."""
    return Machine(int(os.environ.get("GROUP_RANK", "0")), socket.gethostname())


def are_several() -> bool:
    """Whether torchrun has started processes on other machines as well."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1


def leads() -> bool:
    """Whether this process is the one that speaks for its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def together(step: Callable[[], T]) -> T:
    """A step that every process takes; what is wrong on one machine ends all of them, with the same sentence.

    Raises:
        InputError: of this process's step, or another's.
    """
    if not are_several():
        return step()
    found: Any = None
    problem = None
    try:
        found = step()
    except InputError as error:
        problem = str(error)
    for machine, other in gathered((here(), problem)):
        if other is not None:
            raise InputError(f"{machine}: {other}")
    return found  # type: ignore[no-any-return]


def check_same(
    args: argparse.Namespace, cfg: Any, sources: Callable[[], Sequence[Source]], weights: Sequence[Any]
) -> None:
    """Makes sure that all machines are about to do the same.

    Args:
        sources: finds the annotation files that will be read.
        weights: checkpoints to begin with, by path; others, such as None, are left out.

    Raises:
        InputError: on all of them, if they differ in something.
    """
    if not are_several():
        return
    mine = together(lambda: dict(facts(args, cfg, sources(), weights)) if leads() else None)
    machines = [(machine, found) for machine, found in gathered((here(), mine)) if found is not None]
    problems = list(differences(machines))
    if problems:
        more = f"; and {len(problems) - MOST} more" if len(problems) > MOST else ""
        raise InputError(f"the machines differ: {'; '.join(problems[:MOST])}{more}")


def differences(machines: Sequence[tuple[Machine, dict[str, str]]]) -> Iterator[str]:
    """What they differ in, each by the first machine that has something else than the first of all."""
    (first, wanted), *others = machines
    for name in dict.fromkeys(name for _, found in machines for name in found):
        for machine, found in others:
            one, other = (known.get(name, "none") for known in (found, wanted))
            if one != other:
                yield f"{machine} has {name} {one:.80}, {first} {other:.80}"
                break


def facts(
    args: argparse.Namespace, cfg: Any, sources: Sequence[Source], weights: Sequence[Any]
) -> Iterator[tuple[str, str]]:
    """What has a part in the result, as it is on this machine, by names for a sentence."""
    yield from report.versions().items()
    for package in (Path(__file__).parents[1], Path(yolox_ops.__file__).parent):
        for path in sorted(package.rglob("*.py")):
            yield str(path.relative_to(package.parent)), hash_of(path)
    for name, value in vars(args).items():
        if name not in OWN:
            yield f"--{name.replace('_', '-')}", placeless(value)
    for name, text in sorted(os.environ.items()):
        if SWITCH.fullmatch(name) and text.lower() in ("on", "off", "default", "avx2", "avx512"):
            yield name, text
    for number, source in enumerate(sources):
        size = source.path.stat().st_size
        yield f"annotations {number + 1} ({source.part})", f"{hash_of(source.path)} of {size} bytes"
    for number, path in enumerate(weights):
        if isinstance(path, (str, Path)) and "://" not in str(path):
            # Where a checkpoint goes on, initial weights may be gone.
            yield f"weights {number + 1}", hash_of_weights(Path(path)) if Path(path).exists() else "none"
    for name, value in flat(cfg.to_dict()):
        if not PLACES.fullmatch(name):
            yield f"config {name}", placeless(value)


def flat(entries: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values inside dictionaries and lists, by their names with dots between."""
    if isinstance(entries, dict) and entries:
        pairs: Any = entries.items()
    elif isinstance(entries, (list, tuple)) and entries:
        pairs = enumerate(entries)
    else:
        yield name, entries
        return
    for key, value in pairs:
        yield from flat(value, f"{name}.{key}" if name else str(key))


def placeless(value: Any) -> str:
    """A value in words; of a path of this machine's, the file's name."""
    if isinstance(value, (str, Path)) and os.path.isabs(value):
        return f".../{Path(value).name}" if Path(value).suffix else "a folder"
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def hash_of(path: Path) -> str:
    """Short for what is in a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:12]


def hash_of_weights(path: Path) -> str:
    """Short for the tensors of a checkpoint. Files with the same ones may differ, as in the paths that they tell of."""
    digest = hashlib.sha256()
    for name, value in sorted(read_checkpoint(path)["state_dict"].items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
