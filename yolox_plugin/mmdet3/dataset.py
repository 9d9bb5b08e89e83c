"""MMDetection's data sets of the standard YOLOX config, for workers that live long: seeds, switches and memory."""

import copy
import os
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset as StockCocoDataset
from mmdet.datasets import MultiImageMixDataset as StockMultiImageMixDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.transforms import (
    FilterAnnotations,
    LoadAnnotations,
    PackDetInputs,
    Pad,
    RandomFlip,
    Resize,
)
from mmdet.datasets.transforms import MixUp as StockMixUp
from mmdet.structures.bbox import HorizontalBoxes
from mmengine import fileio
from mmengine.dataset import Compose, force_full_init

from ..core.annotation_index import AnnotationIndex, as_coco, open_index
from ..core.cache import ImageCache
from ..core.images import Results, UnusableImage
from ..core.mixing import Mixing, check_skip_type_keys
from ..core.workers import Announcements
from ..patches import has_own
from ..protocol import Moment, TrainingPart
from .transforms import MixUp, Mosaic, RandomAffine, YOLOXHSVRandomAug

# What stock does with a file whose index the plugin takes instead.
LOADING = ("load_data_list", "parse_data_info", "filter_data", "_serialize_data", "get_cat_ids", "get_data_info",
           "full_init")  # fmt: skip
# What stock has of all samples then.
LOADED = ("data_bytes", "data_address", "cat_img_map")


class CocoDataset(StockCocoDataset):
    """The stock class. For training, annotations are read from an index that the processes of a machine share
    (`core.annotation_index`): each sample is made of it when it is asked for. What stock keeps of all samples is made
    as soon as somebody looks at it, and counts from then on."""

    _index: AnnotationIndex | None = None
    _as_loaded: "CocoDataset"  # with the classes and folders of that time
    _fully_initialized: bool

    def full_init(self) -> None:
        """See the stock class."""
        if self._fully_initialized:
            return
        self._index = None
        for name in LOADED:
            self.__dict__.pop(name, None)
        index = self._open_index()
        if index is None or not self._take(index):
            super().full_init()

    def _open_index(self) -> AnnotationIndex | None:
        """That of the annotation file; None if something asks for stock's own code."""
        if type(self) is not CocoDataset or has_own(StockCocoDataset, LOADING) or StockCocoDataset.COCOAPI is not COCO:
            return None
        options = (self.test_mode, self.proposal_file, self.backend_args, self._indices, self.serialize_data)
        if options != (False, None, None, None, True) or "img" not in self.data_prefix:
            return None
        return open_index(self.ann_file) if os.path.isfile(self.ann_file) else None

    def _take(self, index: AnnotationIndex) -> bool:
        """Loads the images of an index; whether there are any."""
        cat_ids = as_coco(COCO, {"categories": index.categories}).get_cat_ids(cat_names=self.metainfo["classes"])
        wanted = self.filter_cfg or {}
        places = index.chosen(wanted.get("min_size", 0), cat_ids if wanted.get("filter_empty_gt", False) else None)
        if not len(places):
            return False
        self.cat_ids, self.cat2label = cat_ids, {cat_id: i for i, cat_id in enumerate(cat_ids)}
        self._places, self._index, self._fully_initialized = places, index, True
        loaded = copy.copy(self)
        for name in ("data_prefix", "filter_cfg", "_metainfo", "cat_ids", "cat2label"):
            setattr(loaded, name, copy.deepcopy(getattr(self, name)))
        self._as_loaded = loaded
        return True

    @property
    def _is_indexed(self) -> bool:
        """Whether nothing of stock's has taken the place of the index."""
        return self._index is not None and not any(name in vars(self) for name in LOADED[:2])

    def _load_as_stock(self) -> None:
        """Makes what stock has, of what was read at first."""
        assert self._index is not None
        content, loaded = self._index.content(), copy.copy(self._as_loaded)
        loaded.COCOAPI = lambda _: as_coco(COCO, content)  # whatever has become of the file
        loaded.data_list = loaded.load_data_list()
        loaded.data_list = loaded.filter_data()
        self.data_bytes, self.data_address = loaded._serialize_data()
        self.__dict__.setdefault("cat_img_map", loaded.cat_img_map)

    @cached_property
    def data_bytes(self) -> Any:
        """See the stock class."""
        return self._of_stock("data_bytes")

    @cached_property
    def data_address(self) -> Any:
        """See the stock class."""
        return self._of_stock("data_address")

    @cached_property
    def cat_img_map(self) -> Any:
        """See the stock class."""
        return self._of_stock("cat_img_map")

    def _of_stock(self, name: str) -> Any:
        if self._index is None:
            raise AttributeError(f"{type(self).__name__} has no {name} before full_init")
        self._load_as_stock()
        return vars(self)[name]

    def _copy_without_annotation(self, *args: Any) -> Any:
        """See the stock class: of a copy that gets a part of what stock keeps."""
        if self._is_indexed:
            self._load_as_stock()
        return super()._copy_without_annotation(*args)

    def prepare_data(self, idx: int) -> Any:
        """See the stock class.

        Raises:
            UnusableImage: see there.
        """
        try:
            return super().prepare_data(idx)
        except cv2.error as error:
            raise UnusableImage.of("the pipeline", [self.get_data_info(idx).get("img_path")], error) from error

    @force_full_init  # type: ignore[untyped-decorator]
    def get_data_info(self, idx: int) -> Any:
        """See the stock class."""
        if not self._is_indexed or has_own(StockCocoDataset, ["get_data_info"]):
            return super().get_data_info(idx)
        place = self._places[idx]
        assert self._index is not None
        info = self._index.image(place)
        info["img_id"] = info["id"]
        raw = {"raw_ann_info": self._index.annotations(place), "raw_img_info": info}
        return self._as_loaded.parse_data_info(raw) | {"sample_idx": idx if idx >= 0 else len(self) + idx}

    @force_full_init  # type: ignore[untyped-decorator]
    def __len__(self) -> int:
        return len(self._places) if self._is_indexed else super().__len__()


def _is_standard(dataset: Any) -> bool:
    """Whether its samples are an image as OpenCV reads it and boxes."""
    if not isinstance(dataset, StockCocoDataset) or has_own(dataset, ("__getitem__", "prepare_data", "get_data_info")):
        return False
    if type(dataset.pipeline) is not Compose or has_own(dataset.pipeline, ["__call__"]):
        return False
    transforms = dataset.pipeline.transforms
    if [type(transform) for transform in transforms] != [LoadImageFromFile, LoadAnnotations]:
        return False
    load, annotate = transforms
    if has_own(load, ("__call__", "transform")):
        return False
    files = (load.file_client_args, load.backend_args, load.ignore_empty)
    image = (load.color_type, load.imdecode_backend, load.to_float32)
    annotations = (annotate.with_bbox, annotate.with_mask, annotate.with_seg)
    return (files, image, annotations) == ((None, None, False), ("color", "cv2", False), (True, False, False))


def _annotate(step: LoadAnnotations, sample: Results) -> Results | None:
    """What the step makes of a sample; of horizontal boxes with labels in numpy, as a list of them becomes a tensor
    slowly."""
    usual = (step.box_type, step.with_label) == ("hbox", True) and "instances" in sample
    if not usual or has_own(step, ("__call__", "transform", "_load_bboxes", "_load_labels")):
        annotated: Results | None = step(sample)
        return annotated
    objects = sample["instances"]
    boxes = np.array([thing["bbox"] for thing in objects], np.float32).reshape(-1, 4)
    sample["gt_bboxes"] = HorizontalBoxes(torch.from_numpy(boxes), clone=False)
    sample["gt_ignore_flags"] = np.array([thing["ignore_flag"] for thing in objects], bool)
    sample["gt_bboxes_labels"] = np.array([thing["bbox_label"] for thing in objects], np.int64)
    return sample


class _WithoutImages:
    """The samples of a standard data set with their boxes alone: all that `MixUp` looks at to choose a partner."""

    def __init__(self, dataset: StockCocoDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Results | None:
        return _annotate(self._dataset.pipeline.transforms[1], self._dataset.get_data_info(index))


class MultiImageMixDataset(StockMultiImageMixDataset, Mixing, TrainingPart):
    """The stock class, whose workers hear through shared memory which epoch it is and which steps to leave out. Samples
    are not copied, and of the standard loading pipeline, images are decoded only if they are seen.

    Args:
        cache: "ram" or "disk": keep decoded images there, for all workers. "ram" is one process's with its workers;
            "disk" is shared by all processes of a machine, and by later runs.
        cache_bytes: what it may take, default half of the memory that is available, shared among the processes of the
            machine, or nine tenths of the disk's free space. If the set does not fit, as many images as do.
        cache_dir: the folder for "disk", default that of the images with ".cache" added.
    """

    _deferring = frozenset({Mosaic, RandomAffine, MixUp, YOLOXHSVRandomAug})
    _gentle = _deferring | {RandomFlip, Resize, Pad, FilterAnnotations, PackDetInputs}
    _formatting = PackDetInputs

    def __init__(
        self,
        dataset: Any,
        pipeline: Sequence[str],
        skip_type_keys: Sequence[str] | None = None,
        max_refetch: int = 15,
        lazy_init: bool = False,
        *,
        cache: str | None = None,
        cache_bytes: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self._announcements = Announcements()
        check_skip_type_keys(skip_type_keys)
        super().__init__(dataset, pipeline, skip_type_keys, max_refetch, lazy_init)
        self._announce_steps()
        self._cache = None
        if cache is not None:
            if not _is_standard(self.dataset):
                raise ValueError(f"cache={cache!r} needs a CocoDataset with LoadImageFromFile, LoadAnnotations alone")
            infos = map(self.dataset.get_data_info, range(len(self.dataset)))
            shapes = {info["img_path"]: (info["height"], info["width"]) for info in infos}
            folder = cache_dir or f"{str(self.dataset.data_prefix['img']).rstrip('/')}.cache"
            self._cache = ImageCache(shapes, cache, cache_bytes, folder)

    def start_epoch(self, moment: Moment) -> None:
        """Samples draw from (seed, epoch, position) from now on, and workers leave out what is left out now."""
        self._announce_epoch(moment.seed, moment.epoch, moment.rank)

    def end_epoch(self) -> None:
        """Ends what `start_epoch` began, but for samples of workers that live on."""
        self._announcements.end_epoch()

    def update_skip_type_keys(self, skip_type_keys: Sequence[str]) -> None:
        """Leaves out the steps of these types, in living workers too."""
        check_skip_type_keys(skip_type_keys)
        super().update_skip_type_keys(skip_type_keys)
        self._announce_steps()

    def _load_deferred(self, index: int) -> Results | None:
        """What `LoadImageFromFile` and `LoadAnnotations` make of a sample."""
        if not _is_standard(self.dataset):
            return None
        load, annotate = self.dataset.pipeline.transforms
        sample: Results = self.dataset.get_data_info(index)
        name = sample["img_path"]
        read = partial(fileio.get, name, backend_args=load.backend_args)
        decode = partial(mmcv.imfrombytes, flag=load.color_type, backend=load.imdecode_backend)
        image = self._image(name, read, decode)
        sample |= {"img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}
        return _annotate(annotate, sample)

    def _partners_from(self, transform: Any) -> Any:
        """Stock's `MixUp` decodes images only to see whether they have boxes."""
        asks_for_boxes = isinstance(transform, StockMixUp) and not has_own(transform, ["get_indexes"])
        return _WithoutImages(self.dataset) if asks_for_boxes and _is_standard(self.dataset) else self.dataset

    def __getitem__(self, idx: int) -> Any:
        """See the stock class."""
        return self._sample(idx)
