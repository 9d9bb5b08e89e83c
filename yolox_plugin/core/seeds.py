"""Random state as a function of where the training stands, so that a resumed run draws what the first would have."""

import random

import numpy as np
import torch


def seed_everything(seed: int, epoch: int, rank: int, worker: int) -> None:
    """Seeds random, numpy and torch. Worker 0 is the main process, data-loading worker i is i + 1.

    MMDetection adds the four up and leaves the epoch out, so that every epoch replays the same augmentations
    (open-mmlab/mmdetection#9530); numpy's SeedSequence keeps any two of these tuples apart.
    """
    sequence = np.random.SeedSequence((seed, epoch, rank, worker))
    # As numbers of Python: numpy 1 mixes its own with them only where both fit into int64.
    words = sequence.generate_state(3, np.uint64).tolist()
    random.seed(words[0])
    np.random.seed(words[1] & 0xFFFFFFFF)
    torch.manual_seed(words[2] >> 1)
