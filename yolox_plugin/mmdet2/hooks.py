"""MMDetection's hooks of the standard YOLOX config, with their faults mended."""

from collections.abc import Sequence

from mmcv.parallel import is_module_wrapper
from mmcv.runner import HOOKS, BaseRunner, GradientCumulativeOptimizerHook, Hook
from mmcv.runner import CheckpointHook as StockCheckpointHook
from mmdet.core.hook import ExpMomentumEMAHook as StockEMAHook
from mmdet.core.hook import SyncNormHook as StockSyncNormHook
from mmdet.core.hook import YOLOXModeSwitchHook as StockModeSwitchHook

from yolox_ops import ema_update_

from ..core.flat import lay_together, merged
from ..core.mid_epoch import Stopped, Timing
from ..core.mixing import check_skip_type_keys, leave_out_steps
from ..core.schedule import is_closing
from .runner import EpochBasedRunner


class YOLOXModeSwitchHook(StockModeSwitchHook):
    """Turns mosaic and mixup off and L1 on for exactly the last `num_last_epochs` epochs, resumed or not. MMDetection
    asks for one epoch by `==`: it begins an epoch too early and never after a resume (open-mmlab/mmdetection#7284,
    #10116).

    Living workers hear of it through the data set (`MultiImageMixDataset`); none is restarted.
    """

    def __init__(
        self, num_last_epochs: int = 15, skip_type_keys: Sequence[str] = ("Mosaic", "RandomAffine", "MixUp")
    ) -> None:
        check_skip_type_keys(skip_type_keys)
        super().__init__(num_last_epochs, skip_type_keys)
        self._closed = False

    def before_train_epoch(self, runner: BaseRunner) -> None:
        """See the stock class."""
        if self._closed or not is_closing(runner.epoch, runner.max_epochs, self.num_last_epochs):
            return
        self._closed = True
        model = runner.model.module if is_module_wrapper(runner.model) else runner.model
        loader = runner.data_loader
        replace_workers = leave_out_steps(getattr(loader, "dataset", None), self.skip_type_keys)
        if replace_workers and getattr(loader, "persistent_workers", False):
            loader._iterator = None
        model.bbox_head.use_l1 = True
        runner.logger.info(f"last {runner.max_epochs - runner.epoch} epochs: no mosaic and mixup, L1 loss added")


class SyncNormHook(StockSyncNormHook):
    """Averages the norm layers' statistics over the ranks; every epoch during the last `num_last_epochs`."""

    def before_train_epoch(self, runner: BaseRunner) -> None:
        if is_closing(runner.epoch, runner.max_epochs, self.num_last_epochs):
            self.interval = 1


class ExpMomentumEMAHook(StockEMAHook):
    """The moving average of all weights in one operator call, and the raw weights back after a resume.

    MMDetection's hook registers its buffers when the checkpoint has been loaded already, so that the raw weights in it
    find no place and training goes on from the averages (open-mmlab/mmdetection#8654, #11202).
    """

    def before_run(self, runner: BaseRunner) -> None:
        """See the stock class. On an NPU, where weights lie side by side (`core.sgd`), so do statistics, averages."""
        lay_together([buffer for buffer in runner.model.buffers() if buffer.device.type == "npu"])
        super().before_run(runner)
        on_npu = {name: value for name, value in self.model_parameters.items() if value.device.type == "npu"}
        in_order = sorted(on_npu, key=lambda name: on_npu[name].data_ptr())
        lay_together([self.model_buffers[self.param_ema_buffer[name]] for name in in_order])
        resumed = (runner.resumed_state_dict if isinstance(runner, EpochBasedRunner) else None) or {}
        found = [name for name in self.param_ema_buffer.values() if name in resumed]
        if resumed and len(found) < len(self.param_ema_buffer):
            missing = len(self.param_ema_buffer) - len(found)
            runner.logger.warning(
                f"the checkpoint has no moving average of {missing} tensors: it starts from the weights themselves"
            )

    def after_train_iter(self, runner: BaseRunner) -> None:
        """See the stock class."""
        if (runner.iter + 1) % self.interval != 0:
            return
        averaged = [name for name, value in self.model_parameters.items() if value.dtype.is_floating_point]
        averages = [self.model_buffers[self.param_ema_buffer[name]] for name in averaged]
        values = [self.model_parameters[name] for name in averaged]
        if values[0].device.type == "npu":
            averages, values = merged(averages, values)
        ema_update_(averages, values, self.get_momentum(runner))


class CheckpointHook(StockCheckpointHook):
    """The stock class, which knows rank 0 alone. Here a checkpoint also holds in what the other ranks differ, and is
    written once more when its epoch has been evaluated; until then it says that this is due."""

    def _save_checkpoint(self, runner: BaseRunner) -> None:
        if not isinstance(runner, EpochBasedRunner):
            super()._save_checkpoint(runner)
            return
        runner.prepare_checkpoint(self)
        super()._save_checkpoint(runner)


@HOOKS.register_module()
class MidEpochCheckpointHook(Hook):
    """Writes mid_epoch.pth in the middle of epochs, always under that name, and ends the training with one where the
    process has been told to (`core.mid_epoch.hear`). A resume goes on behind it, bit by bit.

    For the plugin's EpochBasedRunner. Gradients that are being accumulated are in no checkpoint, so it waits for them.
    """

    def __init__(
        self, iterations: int | None = None, minutes: float | None = None, create_symlink: bool = True
    ) -> None:
        """Every so many iterations, minutes, or never but at such an end.

        Args:
            create_symlink: whether latest.pth points to it, as `checkpoint_config` may have it for the others.
        """
        self._timing = Timing(iterations, minutes)
        self._link = create_symlink

    def before_run(self, runner: BaseRunner) -> None:
        """Begins to count.

        Raises:
            TypeError: for another runner.
        """
        if not isinstance(runner, EpochBasedRunner):
            raise TypeError(f"MidEpochCheckpointHook is for the plugin's EpochBasedRunner, got {type(runner).__name__}")
        self._timing.start()

    def after_train_iter(self, runner: EpochBasedRunner) -> None:
        """See mmcv.

        Raises:
            Stopped: the training has been told to end.
        """
        counts = [h.cumulative_iters for h in runner.hooks if isinstance(h, GradientCumulativeOptimizerHook)]
        updated = self.is_last_iter(runner) or all((runner.iter + 1) % count == 0 for count in counts)
        due = self._timing.due(runner.iter + 1, updated)
        if due:
            runner.save_mid_epoch(self._link)
        if due > 1:
            raise Stopped(due)
