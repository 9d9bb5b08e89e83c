"""Histories of logged values that stay on the device until somebody looks."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from torch import Tensor

from ..core.reading import read_together

MOST_WAITING = 10_000  # values


class Waiting:
    """Values of several histories, which are read from the device together."""

    def __init__(self) -> None:
        self._values: list[tuple[DeferredHistory, Tensor, int]] = []

    def add(self, history: DeferredHistory, value: Tensor, count: int) -> None:
        """Keeps a tensor of one element for a history."""
        self._values.append((history, value.detach(), count))
        if len(self._values) >= MOST_WAITING:
            self.read()

    def read(self) -> None:
        """Gives every history what it waits for."""
        values, self._values = self._values, []
        arrived: dict[DeferredHistory, list[tuple[float, int]]] = {}
        for (history, _, count), number in zip(values, read_together([v for _, v, _ in values]), strict=True):
            arrived.setdefault(history, []).append((number, count))
        for history, entries in arrived.items():
            history.extend(entries)


class DeferredHistory(HistoryBuffer):
    """mmengine's HistoryBuffer, whose `update` takes tensors as well. Copies and pickles are the stock class's."""

    def __init__(self, waiting: Waiting, begin: HistoryBuffer, max_length: int) -> None:
        """Goes on with what `begin` has, and keeps `max_length` values."""
        self._waiting = waiting
        self._values: np.ndarray[Any, Any]
        self._counts: np.ndarray[Any, Any]
        super().__init__(begin._log_history[-max_length:], begin._count_history[-max_length:], max_length)

    def update(self, log_val: int | float | Tensor, count: int = 1) -> None:
        """See the stock class; a tensor has one element, on any device."""
        if isinstance(log_val, Tensor):
            self._waiting.add(self, log_val, count)
        else:
            self._waiting.read()
            super().update(log_val, count)

    def extend(self, entries: list[tuple[float, int]]) -> None:
        """Appends values and their counts."""
        values, counts = zip(*entries, strict=True)
        self._values = np.append(self._values, values)[-self.max_length :]
        self._counts = np.append(self._counts, counts)[-self.max_length :]

    # Under these names the stock class, and statistics that users register, find the arrays.
    @property
    def _log_history(self) -> np.ndarray[Any, Any]:
        self._waiting.read()
        return self._values

    @_log_history.setter
    def _log_history(self, values: np.ndarray[Any, Any]) -> None:
        self._values = values

    @property
    def _count_history(self) -> np.ndarray[Any, Any]:
        self._waiting.read()
        return self._counts

    @_count_history.setter
    def _count_history(self, counts: np.ndarray[Any, Any]) -> None:
        self._counts = counts

    def __deepcopy__(self, memo: dict[int, Any]) -> HistoryBuffer:
        return HistoryBuffer(copy.copy(self._log_history), copy.copy(self._count_history), self.max_length)

    def __reduce__(self) -> tuple[Any, ...]:
        return HistoryBuffer, (self._log_history, self._count_history, self.max_length)
