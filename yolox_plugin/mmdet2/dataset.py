"""MMDetection's data sets of the standard YOLOX config, for workers that live long: seeds, switches and memory."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import cv2
import mmcv
import mmdet.datasets.coco
import numpy as np
from mmdet.datasets import CocoDataset as StockCocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.api_wrappers import COCOeval as StockCOCOeval
from mmdet.datasets.dataset_wrappers import MultiImageMixDataset as StockMultiImageMixDataset
from mmdet.datasets.pipelines import (
    Collect,
    Compose,
    DefaultFormatBundle,
    FilterAnnotations,
    LoadAnnotations,
    LoadImageFromFile,
    Pad,
    RandomFlip,
    Resize,
)
from torch.utils.data import get_worker_info

from ..core.annotation_index import AnnotationIndex, as_coco, open_index
from ..core.cache import ImageCache
from ..core.coco_eval import COCOeval
from ..core.images import Array, Results, UnreadableImage, UnusableImage
from ..core.mixing import Mixing, check_skip_type_keys
from ..core.packed import PackedList
from ..core.workers import Announcements
from ..patches import has_own
from ..protocol import Moment, TrainingPart
from .transforms import MixUp, Mosaic, RandomAffine, YOLOXHSVRandomAug

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@contextlib.contextmanager
def _without_byte_order_mark(ann_file: str) -> Iterator[str]:
    """The name of a file that pycocotools can read: a copy where Windows' editors put a mark before the JSON."""
    with open(ann_file, "rb") as file:
        if file.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
            yield ann_file
            return
        with tempfile.NamedTemporaryFile(suffix=".json") as copied:
            shutil.copyfileobj(file, copied)
            copied.flush()
            yield copied.name


class _Infos(Sequence[Any]):
    """What stock makes of the images of an index, each made anew for whoever asks."""

    def __init__(self, index: AnnotationIndex, places: Array) -> None:
        self._index, self.places = index, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        info = self._index.image(self.places[index])
        return info | {"filename": info["file_name"]}


# What stock does with a file whose index the plugin takes instead.
READING = ("get_ann_info", "get_cat_ids")
LOADING = ("load_annotations", "_filter_imgs", "_set_group_flag", "_parse_ann_info", *READING)


class CocoDataset(StockCocoDataset, TrainingPart):
    """The stock class. For training, annotations are read from an index that the processes of a machine share
    (`core.annotation_index`), and pycocotools' own is made when somebody asks for `coco`, which then counts.

    In data-loading workers `data_infos` cannot be changed.

    Attributes:
        label_names: the class of each label, in the order of the annotation file, which MMDetection follows.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._index: AnnotationIndex | None = None
        self._infos: Any = None  # a list, or _Infos of the index
        self._packed_infos: PackedList | None = None
        self._originals: dict[Any, Any] = {}  # what `data_infos` had at first, by id
        self._is_loading = True
        super().__init__(*args, **kwargs)
        self._is_loading = False

    def load_annotations(self, ann_file: str) -> list[dict[str, Any]]:
        """See the stock class."""
        plain = not has_own(self, LOADING) and not has_own(StockCocoDataset, LOADING)
        plain = plain and mmdet.datasets.coco.COCO is COCO and ann_file == self.ann_file
        if self._is_loading and plain and not self.test_mode and self.proposal_file is None:
            self._index = open_index(ann_file)
        if self._index is None or not self._is_loading:
            with _without_byte_order_mark(ann_file) as readable:
                infos: list[dict[str, Any]] = super().load_annotations(readable)
            categories = self.coco.cats
        else:
            infos = []
            categories = self._read_categories(self._index)
        self.label_names = [categories[id_]["name"] for id_ in self.cat_ids]
        return infos

    def _read_categories(self, index: AnnotationIndex) -> dict[Any, Any]:
        """Those of the file by their ids; those of this data set become its own."""
        coco = as_coco(COCO, {"categories": index.categories})
        self.cat_ids = coco.get_cat_ids(cat_names=self.CLASSES)
        self.cat2label = {cat_id: i for i, cat_id in enumerate(self.cat_ids)}
        return coco.cats  # type: ignore[no-any-return]

    def _filter_imgs(self, min_size: int = 32) -> list[int]:
        """See the stock class."""
        if self._index is None or not self._is_loading:
            found: list[int] = super()._filter_imgs(min_size)
            return found
        places = self._index.chosen(min_size, self.cat_ids if self.filter_empty_gt else None)
        self._infos = _Infos(self._index, places)
        self.img_ids = [self._index.ids[place] for place in self._infos.places]
        return []

    def _set_group_flag(self) -> None:
        """See the stock class."""
        if not isinstance(self._infos, _Infos):
            super()._set_group_flag()
            return
        width, height = self._infos._index.sizes[self._infos.places].T
        self.flag = (width / height > 1).astype(np.uint8)

    @cached_property
    def coco(self) -> COCO:
        """Made by whoever needs it in training, of what was read at first. Images are those of `data_infos`, as in the
        stock class."""
        if self._index is not None:
            self.data_infos  # noqa: B018  made of the index now
            content = self._index.content()
            content["images"] = [
                self._originals.get(image["id"], image | {"filename": image["file_name"]})
                for image in content["images"]
            ]
            return as_coco(COCO, content)
        with self.file_client.get_local_path(self.ann_file) as path, _without_byte_order_mark(path) as readable:
            return COCO(readable)

    @property
    def data_infos(self) -> Any:
        """See the stock class. Group flags follow an assignment."""
        if get_worker_info() is not None:
            return self.infos
        if isinstance(self._infos, _Infos):
            self._infos = self._infos[:]
            self._originals = {info["id"]: info for info in self._infos}
        return self._infos

    @data_infos.setter
    def data_infos(self, infos: Any) -> None:
        if self._is_loading and self._index is not None:
            return  # stock's __init__, of which `_filter_imgs` has found the images
        self._infos, self._packed_infos = infos, None
        if "flag" in vars(self):
            self._set_group_flag()

    @property
    def infos(self) -> Any:
        """What `data_infos` says, for those who only read it."""
        return self._infos if self._packed_infos is None or get_worker_info() is None else self._packed_infos

    def __len__(self) -> int:
        return len(self.infos)

    def start_epoch(self, moment: Moment) -> None:
        """What workers read of `data_infos` from now on costs them no memory."""
        self._packed_infos = None if isinstance(self._infos, _Infos) else PackedList(self._infos)

    def end_epoch(self) -> None:
        """Workers that start from now on read `data_infos` as it is then."""
        self._packed_infos = None

    def _annotations(self, idx: int) -> list[dict[str, Any]] | None:
        """All annotations of an image; None where those of `coco` count."""
        if self._index is None or "coco" in vars(self) or has_own(StockCocoDataset, READING):
            return None
        if isinstance(self._infos, _Infos):
            return self._index.annotations(self._infos.places[idx])
        place = self._index.places.get(self.infos[idx]["id"])
        return None if place is None else self._index.annotations(place)

    def get_ann_info(self, idx: int) -> dict[str, Any]:
        """See the stock class."""
        annotations = self._annotations(idx)
        found: dict[str, Any] = (
            super().get_ann_info(idx) if annotations is None else self._parse_ann_info(self.infos[idx], annotations)
        )
        return found

    def get_cat_ids(self, idx: int) -> list[int]:
        """See the stock class."""
        annotations = self._annotations(idx)
        if annotations is None:
            found: list[int] = super().get_cat_ids(idx)
            return found
        return [annotation["category_id"] for annotation in annotations]

    def prepare_test_img(self, idx: int) -> Any:
        """See the stock class.

        Raises:
            UnreadableImage: naming a file that is no readable image, of which stock says that None has no shape.
            UnusableImage: see there.
        """
        try:
            return super().prepare_test_img(idx)
        except cv2.error as error:
            raise UnusableImage.of("the pipeline", [_path(self, self.infos[idx])], error) from error
        except AttributeError as error:
            name = _path(self, self.infos[idx])
            if os.path.isfile(name) and mmcv.imread(name) is None:
                raise UnreadableImage(f"{name} is no readable image") from error
            raise

    def _det2json(self, results: list[Any]) -> list[dict[str, Any]]:
        """See the stock class, which fails at detections of the last classes where the file does not list them. They
        have no part in the figures."""
        found: list[dict[str, Any]] = super()._det2json([result[: len(self.cat_ids)] for result in results])
        return found

    def evaluate_det_segm(self, *args: Any, **kwargs: Any) -> Any:
        """See the stock class; with `core.coco_eval` in the place of pycocotools' class."""
        theirs = mmdet.datasets.coco.COCOeval
        if theirs is StockCOCOeval:
            mmdet.datasets.coco.COCOeval = COCOeval
        try:
            return super().evaluate_det_segm(*args, **kwargs)
        finally:
            mmdet.datasets.coco.COCOeval = theirs


def _is_standard(dataset: Any) -> bool:
    """Whether its samples are an image as OpenCV reads it and boxes."""
    if type(dataset) is not CocoDataset or dataset.proposals is not None or dataset.test_mode:
        return False
    if type(dataset.pipeline) is not Compose or has_own(dataset, ("__getitem__", "prepare_train_img")):
        return False
    transforms = dataset.pipeline.transforms
    if [type(transform) for transform in transforms] != [LoadImageFromFile, LoadAnnotations]:
        return False
    load = transforms[0]
    if has_own(load, ["__call__"]) or has_own(dataset.pipeline, ["__call__"]):
        return False
    options = (load.color_type, load.channel_order, load.to_float32, load.file_client_args)
    return options == ("color", "bgr", False, {"backend": "disk"})


def _path(dataset: StockCocoDataset, info: Mapping[str, Any]) -> str:
    """The file of an image, as `LoadImageFromFile` names it."""
    name: str = info["filename"]
    return name if dataset.img_prefix is None else os.path.join(dataset.img_prefix, name)


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
    _gentle = _deferring | {RandomFlip, Resize, Pad, FilterAnnotations, DefaultFormatBundle, Collect}
    _formatting = DefaultFormatBundle

    def __init__(
        self,
        dataset: Any,
        pipeline: Sequence[Mapping[str, Any]],
        dynamic_scale: Any = None,
        skip_type_keys: Sequence[str] | None = None,
        max_refetch: int = 15,
        *,
        cache: str | None = None,
        cache_bytes: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self._announcements = Announcements()
        self._kept_uint8: list[DefaultFormatBundle] = []
        check_skip_type_keys(skip_type_keys or ())
        super().__init__(dataset, pipeline, dynamic_scale, skip_type_keys, max_refetch)
        self.update_skip_type_keys(skip_type_keys or ())
        self._cache = None
        if cache is not None:
            if not _is_standard(dataset):
                raise ValueError(f"cache={cache!r} needs a CocoDataset with LoadImageFromFile, LoadAnnotations alone")
            folder = cache_dir or f"{str(dataset.img_prefix).rstrip('/')}.cache"
            shapes = {_path(dataset, info): (info["height"], info["width"]) for info in dataset.infos}
            self._cache = ImageCache(shapes, cache, cache_bytes, folder)

    @property
    def flag(self) -> Any:
        """The group flags of the inner data set, as they are now."""
        return self.dataset.flag

    @flag.setter
    def flag(self, flags: Any) -> None:
        self.dataset.flag = flags

    def start_epoch(self, moment: Moment) -> None:
        """Samples draw from (seed, epoch, position) from now on, and workers leave out what is left out now. For a
        model that converts images itself, they come in uint8: a quarter of the bytes."""
        self._announce_epoch(moment.seed, moment.epoch, moment.rank)
        if moment.takes_uint8:
            self._kept_uint8 += [t for t in self.pipeline if type(t) is DefaultFormatBundle and t.img_to_float]
            for transform in self._kept_uint8:
                transform.img_to_float = False

    def end_epoch(self) -> None:
        """Ends what `start_epoch` began, but for samples of workers that live on."""
        self._announcements.end_epoch()
        for transform in self._kept_uint8:
            transform.img_to_float = True
        self._kept_uint8 = []

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
        info = self.dataset.infos[index]
        name = _path(self.dataset, info)
        if load.file_client is None:
            load.file_client = mmcv.FileClient(**load.file_client_args)
        image = self._image(name, partial(load.file_client.get, name), mmcv.imfrombytes)
        sample: Results = {"img_info": info, "ann_info": self.dataset.get_ann_info(index)}
        self.dataset.pre_pipeline(sample)
        sample |= {"filename": name, "ori_filename": info["filename"], "img": image, "img_shape": image.shape,
                   "ori_shape": image.shape, "img_fields": ["img"]}  # fmt: skip
        annotated: Results | None = annotate(sample)
        return annotated

    def __getitem__(self, idx: int) -> Any:
        """See the stock class."""
        return self._sample(idx)
