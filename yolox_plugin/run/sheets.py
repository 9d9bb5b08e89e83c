"""Contact sheets: many images on a page, with boxes and the names of their classes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import report
from .survey import Array

COLUMNS, ROWS = 4, 4
WIDTH = 400  # of a picture, pixels
GAP, CAPTION, HEAD = 12, 22, 78  # pixels
PAPER, INK, FAINT, CELL = (255, 255, 255), (30, 30, 30), (100, 100, 100), (244, 244, 244)
IN_LEGEND = 14  # classes
MANY = 80  # boxes, from which on their lines are thin and names stand at large ones alone

Colour = tuple[int, int, int]  # RGB

FONTS = Path(matplotlib.get_data_path(), "fonts/ttf")  # of more letters than OpenCV's


class Picture(NamedTuple):
    """An image of a contact sheet."""

    image: Array  # (h, w, 3) uint8 BGR
    boxes: Array  # [N, 4] (x1, y1, x2, y2), pixels of it
    labels: Array  # [N]
    caption: str


def write_sheets(pictures: Sequence[Picture], classes: Sequence[str], folder: Path, name: str, title: str) -> None:
    """Writes name_1.png and so on, as many as it takes."""
    cell = (WIDTH, cell_height([picture.image for picture in pictures]))
    rest = iter(pictures)
    for number in range(1, len(pictures) + 1, COLUMNS * ROWS):
        page = list(islice(rest, COLUMNS * ROWS))
        of = f"{title}, {number} to {number + len(page) - 1} of {len(pictures)}"
        report.write_image(folder / f"{name}_{number // (COLUMNS * ROWS) + 1}.png", sheet(page, classes, of, cell))


def cell_height(images: Sequence[Array]) -> int:
    """Of a picture of the usual ratio, pixels."""
    ratio = np.median([image.shape[0] / image.shape[1] for image in images]) if images else 1.0
    return round(WIDTH * float(np.clip(ratio, 0.5, 1.4)))


def sheet(
    pictures: Sequence[Picture],
    classes: Sequence[str],
    title: str,
    cell: tuple[int, int],
    kinds: Mapping[str, Colour] | None = None,
) -> Array:
    """A page of at most COLUMNS x ROWS pictures, (h, w, 3) uint8 BGR.

    Args:
        cell: (w, h) of a picture, pixels.
        kinds: what colours stand for, in the place of classes: label + len(classes) * k is of the k-th of them.
    """
    width, height = cell
    rows = -(-len(pictures) // COLUMNS)
    size = (GAP + COLUMNS * (width + GAP), HEAD + rows * (height + CAPTION + GAP))
    page = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((GAP, GAP), title, INK, font(18, bold=True))
    draw_legend(pen, pictures, classes, GAP, GAP + 34, size[0] - GAP, kinds)
    for place, picture in enumerate(pictures):
        left = GAP + place % COLUMNS * (width + GAP)
        top = HEAD + place // COLUMNS * (height + CAPTION + GAP)
        drawn = draw(picture, classes, cell, kinds)
        pen.rectangle((left, top, left + width - 1, top + height - 1), CELL)
        page.paste(drawn, (left + (width - drawn.width) // 2, top + (height - drawn.height) // 2))
        pen.text((left, top + height + 4), shortened(picture.caption, font(12), width), FAINT, font(12))
    return np.array(page)[:, :, ::-1]


def draw_legend(
    pen: ImageDraw.ImageDraw,
    pictures: Iterable[Picture],
    classes: Sequence[str],
    x: int,
    y: int,
    end: int,
    kinds: Mapping[str, Colour] | None = None,
) -> None:
    """The classes of the pictures, or the kinds, with their colours and numbers of boxes, the most frequent first,
    in one line."""
    names = list(kinds or classes)
    counts = Counter(int(label) // (len(classes) if kinds else 1) for picture in pictures for label in picture.labels)
    left = len(counts)
    for label, count in counts.most_common(IN_LEGEND):
        words = f"{shortened(names[label], font(13), 200)} {count}"
        length = round(font(13).getlength(words)) + 36
        if x + length + 90 > end:
            break
        pen.rectangle((x, y + 1, x + 13, y + 14), kinds[names[label]] if kinds else rgb(label))
        pen.text((x + 19, y), words, INK, font(13))
        x, left = x + length, left - 1
    if left:
        pen.text((x, y), f"{left} more" if left < len(counts) else f"{left} classes", FAINT, font(13))
    if not counts:
        pen.text((x, y), "no boxes", FAINT, font(13))


def draw(
    picture: Picture, classes: Sequence[str], cell: tuple[int, int], kinds: Mapping[str, Colour] | None = None
) -> Image.Image:
    """A picture as large as the cell allows, with its boxes, the largest first. Names stand where they have room, and
    if there is more than one."""
    kind, named = np.divmod(picture.labels, len(classes))
    colours = [list(kinds.values())[k] for k in kind] if kinds else [rgb(label) for label in picture.labels]
    h, w = picture.image.shape[:2]
    scale = min(cell[0] / w, cell[1] / h)
    size = (max(round(w * scale), 1), max(round(h * scale), 1))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    drawn = Image.fromarray(cv2.resize(picture.image, size, interpolation=way)[:, :, ::-1].copy())
    pen = ImageDraw.Draw(drawn)
    boxes = report.drawable(picture.boxes * scale, (size[1], size[0]))
    order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")
    line = 2 if len(boxes) < MANY else 1
    for index in order:
        x1, y1, x2, y2 = (round(float(side)) for side in boxes[index])
        pen.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), None, colours[index], line)
    letters = font(11)
    taken: list[tuple[int, int, int, int]] = []
    for index in order if len(classes) > 1 else ():
        x1, y1, x2, _ = (round(float(side)) for side in boxes[index])
        words = shortened(classes[named[index]], letters, 110)
        length = round(letters.getlength(words)) + 6
        if length > (max(x2 - x1, 24) * 1.6 if len(boxes) < MANY else x2 - x1):
            continue
        left, top = min(max(x1, 0), size[0] - length), min(max(y1 - 14, 0), size[1] - 15)
        tag = (left, top, left + length, top + 14)
        if any(tag[0] < a[2] and a[0] < tag[2] and tag[1] < a[3] and a[1] < tag[3] for a in taken):
            continue
        taken.append(tag)
        pen.rectangle(tag, colours[index])
        pen.text((left + 3, top), words, (0, 0, 0), letters)
    return drawn


def rgb(label: Any) -> Colour:
    """A class's colour."""
    blue, green, red = report.colour_of(int(label))
    return red, green, blue


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Letters of so many pixels."""
    return ImageFont.truetype(str(FONTS / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")), size)


def shortened(words: str, letters: ImageFont.FreeTypeFont, width: int) -> str:
    """Words cut to so many pixels."""
    if letters.getlength(words) <= width:
        return words
    while words and letters.getlength(f"{words}…") > width:
        words = words[:-1]
    return f"{words}…"
