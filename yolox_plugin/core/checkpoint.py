"""Checkpoint files: which are damaged, which are whole but not safe to load, which are the newest, and writing them so
that each is whole or absent."""

import contextlib
import importlib.util
import os
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import megvii, restricted_pickle

# The first pickle in a file of torch.save that is not a zip archive (before torch 1.6).
_LEGACY_START = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)


# What zipfile says of an archive with a false byte: of a checksum, a method or a mark for encryption, a name, an end.
ZIP_DAMAGE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, UnicodeDecodeError, EOFError, zlib.error)

DOS_FOLDER = 0x10  # among a record's external attributes

# What unpickling of false bytes may end with, as pickle's documentation has it, and torch's reading of tensors.
_DAMAGE = (RuntimeError, EOFError, AttributeError, LookupError, ValueError, TypeError, AssertionError, OverflowError,
           struct.error)  # fmt: skip

# Names of a run's checkpoints: of those at the ends of epochs, of the last in the middle of one, and of mmcv's link to
# the last of all. Those that begin with "best_" are other files, in which mmengine keeps weights alone.
_NUMBERED = re.compile(r"(?!best_)(?P<prefix>[^/]+_)?(?P<unit>epoch|iter)_(?P<number>\d+)\.pth")
MID_EPOCH = "mid_epoch.pth"
LATEST = "latest.pth"
# In the meta of one at the end of an epoch that is to be evaluated: it has not been yet.
EVALUATION_DUE = "evaluation_due"


class DamagedCheckpoint(ValueError):
    """The file is cut short, empty, or something else than a checkpoint."""


class UnsafeCheckpoint(ValueError):
    """The file is whole, but holds types that torch does not load without the user's word, or that are not here."""


def numpy_allowed() -> contextlib.AbstractContextManager[Any]:
    """Within it, `torch.load(weights_only=True)` takes numpy's numbers and arrays of them, which can run no code, and
    where mmengine is not installed, something in the place of its histories.

    mmcv's hooks put such into `meta` (a best score, for instance). torch before 2.5 neither needs nor has this.
    """
    if not hasattr(torch.serialization, "safe_globals"):
        return contextlib.nullcontext()
    there = torch.serialization.get_safe_globals()  # which the context would take away at its end
    wanted = further_globals() if importlib.util.find_spec("mmengine") is None else numpy_globals()
    return torch.serialization.safe_globals([kind for kind in wanted if kind not in there])


class _History:
    """Stands for mmengine's history of a logged value, of which MMDetection 3's checkpoints have some."""


def _statistic(owner: Any, name: str) -> None:
    """In the place of `getattr`, by which they name the statistics of a history."""
    if owner is not _History:
        raise pickle.UnpicklingError(f"the checkpoint asks for attribute {name!r} of {owner!r}, which is not allowed")


def named(kind: type) -> tuple[type, str]:
    """A class for torch's list of safe globals, as an entry of its own: torch's context removes at its end every entry
    that equals one of its own, and onedl-mmengine opens one with plain classes for each checkpoint that it loads."""
    return kind, f"{kind.__module__}.{kind.__qualname__}"


def further_globals() -> list[tuple[Any, str]]:
    """What a pickle names for numpy's numbers and mmengine's histories, which come as something else."""
    histories = [(_History, "mmengine.logging.history_buffer.HistoryBuffer"), (_statistic, "builtins.getattr")]
    return [*numpy_globals(), *histories]


def _without_code() -> dict[str, Any]:
    """Options of `torch.load` that run nothing out of a file, in every version of torch; unless the user has said that
    it may, in the way of torch 2.6."""
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0") in ("1", "y", "yes", "true"):
        return {"weights_only": False}
    if hasattr(torch.serialization, "safe_globals"):
        return {"weights_only": True}
    return {"weights_only": False, "pickle_module": restricted_pickle}


def numpy_globals() -> list[tuple[Any, str]]:
    """What a pickle names for numpy's numbers and arrays of them, as torch's lists of safe globals take it."""
    scalar: Any = np.float64(0).__reduce__()[0]
    reconstruct: Any = np.zeros(0).__reduce__()[0]
    functions = [
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")  # of numpy 1 and of numpy 2
        for function, name in ((scalar, "scalar"), (reconstruct, "_reconstruct"))
    ]
    # Not objects, in which anything may hide.
    kinds: set[type] = {type(np.dtype(code)) for code in "?bhilqpBHILQPefdgFDGSUMm"}
    return [*map(named, kinds | {np.dtype, np.ndarray}), *functions]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU: "state_dict", and "meta" and "optimizer" if it has them.

    A state dict alone, as `torch.save(model.state_dict(), path)` writes it, comes as `{"state_dict": ...}`, and one of
    Megvii's YOLOX under MMDetection's names.

    Raises:
        DamagedCheckpoint, UnsafeCheckpoint: see there. FileNotFoundError and other OSErrors: as open does.
    """
    path = Path(path).expanduser()
    if not _is_whole_archive(path) and not _is_whole_legacy(path):
        raise DamagedCheckpoint(f"{path} is no readable checkpoint: it is cut short or no file of torch.save")
    try:
        with numpy_allowed():
            content = torch.load(path, map_location="cpu", **_without_code())
    except (pickle.UnpicklingError, ModuleNotFoundError) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else _absent_host(error)
        if absent is not None:
            raise UnsafeCheckpoint(
                f"{path} holds objects of {absent}, which is not installed here; where it is, save the weights alone:"
                ' torch.save({"state_dict": torch.load(path, weights_only=False)["state_dict"]}, new_path)'
            ) from error
        raise UnsafeCheckpoint(
            f"{path} is whole, but torch does not load it without your word; if you trust whoever made it, set"
            f" TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1, or follow torch: {_one_line(error)}"
        ) from error
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise DamagedCheckpoint(f"{path} is no readable checkpoint ({reason})") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        return content
    if isinstance(content, dict) and isinstance(content.get("model"), dict):  # as Megvii's trainer saves it
        content = content["model"]
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        return {"state_dict": megvii.renamed(content) if megvii.is_megvii(content) else content}
    raise DamagedCheckpoint(
        f"{path} is no readable checkpoint: expected a state dict in it, got {type(content).__name__} without one"
    )


def _is_whole_legacy(path: Path) -> bool:
    """Whether this is a file of torch before 1.6 whose five pickles are there to their ends; none is executed."""
    with path.open("rb") as file:
        if file.read(len(_LEGACY_START)) != _LEGACY_START:
            return False
        try:
            for _ in range(4):
                for _ in pickletools.genops(file):
                    pass
        except ValueError:
            return False
    return True


def _is_whole_archive(path: Path) -> bool:
    """Whether this is a file of torch since 1.6, with its end. torch itself reads it whatever its checksums say.

    Raises:
        DamagedCheckpoint: a record is not as it was written. Of files without checksums, as after
            `torch.serialization.set_crc32_options(False)`, nobody knows.
    """
    try:
        archive = zipfile.ZipFile(path)
    except ZIP_DAMAGE:
        return False
    with archive:
        records = [record for record in archive.infolist() if record.file_size]
        bad = [record.filename for record in records if not _is_whole_record(archive, record)]
    if 0 < len(bad) < len(records):
        raise DamagedCheckpoint(f"{path} is no readable checkpoint: {bad[0]!r} in it differs from its checksum")
    return True


def _is_whole_record(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    # To torch, one that is marked as a folder is empty.
    if record.header_offset < 0 or record.external_attr & DOS_FOLDER:
        return False
    try:
        with archive.open(record) as file:
            while file.read(2**20):
                pass
    except ZIP_DAMAGE:
        return False
    return True


def _absent_host(error: Exception) -> str | None:
    """mmengine, if torch refuses one of its classes, as of MMDetection 3's checkpoints, where it is not installed."""
    return "mmengine" if "mmengine." in str(error) and importlib.util.find_spec("mmengine") is None else None


def _one_line(error: Exception) -> str:
    """torch's message without its colours and line breaks."""
    return " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())


def is_numbered(name: str, number: int) -> bool:
    """Whether a checkpoint of this name is found again, as the one with this number."""
    match = _NUMBERED.fullmatch(name)
    return match is not None and int(match["number"]) == number


def newest_checkpoint(work_dir: Path) -> Path | None:
    """The one that training goes on from: latest.pth, or that of the highest epoch or iteration; or that in the middle
    of an epoch, if it is newer.

    Other .pth files are none of a run's. MMDetection's `find_latest_checkpoint` takes any for one, and fails for those
    that end in no number.
    """
    latest, mid_epoch = work_dir / LATEST, work_dir / MID_EPOCH
    whole = latest if latest.exists() else _highest(work_dir)
    if mid_epoch.is_file() and (whole is None or is_newer(mid_epoch, whole)):
        return mid_epoch
    return whole


def _highest(work_dir: Path) -> Path | None:
    """That of the highest epoch or iteration; of the highest of both, what the files hold tells which it is."""
    units: dict[str, list[tuple[int, Path]]] = {}
    for path in work_dir.glob("*.pth"):
        if match := _NUMBERED.fullmatch(path.name):
            units.setdefault(match["unit"], []).append((int(match["number"]), path))
    known: list[tuple[tuple[int, ...], Path]] = []
    for numbered in units.values() if len(units) > 1 else ():
        for _, path in sorted(numbered, reverse=True):
            if done := _done(path):  # a damaged one cannot be compared
                known.append((done, path))
                break
    if known:
        return max(known)[1]
    return max((max(numbered) for numbered in units.values()), default=(0, None))[1]


def is_newer(mid_epoch: Path, whole: Path) -> bool:
    """Whether a checkpoint in the middle of an epoch comes after one at the end of an epoch; of a damaged one its time
    tells, so that it is reported, but only until there is another one."""
    epochs = epochs_of(mid_epoch)
    if epochs == float("inf"):
        return mid_epoch.stat().st_mtime_ns > whole.stat().st_mtime_ns
    match = _NUMBERED.fullmatch(whole.resolve().name)
    if match and match["unit"] == "iter":
        return int(match["number"]) < _done(mid_epoch)[1]
    return epochs_of(whole) < epochs


def epochs_of(checkpoint: Path) -> float:
    """How many epochs a checkpoint has behind it, as its name says, or of one without a number what it holds: in the
    middle of an epoch, half of one more. Infinitely many where nobody knows, as of a damaged one, which is then tried
    and reported."""
    real = checkpoint.resolve()
    match = _NUMBERED.fullmatch(real.name)
    if match:
        return float(match["number"])
    done = _done(real)
    return done[0] + 0.5 * (real.name == MID_EPOCH) if done else float("inf")


def _done(checkpoint: Path) -> tuple[int, ...]:
    """How many epochs and iterations a checkpoint has behind it, as it holds; nothing where that cannot be read."""
    try:
        meta = _meta(checkpoint)
        return int(meta["epoch"]), int(meta["iter"])
    except (OSError, pickle.UnpicklingError, ModuleNotFoundError, *_DAMAGE):
        return ()


def _meta(checkpoint: Path) -> dict[str, Any]:
    """That of one written here, without reading its tensors; so nobody knows whether they are as they were written."""
    with numpy_allowed():
        content: dict[str, Any] = torch.load(str(checkpoint), map_location="cpu", mmap=True, **_without_code())
    return content["meta"]  # type: ignore[no-any-return]


def read_newest(checkpoint: Path, tell: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """This checkpoint and what it holds; if it is damaged, that of the epoch before it in its folder, and so on.

    Args:
        tell: is given a sentence about each that is damaged.

    Raises:
        ValueError: none can be read. UnsafeCheckpoint: see there.
    """
    problems: list[str] = []
    path: Path | None = checkpoint
    others: Iterator[Path] = iter(())
    while path is not None:
        try:
            return path, read_checkpoint(path)
        except DamagedCheckpoint as error:
            others = others if problems else iter(_earlier(checkpoint))
            problems.append(str(error))
            tell(problems[-1])
        path = next(others, None)
    raise ValueError(
        "; ".join(problems) + ". There is none before it in that folder: move it away, or resume from another file"
    )


def _earlier(checkpoint: Path) -> list[Path]:
    """The checkpoints beside this one with fewer epochs behind them, newest first; of a latest.pth that is no link all
    of them, as it is a copy of whichever."""
    real = checkpoint.resolve()
    match = _NUMBERED.fullmatch(real.name)
    if real.name == LATEST:
        paths = real.parent.glob("*.pth")
        others = (path for path in paths if path.name == MID_EPOCH or _NUMBERED.fullmatch(path.name))
        return sorted(others, key=lambda path: (_done(path), epochs_of(path)), reverse=True)
    if match is None and real.name != MID_EPOCH:
        return []
    kind = match.group("prefix", "unit") if match else (None, "epoch")

    def is_of_kind(name: str) -> bool:
        other = _NUMBERED.fullmatch(name)
        return other.group("prefix", "unit") == kind if other else name == MID_EPOCH and kind[1] == "epoch"

    found = [(epochs_of(path), path) for path in real.parent.glob("*.pth") if is_of_kind(path.name)]
    return [path for epochs, path in sorted(found, reverse=True) if path != real and epochs < epochs_of(real)]


def write_whole(folder: Path, name: str, write: Callable[[Path], None], link: bool) -> None:
    """Writes beside the final name and renames: whoever is killed or runs out of disk leaves the last one whole.

    Args:
        write: writes the file that it is given, `folder / f"{name}.part"`.
        link: whether latest.pth in that folder points to it then.

    Raises:
        OSError: naming the reason and the checkpoint that is still there; nothing unfinished is left.
    """
    final, part = folder / name, folder / f"{name}.part"
    latest, new_link = folder / LATEST, folder / f".{LATEST}.part"
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(final)
        if link:
            new_link.unlink(missing_ok=True)
            new_link.symlink_to(name)
            new_link.replace(latest)
    except BaseException as error:
        for unfinished in (part, new_link):
            with contextlib.suppress(OSError):  # that of the attempt itself is the one to tell
                unfinished.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        kept = f"{latest.resolve()} is still there" if latest.exists() else "there is none before it"
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(error.errno, f"cannot write the checkpoint: {reason}; {kept}", str(final)) from error
