"""MMDetection's data sets of the standard YOLOX config, for workers that live long: seeds, switches and memory."""

import gc
import pickle
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import mmdet.datasets.coco
import numpy as np
import torch
from mmdet.datasets import CocoDataset as StockCocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.dataset_wrappers import MultiImageMixDataset as StockMultiImageMixDataset
from torch import Tensor
from torch.utils.data import get_worker_info

from .seeds import seed_everything

try:
    from faster_coco_eval import COCOeval_faster as COCOeval
except ImportError:
    from pycocotools.cocoeval import COCOeval


class PackedList(Sequence[Any]):
    """A list pickled into one array. A forked worker that reads a list of objects writes their reference counts, and so
    gets a copy of every page of it (open-mmlab/mmdetection#6931); this it leaves alone."""

    def __init__(self, items: Iterable[Any]) -> None:
        packed = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = np.cumsum([len(item) for item in packed], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be in [{-len(self)}, {len(self)}), got {index}")
        index = index % len(self)
        begin = self._ends[index - 1] if index else 0
        return pickle.loads(memoryview(self._bytes)[begin : self._ends[index]])  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __add__(self, other: Iterable[Any]) -> list[Any]:
        return [*self, *other]

    def __radd__(self, other: Iterable[Any]) -> list[Any]:
        return [*other, *self]


class CocoDataset(StockCocoDataset):
    """The stock class with its annotations packed; for training, the index of pycocotools is dropped after that."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.data_infos: Sequence[dict[str, Any]]
        super().__init__(*args, **kwargs)
        if self.test_mode:
            self.data_infos = PackedList(self.data_infos)
            return
        get_ann_info = super().get_ann_info
        get_cat_ids = super().get_cat_ids
        self._annotations = PackedList((get_ann_info(i), get_cat_ids(i)) for i in range(len(self.data_infos)))
        self.data_infos = PackedList(self.data_infos)
        del self.coco

    @cached_property
    def coco(self) -> COCO:
        """Read again by whoever needs it in training."""
        with self.file_client.get_local_path(self.ann_file) as path:
            return COCO(path)

    def get_ann_info(self, idx: int) -> dict[str, Any]:
        """See the stock class."""
        found: dict[str, Any] = super().get_ann_info(idx) if self.test_mode else self._annotations[idx][0]
        return found

    def get_cat_ids(self, idx: int) -> list[int]:
        """See the stock class."""
        found: list[int] = super().get_cat_ids(idx) if self.test_mode else self._annotations[idx][1]
        return found

    def evaluate_det_segm(self, *args: Any, **kwargs: Any) -> Any:
        """See the stock class; through faster-coco-eval, whose figures are the same, where it is installed."""
        mmdet.datasets.coco.COCOeval = COCOeval
        return super().evaluate_det_segm(*args, **kwargs)


def _shared(tensor: Tensor) -> Tensor:
    shared: Tensor = tensor.share_memory_()  # type: ignore[no-untyped-call]
    return shared


class MultiImageMixDataset(StockMultiImageMixDataset):
    """The stock class, whose workers hear through shared memory which epoch it is and which steps to leave out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        skip_type_keys = kwargs.pop("skip_type_keys", None)
        self._left_out = _shared(torch.zeros(len(kwargs["pipeline"]), dtype=torch.bool))
        self._position = _shared(torch.full((3,), -1))
        self._seeded: list[int] = []
        super().__init__(*args, **kwargs)
        self.update_skip_type_keys(skip_type_keys or ())

    def start_epoch(self, seed: int, epoch: int, rank: int) -> None:
        """Every worker draws from (seed, epoch, rank, worker) from its next sample on."""
        self._position.copy_(torch.tensor([seed, epoch, rank]))

    def update_skip_type_keys(self, skip_type_keys: Iterable[str]) -> None:
        """Leaves out the steps of these types, in living workers too."""
        keys = tuple(skip_type_keys)
        for i, name in enumerate(self.pipeline_types):
            self._left_out[i] = name in keys

    @property
    def _skip_type_keys(self) -> list[str]:
        return [name for name, out in zip(self.pipeline_types, self._left_out.tolist(), strict=True) if out]

    @_skip_type_keys.setter
    def _skip_type_keys(self, keys: None) -> None:
        """The stock constructor sets it."""

    def __getitem__(self, idx: int) -> Any:
        worker = get_worker_info()
        if worker is not None:  # the main process is seeded by the runner
            seed, epoch, rank = position = self._position.tolist()
            if position != self._seeded:
                if not self._seeded:
                    # A collection would write to every object that came with the fork, and so copy all of them.
                    gc.freeze()
                self._seeded = position
                if epoch >= 0:
                    seed_everything(seed, epoch, rank, worker=worker.id + 1)
        return super().__getitem__(idx)
