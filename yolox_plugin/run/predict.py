"""Detects in images with a trained checkpoint, which has its config in it.

    python -m yolox_plugin.predict --pth-path=work_dirs/mine/latest.pth photographs/ one.jpg 'more/*.png' clip.mp4

Writes to --save-dir: every image and video with its boxes, in the folders in which it lies; predictions.json, COCO's
list of results with the names of files and classes beside the numbers; predictions.csv. The exit status is 0 after a
complete run, 1 if a file was no image, and 2 if something in the command is wrong (nothing has been written then).
"""

import argparse
import csv
import glob
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from . import folders, launch, report, video
from .failures import explained
from .messages import InputError, warn
from .options import options_of, positive, user_path
from .predictor import Detections, Detector, Unreadable

# What is taken from folders.
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
RESULTS, TABLE = "predictions.json", "predictions.csv"


def parser() -> argparse.ArgumentParser:
    """The options; `--help` shows them."""
    options = argparse.ArgumentParser(
        "python -m yolox_plugin.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add(
        "images",
        nargs="+",
        metavar="IMAGES",
        help=f"files, folders ({', '.join(SUFFIXES + video.SUFFIXES)}), or patterns",
    )
    add("--pth-path", type=user_path, required=True, metavar="FILE", help="the checkpoint")
    add("--config", metavar="NAME|FILE", help="default: the config in the checkpoint")
    add("--save-dir", type=user_path, default=Path("predictions"), metavar="DIR", help="default: %(default)s")
    add("--score-thr", type=float, default=0.3, metavar="X", help="lowest score that counts (default: %(default)s)")
    add("--batch-size", type=positive, default=8, metavar="N", help="images at a time (default: %(default)s)")
    add("--device", choices=("npu", "cuda", "cpu"), help="default: the first of these that is there")
    add("--amp", choices=("float32", "bfloat16", "float16"), default="float32",
        help="precision of the convolutions but for the last ones (default: %(default)s)")  # fmt: skip
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks, then detects. Returns the exit status."""
    args = parser().parse_args(options_of(sys.argv[1:] if arguments is None else arguments))
    try:
        places = dict(found_in(args.images))
        check_places(args.save_dir, places)
        total = sum(video.count_frames(file) if video.is_video(file) else 1 for file in places)
        detector = Detector(args.pth_path, args.config, args.device, args.amp, args.batch_size)
        return predict(args, detector, places, total)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return launch.interrupted()
    except Exception as error:
        return explained(error)


def found_in(given: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    """The files that are given, each with its place below --save-dir.

    Raises:
        InputError: nothing is there.
    """
    for name in given:
        path = user_path(name)
        matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise InputError(f"{name} does not exist")
        for match in matches:
            if not match.is_dir():
                yield match, writable(Path(match.name))
                continue
            known = SUFFIXES + video.SUFFIXES
            inside = sorted(file for file in match.rglob("*") if file.suffix.lower() in known and file.is_file())
            if not inside:
                raise InputError(f"{match} has no images ({', '.join(known)})")
            yield from ((file, writable(file.relative_to(match))) for file in inside)


def writable(place: Path) -> Path:
    """The name of a picture, as a PNG where OpenCV writes no files of this kind, or of a video."""
    if video.is_video(place):
        return place.with_suffix(video.WRITTEN)
    return place if cv2.haveImageWriter(str(place)) else place.with_name(f"{place.name}.png")


def check_places(save_dir: Path, places: dict[Path, Path]) -> None:
    """Raises InputError if something would be overwritten, or two pictures were the same file."""
    folders.check_folder("--save-dir", save_dir)
    taken: dict[Path, Path] = {Path(RESULTS): Path(), Path(TABLE): Path()}
    for name in taken:
        if os.path.lexists(save_dir / name):
            raise InputError(f"--save-dir {save_dir} has a {name}, which would be overwritten: name another")
    for file, place in places.items():
        if place in taken:
            raise InputError(f"--save-dir {save_dir}: {taken[place]} and {file} would be the same picture")
        if os.path.lexists(save_dir / place):
            raise InputError(f"--save-dir {save_dir} has {place}, which would be overwritten: name another")
        taken[place] = file


class Origin(NamedTuple):
    """Where an image is from."""

    file: Path
    frame: int | None  # of a video


class Pictures:
    """Writes images with their boxes to their places under `save_dir`; a context."""

    def __init__(self, save_dir: Path, places: dict[Path, Path]) -> None:
        self._save_dir, self._places = save_dir, places
        self._video: video.VideoWriter | None = None

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *_: object) -> None:
        if self._video is not None:
            self._video.close()

    def write(self, origin: Origin, picture: Any) -> None:
        """Raises OSError if that cannot be."""
        path = self._save_dir / self._places[origin.file]
        if origin.frame is None:
            report.write_image(path, picture)
            return
        if self._video is None or self._video.path != path:
            self.__exit__()
            self._video = video.VideoWriter(path, origin.file)
        self._video.write(picture)


def images_in(files: Iterable[Path], origins: deque[Origin]) -> Iterator[Any]:
    """Each file, or each frame of a video, for a `Detector`; tells `origins` of each."""
    for file in files:
        for frame, image in enumerate(video.frames_of(file)) if video.is_video(file) else ((None, file),):
            origins.append(Origin(file, frame))
            yield image


def predict(args: argparse.Namespace, detector: Detector, places: dict[Path, Path], total: int) -> int:
    """Detects in every file, with so many images, and writes what was found; the exit status."""
    start, shown = time.time(), 0.0
    results: list[dict[str, Any]] = []
    unreadable = read = 0
    highest = 0.0  # of all scores
    origins: deque[Origin] = deque()
    with Pictures(args.save_dir, places) as pictures:
        for number, (_, pixels, found) in enumerate(detector.stream(images_in(places, origins))):
            origin = origins.popleft()
            if isinstance(found, Unreadable) or pixels is None:
                unreadable += 1
                warn(f"{origin.file}: {found.reason if isinstance(found, Unreadable) else 'no image'}")
                continue
            read += 1
            highest = max([highest, *found.scores[:1]])
            results += results_of(number, origin, found, args.score_thr)
            pictures.write(origin, drawn(pixels, found, detector.classes, args.score_thr))
            if sys.stderr.isatty() and time.time() - shown > 0.2:
                shown = time.time()
                print(f"\r{number + 1}/{total} images", end="", file=sys.stderr, flush=True)
    seconds = time.time() - start
    args.save_dir.mkdir(parents=True, exist_ok=True)
    (args.save_dir / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
    with (args.save_dir / TABLE).open("w", newline="") as file_of_rows:
        table = csv.writer(file_of_rows)
        table.writerow(["file", "frame", "class", "score", "x1", "y1", "x2", "y2"])
        for result in results:
            x, y, width, height = result["bbox"]
            corners = [round(number, 2) for number in (x, y, x + width, y + height)]
            table.writerow(
                [*(result.get(key, "") for key in ("file_name", "frame", "category_name", "score")), *corners]
            )
    skipped = f", {unreadable} skipped as no images" if unreadable else ""
    print(f"\r{len(results)} boxes in {read} images{skipped}, {read / seconds:.1f} images/s: {args.save_dir}")
    if highest and not results:
        print(f"  the highest score was {highest:.3f}: --score-thr shows boxes of lower ones than {args.score_thr:g}")
    return int(unreadable > 0)


def results_of(number: int, origin: Origin, found: Detections, score_thr: float) -> list[dict[str, Any]]:
    """The detections in an image of this score or more, as COCO lists them, with the names of file and class."""
    results = []
    where = {"file_name": str(origin.file)} | ({} if origin.frame is None else {"frame": origin.frame})
    for box, score, label, name in zip(*found, strict=True):
        if score < score_thr:
            break  # the highest come first
        x1, y1, x2, y2 = (round(float(value), 2) for value in box)
        results.append({
            "image_id": number, **where, "category_id": int(label), "category_name": name,
            "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)], "score": round(float(score), 5),
        })  # fmt: skip
    return results


def drawn(pixels: Any, found: Detections, classes: Sequence[str], score_thr: float) -> Any:
    """A copy of an image with its detections of this score or more."""
    picture = pixels.copy()
    scored = np.hstack([found.boxes, found.scores[:, None]])
    by_class = [scored[found.labels == label] for label in range(max(found.labels, default=-1) + 1)]
    names = [*classes, *(f"class {n}" for n in range(len(classes), len(by_class)))]
    report.draw_boxes(picture, by_class, names, score_thr)
    return picture
