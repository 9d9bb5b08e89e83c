"""MMDetection's data sets of the standard YOLOX config, for workers that live long: seeds, switches and memory."""

import copy
import gc
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import mmcv
import mmdet.datasets.coco
import numpy as np
import torch
from mmdet.datasets import CocoDataset as StockCocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.dataset_wrappers import MultiImageMixDataset as StockMultiImageMixDataset
from mmdet.datasets.pipelines import (
    Collect,
    DefaultFormatBundle,
    FilterAnnotations,
    LoadAnnotations,
    LoadImageFromFile,
    Pad,
    RandomFlip,
    Resize,
)
from torch import Tensor
from torch.utils.data import get_worker_info

from .cache import ImageCache, file_stamp
from .images import Array, EncodedImage, pixels
from .pipelines import MixUp, Mosaic, RandomAffine, Results, YOLOXHSVRandomAug
from .seeds import seed_everything

try:
    from faster_coco_eval import COCOeval_faster as COCOeval
except ImportError:
    from pycocotools.cocoeval import COCOeval


# Steps that take images as `Deferred`.
DEFERRING = {Mosaic, RandomAffine, MixUp, YOLOXHSVRandomAug}
# Steps that leave alone what they are given, at least when they return None.
PURE = DEFERRING | {RandomFlip, Resize, Pad, FilterAnnotations, DefaultFormatBundle, Collect}


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


def _is_standard(dataset: Any) -> bool:
    """Whether its samples are an image as OpenCV reads it and boxes."""
    if type(dataset) is not CocoDataset or dataset.proposals is not None or dataset.test_mode:
        return False
    transforms = dataset.pipeline.transforms
    if [type(transform) for transform in transforms] != [LoadImageFromFile, LoadAnnotations]:
        return False
    load = transforms[0]
    options = (load.color_type, load.channel_order, load.to_float32, load.file_client_args)
    return options == ("color", "bgr", False, {"backend": "disk"})


def _shared(tensor: Tensor) -> Tensor:
    shared: Tensor = tensor.share_memory_()  # type: ignore[no-untyped-call]
    return shared


class MultiImageMixDataset(StockMultiImageMixDataset):
    """The stock class, whose workers hear through shared memory which epoch it is and which steps to leave out. Samples
    are not copied, and of the standard loading pipeline, images are decoded only if they are seen.

    Args:
        cache: "ram" or "disk": keep decoded images there, for all workers. "ram" is one process's with its workers;
            "disk" is shared by all processes of a machine, and by later runs.
        cache_bytes: what it may take, default half of the memory that is available, or nine tenths of the disk's free
            space. If the set does not fit, as many images as do.
        cache_dir: the folder for "disk", default that of the images with ".cache" added.
    """

    def __init__(
        self,
        *args: Any,
        skip_type_keys: Iterable[str] | None = None,
        cache: str | None = None,
        cache_bytes: int | None = None,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._left_out = _shared(torch.zeros(len(kwargs["pipeline"]), dtype=torch.bool))
        self._position = _shared(torch.full((3,), -1))
        self._seeded: list[int] = []
        super().__init__(*args, **kwargs)
        self.update_skip_type_keys(skip_type_keys or ())
        for transform in self.pipeline:
            if type(transform) is Mosaic:
                transform.deferred = True
        self._is_standard = _is_standard(self.dataset)
        self._cache = None
        if cache is not None:
            if not self._is_standard:
                raise ValueError(f"cache={cache!r} needs a CocoDataset with LoadImageFromFile, LoadAnnotations alone")
            folder = cache_dir or f"{str(self.dataset.img_prefix).rstrip('/')}.cache"
            self._cache = ImageCache(self.dataset.data_infos, cache, cache_bytes, folder)

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

    def keep_uint8(self) -> None:
        """From now on, images come as they are: a quarter of the bytes, for a model that converts them itself."""
        for transform in self.pipeline:
            if type(transform) is DefaultFormatBundle:
                transform.img_to_float = False

    def _load(self, index: int) -> Any:
        """A sample of the inner data set that nobody else has."""
        loaded = self._load_deferred(index) if self._is_standard else None
        return copy.deepcopy(self.dataset[index]) if loaded is None else loaded

    def _load_deferred(self, index: int) -> Results | None:
        """What `LoadImageFromFile` and `LoadAnnotations` make of a sample, but for the pixels, which come when wanted;
        None if it has to be replaced by another."""
        load, annotate = self.dataset.pipeline.transforms
        info, prefix = self.dataset.data_infos[index], self.dataset.img_prefix
        name = info["filename"] if prefix is None else os.path.join(prefix, info["filename"])
        image: Array | EncodedImage | None = None
        keep = None
        if self._cache:
            stamp = file_stamp(name)
            image = self._cache.get(index, stamp)
            keep = partial(self._cache.put, index, stamp)
        if image is None:
            if load.file_client is None:
                load.file_client = mmcv.FileClient(**load.file_client_args)
            image = EncodedImage(name, load.file_client.get(name), keep)
        sample: Results = {"img_info": info, "ann_info": self.dataset.get_ann_info(index)}
        self.dataset.pre_pipeline(sample)
        sample |= {"filename": name, "ori_filename": info["filename"], "img": image, "img_shape": image.shape,
                   "ori_shape": image.shape, "img_fields": ["img"]}  # fmt: skip
        found: Results | None = annotate(sample)
        return found

    def _partners(self, transform: Any) -> list[Results]:
        """The samples that a step mixes with its own."""
        for _ in range(self.max_refetch):
            indexes = transform.get_indexes(self.dataset)
            partners = [self._load(index) for index in (indexes if isinstance(indexes, Sequence) else [indexes])]
            if all(partner is not None for partner in partners):
                return partners
        raise RuntimeError(f"{self.max_refetch} times, the data set had no sample for {type(transform).__name__}")

    def _transform(self, transform: Any, sample: Results) -> Results:
        """One step, which is asked again if it has nothing to give."""
        if type(transform) not in DEFERRING:
            for part in (sample, *sample.get("mix_results", ())):
                if "img" in part:
                    part["img"] = pixels(part["img"])
        for _ in range(self.max_refetch):
            # Who writes to what he is given and then has to try again needs a copy.
            given = sample if type(transform) in PURE else copy.deepcopy(sample)
            result: Results | None = transform(given)
            if result is not None:
                return result
        raise RuntimeError(f"{self.max_refetch} times, {type(transform).__name__} returned None for a sample")

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
        left_out = self._left_out.tolist()
        sample = self._load(idx)
        for transform, out in zip(self.pipeline, left_out, strict=True):
            if out:
                continue
            if hasattr(transform, "get_indexes"):
                sample["mix_results"] = self._partners(transform)
            sample = self._transform(transform, sample)
            sample.pop("mix_results", None)
        return sample
