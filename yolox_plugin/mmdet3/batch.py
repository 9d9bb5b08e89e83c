"""The way of a batch from the loader to an NPU."""

from collections import ChainMap
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor as StockDetDataPreprocessor
from mmdet.structures.bbox import BaseBoxes
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..core.batch import send


class DetDataPreprocessor(StockDetDataPreprocessor):
    """The stock class. To an NPU, images of one shape travel as one tensor, all boxes in one parcel, all labels in
    another, and nobody waits; stock copies every image, and every tensor of its gts, by itself, and waits for the
    device before each.
    """

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """See the stock class."""
        prepared: dict[str, Any]
        # A graph ends at a copy that is made beforehand.
        if self.device.type != "npu" or any(tensor.requires_grad for tensor in _tensors(data)):
            prepared = super().forward(data, training)
            return prepared
        if _are_alike(data["inputs"]):
            data = {**data, "inputs": _stacked(data["inputs"])}
        # A parcel for each dtype: torch_npu cannot copy.deepcopy two dtypes that share memory.
        parcels: dict[torch.dtype, dict[int, Tensor]] = {}
        for tensor in _tensors(data):
            parcels.setdefault(tensor.dtype, {})[id(tensor)] = tensor
        with _Arrived(ChainMap(*(send(parcel, self.device) for parcel in parcels.values()))):
            prepared = super().forward(data, training)
        return prepared


class _Arrived(TorchFunctionMode):
    """In which `Tensor.to`, by which whatever structure copies its tensors, finds them on the device already."""

    def __init__(self, tensors: Mapping[int, Tensor]) -> None:
        """By the ids of those on the CPU."""
        super().__init__()
        self._tensors = tensors

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.to and id(args[0]) in self._tensors:
            return self._tensors[id(args[0])]
        return function(*args, **(kwargs or {}))


def _tensors(data: Any) -> Iterator[Tensor]:
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, BaseBoxes):
        yield data.tensor
    elif isinstance(data, (Mapping, BaseDataElement)):
        for value in data.values():
            yield from _tensors(value)
    elif isinstance(data, (list, tuple)):
        for value in data:
            yield from _tensors(value)


def _are_alike(images: Any) -> bool:
    """Whether these are images on the CPU that one tensor can hold."""
    return (
        isinstance(images, list)
        and all(isinstance(image, Tensor) and image.device.type == "cpu" and image.dim() == 3 for image in images)
        and all(len(image) == 3 for image in images)  # of others, stock has something to say
        and len({(image.shape, image.dtype) for image in images}) == 1
    )


def _stacked(images: list[Tensor]) -> Tensor:
    """As the loader of MMDetection 2 has them, in memory that the device can read by itself."""
    batch = torch.empty(len(images), *images[0].shape, dtype=images[0].dtype, pin_memory=True)
    return torch.stack(images, out=batch)
