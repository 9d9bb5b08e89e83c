"""mmcv's EpochBasedRunner with exact resume, checkpoints that are whole or absent, and few reads from the device."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmcv.parallel import is_module_wrapper
from mmcv.runner import CheckpointLoader, Fp16OptimizerHook, LogBuffer, OptimizerHook
from mmcv.runner import EpochBasedRunner as StockRunner
from torch.utils.data import DataLoader

from .seeds import seed_everything


class DeferredLogBuffer(LogBuffer):
    """Keeps values on the device until an average is asked for, then reads all of them at once."""

    def average(self, n: int = 0) -> None:
        history = [values[-n:] for values in self.val_history.values()]
        waiting = [value for values in history for value in values if isinstance(value, torch.Tensor)]
        read = iter(torch.stack(waiting).tolist() if waiting else ())
        for key, values in zip(self.val_history, history, strict=True):
            self.val_history[key][-n:] = [next(read) if isinstance(v, torch.Tensor) else v for v in values]
        super().average(n)


class EpochBasedRunner(StockRunner):
    """Random state, image sizes and augmentations are functions of the seed and of where the training stands, so that a
    run that was killed and resumed ends as one that was not. The checkpoint's seed outlives that of the command line.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_buffer = DeferredLogBuffer()
        self.resumed_state_dict: dict[str, Any] | None = None

    @property
    def _network(self) -> Any:
        return self.model.module if is_module_wrapper(self.model) else self.model

    def run(self, *args: Any, **kwargs: Any) -> None:
        self._agree_on_seed()
        super().run(*args, **kwargs)

    def _agree_on_seed(self) -> None:
        """Rank 0's seed for all: the checkpoint's, the command line's, or a new one."""
        self.meta: dict[str, Any] = self.meta or {}
        seed = [self.meta.get("seed")]
        if seed[0] is None:
            seed[0] = torch.initial_seed() % 2**32
        if self.world_size > 1:
            dist.broadcast_object_list(seed, src=0)
        self.meta["seed"] = seed[0]

    def train(self, data_loader: DataLoader[Any], **kwargs: Any) -> None:
        """An epoch, as in the stock class but for its two seconds of sleep."""
        self.resumed_state_dict = None  # every hook has had what it wanted of it
        self.model.train()
        self.mode = "train"
        self.data_loader = data_loader
        self._max_iters = self._max_epochs * len(data_loader)
        seed = self.meta["seed"]
        seed_everything(seed, self.epoch, self.rank, worker=0)
        if hasattr(data_loader.sampler, "seed"):  # of MMDetection's distributed samplers, which add the epoch to it
            data_loader.sampler.seed = seed
        for listener, position in ((data_loader.dataset, (self.epoch, self.rank)), (self._network, (self.iter,))):
            if hasattr(listener, "start_epoch"):
                listener.start_epoch(seed, *position)
        if getattr(self._network, "converts_uint8", False) and hasattr(data_loader.dataset, "keep_uint8"):
            data_loader.dataset.keep_uint8()
        self.call_hook("before_train_epoch")
        for i, data_batch in enumerate(data_loader):
            self.data_batch = data_batch
            self._inner_iter = i
            self.call_hook("before_train_iter")
            self.run_iter(data_batch, train_mode=True, **kwargs)
            self.call_hook("after_train_iter")
            del self.data_batch
            self._iter += 1
        self.call_hook("after_train_epoch")
        self._epoch += 1

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
        super().register_optimizer_hook(hook)

    def save_checkpoint(
        self,
        out_dir: str,
        filename_tmpl: str = "epoch_{}.pth",
        save_optimizer: bool = True,
        meta: dict[str, Any] | None = None,
        create_symlink: bool = True,
    ) -> None:
        """Writes beside the final name and renames: whoever is killed or runs out of disk leaves the last one whole."""
        if "://" in out_dir:  # a store of its own kind, which has no names to change
            super().save_checkpoint(out_dir, filename_tmpl, save_optimizer, meta, create_symlink)
            return
        final = Path(out_dir, filename_tmpl.format(self.epoch + 1))
        part = Path(out_dir, f"{filename_tmpl}.part".format(self.epoch + 1))
        try:
            super().save_checkpoint(out_dir, f"{filename_tmpl}.part", save_optimizer, meta, create_symlink=False)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        except OSError as error:
            part.unlink(missing_ok=True)
            last = Path(out_dir, "latest.pth")
            kept = f"{last.resolve()} is still there" if last.exists() else "there is none before it"
            raise OSError(
                error.errno, f"cannot write the checkpoint: {os.strerror(error.errno or 0)}; {kept}", str(final)
            ) from error
        part.replace(final)
        if create_symlink:
            link = Path(out_dir, ".latest.pth.part")
            link.unlink(missing_ok=True)
            link.symlink_to(final.name)
            link.replace(Path(out_dir, "latest.pth"))

    def resume(
        self,
        checkpoint: str,
        resume_optimizer: bool = True,
        map_location: str | Callable[..., Any] = "default",
    ) -> None:
        """As the stock class; a checkpoint that cannot be read is reported, and the one before it used."""
        seed = (self.meta or {}).get("seed")
        if "://" in checkpoint:  # a store that mmcv reads
            state_dict = CheckpointLoader.load_checkpoint(checkpoint, "cpu")["state_dict"]
        else:
            readable, state_dict = self._newest_readable(Path(checkpoint))
            checkpoint = str(readable)
        super().resume(checkpoint, resume_optimizer, map_location)
        if self.meta.get("seed") is None:
            self.meta["seed"] = seed
        # For ExpMomentumEMAHook, whose buffers the model does not have yet.
        self.resumed_state_dict = state_dict

    def _newest_readable(self, checkpoint: Path) -> tuple[Path, dict[str, Any]]:
        problems = []
        for path in (checkpoint, *_earlier(checkpoint)):
            try:
                content = torch.load(path, map_location="cpu")
                return path, content["state_dict"]
            # What torch.load says of files that are cut short, empty, garbage, or of something else.
            except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
                problems.append(f"{path} is no readable checkpoint ({type(error).__name__}: {error})".splitlines()[0])
                self.logger.error(problems[-1])
        raise ValueError(
            "; ".join(problems)
            + ". No other checkpoint is in that folder: remove it or name another with --resume-from"
        )


def _earlier(checkpoint: Path) -> list[Path]:
    """The checkpoints of earlier epochs beside this one, newest first."""

    def epoch(path: Path) -> int:
        match = re.fullmatch(r"epoch_(\d+)\.pth", path.name)
        return int(match[1]) if match else -1

    real = checkpoint.resolve()
    return sorted((p for p in real.parent.glob("epoch_*.pth") if 0 <= epoch(p) < epoch(real)), key=epoch, reverse=True)
