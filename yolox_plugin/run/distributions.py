"""One page of figures about the boxes and images of a data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from .survey import Array, Table, factors
from .suspicions import FEW

MOST_CLASSES = 30  # that have a bar
FEW_CLASSES = 10  # for which there is room beside the sizes
CELLS = 5  # of a stride, the side of SimOTA's centre region
BLUE, GREY = "#3b75af", "#8a8a8a"


def draw_statistics(
    tables: Sequence[Table], classes: Sequence[str], scale: tuple[int, int], strides: Sequence[int], path: Path
) -> None:
    """Boxes a class, their sizes beside the strides', boxes an image, ratios, image sizes.

    Args:
        tables: of one split, with sizes.
        scale, strides: see `suspicions_of`.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"axes.titlesize": 11, "axes.titlelocation": "left", "axes.axisbelow": True,
                            "axes.spines.top": False, "axes.spines.right": False}):  # fmt: skip
        figure = page_of(tables, classes, scale, strides)
        figure.savefig(path, dpi=110)
        pyplot.close(figure)


def page_of(tables: Sequence[Table], classes: Sequence[str], scale: tuple[int, int], strides: Sequence[int]) -> Any:
    """See `draw_statistics`."""
    from matplotlib import pyplot

    labels = np.concatenate([table.label for table in tables])
    sides = np.concatenate([table.boxes[:, 2:] for table in tables])
    sizes = np.concatenate([table.sizes for table in tables])
    factor = np.concatenate([factors(table.sizes, scale)[table.image] for table in tables])
    per_image = np.concatenate([np.bincount(table.image, minlength=len(table.names)) for table in tables])
    sound = (sides > 0).all(1)
    few = ["css", "nri"], (15, 8.5)
    many = ["css", "cnr", "cii"], (15, 11)
    places, size = few if len(classes) <= FEW_CLASSES else many
    figure, axes = pyplot.subplot_mosaic([list(row) for row in places], figsize=size, layout="constrained")
    figure.suptitle(
        f"training images: {len(sizes)}   boxes: {len(labels)}   classes: {len(classes)}", weight="bold", size=15
    )
    draw_classes(axes["c"], labels, classes)
    draw_sizes(axes["s"], np.sqrt(sides[sound].prod(1)) * factor[sound], scale, strides)
    draw_counts(axes["n"], per_image)
    draw_ratios(axes["r"], sides[sound])
    draw_image_sizes(axes["i"], sizes[(sizes > 0).all(1)])
    return figure


def draw_classes(axis: Any, labels: Array, classes: Sequence[str]) -> None:
    """A bar a class, the most frequent at the top; of many, the ends of the list."""
    counts = np.bincount(labels, minlength=len(classes))
    order = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
    names = [f"{classes[label]:.24}" for label in order]
    bars = axis.barh(range(len(order)), counts[order], color=[BLUE if counts[k] >= FEW else "tab:red" for k in order],
                     height=0.75)  # fmt: skip
    axis.bar_label(bars, padding=3, fontsize=9)
    axis.set_yticks(range(len(order)), names)
    axis.set_ylim(max(len(order), 5) - 0.4, -0.6)
    axis.margins(x=0.12)
    axis.tick_params(axis="x", labelbottom=False, length=0)
    axis.tick_params(axis="y", length=0)
    axis.spines[["left", "bottom"]].set_visible(False)
    rest = len(classes) - len(order)
    more = f", the first {MOST_CLASSES} of {len(classes)}" if rest else ""
    few = int((counts < FEW).sum())
    axis.set_title(f"boxes a class{more}" + (f" ({few} with fewer than {FEW})" if few else ""))


def draw_sizes(axis: Any, sizes: Array, scale: tuple[int, int], strides: Sequence[int]) -> None:
    """How large boxes are where they are trained on; above, from a cell of each stride to SimOTA's centre region."""
    ends = np.geomspace(1, max(scale), 49)
    axis.hist(sizes.clip(1, max(scale)), ends, color=BLUE)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xticks([2**power for power in range(int(np.log2(max(scale))) + 1)])
    axis.set_xlim(1, max(scale))
    top = axis.get_ylim()[1]
    for place, stride in enumerate(strides):
        height = top * (1.04 + 0.09 * place)
        axis.plot([stride, CELLS * stride], [height] * 2, color="tab:orange", lw=5, solid_capstyle="butt")
        axis.text(CELLS * stride * 1.06, height, f"stride {stride}", va="center", fontsize=9, color="tab:orange")
    axis.set_ylim(0, top * (1.04 + 0.09 * len(strides)))
    below = (sizes < min(strides)).mean() if len(sizes) else 0
    axis.set_title(
        f"box sizes at {scale[0]} x {scale[1]}: square root of the area, pixels; {below:.1%} below {min(strides)}\n"
        f"orange: for each stride, from one cell to the {CELLS} x {CELLS} of SimOTA's centre region",
    )


def draw_counts(axis: Any, counts: Array) -> None:
    """Boxes an image."""
    most = max(int(np.percentile(counts, 99)), 1)
    step = -(-(most + 1) // 40)
    axis.hist(counts.clip(max=most), np.arange(0, most + 1 + step, step) - 0.5, color=BLUE, rwidth=0.9)
    beyond = f", the last bar up to {counts.max()}" if counts.max() > most else ""
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.set_title(f"boxes an image: median {np.median(counts):g}{beyond}")


def draw_ratios(axis: Any, sides: Array) -> None:
    """Width over height."""
    ratios = np.log2(sides[:, 0] / sides[:, 1])
    axis.hist(ratios.clip(-4, 4), np.linspace(-4, 4, 41), color=BLUE)
    axis.set_xticks(range(-4, 5), ["1:16", "1:8", "1:4", "1:2", "1", "2:1", "4:1", "8:1", "16:1"])
    axis.axvline(0, color=GREY, lw=1, zorder=0)
    axis.set_title("boxes' width : height")


def draw_image_sizes(axis: Any, sizes: Array) -> None:
    """A dot a size, of an area in proportion to its images."""
    kinds, counts = np.unique(sizes, axis=0, return_counts=True)
    axis.scatter(kinds[:, 0], kinds[:, 1], 12 + 1500 * counts / counts.sum(), color=BLUE, alpha=0.45, lw=0)
    for (w, h), count in sorted(zip(kinds.tolist(), counts, strict=True), key=lambda kind: -kind[1])[:3]:
        if count > len(sizes) / 50:
            axis.annotate(f"{w:g} x {h:g}: {count}", (w, h), (9, 6), textcoords="offset points", fontsize=9)
    axis.set_xlim(0, sizes[:, 0].max() * 1.3)  # room for words
    axis.set_ylim(0, sizes[:, 1].max() * 1.15)
    axis.grid(color="#e6e6e6")
    axis.set_xlabel("width, pixels")
    axis.set_ylabel("height, pixels")
    axis.set_title(f"image sizes: {len(kinds)} different")
