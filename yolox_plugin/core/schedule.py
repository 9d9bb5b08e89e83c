"""What changes in the course of a training, as functions of where it stands: resumed or not, they give the same."""

import numpy as np


def is_closing(epoch: int, max_epochs: int, num_last_epochs: int) -> bool:
    """Whether an epoch, from 0 on, is among the last ones."""
    return epoch >= max_epochs - num_last_epochs


def input_size(
    seed: int, interval: int, default: tuple[int, int], multiples: tuple[int, int], multiplier: int
) -> tuple[int, int]:
    """(height, width) of the images in an interval of a multi-scale training, pixels; the same on every rank.

    Args:
        interval: from 0 on, of as many iterations as share a size. The first has the default size.
        default: (height, width), whose ratio is kept.
        multiples: the least and the greatest height, in units of `multiplier`; each is as likely.
    """
    height, width = default
    if interval == 0:
        return height, width
    low, high = multiples
    size = int(np.random.default_rng((seed, interval)).integers(low, high + 1))
    return multiplier * size, multiplier * int(width / height * size)
