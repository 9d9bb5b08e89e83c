"""What a detector's test pipeline makes of images."""

from typing import Any, NamedTuple

import numpy as np
import torch

from .messages import InputError

COLOUR = (10, 20, 30)  # blue, green, red


class ModelInput(NamedTuple):
    """Images in their proportions at the top left of the network's input, in values of 0 to 255."""

    size: tuple[int, int]  # (height, width), pixels
    padding: float  # the value right of the image and below
    channels: str  # "BGR" or "RGB"


def input_of(network: Any) -> ModelInput:
    """What the network sees of two images of one colour, a wide one and a tall one, of which it does not matter who
    has resized, padded or normalised them: pipeline or data preprocessor.

    Args:
        network: the host's, see `run.predictor`.

    Raises:
        InputError: it is something else than `ModelInput` says.
    """
    shapes = ((64, 128), (128, 64))
    images = [np.full((*shape, 3), COLOUR, np.uint8) for shape in shapes]
    wide, tall = (network.images([network.sample(image)])[0].cpu().float() for image in images)
    if wide.shape != tall.shape:
        raise InputError(
            f"the config's test pipeline pads images to no fixed size: a wide one has {list(wide.shape)}, a tall one"
            f" {list(tall.shape)}"
        )
    first = tuple(wide[:, 0, 0].tolist())
    if first not in (COLOUR, COLOUR[::-1]):
        raise InputError(
            f"the config normalises pixels: of {list(COLOUR)} it makes {list(first)}, but an exported network takes"
            " values from 0 to 255 as they are"
        )
    size = (wide.shape[1], wide.shape[2])
    paddings = set()
    for seen, (height, width) in zip((wide, tall), shapes, strict=True):
        scale = min(size[0] / height, size[1] / width)
        inside = torch.zeros(size, dtype=torch.bool)
        inside[: int(height * scale + 0.5), : int(width * scale + 0.5)] = True
        if not (seen[:, inside] == torch.tensor(first)[:, None]).all():
            raise InputError("the config's test pipeline does not put images at the top left in their proportions")
        paddings.update(seen[:, ~inside].unique().tolist())
    if len(paddings) != 1:
        raise InputError(
            f"the config's test pipeline pads with one value, as an exported network needs, got {paddings}"
        )
    return ModelInput(size, paddings.pop(), "BGR" if first == COLOUR else "RGB")
