"""Lists that forked workers read without copying them."""

import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


class PackedList(Sequence[Any]):
    """A list pickled into one array. A forked worker that reads a list of objects writes their reference counts, and so
    gets a copy of every page of it (open-mmlab/mmdetection#6931); this it leaves alone."""

    def __init__(self, items: Iterable[Any]) -> None:
        packed = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = np.cumsum([len(item) for item in packed], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be in [{-len(self)}, {len(self)}), got {index}")
        index = index % len(self)
        begin = self._ends[index - 1] if index else 0
        return pickle.loads(memoryview(self._bytes)[begin : self._ends[index]])  # type: ignore[arg-type]
