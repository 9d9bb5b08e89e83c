"""Reading checkpoints: which are damaged, which are whole but not safe to load."""

import contextlib
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# The first pickle in a file of torch.save that is not a zip archive (before torch 1.6).
_LEGACY_START = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)


class DamagedCheckpoint(ValueError):
    """The file is cut short, empty, or something else than a checkpoint."""


class UnsafeCheckpoint(ValueError):
    """The file is whole, but holds types that torch does not load without the user's word."""


def numpy_allowed() -> contextlib.AbstractContextManager[Any]:
    """Within it, `torch.load(weights_only=True)` takes numpy's numbers and arrays of them, which can run no code.

    mmcv's hooks put such into `meta` (a best score, for instance). torch before 2.5 neither needs nor has this.
    """
    if not hasattr(torch.serialization, "safe_globals"):
        return contextlib.nullcontext()
    scalar: Any = np.float64(0).__reduce__()[0]
    reconstruct: Any = np.zeros(0).__reduce__()[0]
    functions = [
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")  # of numpy 1 and of numpy 2
        for function, name in ((scalar, "scalar"), (reconstruct, "_reconstruct"))
    ]
    # Not objects, in which anything may hide.
    kinds = {type(np.dtype(code)) for code in "?bhilqpBHILQPefdgFDGSUMm"}
    return torch.serialization.safe_globals([np.dtype, np.ndarray, *kinds, *functions])


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU: "state_dict", and "meta" and "optimizer" if it has them.

    A state dict alone, as `torch.save(model.state_dict(), path)` writes it, comes as `{"state_dict": ...}`.

    Raises:
        DamagedCheckpoint, UnsafeCheckpoint: see there. FileNotFoundError and other OSErrors: as open does.
    """
    path = Path(path).expanduser()
    if not zipfile.is_zipfile(path) and not _is_whole_legacy(path):
        raise DamagedCheckpoint(f"{path} is no readable checkpoint: it is cut short or no file of torch.save")
    try:
        with numpy_allowed():
            content = torch.load(path, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpoint(
            f"{path} is whole, but torch does not load it without your word; if you trust whoever made it, set"
            f" TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1, or follow torch: {_one_line(error)}"
        ) from error
    except (RuntimeError, EOFError) as error:  # what torch.load says of archives and tensors that are cut short
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise DamagedCheckpoint(f"{path} is no readable checkpoint ({reason})") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        return content
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        return {"state_dict": content}
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


def _one_line(error: Exception) -> str:
    """torch's message without its colours and line breaks."""
    return " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())
