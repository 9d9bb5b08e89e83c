"""mmengine's EpochBasedTrainLoop with a random state that a resumed run shares with the one that was stopped."""

import contextlib
from typing import Any

import torch.distributed as dist
from mmdet.datasets.samplers import ClassAwareSampler
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.runner.loops import EpochBasedTrainLoop as StockEpochBasedTrainLoop
from torch import nn

from ..core import mid_epoch
from ..core.checkpoint import EVALUATION_DUE, MID_EPOCH
from ..core.mixing import data_sets_in
from ..core.positions import Begun, Order, placed
from ..core.seeds import seed_everything
from ..protocol import Moment, TrainingPart
from .checkpoints import parts_of_ranks


class EpochBasedTrainLoop(StockEpochBasedTrainLoop):
    """Random state, image sizes and augmentations are functions of the seed and of where the training stands, so that a
    run that was killed and resumed ends as one that was not. The checkpoint's seed outlives that of the command line.
    """

    _iter: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._given_seed = self.runner.seed  # that the sampler was built with
        self._seed: int | None = None  # that all ranks have agreed on
        self._order: Order | None = None  # of this epoch
        self.begun: Begun | None = None  # the epoch in whose middle the checkpoint was written
        # A loop may be built while hooks are called, one of which has asked for it: they are gone through as they were.
        self.runner._hooks = list(self.runner._hooks)
        self.runner.register_hook(_OfRanksHook(self))
        self.runner.register_hook(_EvaluationHook(self))
        self.evaluation_due = False  # of the epoch at whose end the checkpoint was written

    def run(self) -> nn.Module:
        """See the stock class."""
        self._seed = self._agree_on_seed()
        model: nn.Module = super().run()
        return model

    def _agree_on_seed(self) -> int:
        """Rank 0's seed for all: the checkpoint's, the command line's, or the one that mmengine has drawn."""
        seeds = [self.runner.seed]
        if self.runner.world_size > 1:
            broadcast_object_list(seeds, src=0)
        seed: int = seeds[0]
        sampler: Any = getattr(self.dataloader, "sampler", None)
        # One with a seed of its own keeps that.
        if type(sampler) in (ClassAwareSampler, DefaultSampler, InfiniteSampler) and sampler.seed == self._given_seed:
            sampler.seed = self._given_seed = seed
        return seed

    def _parts(self) -> list[TrainingPart]:
        data_sets = data_sets_in(getattr(self.dataloader, "dataset", None))
        return [part for part in (*self.runner.model.modules(), *data_sets) if isinstance(part, TrainingPart)]

    def run_epoch(self) -> None:
        """See the stock class."""
        seed = self._agree_on_seed() if self._seed is None else self._seed
        rank = dist.get_rank() if self.runner.distributed else 0
        seed_everything(seed, self.epoch, rank, worker=0)
        begun, self.begun = self.begun, None
        iteration = self._iter
        self._iter -= 0 if begun is None else begun.batches
        self.runner.call_hook("before_train_epoch")  # where the epoch begins, whether it was begun before or not
        self._iter = iteration
        self.runner.model.train()
        with (
            placed(self.dataloader, rank, self.runner.world_size, begun, self.runner.logger.info) as self._order,
            contextlib.ExitStack() as ending,
        ):
            for part in self._parts():
                part.start_epoch(Moment(seed, self.epoch, self.iter, rank))
                ending.callback(part.end_epoch)
            for idx, data_batch in enumerate(self._order.batches(self.dataloader), start=self._order.first):
                self.run_iter(idx, data_batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def save_mid_epoch(self, batch_idx: int) -> None:
        """Writes a checkpoint after this iteration of the epoch, which has just been trained; called by all ranks."""
        assert self._order is not None
        of_ranks = mid_epoch.of_ranks(parts_of_ranks(self.runner), self._order, batch_idx + 1)
        meta = {"epoch": self.epoch, "iter": self.iter + 1, **of_ranks}
        self.runner.save_checkpoint(self.runner.work_dir, MID_EPOCH, meta=meta, by_epoch=False)


class _OfRanksHook(Hook):
    """Takes what a checkpoint holds for this rank, before anything else is taken out of it."""

    priority = "HIGHEST"

    def __init__(self, loop: EpochBasedTrainLoop) -> None:
        self._loop = loop

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """See mmengine."""
        if runner._resume:
            self._loop.evaluation_due = (checkpoint.get("meta") or {}).pop(EVALUATION_DUE, False) is True
            self._loop.begun = mid_epoch.take(checkpoint, runner.logger.info)


class _EvaluationHook(Hook):
    """Validates first the epoch that the training was stopped at the end of, if that has not been done."""

    priority = "LOWEST"

    def __init__(self, loop: EpochBasedTrainLoop) -> None:
        self._loop = loop

    def before_train(self, runner: Runner) -> None:
        """See mmengine."""
        due, self._loop.evaluation_due = self._loop.evaluation_due, False
        if due and runner.val_loop is not None:
            runner.val_loop.run()
