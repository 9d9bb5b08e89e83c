"""What is checked before a command writes to a folder: nothing of the user's is overwritten."""

import filecmp
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2

from ..core.checkpoint import newest_checkpoint
from .messages import InputError
from .options import MAX_NAME

# What a run writes under these names, besides checkpoints and logs.
WRITTEN = ("config.py", "result.json", "curves.png")
# The first line of config.py, by which a run's folder is told from one of the user's with a config.py of another kind.
MARK = "# Written by python -m yolox_plugin.train: the whole config of this training.\n"


def check_folder(option: str, folder: Path) -> None:
    """Raises InputError unless files can be written to `folder`, which need not be there yet."""
    longest = max(len(os.fsencode(part)) for part in folder.absolute().parts)
    if longest > MAX_NAME:
        raise InputError(f"{option} {folder!s:.80}... has a name of {longest} bytes, of {MAX_NAME} that there may be")
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"{option} {there} is not a folder")
    if not os.access(there, os.W_OK):
        raise InputError(f"{option} {folder}: {there} cannot be written to")


def has_run(work_dir: Path) -> bool:
    """Whether there are checkpoints or logs in `work_dir`."""
    files = ("best_*.pth", "*.log", "*.log.json", "*/*.log")  # mmengine's logs have a folder for each start
    return newest_checkpoint(work_dir) is not None or any(any(work_dir.glob(names)) for names in files)


def check_unmixed(work_dir: Path, resume: bool) -> None:
    """Raises InputError if `work_dir` has a run that is not to go on."""
    if has_run(work_dir) and not resume:
        raise InputError(f"--work-dir {work_dir} has a run already: --resume goes on with it, or name another")


def check_new(work_dir: Path, resume: bool) -> None:
    """Raises InputError if a run would overwrite, or mix with, something in `work_dir` that it does not go on with."""
    check_unmixed(work_dir, resume)
    if has_run(work_dir) and is_claimed(work_dir):
        return
    for name in WRITTEN:
        if os.path.lexists(work_dir / name):
            raise InputError(
                f"--work-dir {work_dir} has a {name} that would be overwritten, and is of no training by this command:"
                " name another, or move it"
            )


def is_claimed(work_dir: Path) -> bool:
    """Whether config.py in `work_dir` is a training's; an empty one is of a training that was killed as it began."""
    config = work_dir / "config.py"
    if not config.is_file():
        return False
    with config.open("rb") as file:
        return file.read(len(MARK)) in (b"", MARK.encode())


def write_new(work_dir: Path, files: dict[Path, Callable[[Path], object]]) -> None:
    """Writes files below `work_dir`, each by its function; one that is there and the same stays.

    Raises:
        InputError: another one is there; then none is written.
    """
    parts = {path: work_dir / f".{path.name}.{os.getpid()}.part" for path in files}
    try:
        for path, write in files.items():
            check_folder("--work-dir", path.parent)
            work_dir.mkdir(parents=True, exist_ok=True)
            write(parts[path])
            if os.path.lexists(path) and not (path.is_file() and filecmp.cmp(parts[path], path, shallow=False)):
                raise InputError(
                    f"{path} is there already, of another --val-fraction, --seed or --load-from: name"
                    " another --work-dir"
                )
        for path, part in parts.items():
            path.parent.mkdir(exist_ok=True)
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def check_replaceable(work_dir: Path, names: Iterable[str]) -> None:
    """Raises InputError if the result.json in `work_dir` is something else than that of an earlier evaluation, or if a
    file of one of these names is there that it does not name."""
    path = work_dir / "result.json"
    named: Any = None
    if os.path.lexists(path):
        try:
            found = json.loads(path.read_bytes())
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("task") != "test":
            raise InputError(f"--work-dir {work_dir} has a result.json that would be overwritten: name another")
        named = found.get("analysis")
    earlier = list(named.values()) if isinstance(named, dict) else []
    for name in names:
        if os.path.lexists(work_dir / name) and (name not in earlier or not (work_dir / name).is_file()):
            raise InputError(f"--work-dir {work_dir} has a {name} that would be overwritten: name another")


def check_pictures(save_dir: Path, annotations: Path) -> None:
    """Raises InputError unless the picture of every image in the annotation file would be a new file inside `save_dir`,
    and one that no other image has."""
    check_folder("--save-dir", save_dir)
    root = os.path.realpath(save_dir)
    taken: dict[str, str] = {}
    for image in json.loads(annotations.read_bytes())["images"]:
        name = image["file_name"]
        place = save_dir / name
        target = os.path.realpath(place)
        if Path(name).is_absolute() or not Path(target).is_relative_to(root):
            raise InputError(f"--save-dir {save_dir}: the picture of {name} would be outside of it, at {target}")
        if os.path.lexists(place):
            raise InputError(f"--save-dir {save_dir} has {name} already, which would be overwritten: name a new folder")
        if target in taken:
            raise InputError(f"--save-dir {save_dir}: {taken[target]} and {name} would be the same picture")
        if not cv2.haveImageWriter(name):
            raise InputError(f"--save-dir {save_dir}: OpenCV writes no files such as {name}")
        taken[target] = name
        check_folder("--save-dir", place.parent)
