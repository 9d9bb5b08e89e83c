"""What MMDetection 2.28 writes down while it trains."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmcv.utils import get_logger
from mmcv.utils import logging as mmcv_logging

from ..report import parse_log
from ..terminal import show_progress_alone


def read_log(work_dir: Path, by_epoch: bool = True) -> list[dict[str, Any]]:
    """The lines of all MMDetection's JSON logs in `work_dir`, in the order of training.

    Of what a resumed run trained again, its own line counts. The first training line of each log is marked as
    `warm_up`: workers start, memory is allocated. The `iter` of an evaluation is that of the training before it. Each
    line is `at` so many epochs, or iterations if the runner has no epochs.
    """
    lines = {}
    for path in sorted(work_dir.glob("*.log.json")):
        warm_up, trained = True, 0
        for line in parse_log(path):
            if line.get("mode") == "train":
                line["warm_up"], warm_up, trained = warm_up, False, line["iter"]
            if "mode" in line:
                line["iter"] = trained  # not the number of its batches
                lines[line["epoch"], trained, line["mode"] == "val"] = line
    log = [lines[key] for key in sorted(lines)]
    per_epoch = max((line["iter"] for line in log), default=1)
    for line in log:
        line["at"] = line["epoch"] - 1 + line["iter"] / per_epoch if by_epoch else line["iter"]
    return log


@contextlib.contextmanager
def initialization_logged(logger: logging.Logger) -> Iterator[None]:
    """Within it, what mmcv writes of the initialization, some lines a parameter, goes to the files of `logger`."""
    other = get_logger(next(iter(mmcv_logging.logger_initialized), "mmcv"))  # the one that mmcv takes
    files = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
    added = [handler for handler in files if handler not in other.handlers]
    if other is not logger:
        show_progress_alone(other)
    for handler in added:
        other.addHandler(handler)
    try:
        yield
    finally:
        for handler in added:
            other.removeHandler(handler)


def seed_of(log: Path) -> int | None:
    """The seed that a training really had, a resumed one its checkpoint's: mmcv writes `meta` first into the log."""
    return next((line["seed"] for line in parse_log(log) if "seed" in line), None)
