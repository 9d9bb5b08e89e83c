"""Data sets that mix images, for workers that live long: what those of every host have in common."""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from torch.utils.data import get_worker_info

from .cache import ImageCache, file_stamp
from .images import (
    Decode,
    DecodedImage,
    Deferred,
    EncodedImage,
    Results,
    UnreadableImage,
    UnusableImage,
    decode,
    in_planes,
    is_colour,
    unmirrored,
)
from .positions import PlacedIndex
from .workers import Announcements


def data_sets_in(dataset: Any) -> Iterator[Any]:
    """The data set and all that it wraps, from the outside to the inside."""
    yield dataset
    inner = getattr(dataset, "dataset", None)
    several = getattr(dataset, "datasets", ())
    for part in (*([] if inner is None else [inner]), *(several if isinstance(several, (list, tuple)) else ())):
        yield from data_sets_in(part)


def check_skip_type_keys(skip_type_keys: Any) -> None:
    """Raises TypeError for a string in the place of a sequence of strings: its letters would be the keys."""
    if isinstance(skip_type_keys, str):
        raise TypeError(
            f"skip_type_keys must be a sequence of names such as ({skip_type_keys!r},), got {skip_type_keys!r} alone"
        )


@runtime_checkable
class LeavesOutSteps(Protocol):
    """A data set that can leave out steps of its pipeline: a MultiImageMixDataset, or a user's own class."""

    def update_skip_type_keys(self, skip_type_keys: Sequence[str]) -> None:
        """Leaves out the steps of these types."""


class Mixing:
    """The samples of a data set through a pipeline whose steps may ask for partners. Workers hear through shared memory
    which epoch it is and which steps to leave out. Samples are copied only for steps that may write to them.

    For a host's MultiImageMixDataset, which has `dataset`, `pipeline`, `pipeline_types`, `max_refetch` and
    `_skip_type_keys`.
    """

    # Steps that take images as `Deferred`.
    _deferring: Collection[type]
    # Steps that need no copy of a sample: they write to no pixels, and those that may return None write to nothing.
    _gentle: Collection[type]
    # The step that makes a tensor of the image.
    _formatting: type

    # Whether samples of images that cannot be read are left out, and others taken.
    skip_unreadable: bool = False

    _announcements: Announcements
    _cache: ImageCache | None

    dataset: Any
    pipeline: list[Any]
    pipeline_types: list[Any]
    max_refetch: int
    _skip_type_keys: Sequence[str] | None

    def _load_deferred(self, index: int) -> Results | None:
        """A sample of the inner data set whose pixels come when wanted; None if MMDetection has to load it."""
        raise NotImplementedError

    def _partners_from(self, transform: Any) -> Any:
        """The data set in which a step chooses its partners."""
        return self.dataset

    def _announce_epoch(self, seed: int, epoch: int, rank: int) -> None:
        """Samples draw from (seed, epoch, position) from now on, and workers leave out what is left out now."""
        self._announcements.start_epoch(seed, epoch, rank)
        self._announce_steps()

    def _announce_steps(self) -> None:
        """Again in each epoch, as steps may have been added."""
        skipped = self._skip_type_keys or ()
        self._announcements.leave_out([name in skipped for name in self.pipeline_types])

    def _image(self, name: str, read: Callable[[], bytes], decode: Decode) -> Deferred:
        """The image of a file, from the cache if it is there."""
        keep = None
        if self._cache is not None:
            stamp = file_stamp(name)
            found = self._cache.get(name, stamp)
            if found is not None:
                return DecodedImage(found)
            keep = partial(self._cache.put, name, stamp)
        return EncodedImage(name, read(), decode, keep)

    def _load(self, index: int) -> Any:
        """A sample of the inner data set that nobody else has."""
        loaded = self._load_deferred(index)
        if loaded is not None:
            return loaded
        sample = copy.deepcopy(self.dataset[index])
        if isinstance(sample, dict) and isinstance(sample.get("img"), np.ndarray):
            sample["img"] = DecodedImage(sample["img"])
        return sample

    def _partners(self, transform: Any) -> list[Results]:
        """The samples that a step mixes with its own."""
        for _ in range(self.max_refetch):
            indexes = transform.get_indexes(self._partners_from(transform))
            partners = [self._load(index) for index in (indexes if isinstance(indexes, Sequence) else [indexes])]
            if all(partner is not None for partner in partners):
                return partners
        raise RuntimeError(f"{self.max_refetch} times, the data set had no sample for {type(transform).__name__}")

    def _transform(self, transform: Any, sample: Results) -> Results:
        """One step, which is asked again if it has nothing to give."""
        if type(transform) not in self._deferring:
            decode(sample)
        if type(transform) is self._formatting and is_colour(sample.get("img")):
            sample["img"] = in_planes(sample["img"])
        for _ in range(self.max_refetch):
            # Asked again, a step has to find the sample as it was: the dictionary is its own in any case.
            given = dict(sample) if type(transform) in self._gentle else copy.deepcopy(sample)
            try:
                result: Results | None = transform(given)
            except cv2.error as error:
                parts = (sample, *sample.get("mix_results", ()))
                names = [part.get("img_path", part.get("filename")) for part in parts]
                raise UnusableImage.of(type(transform).__name__, names, error) from error
            if result is not None:
                if type(transform) in self._gentle and "img" in result:
                    result["img"] = unmirrored(result["img"])
                return result
        raise RuntimeError(f"{self.max_refetch} times, {type(transform).__name__} returned None for a sample")

    def _sample(self, index: Any) -> Any:
        """A sample of the inner data set after all steps that are not left out."""
        worker = get_worker_info()
        position = None
        if isinstance(index, PlacedIndex):
            index, position = int(index), index.position
        if worker is None:
            with self._announcements.followed_here(position):
                return self._made(index, self._skip_type_keys or ())
        self._announcements.follow(worker.id, position)
        # The keys of a worker are those of the time when it was started.
        left_out = self._announcements.left_out()
        return self._made(index, [name for name, out in zip(self.pipeline_types, left_out, strict=False) if out])

    def _made(self, index: int, skipped: Collection[Any]) -> Any:
        """A sample without the steps of these types; if it cannot be read, and the user wants that, another one."""
        for _ in range(self.max_refetch if self.skip_unreadable else 0):
            try:
                return self._made_of(index, skipped)
            except (OSError, UnreadableImage):
                self._announcements.count_unreadable()
                index = int(np.random.randint(len(self.dataset)))
        return self._made_of(index, skipped)

    def _made_of(self, index: int, skipped: Collection[Any]) -> Any:
        sample = self._load(index)
        for transform, name in zip(self.pipeline, self.pipeline_types, strict=False):  # as far as both go, as stock
            if name in skipped:
                continue
            if hasattr(transform, "get_indexes"):
                sample["mix_results"] = self._partners(transform)
            sample = self._transform(transform, sample)
            sample.pop("mix_results", None)
        decode(sample)  # if no step has
        return sample


def leave_out_steps(dataset: Any, skip_type_keys: Sequence[str]) -> bool:
    """Tells every mixing data set in `dataset`; whether workers that live on have to be replaced, because one of these
    sets tells its workers nothing.

    Raises:
        TypeError: there is no such data set.
    """
    mixing = [data_set for data_set in data_sets_in(dataset) if isinstance(data_set, LeavesOutSteps)]
    if not mixing:
        raise TypeError("YOLOXModeSwitchHook needs a MultiImageMixDataset in the data loader, found none")
    for data_set in mixing:
        data_set.update_skip_type_keys(skip_type_keys)
    return not all(isinstance(data_set, Mixing) for data_set in mixing)
