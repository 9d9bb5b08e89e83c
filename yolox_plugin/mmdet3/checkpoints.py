"""mmengine's checkpoints, each whole or absent, and a damaged one never the end of a training."""

import bisect
import functools
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook as StockCheckpointHook
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, find_latest_checkpoint
from mmengine.runner.checkpoint import save_checkpoint as stock_save_checkpoint
from mmengine.runner.loops import EpochBasedTrainLoop as StockEpochBasedTrainLoop

from ..core import mid_epoch
from ..core.checkpoint import (
    EVALUATION_DUE,
    MID_EPOCH,
    is_newer,
    named,
    newest_checkpoint,
    numpy_globals,
    read_newest,
    write_whole,
)
from ..core.ranks import Parts


def allow_own_checkpoints() -> None:
    """Lets torch 2.6 and newer load what mmengine 0.10 itself has written: histories of logged values, and numpy's
    numbers."""
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([named(HistoryBuffer), (_statistic, "builtins.getattr"), *numpy_globals()])


def _statistic(owner: Any, name: str) -> Any:
    """In the place of `getattr`, by which a checkpoint names the statistics of a history; it gets nothing else."""
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(f"the checkpoint asks for attribute {name!r} of {owner!r}, which is not allowed")
    return getattr(HistoryBuffer, name)


def is_local(place: str, backend_args: dict[str, Any] | None = None) -> bool:
    """Whether a path is a file of this machine, and no store's that mmengine knows."""
    return type(get_file_backend(place, backend_args=backend_args)) is LocalBackend


@functools.wraps(stock_save_checkpoint)
def save_checkpoint(
    checkpoint: dict[str, Any],
    filename: str,
    file_client_args: dict[str, Any] | None = None,
    backend_args: dict[str, Any] | None = None,
) -> None:
    """See mmengine. A file is written whole or not at all; see `core.checkpoint.write_whole`."""
    if file_client_args is not None or not is_local(filename, backend_args):
        stock_save_checkpoint(checkpoint, filename, file_client_args, backend_args)
        return
    path = Path(filename)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path.parent, path.name, functools.partial(_write, checkpoint), link=False)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:  # torch's own, about a file whose end is at another place
        if isinstance(error.__context__, OSError):  # as of a full disk
            raise error.__context__ from None
        raise


def parts_of_ranks(runner: Runner) -> Parts:
    """What of a checkpoint may differ from rank to rank, as this one has it: statistics of norms, and their averages,
    where a checkpoint has them."""
    network = runner.model.module if is_model_wrapper(runner.model) else runner.model
    names = {name for name, _ in network.named_buffers()}
    content: dict[str, Any] = {"state_dict": network.state_dict()}
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            hook.before_save_checkpoint(runner, content)
    return {
        part: {name: value for name, value in tensors.items() if name.removeprefix("module.") in names}
        for part, tensors in content.items()
    }


def validation_follows(runner: Runner) -> bool:
    """Whether mmengine's loop is going to validate after the epoch that ends."""
    loop, epoch = runner.train_loop, runner.epoch + 1
    if runner.val_loop is None or not isinstance(loop, StockEpochBasedTrainLoop) or epoch < loop.val_begin:
        return False
    # The loop decides for this interval when hooks have been called for the end of an epoch.
    interval = loop.dynamic_intervals[bisect.bisect(loop.dynamic_milestones, epoch + 1) - 1]
    return bool(epoch % interval == 0 or epoch == loop.max_epochs)


class CheckpointHook(StockCheckpointHook):
    """The stock class, which removes old checkpoints before it writes the new one, and ends a resumed training at a
    checkpoint that is cut short. Here the new one is there before an old one goes, and the one before a damaged one is
    used, with an error in the log. The new one also holds in what the other ranks differ, of which stock knows nothing,
    and says until its epoch has been validated that this is due.
    """

    _due: tuple[int, dict[str, Any]] | None = None  # a checkpoint whose epoch is to be validated: its step and meta
    _is_due = False  # for the one that is written now

    def before_run(self, runner: Runner) -> None:
        """Chooses the checkpoint that a resumed run goes on from.

        Raises:
            ValueError: none can be read. UnsafeCheckpoint: see `core.checkpoint`.
        """
        if not runner._resume or runner._has_loaded:
            return
        latest = find_latest_checkpoint(runner.work_dir) if runner._load_from is None else runner._load_from
        if latest is not None and not is_local(str(latest)):
            return
        if runner._load_from is not None:
            named = Path(str(runner._load_from)).expanduser()
        elif latest is not None and Path(latest).is_file():
            named = Path(latest)
            newer = Path(runner.work_dir, MID_EPOCH)
            if newer.is_file() and is_newer(newer, named):
                named = newer
        elif (newest := newest_checkpoint(Path(runner.work_dir))) is not None:
            named = newest
        else:
            return
        path, _ = read_newest(named, runner.logger.error)
        runner._load_from = str(path)

    def before_train(self, runner: Runner) -> None:
        """See the stock class, which after a resume knows of no last checkpoint, and writes no other one at a best
        score before it has written one."""
        super().before_train(runner)
        if runner._resume:
            self.last_ckpt = runner.message_hub.runtime_info.get("last_ckpt")
        if getattr(runner.train_loop, "evaluation_due", False):
            self._due = runner.epoch, {"epoch": runner.epoch, "iter": runner.iter}

    def after_train_epoch(self, runner: Runner) -> None:
        """See the stock class."""
        self._is_due = validation_follows(runner)
        super().after_train_epoch(runner)
        self._is_due = False

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """See the stock class, which may write the checkpoint again, with a new best score."""
        super().after_val_epoch(runner, metrics)
        if self._due is not None:
            self._save_checkpoint_with_step(runner, *self._due)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """See the stock class, which removes the oldest first."""
        oldest = None
        if (
            self.max_keep_ckpts > 0
            and step not in self.keep_ckpt_ids
            and len(self.keep_ckpt_ids) == self.max_keep_ckpts
        ):
            oldest = self.keep_ckpt_ids.popleft()  # which the new checkpoint says is gone
        due = {EVALUATION_DUE: True} if self._is_due else {}
        self._due = (step, meta) if due else None
        super()._save_checkpoint_with_step(runner, step, {**meta, **due, **mid_epoch.of_ranks(parts_of_ranks(runner))})
        if oldest is not None and is_main_process():
            self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(oldest)))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """See the stock class, which removes the best before it writes the better, and be it that of another folder."""
        several = getattr(self, "best_ckpt_path_dict", None)
        before = dict(several) if several else {"": getattr(self, "best_ckpt_path", None)}
        for name in before:
            self._set_best(name, None)
        super()._save_best_checkpoint(runner, metrics)
        for name, path in before.items():
            better = several[name] if several else self.best_ckpt_path
            if better is None:
                self._set_best(name, path)
            elif path and path != better and is_main_process() and self._is_own(path):
                self._remove(path)
                runner.logger.info(f"The previous best checkpoint {path} is removed")

    def _set_best(self, name: str, path: str | None) -> None:
        if name:
            self.best_ckpt_path_dict[name] = path
        else:
            self.best_ckpt_path = path

    def _is_own(self, path: str) -> bool:
        own: str = self.file_backend.join_path(self.out_dir, os.path.basename(path))
        return path == own or (is_local(path) and os.path.realpath(path) == os.path.realpath(own))

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # deepspeed's
            self.file_backend.rmtree(path)
