"""mmcv's EpochBasedRunner with exact resume, checkpoints that are whole or absent, and few reads from the device."""

import contextlib
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmcv.parallel import is_module_wrapper
from mmcv.runner import (
    BaseRunner,
    CheckpointHook,
    CheckpointLoader,
    EvalHook,
    Fp16OptimizerHook,
    Hook,
    LogBuffer,
    OptimizerHook,
    load_state_dict,
)
from mmcv.runner import EpochBasedRunner as StockRunner
from mmcv.runner import save_checkpoint as write_checkpoint
from mmdet.datasets.samplers import ClassAwareSampler, DistributedGroupSampler, DistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader

from ..core import mid_epoch
from ..core.checkpoint import EVALUATION_DUE, MID_EPOCH, numpy_allowed, read_newest, write_whole
from ..core.mixing import data_sets_in
from ..core.positions import Begun, Order, placed
from ..core.ranks import Parts
from ..core.reading import read_together
from ..core.seeds import seed_everything
from ..core.sgd import SGD
from ..patches import has_own
from ..protocol import Moment, TrainingPart
from .detector import YOLOX
from .scaling import DeferredFp16OptimizerHook


class DeferredLogBuffer(LogBuffer):
    """Keeps values on the device until an average is asked for, then reads all of them at once.

    A value is a number or a tensor with one, of shape [] or [1].
    """

    def average(self, n: int = 0) -> None:
        """See the stock class."""
        waiting = [
            (values, i)
            for values in self.val_history.values()
            for i in range(len(values))[-n:]
            if isinstance(values[i], Tensor) and values[i].numel() == 1
        ]
        numbers = read_together([values[i] for values, i in waiting])
        for (values, i), number in zip(waiting, numbers, strict=True):
            values[i] = number
        super().average(n)


def _save_best(hook: EvalHook, runner: BaseRunner, key_score: float) -> None:
    """In the place of `EvalHook._save_ckpt`, which removes the best before it writes the better."""
    before, hook.best_ckpt_path = hook.best_ckpt_path, None
    EvalHook._save_ckpt(hook, runner, key_score)
    if hook.best_ckpt_path is None:
        hook.best_ckpt_path = before
    # A folder may have two names, as by a link.
    elif before and Path(before).resolve() != Path(hook.best_ckpt_path).resolve() and hook.file_client.isfile(before):
        hook.file_client.remove(before)
        runner.logger.info(f"The previous best checkpoint {before} was removed")


class EpochBasedRunner(StockRunner):
    """Random state, image sizes and augmentations are functions of the seed and of where the training stands, so that a
    run that was killed and resumed ends as one that was not. The checkpoint's seed outlives that of the command line:
    `meta["seed"]`, in the very dictionary that the runner was given, is the one in use.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.meta: dict[str, Any] | None
        self._iter: int
        self.log_buffer = DeferredLogBuffer()
        self.resumed_state_dict: dict[str, Any] | None = None
        self._seed: int | None = None  # that all ranks have agreed on
        self._given_seed: int | None = None  # that samplers may have been built with
        self._resumed = False  # and the iteration not yet found
        self._begun: Begun | None = None  # the epoch in whose middle the checkpoint was written
        self._order: Order | None = None  # of this epoch
        self._evaluation_due = False  # of the epoch at whose end the checkpoint was written
        self._of_ranks: dict[str, Any] = {}  # for the next checkpoint
        self._saved: list[CheckpointHook] = []  # have written a checkpoint of this epoch

    @property
    def _network(self) -> Any:
        return self.model.module if is_module_wrapper(self.model) else self.model

    def run(
        self, data_loaders: list[DataLoader[Any]], workflow: list[tuple[str, int]], max_epochs: int | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """See the stock class."""
        self._agree_on_seed()
        trained = [loader for loader, (mode, _) in zip(data_loaders, workflow, strict=False) if mode == "train"]
        if trained:
            self.data_loader = trained[0]
            self._find_iteration(trained[0])
        self._evaluation_due = self._evaluation_due and bool(trained)
        super().run(data_loaders, workflow, max_epochs, **kwargs)

    def _agree_on_seed(self) -> int:
        """Rank 0's seed for all: the checkpoint's, the command line's, or a new one."""
        meta = self._started_meta()
        if self._given_seed is None:
            self._given_seed = meta.get("seed")
        seeds = [torch.initial_seed() % 2**32 if meta.get("seed") is None else meta["seed"]]
        if self.world_size > 1:
            dist.broadcast_object_list(seeds, src=0)
        seed: int = seeds[0]
        self._seed = meta["seed"] = seed
        return seed

    def _started_meta(self) -> dict[str, Any]:
        if self.meta is None:
            self.meta = {}
        self.meta.setdefault("hook_msgs", {})
        return self.meta

    def _find_iteration(self, data_loader: DataLoader[Any]) -> None:
        """After a resume: so many epochs of so many iterations. Another number of devices, or another batch size, makes
        others of them than there were before."""
        if not self._resumed:
            return
        self._resumed = False
        iteration = self._epoch * len(data_loader) + (0 if self._begun is None else self._begun.batches)
        if iteration != self._iter:
            self.logger.info(
                f"iteration {self._iter} of the checkpoint is {iteration} here: {self._epoch} epochs of"
                f" {len(data_loader)} iterations"
            )
            self._iter = iteration

    def train(self, data_loader: DataLoader[Any], **kwargs: Any) -> None:
        """An epoch, as in the stock class but for its two seconds of sleep."""
        self._take_back()
        self.model.train()
        self.mode = "train"
        self.data_loader = data_loader
        self._max_iters = self._max_epochs * len(data_loader)
        self._find_iteration(data_loader)
        seed = self._agree_on_seed() if self._seed is None else self._seed
        seed_everything(seed, self.epoch, self.rank, worker=0)
        begun, self._begun = self._begun, None
        if begun is not None:
            self._iter = self.epoch * len(data_loader)
        self.call_hook("before_train_epoch")  # where the epoch begins, whether it was begun before or not
        self.model.train()  # a hook may have evaluated it
        network = self._network
        self._seed_sampler(data_loader, seed)
        parts = [
            part
            for part in (network, *data_sets_in(getattr(data_loader, "dataset", None)))
            if isinstance(part, TrainingPart)
        ]
        with (
            placed(data_loader, self.rank, self.world_size, begun, self.logger.info) as self._order,
            contextlib.ExitStack() as ending,
        ):
            if begun is not None:
                self._iter = self.epoch * len(data_loader) + self._order.first
            # A subclass may want to see images converted.
            moment = Moment(seed, self.epoch, self.iter, self.rank, takes_uint8=type(network) is YOLOX)
            for part in parts:
                part.start_epoch(moment)
                ending.callback(part.end_epoch)
            for i, data_batch in enumerate(self._order.batches(data_loader), start=self._order.first):
                self.data_batch = data_batch
                self._inner_iter = i
                self.call_hook("before_train_iter")
                self.run_iter(data_batch, train_mode=True, **kwargs)
                self.call_hook("after_train_iter")
                del self.data_batch
                self._iter += 1
        self.call_hook("after_train_epoch")
        self._save_again()
        self._epoch += 1

    def _save_again(self) -> None:
        """The checkpoints of this epoch, if it was evaluated since: with the best score, without which a resumed run
        would take a worse one for the best, and with the statistics of norms that all ranks have now."""
        if self._is_evaluated(self.hooks):
            for hook in self._saved:  # in their order, for the sake of latest.pth
                hook._save_checkpoint(self)
        self._saved = []

    def _is_evaluated(self, hooks: list[Hook]) -> bool:
        return any(isinstance(hook, EvalHook) and hook.by_epoch and hook._should_evaluate(self) for hook in hooks)

    def call_hook(self, fn_name: str) -> None:
        """See the stock class."""
        super().call_hook(fn_name)
        if fn_name == "before_run":
            self._keep_best()
            if self._evaluation_due:
                self._evaluation_due = False
                self._end_epoch()

    def _keep_best(self) -> None:
        """Lets hooks replace a best checkpoint only when the better one is there, and none of another folder, as after
        a resume from there."""
        for hook in self.hooks:
            if not isinstance(hook, EvalHook):
                continue
            is_stock = getattr(hook._save_ckpt, "__func__", None) is EvalHook._save_ckpt
            if is_stock and not has_own(EvalHook, ["_save_ckpt"]):
                hook._save_ckpt = partial(_save_best, hook)
            best = getattr(hook, "best_ckpt_path", None)
            if best and Path(best).resolve().parent != Path(hook.out_dir or self.work_dir).resolve():
                hook.best_ckpt_path = None  # its score stays in the meta

    def _end_epoch(self) -> None:
        """What follows the checkpoint of an epoch, if the training was stopped before it was done."""
        self._take_back()
        self.mode, self._inner_iter = "train", len(self.data_loader) - 1
        self._epoch -= 1
        for hook in self.hooks:
            if hasattr(hook, "_decide_interval"):  # of evaluations, which it does at the beginning of an epoch
                hook._decide_interval(self)
        first = next((i for i, hook in enumerate(self.hooks) if self._is_evaluated([hook])), len(self.hooks))
        before = [hook for hook in self.hooks[:first] if isinstance(hook, CheckpointHook) and hook.by_epoch]
        saved = [h for h in before if h.every_n_epochs(self, h.interval) or (h.save_last and h.is_last_epoch(self))]
        self._saved = saved or before[-1:]  # what was the last epoch may be none any more
        if self._saved:
            first = self.hooks.index(self._saved[-1]) + 1
        for hook in self.hooks[first:]:
            hook.after_train_epoch(self)
        self._save_again()
        self._epoch += 1

    def _take_back(self) -> None:
        """After a resume: what hooks begin with, once.

        The buffers of hooks with moving averages are registered when the checkpoint has been loaded, so that the raw
        weights in it find no place otherwise; and mmcv's EvalHook would evaluate once more before the first epoch.
        """
        resumed, self.resumed_state_dict = self.resumed_state_dict, None
        if resumed is None:
            return
        for hook in self.hooks:
            for name in getattr(hook, "param_ema_buffer", {}).values():
                if name in resumed:
                    hook.model_buffers[name].copy_(resumed[name])
            if hasattr(hook, "initial_flag"):
                hook.initial_flag = False

    def _seed_sampler(self, data_loader: DataLoader[Any], seed: int) -> None:
        sampler: Any = getattr(data_loader, "sampler", None)
        # MMDetection built it with the command's seed; one with a seed of its own keeps that.
        of_mmdet = type(sampler) in (ClassAwareSampler, DistributedGroupSampler, DistributedSampler)
        if of_mmdet and sampler.seed == self._given_seed:
            sampler.seed = seed

    def register_optimizer_hook(self, optimizer_config: Any) -> None:
        """The detector's `autocast` decides, if it is given: float16 comes with mmcv's own loss scaler, whose state
        checkpoints carry, the others without.

        Raises:
            ValueError: for a hook that is neither mmcv's OptimizerHook nor a loss scaler itself.
        """
        hook = optimizer_config
        autocast = getattr(self._network, "autocast", None)
        if autocast in ("float32", "bfloat16") and type(hook) is Fp16OptimizerHook:  # MMDetection's default on an NPU
            hook = OptimizerHook(grad_clip=hook.grad_clip)
        if autocast == "float16" and not isinstance(hook, Fp16OptimizerHook):
            if type(hook) is OptimizerHook:
                grad_clip = hook.grad_clip
            elif isinstance(hook, dict) and hook.get("type", "OptimizerHook") == "OptimizerHook":
                grad_clip = hook.get("grad_clip")
            else:
                kind = hook["type"] if isinstance(hook, dict) else type(hook).__name__
                raise ValueError(f"autocast='float16' goes with OptimizerHook or Fp16OptimizerHook, got {kind}")
            hook = Fp16OptimizerHook(grad_clip=grad_clip, loss_scale="dynamic", distributed=self.world_size > 1)
        on_npu = any(parameter.device.type == "npu" for parameter in self.model.parameters())
        # torch_npu's own optimizers keep gradients where its scaler alone finds them.
        if on_npu and isinstance(self.optimizer, SGD) and DeferredFp16OptimizerHook.serves(hook):
            hook = DeferredFp16OptimizerHook(hook)
        super().register_optimizer_hook(hook)

    def save_checkpoint(
        self,
        out_dir: str | Path,
        filename_tmpl: str = "epoch_{}.pth",
        save_optimizer: bool = True,
        meta: dict[str, Any] | None = None,
        create_symlink: bool = True,
    ) -> None:
        """Writes it whole or not at all; see `core.checkpoint.write_whole`."""
        self._save_scale()
        of_ranks, self._of_ranks = self._of_ranks, {}
        if of_ranks:
            meta = {**(meta or {}), **of_ranks}
        out_dir = str(out_dir)
        if "://" in out_dir:  # a store of its own kind, which has no names to change
            super().save_checkpoint(out_dir, filename_tmpl, save_optimizer, meta, create_symlink)
            return
        write_whole(
            Path(out_dir),
            filename_tmpl.format(self.epoch + 1),
            lambda _: super(EpochBasedRunner, self).save_checkpoint(
                out_dir, f"{filename_tmpl}.part", save_optimizer, meta, create_symlink=False
            ),
            link=create_symlink,
        )

    def _save_scale(self) -> None:
        for hook in self.hooks:
            if isinstance(hook, DeferredFp16OptimizerHook):
                hook.save_state(self._started_meta())

    def prepare_checkpoint(self, hook: CheckpointHook) -> None:
        """Called by all ranks before this hook saves a checkpoint on rank 0: lets it hold in what the others differ;
        and if this is at the end of an epoch, that its evaluation is still due."""
        self._of_ranks = mid_epoch.of_ranks(self._parts_of_ranks())
        if hook.by_epoch and hook not in self._saved:
            self._saved.append(hook)
            place = self.hooks.index(hook) if hook in self.hooks else 0  # another hook may have one of its own
            if self._is_evaluated(self.hooks[place:]):
                self._of_ranks[EVALUATION_DUE] = True

    def _parts_of_ranks(self) -> Parts:
        """What of a checkpoint may differ from rank to rank: statistics of norms, and their averages."""
        network = self._network
        same = {name for name, _ in network.named_parameters()}
        averages = [getattr(hook, "param_ema_buffer", {}) for hook in self.hooks]
        same = {buffer for of_hook in averages for name, buffer in of_hook.items() if name in same}
        return {"state_dict": {name: value for name, value in network.named_buffers() if name not in same}}

    def save_mid_epoch(self, link: bool) -> None:
        """Writes a checkpoint after the iteration that has just been trained; called by all ranks.

        Args:
            link: whether latest.pth points to it then.
        """
        assert self._order is not None
        averages = [hook for hook in self.hooks if hasattr(hook, "_swap_ema_parameters")]
        for hook in averages:  # as they are at the end of an epoch, and are put back at the beginning of one
            hook._swap_ema_parameters()
        of_ranks = mid_epoch.of_ranks(self._parts_of_ranks(), self._order, self.inner_iter + 1)
        if self.rank == 0:
            self._save_scale()
            meta = {**self._started_meta(), **of_ranks, "epoch": self.epoch, "iter": self.iter + 1}
            write_whole(
                Path(self.work_dir),
                MID_EPOCH,
                lambda part: write_checkpoint(self.model, str(part), optimizer=self.optimizer, meta=meta),
                link=link,
            )
        for hook in averages:
            hook._swap_ema_parameters()

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> Any:
        """As the stock class, and with numpy's numbers in it, too."""
        with numpy_allowed():
            return super().load_checkpoint(filename, *args, **kwargs)

    def resume(
        self,
        checkpoint: str | Path,
        resume_optimizer: bool = True,
        map_location: str | Callable[..., Any] = "default",
    ) -> None:
        """As the stock class, except that a damaged checkpoint is reported and the one before it used, and that `meta`
        keeps this run's own config: mmcv divides the iteration by the number of devices in the config of whichever run
        began. A file is read on the CPU; `map_location` is for stores that mmcv reads.

        Raises:
            ValueError: nothing readable is there, weights alone, or (`UnsafeCheckpoint`) a whole checkpoint with types
                that torch does not load without the user's word.
        """
        name = str(checkpoint)
        if "://" in name:  # a store that mmcv reads
            place = "cpu" if map_location == "default" else map_location
            with numpy_allowed():
                content = CheckpointLoader.load_checkpoint(name, place)
        else:
            _, content = read_newest(Path(name).expanduser(), self.logger.error)
        found = content.get("meta") or {}
        if "state_dict" not in content or not {"epoch", "iter"} <= found.keys():
            raise ValueError(
                f"{name} has weights, but no epoch and iteration of a training that could go on:"
                " to begin one with these weights, use load_from"
            )
        self._begun = mid_epoch.take(content, self.logger.info)
        self._evaluation_due = found.pop(EVALUATION_DUE, False) is True
        weights = content["state_dict"]
        stripped = OrderedDict((re.sub(r"^module\.", "", key), value) for key, value in weights.items())
        stripped._metadata = getattr(weights, "_metadata", {})  # type: ignore[attr-defined]
        load_state_dict(self.model, stripped, strict=False, logger=self.logger)
        self.resumed_state_dict = stripped  # for ExpMomentumEMAHook, whose buffers the model does not have yet
        if resume_optimizer and "optimizer" in content:
            self._load_optimizer(content["optimizer"])
        self._epoch, self._iter, self._resumed = found["epoch"], found["iter"], True
        self._take_meta(found)
        self.logger.info(f"resumed epoch {self.epoch}, iter {self.iter}")

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        if isinstance(self.optimizer, dict):
            for name, optimizer in self.optimizer.items():
                optimizer.load_state_dict(state[name])
        elif self.optimizer is not None:
            self.optimizer.load_state_dict(state)
        else:
            raise TypeError("Optimizer should be dict or torch.optim.Optimizer but got NoneType")

    def _take_meta(self, found: dict[str, Any]) -> None:
        """The checkpoint's meta for this run, whose config stays, and whose seed if the checkpoint has none."""
        meta = self._started_meta()
        if self._given_seed is None:
            self._given_seed = meta.get("seed")
        kept = {key: meta[key] for key in ("config",) if key in meta}
        if found.get("seed") is None:
            kept["seed"] = meta.get("seed")
        messages = {**meta["hook_msgs"], **found.get("hook_msgs", {})}
        meta.update({**found, **kept, "hook_msgs": messages})
        self._seed = None
