"""What of a training's log is on the terminal: how far it is. All of it, and what libraries tell, is in its file."""

import contextlib
import functools
import importlib.util
import logging
import logging.handlers
import os
import re
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pycocotools.coco

SECONDS = 10  # between two lines of progress
# Warnings and errors of MMDetection's own that ask nothing of whoever reads them: its use of mmengine, a validation
# without a detection, and weights that do not fit, of which the command has told.
_NOISE = re.compile(
    r'"(FileClient|HardDiskBackend)" |.*The testing results of the whole dataset is empty'
    r"|Since `metrics` is an empty dict|The model and loaded state dict do not match exactly"
)
# How MMDetection's lines begin that are for who waits: progress, evaluations, where a training goes on or ends.
_TRAINED = re.compile(r"(Epoch|Iter)(\(train\))? +\[")
_OTHER = re.compile(r"(Epoch|Iter)\((val|test)\)|[Rr]esumed |stopped after |Load checkpoint ")
# Those whose warnings are about themselves, of which nobody can do anything on the terminal.
LIBRARIES = tuple(
    f"{folder}{os.sep}"
    for name in ("mmcv", "mmdet", "mmengine", "torch", "pycocotools")
    if (spec := importlib.util.find_spec(name)) is not None
    for folder in spec.submodule_search_locations or ()
)


class Progress(logging.Filter):
    """Lets through lines of progress, one every so many seconds, evaluations, warnings and errors."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = -float(SECONDS)

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging."""
        text = record.getMessage()
        if _NOISE.match(text):
            return False
        if record.levelno >= logging.WARNING or (_OTHER.match(text) and "eta:" not in text):
            return True
        if not _TRAINED.match(text) or time.monotonic() - self.shown < SECONDS:
            return False
        self.shown = time.monotonic()
        return True


def show_progress_alone(logger: logging.Logger) -> None:
    """Of what this logger writes to its files, the terminal gets what `Progress` lets through."""
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler) and isinstance(handler, logging.StreamHandler):
            for old in [old for old in handler.filters if isinstance(old, Progress)]:
                handler.removeFilter(old)
            handler.addFilter(Progress())


class Kept:
    """Keeps what libraries would tell the terminal until there is a log file, to which it then goes."""

    def __init__(self) -> None:
        self._records = logging.handlers.MemoryHandler(capacity=1, flushOnClose=False)

    def write_to(self, logger: logging.Logger) -> None:
        """From now on, and what has been kept, to the file of this logger, if it has one."""
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                self._records.setTarget(handler)
                self._records.flush()

    def warn(self, before: Any, message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        """In the place of `warnings.showwarning`, which was `before`."""
        if not filename.startswith(LIBRARIES):
            before(message, category, filename, lineno, *rest)
            return
        text = warnings.formatwarning(message, category, filename, lineno).rstrip()
        self._keep(category.__name__, logging.WARNING, text)

    def print(self, *words: object) -> None:
        """In the place of `print`."""
        self._keep("print", logging.INFO, " ".join(map(str, words)))

    def _keep(self, name: str, level: int, text: str) -> None:
        self._records.handle(logging.LogRecord(name, level, __file__, 0, text, None, None))


@contextlib.contextmanager
def libraries_kept() -> Iterator[Kept]:
    """Within it, warnings in the code of libraries, and what pycocotools prints of each file, go to a log file; other
    warnings to the terminal, as ever."""
    found, before = Kept(), warnings.showwarning
    warnings.showwarning = functools.partial(found.warn, before)
    vars(pycocotools.coco)["print"] = found.print
    try:
        yield found
    finally:
        warnings.showwarning = before
        del vars(pycocotools.coco)["print"]
