"""Random state as a function of where the training stands, so that a resumed run draws what the first would have."""

import contextlib
import random
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_PROCESS, _SAMPLE = 0, 1


def _sequence(*numbers: int) -> np.random.SeedSequence:
    """Another one for other numbers below 2^64. Of a tuple, numpy would take 2^32 for the two numbers 0 and 1, and a
    zero at the end for nothing."""
    return np.random.SeedSequence(int.from_bytes(struct.pack(f"<{len(numbers)}Q", *numbers), "little"))


def seed_everything(seed: int, epoch: int, rank: int, worker: int) -> None:
    """Seeds random, numpy and torch. Worker 0 is the main process, data-loading worker i is i + 1.

    MMDetection adds the four up and leaves the epoch out, so that every epoch replays the same augmentations
    (open-mmlab/mmdetection#9530).
    """
    sequence = _sequence(_PROCESS, seed, epoch, rank, worker)
    # As numbers of Python: numpy 1 mixes its own with them only where both fit into int64.
    words = sequence.generate_state(3, np.uint64).tolist()
    random.seed(words[0])
    np.random.seed(words[1] & 0xFFFFFFFF)
    torch.manual_seed(words[2] >> 1)


def seed_sample(seed: int, epoch: int, position: int) -> None:
    """Seeds random, numpy and torch's generator for CPUs, for the sample at `position` of an epoch."""
    words = _sequence(_SAMPLE, seed, epoch, position).generate_state(8)
    random.seed(words[:4].tobytes())
    np.random.seed(words[4:7])
    torch.default_generator.manual_seed(int(words[7]) << 32 | int(words[0]))


@contextlib.contextmanager
def state_kept() -> Iterator[None]:
    """Whoever draws after it draws what would have come before it."""
    python, numpy, own = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(own)


def random_state() -> dict[str, Any]:
    """That of this process: of random, numpy, and torch on CPU and device, in types that torch.load takes by itself."""
    version, words, normal = random.getstate()
    state: Any = np.random.get_state(legacy=True)
    kind, numpy_words, *rest = state
    devices = {name: module.get_rng_state() for name, module in _devices()}
    return {
        "random": [version, list(words), normal],
        "numpy": [kind, torch.tensor(numpy_words.astype(np.int64)), *map(float, rest)],
        "torch": torch.default_generator.get_state(),
        "devices": devices,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """What `random_state` has found, in this or another process."""
    version, words, normal = state["random"]
    random.setstate((version, tuple(words), normal))
    kind, numpy_words, position, has_normal, numpy_normal = state["numpy"]
    words = numpy_words.cpu().numpy().astype(np.uint32)
    np.random.set_state((kind, words, int(position), int(has_normal), numpy_normal))
    torch.default_generator.set_state(state["torch"].cpu())
    for name, module in _devices():
        if name in state["devices"]:
            module.set_rng_state(state["devices"][name].cpu())


def _devices() -> Iterator[tuple[str, Any]]:
    for name in ("cuda", "npu"):
        module = getattr(torch, name, None)
        if module is not None and module.is_available() and module.is_initialized():
            yield name, module
