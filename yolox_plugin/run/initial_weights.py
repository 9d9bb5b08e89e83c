"""--load-from: the weights that a training begins with, of a checkpoint that may be of other classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import content_of
from .messages import InputError
from .saved_config import classes_in

FILE = "initial_weights.pth"  # in the work directory
CLASSIFIER = "bbox_head.multi_level_conv_cls."  # the layers that predict classes
MOST = 8  # names in a sentence


class Fitting(NamedTuple):
    """What a checkpoint has for a model."""

    source: Path
    state: dict[str, Tensor]
    unfit: list[str]  # layers of the model that have none, or of another shape

    def write(self, path: Path) -> None:
        """As a checkpoint that MMDetection's own `load_from` reads, with the same bytes each time."""
        with path.open("wb") as file:  # or torch would write the file's name into it
            torch.save({"state_dict": self.state, "meta": {"load_from": str(self.source)}}, file)

    def __str__(self) -> str:
        words = f"{len(self.state)} tensors of {self.source}"
        if not self.unfit:
            return words
        more = f" and {len(self.unfit) - MOST} more" if len(self.unfit) > MOST else ""
        return f"{words}; drawn anew: {', '.join(self.unfit[:MOST])}{more}"


def fitting_weights(model: Any, path: Path, classes: Sequence[str]) -> Fitting:
    """What of a checkpoint of MMDetection 2 or 3, of this plugin or of Megvii's YOLOX fits a model, by name and shape;
    of one that has weights and their averages, the averages, which bear the model's own names.

    Args:
        classes: of the training, in the order of labels. What predicts those of a checkpoint with others does not fit.

    Raises:
        InputError: it is no checkpoint, or nothing fits.
    """
    content, wanted = content_of("--load-from", path), model.state_dict()
    found, trained = content["state_dict"], classes_in(content.get("meta") or {})
    if trained and trained != tuple(classes):
        found = {name: value for name, value in found.items() if CLASSIFIER not in str(name)}
    state = {name: found[name] for name, value in wanted.items()
             if isinstance(found.get(name), Tensor) and found[name].shape == value.shape}  # fmt: skip
    weights = [name for name, _ in model.named_parameters()]
    if not any(name in state for name in weights):
        raise InputError(f"--load-from {path} has no weights of this model: is it of another size?")
    unfit = dict.fromkeys(name.rpartition(".")[0] for name in weights if name not in state)
    return Fitting(path, state, list(unfit))
