"""The pictures of an error analysis: what is taken for what, precision and recall, and the images with most errors."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from . import report
from .analysis import IOU, Analysis, Wrong
from .sheets import COLUMNS, ROWS, WIDTH, Picture, cell_height, sheet
from .survey import Array

MOST_CLASSES = 25  # of confusion.png
IN_LEGEND = 10  # of precision_recall.png
KINDS = {"missed": (255, 150, 40), "false": (80, 200, 255)}  # RGB, far from each other for any eyes


def draw_confusion(found: Analysis, path: Path) -> None:
    """A row an annotated class, a column a detected one, with numbers of boxes; of many classes, the most confused."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts, names = confused(found)
    n = len(names)
    side = 0.42 * n + 2.6 if n > 8 else max(0.72 * n + 2.6, 4.8)  # inches, with room for the title
    figure, axis = pyplot.subplots(figsize=(side + 0.6, side), layout="constrained")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    right = np.eye(n + 1, dtype=bool)
    right[-1] = False
    for cells, colours in ((right, "Blues"), (~right, "Oranges")):
        axis.imshow(np.ma.masked_array(shares, ~cells | (counts == 0)), cmap=colours, vmin=0, vmax=1)
    for row, column in np.argwhere(counts > 0):
        dark = shares[row, column] > 0.6
        axis.text(column, row, counts[row, column], ha="center", va="center", fontsize=8 if n > 8 else 11,
                  color="white" if dark else "#222222")  # fmt: skip
    axis.set_xticks(range(n + 1), [*names, "missed"], rotation=90 if n > 8 else 30, ha="center" if n > 8 else "left")
    axis.set_yticks(range(n + 1), [*names, "background"])
    axis.xaxis.tick_top()
    axis.xaxis.set_label_position("top")
    axis.tick_params(length=0)
    axis.set_xticks(np.arange(n + 2) - 0.5, minor=True)
    axis.set_yticks(np.arange(n + 2) - 0.5, minor=True)
    axis.grid(which="minor", color="#e6e6e6", lw=0.7)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_visible(False)
    for line in (axis.axhline, axis.axvline):
        line(n - 0.5, color="#8a8a8a", lw=1.2)
    axis.set_xlabel("detected", weight="bold")
    axis.set_ylabel("annotated", weight="bold")
    more = f"\nthe {MOST_CLASSES} most confused of {len(found.classes)} classes" if n > MOST_CLASSES else ""
    figure.suptitle(f"boxes at score ≥ {found.score_thr:g} and IoU ≥ {IOU}; colour: share of the row{more}", size=11)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def confused(found: Analysis) -> tuple[Array, list[str]]:
    """Boxes (see `Analysis`) and names of the classes; of many, of those most confused and of the others."""
    counts, names = found.confusion, [f"{name:.24}" for name in found.classes]
    if len(names) <= MOST_CLASSES:
        return counts, names
    among = counts[:-1, :-1] - np.diag(found.right)
    errors = counts.sum(0)[:-1] + counts.sum(1)[:-1] - 2 * found.right
    order = np.lexsort((-errors, -among.sum(0) - among.sum(1)))
    chosen = np.sort(order[:MOST_CLASSES])
    group = np.full(len(counts), MOST_CLASSES)  # the others
    group[chosen] = np.arange(MOST_CLASSES)
    group[-1] = MOST_CLASSES + 1
    merged = np.zeros((MOST_CLASSES + 2,) * 2, counts.dtype)
    np.add.at(merged, (group[:, None], group), counts)
    return merged, [*(names[label] for label in chosen), f"{len(names) - MOST_CLASSES} others"]


def draw_precision_recall(found: Analysis, path: Path) -> None:
    """Curves at IoU 0.5: thick the mean over the classes, thin each; dashed the mean at 0.75."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    recalls = np.linspace(0, 1, found.curves.shape[1])
    figure, axis = pyplot.subplots(figsize=(9, 6), layout="constrained")
    there = np.flatnonzero(~np.isnan(found.ap)).tolist()
    few = len(there) <= IN_LEGEND
    for place, label in enumerate(there if len(there) > 1 else ()):
        colour = f"C{place}" if few else "#9db8d2"
        name = f"{found.classes[label]:.24}   AP50 {found.ap50[label]:.3f}" if few else None
        axis.plot(recalls, found.curves[0, :, label], color=colour, lw=1.2 if few else 0.6, label=name)
        if few and found.detected[label]:
            axis.plot(found.recall[label], found.precision[label], "o", color=colour, ms=5, clip_on=False)
    if len(there):
        what = f"mean of {len(there)} classes" if len(there) > 1 else f"{found.classes[there[0]]:.24}"
        for curve, iou, dashes in zip(found.curves[:, :, there].mean(2), (0.5, 0.75), ("-", "--"), strict=True):
            name = f"{what}, IoU {iou:g}   {curve.mean():.3f}"
            axis.plot(recalls, curve, dashes, color="#222222", lw=2.8 if dashes == "-" else 1.8, label=name)
        if found.detected[there].any() and (few or len(there) == 1):
            axis.plot([], [], "o", color="#8a8a8a", ms=5, label=f"at a score of {found.score_thr:g}")
        if len(there) == 1 and found.detected[there[0]]:
            axis.plot(
                found.recall[there[0]], found.precision[there[0]], "o", color="#8a8a8a", ms=6, clip_on=False, zorder=3
            )
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    else:
        axis.text(0.5, 0.5, "no annotated boxes", ha="center", color="#646464")
    axis.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axis.grid(color="#e6e6e6")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title("precision and recall at IoU 0.5, and at 0.75 (dashed)", loc="left", size=11)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_worst(found: Analysis, folder: Path, path: Path) -> None:
    """A contact sheet of the images with most missed and false boxes.

    Args:
        folder: of the images.
    """
    chosen = found.wrong[: COLUMNS * ROWS]
    pictures = [picture_of(wrong, folder, len(found.classes)) for wrong in chosen]
    cell = (WIDTH, cell_height([picture.image for picture in pictures]))
    title = (
        f"{len(chosen)} images with most missed and false boxes, of {len(found.wrong)} that have any, at a score of"
        f" {found.score_thr:g} and IoU {IOU}"
    )
    report.write_image(path, sheet(pictures, found.classes, title, cell, KINDS))


def picture_of(wrong: Wrong, folder: Path, classes: int) -> Picture:
    """An image with its missed and false boxes, whose labels are those of `sheets.sheet` with KINDS."""
    image: Any = report.read_image(folder / wrong.name)
    labels = np.concatenate([wrong.missed_labels, wrong.false_labels + classes])
    caption = f"{wrong.name}   {len(wrong.missed)} missed   {len(wrong.false)} false"
    return Picture(image, np.concatenate([wrong.missed, wrong.false]), labels, caption)
