"""MMDetection's data sets of the standard YOLOX config, for workers that live long: seeds, switches and memory."""

import contextlib
import copy
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

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

from ..core.cache import ImageCache, file_stamp
from ..core.coco_eval import COCOeval
from ..core.images import DecodedImage, Deferred, EncodedImage, pixels
from ..core.packed import PackedDict, PackedList
from ..core.workers import Announcements
from ..patches import has_own
from ..protocol import Moment, TrainingPart
from .transforms import MixUp, Mosaic, RandomAffine, Results, YOLOXHSVRandomAug

# Steps that take images as `Deferred`.
DEFERRING = {Mosaic, RandomAffine, MixUp, YOLOXHSVRandomAug}
# Steps that write to no array or list that they are given.
PURE = DEFERRING | {RandomFlip, Resize, Pad, FilterAnnotations, DefaultFormatBundle, Collect}


def data_sets_in(dataset: Any) -> Iterator[Any]:
    """The data set and all that it wraps, from the outside to the inside."""
    yield dataset
    inner = getattr(dataset, "dataset", None)
    several = getattr(dataset, "datasets", ())
    for part in (*([] if inner is None else [inner]), *(several if isinstance(several, (list, tuple)) else ())):
        yield from data_sets_in(part)


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


class CocoDataset(StockCocoDataset, TrainingPart):
    """The stock class. For training, annotations are packed by image id and the index of pycocotools is dropped, until
    somebody asks for `coco`, which then counts again.

    In data-loading workers `data_infos` cannot be changed, as they have a packed copy of it.

    Attributes:
        label_names: the class of each label, in the order of the annotation file, which MMDetection follows.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._packed_infos: PackedList | None = None
        self._packed_annotations = PackedDict({})
        super().__init__(*args, **kwargs)
        if not self.test_mode and "coco" in vars(self):
            coco = self.coco
            annotations = {id_: coco.load_anns(coco.get_ann_ids(img_ids=[id_])) for id_ in coco.imgs}
            self._packed_annotations = PackedDict(annotations)
            del self.coco

    def load_annotations(self, ann_file: str) -> list[dict[str, Any]]:
        """See the stock class."""
        with _without_byte_order_mark(ann_file) as readable:
            infos: list[dict[str, Any]] = super().load_annotations(readable)
        self.label_names = [self.coco.cats[id_]["name"] for id_ in self.cat_ids]
        return infos

    @cached_property
    def coco(self) -> COCO:
        """Read again by whoever needs it in training."""
        with self.file_client.get_local_path(self.ann_file) as path, _without_byte_order_mark(path) as readable:
            return COCO(readable)

    @property
    def data_infos(self) -> Any:
        """See the stock class. Group flags follow an assignment."""
        return self._infos if self._packed_infos is None or get_worker_info() is None else self._packed_infos

    @data_infos.setter
    def data_infos(self, infos: Any) -> None:
        self._infos, self._packed_infos = infos, None
        if "flag" in vars(self):
            self._set_group_flag()

    def start_epoch(self, moment: Moment) -> None:
        """What workers read of `data_infos` from now on costs them no memory."""
        self._packed_infos = PackedList(self._infos)

    def end_epoch(self) -> None:
        """Workers that start from now on read `data_infos` as it is then."""
        self._packed_infos = None

    def _annotations(self, idx: int) -> list[dict[str, Any]] | None:
        """All annotations of an image; None where those of `coco` count."""
        if self.test_mode or "coco" in vars(self):
            return None
        found: list[dict[str, Any]] | None = self._packed_annotations.get(self.data_infos[idx]["id"])
        return found

    def get_ann_info(self, idx: int) -> dict[str, Any]:
        """See the stock class."""
        annotations = self._annotations(idx)
        found: dict[str, Any] = (
            super().get_ann_info(idx)
            if annotations is None
            else self._parse_ann_info(self.data_infos[idx], annotations)
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
            ValueError: naming a file that is no readable image, of which stock says that None has no shape.
        """
        try:
            return super().prepare_test_img(idx)
        except AttributeError as error:
            name = _path(self, self.data_infos[idx])
            if os.path.isfile(name) and mmcv.imread(name) is None:
                raise ValueError(f"{name} is no readable image") from error
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


def _decode(sample: Results) -> None:
    if isinstance(sample.get("img"), Deferred):
        sample["img"] = pixels(sample["img"])


def check_skip_type_keys(skip_type_keys: Any) -> None:
    """Raises TypeError for a string in the place of a sequence of strings: its letters would be the keys."""
    if isinstance(skip_type_keys, str):
        raise TypeError(
            f"skip_type_keys must be a sequence of names such as ({skip_type_keys!r},), got {skip_type_keys!r} alone"
        )


class MultiImageMixDataset(StockMultiImageMixDataset, TrainingPart):
    """The stock class, whose workers hear through shared memory which epoch it is and which steps to leave out. Samples
    are not copied, and of the standard loading pipeline, images are decoded only if they are seen.

    Args:
        cache: "ram" or "disk": keep decoded images there, for all workers. "ram" is one process's with its workers;
            "disk" is shared by all processes of a machine, and by later runs.
        cache_bytes: what it may take, default half of the memory that is available, shared among the processes of the
            machine, or nine tenths of the disk's free space. If the set does not fit, as many images as do.
        cache_dir: the folder for "disk", default that of the images with ".cache" added.
    """

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
            shapes = {_path(dataset, info): (info["height"], info["width"]) for info in dataset.data_infos}
            self._cache = ImageCache(shapes, cache, cache_bytes, folder)

    @property
    def flag(self) -> Any:
        """The group flags of the inner data set, as they are now."""
        return self.dataset.flag

    @flag.setter
    def flag(self, flags: Any) -> None:
        self.dataset.flag = flags

    def start_epoch(self, moment: Moment) -> None:
        """Workers draw from (seed, epoch, rank, worker) from their next sample on, and leave out what is left out now.
        For a model that converts images itself, they come in uint8: a quarter of the bytes."""
        self._announcements.start_epoch(moment.seed, moment.epoch, moment.rank)
        self._announce_steps()
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

    def _announce_steps(self) -> None:
        """Again in each epoch, as steps may have been added."""
        self._announcements.leave_out([name in self._skip_type_keys for name in self.pipeline_types])

    def _load(self, index: int) -> Any:
        """A sample of the inner data set that nobody else has."""
        loaded = self._load_deferred(index) if _is_standard(self.dataset) else None
        if loaded is not None:
            return loaded
        sample = copy.deepcopy(self.dataset[index])
        if isinstance(sample, dict) and isinstance(sample.get("img"), np.ndarray):
            sample["img"] = DecodedImage(sample["img"])
        return sample

    def _load_deferred(self, index: int) -> Results | None:
        """What `LoadImageFromFile` and `LoadAnnotations` make of a sample, but for the pixels, which come when wanted;
        None if it has to be replaced by another."""
        load, annotate = self.dataset.pipeline.transforms
        info = self.dataset.data_infos[index]
        name = _path(self.dataset, info)
        image: Deferred | None = None
        keep = None
        if self._cache is not None:
            stamp = file_stamp(name)
            found = self._cache.get(name, stamp)
            image = None if found is None else DecodedImage(found)
            keep = partial(self._cache.put, name, stamp)
        if image is None:
            if load.file_client is None:
                load.file_client = mmcv.FileClient(**load.file_client_args)
            image = EncodedImage(name, load.file_client.get(name), mmcv.imfrombytes, keep)
        sample: Results = {"img_info": info, "ann_info": self.dataset.get_ann_info(index)}
        self.dataset.pre_pipeline(sample)
        sample |= {"filename": name, "ori_filename": info["filename"], "img": image, "img_shape": image.shape,
                   "ori_shape": image.shape, "img_fields": ["img"]}  # fmt: skip
        annotated: Results | None = annotate(sample)
        return annotated

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
                _decode(part)
        for _ in range(self.max_refetch):
            # Asked again, a step has to find the sample as it was: the dictionary is its own in any case.
            given = dict(sample) if type(transform) in PURE else copy.deepcopy(sample)
            result: Results | None = transform(given)
            if result is not None:
                return result
        raise RuntimeError(f"{self.max_refetch} times, {type(transform).__name__} returned None for a sample")

    def __getitem__(self, idx: int) -> Any:
        worker = get_worker_info()
        skipped = self._skip_type_keys
        if worker is not None:  # which has the keys of the time when it was started; the runner seeds the main process
            self._announcements.follow(worker.id)
            left_out = self._announcements.left_out()
            skipped = [name for name, out in zip(self.pipeline_types, left_out, strict=False) if out]
        sample = self._load(idx)
        for transform, name in zip(self.pipeline, self.pipeline_types, strict=False):  # as far as both go, as stock
            if name in skipped:
                continue
            if hasattr(transform, "get_indexes"):
                sample["mix_results"] = self._partners(transform)
            sample = self._transform(transform, sample)
            sample.pop("mix_results", None)
        _decode(sample)  # if no step has
        return sample
