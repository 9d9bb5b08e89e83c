"""A trained detector as a function of images: `from yolox_plugin import Detector`."""

import importlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from ..hosts import find_host
from . import checks
from .initial_weights import CLASSIFIER
from .messages import InputError
from .saved_config import classes_in

host = importlib.import_module(f".{find_host()}.prediction", __package__)

Image = NDArray[np.uint8]


class Detections(NamedTuple):
    """What was found in an image, the highest score first."""

    boxes: NDArray[np.float32]  # [N, 4] (x1, y1, x2, y2), pixels of the image
    scores: NDArray[np.float32]  # [N], 0 to 1
    labels: NDArray[np.int64]  # [N], places in `Detector.classes`
    names: list[str]  # N


class Unreadable(NamedTuple):
    """Why there are no detections of a file."""

    reason: str


class Detector:
    """A checkpoint of this plugin or of MMDetection, with the config that was saved in it.

    Args:
        checkpoint: its file.
        config: file or name of another config; needed for checkpoints without one.
        device: "npu", "cuda" or "cpu"; default: the first of these that is there.
        amp: "float32", "bfloat16" or "float16", see `yolox_plugin.test --help`.
        batch_size: images at a time.

    Raises:
        InputError: for whatever of these cannot be; no code of the checkpoint is executed to find out.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        config: str | None = None,
        device: str | None = None,
        amp: str = "float32",
        batch_size: int = 8,
    ) -> None:
        path = Path(checkpoint).expanduser()
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, got {batch_size}")
        content = checks.content_of("--pth-path", path)
        meta = content.get("meta") or {}
        entries = host.read_config(config) if config else host.saved_config(meta, path)
        weights = content["state_dict"].get(f"{CLASSIFIER}0.weight")
        if config and weights is not None and "num_classes" in (entries.get("model", {}).get("bbox_head") or {}):
            entries["model"]["bbox_head"]["num_classes"] = len(weights)  # a config of this name is for other classes
        if device is not None:
            checks.check_devices(device, 1)
        self.network = host.Network(entries, path, device, amp)
        self.batch_size = batch_size
        self.classes = classes_in(meta)
        if not self.classes:
            raise InputError(f"--pth-path {path} does not say what its classes are called")

    @overload
    def __call__(self, images: str | Path | Image) -> Detections: ...
    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...]) -> list[Detections]: ...
    def __call__(self, images: Any) -> Any:
        """The detections in an image, or in each of several.

        Args:
            images: files, or arrays (h, w, 3) uint8 BGR as OpenCV reads them.

        Raises:
            OSError: a file is no image.
            ValueError: an array is no such image.
        """
        several = isinstance(images, (list, tuple))
        found = []
        for source, _, detections in self.stream(images if several else [images]):
            if isinstance(detections, Unreadable):
                raise OSError(f"{source}: {detections.reason}")
            found.append(detections)
        return found if several else found[0]

    def stream(self, images: Iterable[Any]) -> Iterator[tuple[Any, Image | None, Detections | Unreadable]]:
        """Each of `images` (see `__call__`) with its pixels and what was found in it, or why nothing could be.

        The next batch is read while one is detected in.
        """
        rest = iter(images)
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._read, list(islice(rest, self.batch_size)))
            while batch := coming.result():
                coming = reader.submit(self._read, list(islice(rest, self.batch_size)))
                samples = [sample for _, _, sample in batch if not isinstance(sample, Unreadable)]
                found = iter(self.network.detect(samples) if samples else [])
                for source, pixels, sample in batch:
                    result = sample if isinstance(sample, Unreadable) else self._named(*next(found))
                    yield source, pixels, result

    def _read(self, sources: list[Any]) -> list[tuple[Any, Image | None, Any]]:
        """Each source with its pixels and the model's sample of it."""
        read = []
        for source in sources:
            pixels = pixels_of(source)
            sample = pixels if isinstance(pixels, Unreadable) else self._sample(pixels)
            read.append((source, None if isinstance(pixels, Unreadable) else pixels, sample))
        return read

    def _sample(self, pixels: Image) -> Any:
        try:
            return self.network.sample(pixels)
        except cv2.error as error:  # as of an image so narrow that its size has a side of 0 pixels
            return Unreadable(f"OpenCV, of {pixels.shape[1]} x {pixels.shape[0]} pixels: {error.err}")

    def _named(self, found: Any, labels: Any) -> Detections:
        order = np.argsort(-found[:, 4], kind="stable")
        found, labels = found[order], labels[order].astype(np.int64)
        names = [self.classes[label] if label < len(self.classes) else f"class {label}" for label in labels]
        return Detections(np.ascontiguousarray(found[:, :4]), found[:, 4].copy(), labels, names)


def pixels_of(source: Any, colours: int = cv2.IMREAD_COLOR) -> Any:
    """An array (h, w, 3) uint8 BGR, from a file or as it was given, or why there is none.

    Args:
        colours: cv2.IMREAD_GRAYSCALE for (h, w) uint8 from a file.

    Raises:
        ValueError: for an array that is no such image.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise ValueError(f"an image must be (h, w, 3) uint8, got {source.shape} {source.dtype}")
        return source
    path = Path(source).expanduser()
    if os.path.exists(path) and not os.path.isfile(path):  # at a pipe, whoever reads might wait for ever
        return Unreadable("no file")
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        return Unreadable(error.strerror or str(error))
    try:
        image = cv2.imdecode(content, colours) if len(content) else None
    except cv2.error as error:  # of sizes that it refuses
        return Unreadable(f"OpenCV: {error.err}")
    return Unreadable("no image that OpenCV reads") if image is None else image
