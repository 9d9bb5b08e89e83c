"""Shows a data set before it is trained on: what the network will get, what there is of what, and what may be wrong.

    python -m yolox_plugin.look --data-path=coco2017
    python -m yolox_plugin.look --data-path=mine --model=s --out=look

Writes to --out: samples_1.png and so on, training samples with mosaic, mixup and all else; images_1.png and so on,
images as they are; statistics.png; suspicious.csv, and its beginning is printed. The exit status is 0 whatever is
found, and 2 if something in the command is wrong (nothing has been written then).

The samples are the first 64 that `python -m yolox_plugin.train` makes, or all of its first epoch, with the same config,
--seed, --batch-size and --cfg-options on one device: the pixels, boxes and labels that the loader's workers hand over,
to the bit, in their order, in the size that the network has until its first change of size. More devices share them out
in another way; a training whose first epoch is in the closing phase leaves out mosaic and mixup, which are shown here.
"""

import argparse
import contextlib
import csv
import importlib
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from ..core.images import UnreadableImage
from ..hosts import find_host
from . import folders, launch, terminal
from . import train as training
from .distributions import draw_statistics
from .failures import explained, sentence_about
from .layouts import find_layout
from .messages import InputError, warn
from .options import KeyValues, add_data_options, add_size_option, options_of, positive, user_path, whole
from .predictor import Unreadable, pixels_of
from .sheets import Picture, write_sheets
from .survey import Seen, Table, read_table, scale_of, see_all, with_sizes
from .suspicions import KINDS, Suspicion, suspicions_of

host = importlib.import_module(f".{find_host()}.samples", __package__)

COUNT = 64  # of samples, and of images
TABLE, STATISTICS = "suspicious.csv", "statistics.png"
STRIDES = (8, 16, 32)  # of a head that does not say them
PRINTED = 3  # of a kind


def parser() -> argparse.ArgumentParser:
    """The options; `--help` shows them."""
    options = argparse.ArgumentParser(
        "python -m yolox_plugin.look", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_options(options)
    add_size_option(options)
    add = options.add_argument
    add("--out", type=user_path, default=Path("look"), metavar="DIR", help="default: %(default)s")
    add("--seed", type=whole, default=0, help="of the training (default: %(default)s)")
    add("--batch-size", type=positive, metavar="N", help="of the training")
    add("--cfg-options", nargs="+", action=KeyValues, default={}, metavar="KEY=VALUE", help="changes to the config")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Looks at everything, then writes. Returns the exit status."""
    args = parser().parse_args(options_of(sys.argv[1:] if arguments is None else arguments))
    try:
        with terminal.libraries_kept():
            look(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return launch.interrupted()
    except Exception as error:
        return explained(error)
    return 0


def look(args: argparse.Namespace) -> None:
    """Raises InputError for a data set or config that training refuses, except for images: those are listed."""
    start = time.time()
    check_out(args.out)
    defaults = training.parser().parse_args([f"--data-path={args.data_path}", "--device=cpu"])
    args = argparse.Namespace(**{**vars(defaults), **vars(args)})
    cfg = training.host.configure(args)
    splits = training.host.splits_of(args, cfg)
    if not find_layout(args.data_path.absolute()).is_split:
        splits = ("train",)  # all there is
    data = training.host.check_data(args, cfg, splits, images=False)
    data.keep_indexes()
    labels = data.labels
    classes = sorted(labels, key=lambda name: labels[name])
    scale = scale_of(host.training_set(cfg))
    if scale is None:
        raise InputError("no step of the config's training pipeline has an img_scale or a scale to bring images to")
    strides = cfg.model.get("bbox_head", {}).get("strides") or STRIDES
    tables = [read_table(source, labels) for source in training.host.sources(cfg, splits)]
    seen = see_tables(tables)
    tables = [with_sizes(table, images) for table, images in zip(tables, seen, strict=True)]
    found = suspicions_of(tables, seen, classes, scale, strides)
    trained = [(table, images) for table, images in zip(tables, seen, strict=True) if table.source.training]
    unreadable = sum(isinstance(image, Unreadable) for _, images in trained for image in images)
    samples: list[Picture] = []
    if unreadable:
        warn(f"no samples are drawn, as {unreadable} of the training's images cannot be read, at which it would end")
    else:
        try:
            with contextlib.closing(host.first_samples(args, cfg)) as made:
                for image, boxes, of in islice(made, COUNT):
                    size = f"{image.shape[1]} x {image.shape[0]}"
                    samples.append(Picture(image, boxes, of, f"{len(samples) + 1}   {len(of)} boxes   {size}"))
        except UnreadableImage as error:
            warn(f"samples are missing, as the training would end at one: {sentence_about(error)}")
    args.out.mkdir(parents=True, exist_ok=True)
    title = f"first training samples of --seed={args.seed}"
    write_sheets(samples, classes, args.out, "samples", title)
    write_sheets(spread(trained, COUNT), classes, args.out, "images", "training images")
    draw_statistics([table for table, _ in trained], classes, scale, strides, args.out / STATISTICS)
    write_table(args.out / TABLE, found)
    tell(found)
    images, boxes = (sum(map(len, part)) for part in (seen, (table.ids for table in tables)))
    kinds = "1 class" if len(classes) == 1 else f"{len(classes)} classes"
    print(f"{images} images, {boxes} boxes, {kinds}, {len(found)} suspicious things,"
          f" {time.time() - start:.1f} s: {args.out}")  # fmt: skip


def check_out(out: Path) -> None:
    """Raises InputError unless nothing in `out` would be overwritten."""
    folders.check_folder("--out", out)
    written = [path for names in ("samples_*.png", "images_*.png") for path in sorted(out.glob(names))]
    written += [out / name for name in (STATISTICS, TABLE) if os.path.lexists(out / name)]
    if written:
        raise InputError(f"--out {out} has a {written[0].name}, which would be overwritten: name another")


def see_tables(tables: Sequence[Table]) -> list[list[Seen | Unreadable]]:
    """For each table its images, each file read once.

    Raises:
        InputError: none of a table's can be read.
    """
    paths = [[table.file(place) for place in range(len(table.names))] for table in tables]
    distinct = list(dict.fromkeys(path for of_table in paths for path in of_table))
    seen = dict(zip(distinct, see_all(distinct), strict=True))
    found = [[seen[path] for path in of_table] for of_table in paths]
    for table, images in zip(tables, found, strict=True):
        reasons = [image.reason for image in images if isinstance(image, Unreadable)]
        if len(reasons) == len(images):
            raise InputError(
                f"none of the {len(images)} images that {table.source.path} lists can be read in"
                f" {table.source.folder}: {table.names[0]}: {reasons[0]}"
            )
    return found


def spread(tables: Sequence[tuple[Table, Sequence[Seen | Unreadable]]], count: int) -> list[Picture]:
    """So many images with their boxes, or all, evenly from the first to the last that can be read."""
    places = [
        (table, place) for table, images in tables for place, image in enumerate(images) if isinstance(image, Seen)
    ]
    chosen = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
    return [raw(*places[index]) for index in chosen]


def raw(table: Table, place: int) -> Picture:
    """An image with its boxes as they are annotated."""
    image = pixels_of(table.file(place))
    own = table.image == place
    boxes = table.boxes[own] @ np.array([[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]], np.float64)
    caption = f"{table.names[place]}   {own.sum()} boxes   {image.shape[1]} x {image.shape[0]}"
    return Picture(image, boxes, table.label[own], caption)


def write_table(path: Path, found: Sequence[Suspicion]) -> None:
    """Writes suspicious.csv."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(Suspicion._fields)
        table.writerows(found)


def tell(found: Sequence[Suspicion]) -> None:
    """Prints how many there are of each kind, what that means, and the first of them."""
    counts = Counter(suspicion.kind for suspicion in found)
    for kind, meaning in KINDS.items():
        if not counts[kind]:
            continue
        print(f"{kind}: {counts[kind]} ({meaning})")
        for one in [suspicion for suspicion in found if suspicion.kind == kind][:PRINTED]:
            number = f" annotation {one.annotation_id}" if one.annotation_id != "" else ""
            print(f"    {one.file}{number}{': ' if one.detail else ''}{one.detail}")
        if counts[kind] > PRINTED:
            print(f"    and {counts[kind] - PRINTED} more in {TABLE}")
