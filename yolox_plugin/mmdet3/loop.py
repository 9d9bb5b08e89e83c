"""mmengine's EpochBasedTrainLoop with a random state that a resumed run shares with the one that was stopped."""

from typing import Any

import torch.distributed as dist
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import broadcast_object_list
from mmengine.runner.loops import EpochBasedTrainLoop as StockEpochBasedTrainLoop
from torch import nn

from ..core.mixing import data_sets_in
from ..core.positions import placed
from ..core.seeds import seed_everything
from ..protocol import Moment, TrainingPart


class EpochBasedTrainLoop(StockEpochBasedTrainLoop):
    """Random state, image sizes and augmentations are functions of the seed and of where the training stands, so that a
    run that was killed and resumed ends as one that was not. The checkpoint's seed outlives that of the command line.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._given_seed = self.runner.seed  # that the sampler was built with
        self._seed: int | None = None  # that all ranks have agreed on

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
        if type(sampler) in (DefaultSampler, InfiniteSampler) and sampler.seed == self._given_seed:
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
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        parts = self._parts()
        for part in parts:
            part.start_epoch(Moment(seed, self.epoch, self.iter, rank))
        try:
            with placed(self.dataloader, rank, self.runner.world_size):
                for idx, data_batch in enumerate(self.dataloader):
                    self.run_iter(idx, data_batch)
        finally:
            for part in parts:
                part.end_epoch()
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
