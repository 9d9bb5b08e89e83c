"""Hooks of MMDetection 3 and mmengine of the standard YOLOX config, with their faults mended."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.engine.hooks import SyncNormHook as StockSyncNormHook
from mmdet.engine.hooks import YOLOXModeSwitchHook as StockModeSwitchHook
from mmengine.hooks import Hook
from mmengine.hooks import RuntimeInfoHook as StockRuntimeInfoHook
from mmengine.logging import HistoryBuffer
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..core.mid_epoch import Stopped, Timing
from ..core.mixing import check_skip_type_keys, leave_out_steps
from ..core.schedule import is_closing
from .checkpoints import validation_follows
from .history import DeferredHistory, Waiting
from .loop import EpochBasedTrainLoop

SHORTEST_HISTORY = 10_000  # values


class YOLOXModeSwitchHook(StockModeSwitchHook):
    """Turns mosaic and mixup off and L1 on for exactly the last `num_last_epochs` epochs. MMDetection begins an epoch
    too early (open-mmlab/mmdetection#7284).

    Living workers hear of it through the data set (`MultiImageMixDataset`); none is restarted.
    """

    def __init__(
        self, num_last_epochs: int = 15, skip_type_keys: Sequence[str] = ("Mosaic", "RandomAffine", "MixUp")
    ) -> None:
        check_skip_type_keys(skip_type_keys)
        super().__init__(num_last_epochs, skip_type_keys)
        self._restart_dataloader: bool
        self._has_switched: bool

    def before_train_epoch(self, runner: Runner) -> None:
        """See the stock class."""
        loader = runner.train_dataloader
        if self._restart_dataloader:
            loader._DataLoader__initialized, self._restart_dataloader = True, False
        if self._has_switched or not is_closing(runner.epoch, runner.max_epochs, self.num_last_epochs):
            return
        self._has_switched = True
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        replace_workers = leave_out_steps(loader.dataset, self.skip_type_keys)
        if replace_workers and getattr(loader, "persistent_workers", False):  # as stock does it
            loader._DataLoader__initialized, self._restart_dataloader = False, True
            loader._iterator = None
        getattr(model, "detector", model).bbox_head.use_l1 = True
        runner.logger.info(f"last {runner.max_epochs - runner.epoch} epochs: no mosaic and mixup, L1 loss added")


class SyncNormHook(StockSyncNormHook):
    """Averages the norm layers' statistics over the ranks before a validation, as stock does, and before the checkpoint
    of that epoch is written, which stock does not."""

    _epoch: int | None = None  # at whose end they were averaged

    def before_train(self, runner: Runner) -> None:
        """A checkpoint whose epoch is still to be validated has their averages."""
        if getattr(runner.train_loop, "evaluation_due", False):
            self._epoch = runner.epoch

    def after_train_epoch(self, runner: Runner) -> None:
        """Where mmengine's loop is going to validate."""
        if validation_follows(runner):
            super().before_val_epoch(runner)
            self._epoch = runner.epoch + 1

    def before_val_epoch(self, runner: Runner) -> None:
        """See the stock class."""
        if self._epoch != runner.epoch:
            super().before_val_epoch(runner)


class RuntimeInfoHook(StockRuntimeInfoHook):
    """The stock class, which reads every loss from the device in every iteration and keeps a million of each, in every
    checkpoint too. Here they are read when somebody looks, and as many are kept as the log can ask for: the longest
    window of the log processor, an epoch, and at least 10,000; all, if a window is "global" or left open.
    """

    def before_train(self, runner: Runner) -> None:
        """See the stock class."""
        super().before_train(runner)
        self._waiting = Waiting()
        self._length = self._history_length(runner)

    def _history_length(self, runner: Runner) -> int:
        processor = runner.log_processor
        windows = [processor.window_size, *(cfg.get("window_size", "global") for cfg in processor.custom_cfg)]
        stock: int = HistoryBuffer().max_length
        if "global" in windows:
            return stock
        numbers = [window for window in windows if isinstance(window, int)]
        return min(max(*numbers, len(runner.train_dataloader), SHORTEST_HISTORY), stock)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """See the stock class."""
        hub = runner.message_hub
        others = {}
        for name, value in (outputs or {}).items():
            if not isinstance(value, torch.Tensor) or value.numel() != 1:
                others[name] = value
                continue
            key = f"train/{name}"
            if not isinstance(hub.log_scalars.get(key), DeferredHistory):
                begin = hub.log_scalars.get(key, HistoryBuffer())
                hub.log_scalars[key] = DeferredHistory(self._waiting, begin, self._length)
                hub._set_resumed_keys(key, True)
            hub.log_scalars[key].update(value)
        super().after_train_iter(runner, batch_idx, data_batch, others)
        for history in hub.log_scalars.values():
            history.max_length = min(history.max_length, self._length)


@HOOKS.register_module()
class MidEpochCheckpointHook(Hook):
    """Writes mid_epoch.pth in the middle of epochs, always under that name, and ends the training with one where the
    process has been told to (`core.mid_epoch.hear`). A resume goes on behind it, bit by bit.

    For the plugin's EpochBasedTrainLoop. Gradients that are being accumulated are in no checkpoint, so it waits for
    them.
    """

    priority = "LOWEST"  # when every other hook is done with the iteration

    def __init__(self, iterations: int | None = None, minutes: float | None = None) -> None:
        """Every so many iterations, minutes, or never but at such an end."""
        self._timing = Timing(iterations, minutes)

    def before_train(self, runner: Runner) -> None:
        """Begins to count.

        Raises:
            TypeError: for another loop.
        """
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            kind = type(runner.train_loop).__name__
            raise TypeError(f"MidEpochCheckpointHook is for the plugin's EpochBasedTrainLoop, got {kind}")
        self._timing.start()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """See mmengine.

        Raises:
            Stopped: the training has been told to end.
        """
        updates = getattr(runner.optim_wrapper, "should_update", None)
        due = self._timing.due(runner.iter + 1, updates is None or updates())
        if due:
            runner.train_loop.save_mid_epoch(batch_idx)
        if due > 1:
            raise Stopped(due)
