"""What a run leaves for people and for programs: final lines, result.json, and pictures."""

import itertools
import json
import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np

from ..hosts import version_of

# BGR, one a class.
COLOURS = (
    (80, 80, 240), (80, 200, 80), (240, 140, 60), (60, 200, 240), (220, 80, 220), (210, 210, 60), (60, 140, 255),
    (190, 180, 255), (120, 230, 190), (255, 180, 180), (150, 130, 60), (110, 170, 200),
)  # fmt: skip
FIGURES = {"mAP": "mAP", "AP50": "mAP_50", "AP75": "mAP_75", "APs": "mAP_s", "APm": "mAP_m", "APl": "mAP_l"}


class Outcome(NamedTuple):
    """What a training was, for result.json."""

    batch_size: int
    epochs: int | None
    iterations: int | None
    seed: int | None
    log: list[dict[str, Any]]  # of the host's `read_log`
    has_gts: bool  # whether there was anything to evaluate with
    step: dict[str, Any] | None  # `where.Steps.figures`, where it was measured


def parse_log(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSON log. A process that was killed, or a full disk, may leave the last one cut short.

    Raises:
        ValueError: for any other line that is no JSON.
    """
    texts = path.read_text().splitlines()
    for number, text in enumerate(texts, 1):
        try:
            yield json.loads(text)
        except json.JSONDecodeError as error:
            if number < len(texts):
                raise ValueError(f"line {number} of {path} is no JSON: {error}") from error


def speed(log: list[dict[str, Any]], images: int) -> dict[str, Any]:
    """Images a second of all devices, and the share of the time spent waiting for data, from the log of a training.

    Args:
        log: of the host's `read_log`. A line has the mean over some iterations; the figures are medians and quartiles
            of those.
        images: an iteration's, of all devices.
    """
    train = [line for line in log if line["mode"] == "train"]
    lines = [line for line in train if not line["warm_up"]] or train
    if not lines:
        return {"images_per_second": None, "data_wait": None}
    rates = [images / line["time"] for line in lines]
    low, middle, high = quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else rates * 3
    return {
        "images_per_second": {"median": middle, "quartiles": [low, high], "measurements": len(rates)},
        "data_wait": median(line["data_time"] / line["time"] for line in lines),
    }


def accuracy(figures: dict[str, Any], has_gts: bool = True) -> dict[str, float | None]:
    """pycocotools' figures under short names; of sizes without any gt they are -1.

    All are 0 if nothing was detected, of which MMDetection returns none, and None if there was no gt at all. None are
    those that the config's `evaluation` did not ask for.
    """
    asked = {name: figures.get(f"bbox_{key}") for name, key in FIGURES.items()}
    if not any(key.startswith(("bbox_", "AR")) for key in figures):
        asked = dict.fromkeys(FIGURES, 0.0)
    return {name: float(value) if has_gts and value is not None else None for name, value in asked.items()}


def versions() -> dict[str, str]:
    """Of everything that has a part in the figures."""
    found = {"python": platform.python_version()}
    hosts = {name: version_of(name) for name in ("mmcv", "mmengine", "mmdet")}
    found |= {name: text for name, text in hosts.items() if text != "not there"}
    for name in ("yolox-ops", "torch", "torch_npu", "numpy", "opencv-python-headless", "pycocotools",
                 "faster-coco-eval"):  # fmt: skip
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_text_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all; one that is there stays until then.

    Raises:
        OSError: with the file's name, as of a full disk.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text)
        part.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def write_result(work_dir: Path, result: dict[str, Any]) -> None:
    """Writes result.json and prints the final lines, with the words of the ModelZoo's scripts."""
    write_text_whole(work_dir / "result.json", json.dumps(result, indent=2) + "\n")
    rate, mean_ap = result["images_per_second"], result.get("mAP")
    print("------------------ Final result ------------------")
    print(f"Final Performance images/sec : {'not measured' if rate is None else format(rate['median'], '.2f')}")
    if result.get("step"):
        print(f"Time of a step : {step_in_words(result['step'], result['data_wait'])}")
    kind = "Train" if result["task"] == "train" else "Test"
    print(f"Final {kind} Accuracy : {'not measured' if mean_ap is None else format(mean_ap, '.4f')}")
    if "loss" in result:
        print(f"Final Train Loss : {'not measured' if result['loss'] is None else format(result['loss'], '.4f')}")
    if "analysis" in result:
        print(f"Error Analysis : {', '.join(result['analysis'].values())} in {work_dir}")
    print(f"E2E {kind}ing Duration sec : {result['seconds']:.0f}", flush=True)


def step_in_words(step: dict[str, Any], data_wait: float | None) -> str:
    """One line of a result's `step`."""
    if step["ms"] is None or data_wait is None:
        return "not measured"
    words = f"{step['ms']:.0f} ms, waiting for data {data_wait:.0%}"
    if step["host_ms"] is None:
        return words
    bound = "what bounds it is not known" if step["bound_by"] is None else f"bound by the {step['bound_by']}"
    waits = "not measured" if step["waits"] is None else step["waits"]
    return (
        f"{words}, host {step['host_ms']:.0f} ms, device {step['device_ms']:.0f} ms: {bound}"
        f" (waits {waits}, operators called {step['operators_called']})"
    )


def draw_curves(log: list[dict[str, Any]], path: Path, title: str, unit: str) -> None:
    """Training loss and validation mAP, over the epochs, or over the iterations of a training without them: `unit`."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [line for line in log if line["mode"] == "train"]
    evaluations = [line for line in log if line["mode"] == "val" and line.get("bbox_mAP", 0.0) >= 0]  # -1: without gts
    figure, left = pyplot.subplots(figsize=(7, 4), layout="constrained")
    left.plot([line["at"] for line in steps], [line["loss"] for line in steps], color="tab:blue")
    left.set_xlabel(unit)
    left.set_ylabel("training loss", color="tab:blue")
    if evaluations:
        right = left.twinx()
        means = [line.get("bbox_mAP", 0.0) for line in evaluations]
        right.plot([line["at"] for line in evaluations], means, "o-", color="tab:red")
        right.set_ylabel("validation mAP", color="tab:red")
        right.set_ylim(0, max(0.05, min(1.1 * max(means), 1)))
    with_l1 = [line["at"] for line in steps if "loss_l1" in line]
    if with_l1 and len(with_l1) < len(steps):
        left.axvline(with_l1[0], color="grey", linestyle="dashed", linewidth=1)
        left.text(with_l1[0], 0.98, "L1 loss is added ", ha="right", va="top", color="grey",
                  transform=left.get_xaxis_transform())  # fmt: skip
    left.set_title(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def drawable(detections: Any, shape: Sequence[int]) -> Any:
    """Detections (x1, y1, x2, y2, score) with corners that OpenCV can draw on an image of this shape: an untrained net
    knows no bounds."""
    far = 2.0 * max(shape[:2])
    corners = np.nan_to_num(detections[:, :4]).clip(-far, far)
    return np.hstack([corners, detections[:, 4:]])


def colour_of(label: int) -> tuple[int, int, int]:
    """A class's, BGR."""
    return COLOURS[label % len(COLOURS)]


def draw_boxes(image: Any, results: Sequence[Any], classes: Sequence[str], score_thr: float) -> None:
    """Draws on an image the boxes (x1, y1, x2, y2, score) of each class that have this score or more."""
    size = max(0.35, image.shape[1] / 1500)  # of the letters
    for label, found in enumerate(results):
        for *box, score in drawable(found[found[:, 4] >= score_thr], image.shape):
            x1, y1, x2, y2 = map(round, box)
            colour = colour_of(label)
            cv2.rectangle(image, (x1, y1), (x2, y2), colour, 1, cv2.LINE_AA)
            words = f"{classes[label]} {score:.2f}"
            (w, h), below = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
            left = max(min(x1, image.shape[1] - w - 2), 0)
            top = max(y1 - h - below, 0)
            cv2.rectangle(image, (left, top), (left + w + 2, top + h + below), colour, -1)
            place = (left + 1, top + h)
            cv2.putText(image, words, place, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)


def draw_detections(
    detections: Iterable[tuple[Path, Sequence[Any]]],
    classes: Sequence[str],
    path: Path,
    columns: int = 4,
    rows: int = 2,
) -> None:
    """A contact sheet of images with their detections of a score of 0.3 or more.

    Args:
        detections: image files, each with the boxes (x1, y1, x2, y2, score) of each class.
    """
    width, height = 320, 240
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for index, (file, results) in enumerate(itertools.islice(detections, columns * rows)):
        image = read_image(file)
        scale = min(width / image.shape[1], height / image.shape[0])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        draw_boxes(image, [found * [*[scale] * 4, 1] for found in results], classes, 0.3)
        y, x = index // columns * height, index % columns * width
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    write_image(path, sheet)


def save_picture(file: Path, results: Sequence[Any], classes: Sequence[str], score_thr: float, path: Path) -> None:
    """An image with its boxes (see `draw_boxes`), as a file of its own."""
    image = read_image(file)
    draw_boxes(image, results, classes, score_thr)
    write_image(path, image)


def read_image(path: Path) -> Any:
    """Its colours, (h, w, 3) uint8 BGR, upright as the camera held it."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise OSError(f"cannot read {path}")
    return image


def write_image(path: Path, image: Any) -> None:
    """Raises OSError, with its name, if that cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
