"""A pickle module for `torch.load` that makes nothing but tensors, numbers and containers, for torch before 2.5: there
`weights_only=True` knows no numpy, and cannot be told."""

import functools
import pickle
from typing import Any

import torch._weights_only_unpickler


@functools.cache
def _allowed() -> dict[str, Any]:
    """By the names that a pickle has for them: torch's own list, and this plugin's."""
    from .checkpoint import further_globals

    found: dict[str, Any] = {**torch._weights_only_unpickler._get_allowed_globals(), "_codecs.encode": _encode}
    found |= {f"builtins.{kind.__name__}": kind for kind in (set, frozenset, bytearray, complex)}
    for thing, name in further_globals():
        found[name] = thing
    return found


def _encode(text: str, encoding: str) -> bytes:
    """How the protocol of torch.save writes bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the checkpoint asks for the encoding {encoding!r}, which is not allowed")
    return text.encode(encoding)


class Unpickler(pickle.Unpickler):
    """pickle's, for a list of names."""

    def find_class(self, module: str, name: str) -> Any:
        """See pickle. Raises UnpicklingError for a name that is not on the list."""
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"  # Python 2's name, as torch.save has it
        if full not in _allowed():
            raise pickle.UnpicklingError(f"the checkpoint asks for {full}, which is not allowed")
        return _allowed()[full]


def load(file: Any, **options: Any) -> Any:
    """As pickle.load."""
    return Unpickler(file, **options).load()
