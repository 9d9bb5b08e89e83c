"""What may be wrong with a data set: checks of boxes, of classes and of images. None of them changes anything."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .predictor import Unreadable
from .survey import Array, Seen, Table, factors

# Each kind and what it means, in the order in which they are told.
KINDS = {
    "unreadable image": "OpenCV cannot read the file: a training ends there",
    "other image size": "the file's size is another than the annotations say, by which MMDetection leaves out boxes",
    "image in train and val": "looks as an image of the other split: what is learned by heart counts as found",
    "duplicate image": "looks as another image of the same split",
    "image without boxes": "nothing of the config's classes is in it",
    "few boxes": "fewer boxes of the class than can be learned from",
    "box without area": "MMDetection leaves it out",
    "box outside": "no part of it is in the image: MMDetection leaves it out",
    "box partly outside": "by more than a pixel",
    "tiny box": "a side of less than 2 pixels in the file; of less than 1, MMDetection leaves it out",
    "duplicate box": "nearly the same as another of the same class in the same image",
    # A prior costs 1e5 more unless it is in the box and in its centre region. Candidates are the priors in the box or
    # the centre region of any gt, so there always are some: but all at more than 1e5, where float32 tells costs apart
    # by 1/128 at best, wherever they lie, and the one that is chosen goes to any other box that has it inside.
    "box without a prior": "no prior's centre is in it at the training's size, unflipped and without mosaic: SimOTA's"
    " cost is above 1e5 everywhere, and it may train nothing; the assigner's keep_every_gt=True gives it a prior",
}  # fmt: skip

FEW = 20  # boxes of a class
TINY = 2.0  # pixels
OUTSIDE = 1.0  # pixels by which a box may leave its image, as conventions for the last pixel differ
SAME_BOX = 0.95  # IoU
SAME_BITS = 2  # by which the hashes of images that look the same may differ
SAME_GREY = 8.0  # levels, the mean difference of their small pictures
SAME_SIZE = 0.1  # by which their sides may differ
BLOCKS = ((0, 21), (21, 42), (42, 64))  # of a hash's bits: two bits leave one of them as it is
NEIGHBOURS = 1000  # of an image, by brightness, that it is compared with for each block


class Suspicion(NamedTuple):
    """A row of suspicious.csv."""

    file: str
    image_id: Any
    annotation_id: Any
    kind: str
    detail: str


def suspicions_of(
    tables: Sequence[Table],
    seen: Sequence[Sequence[Seen | Unreadable]],
    classes: Sequence[str],
    scale: tuple[int, int],
    strides: Sequence[int],
) -> list[Suspicion]:
    """All that is suspicious, by kind, and of a kind in the order of the annotation files.

    Args:
        tables: of all splits, with sizes.
        seen: for each table its images.
        classes: the name of each label.
        scale: to which the training resizes images, pixels.
        strides: of the head's levels, pixels.
    """
    found = list(classes_in([table for table in tables if table.source.training], classes))
    for table, images in zip(tables, seen, strict=True):
        found += images_in(table, images)
        found += boxes_in(table, classes, scale, strides)
    found += duplicate_images(tables, seen)
    order = list(KINDS)
    return sorted(found, key=lambda suspicion: order.index(suspicion.kind))


def classes_in(tables: Sequence[Table], classes: Sequence[str]) -> Iterator[Suspicion]:
    """Classes with few boxes to train on."""
    counts = np.bincount(np.concatenate([table.label for table in tables]), minlength=len(classes)).tolist()
    files = ", ".join(str(table.source.path) for table in tables)
    for name, count in zip(classes, counts, strict=True):
        if count < FEW:
            yield Suspicion(files, "", "", "few boxes", f"{name}: {count}")


def images_in(table: Table, seen: Sequence[Seen | Unreadable]) -> Iterator[Suspicion]:
    """Images that cannot be read, have another size than the annotations say, or no box."""
    counts = np.bincount(table.image, minlength=len(table.names))
    for place, image in enumerate(seen):
        about = (str(table.file(place)), table.image_ids[place], "")
        if isinstance(image, Unreadable):
            yield Suspicion(*about, "unreadable image", image.reason)
        elif image.size != tuple(table.sizes[place]):
            turned = ", as if turned" if image.size[::-1] == tuple(table.sizes[place]) else ""
            w, h = table.sizes[place]
            detail = f"{image.size[0]} x {image.size[1]}, in the annotations {w:g} x {h:g}{turned}"
            yield Suspicion(*about, "other image size", detail)
        if not counts[place]:
            kept = not table.source.training or table.source.keeps_empty
            yield Suspicion(*about, "image without boxes", "" if kept else "MMDetection leaves it out of the training")


def boxes_in(table: Table, classes: Sequence[str], scale: tuple[int, int], strides: Sequence[int]) -> list[Suspicion]:
    """Boxes outside the image, without area, tiny, twice there, or without a prior."""
    boxes, sizes = table.boxes, table.sizes[table.image]
    sides = boxes[:, 2:]
    known = (sizes > 0).all(1)
    low, high = boxes[:, :2], boxes[:, :2] + sides
    empty = (sides <= 0).any(1) | (table.areas <= 0)
    outside = known & ~empty & ((low >= sizes) | (high <= 0)).any(1)
    over = np.maximum(-low, high - sizes).max(1, initial=0)
    whole = ~empty & ~outside
    partly = known & whole & (over > OUTSIDE)
    tiny = whole & (sides < TINY).any(1)
    factor = factors(table.sizes, scale)[table.image, None]
    trained = whole & (sides >= 1).all(1) & known
    missed = trained & ~has_prior(np.hstack([low, high]) * factor, strides)
    first = duplicate_boxes(table)

    def told(kind: str, places: Array, detail: Any) -> list[Suspicion]:
        return [
            Suspicion(
                str(table.file(table.image[place])), table.image_ids[table.image[place]], table.ids[place], kind,
                f"{classes[table.label[place]]}, {detail(place)}",
            )
            for place in places
        ]  # fmt: skip

    def box(place: int) -> str:
        x, y, w, h = boxes[place]
        return f"x {x:g}, y {y:g}, {w:g} x {h:g}"

    def resized(place: int) -> str:
        w, h = sides[place] * factor[place]
        return f"{w:.1f} x {h:.1f} at {scale[0]} x {scale[1]}"

    def in_image(place: int) -> str:
        w, h = sizes[place]
        return f"{box(place)} in an image of {w:g} x {h:g}"

    return [
        *told("box without area", np.flatnonzero(empty), lambda i: f"{box(i)}, area {table.areas[i]:g}"),
        *told("box outside", np.flatnonzero(outside), in_image),
        *told("box partly outside", np.flatnonzero(partly), in_image),
        *told("tiny box", np.flatnonzero(tiny), box),
        *told("duplicate box", np.flatnonzero(first >= 0), lambda i: f"{box(i)}, as {table.ids[first[i]]}"),
        *told("box without a prior", np.flatnonzero(missed), resized),
    ]


def has_prior(boxes: Array, strides: Sequence[int]) -> Array:
    """Whether the centre of a prior, (i + 1/2) strides from the image's corner, lies inside each box [N, 4] (x1, y1,
    x2, y2), borders not counted, as in `yolox_ops.simota_cost`; [N]."""
    inside = np.zeros(len(boxes), bool)
    for stride in strides:
        cells = boxes / stride - 0.5
        inside |= (np.floor(cells[:, :2]) + 1 < cells[:, 2:]).all(1)
    return inside


def duplicate_boxes(table: Table) -> Array:
    """For each box another one of its image and class that it nearly covers, of which one is no duplicate; else -1;
    [N]."""
    low, high = table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]
    order = np.lexsort((low[:, 0], table.label, table.image))
    group = table.image[order], table.label[order]
    low, high = low[order], high[order]
    area = (high - low).prod(1)
    partner = np.full(len(order), -1)
    # Boxes of this IoU begin within a share of their width, so in this order they are near each other.
    reach = (high - low)[:, 0] * (1 / SAME_BOX - 1) * 1.01
    later, step = np.flatnonzero(area > 0), 0
    while len(later):
        step += 1
        later = later[later >= step]
        other = later - step
        near = (group[0][other] == group[0][later]) & (group[1][other] == group[1][later])
        near &= low[later, 0] - low[other, 0] <= reach[later]
        later, other = later[near], other[near]
        shared = np.minimum(high[later], high[other]) - np.maximum(low[later], low[other])
        inter = shared.clip(min=0).prod(1)
        same = inter > SAME_BOX * (area[later] + area[other] - inter)
        partner[later[same]] = other[same]
        later = later[~same]
    found = np.full(len(order), -1)
    found[order] = np.where(partner >= 0, order[partner], -1)
    return found


def duplicate_images(tables: Sequence[Table], seen: Sequence[Sequence[Seen | Unreadable]]) -> Iterator[Suspicion]:
    """Images that look as others of their split, and images of val that look as one of train."""
    places = [
        (table, place, image)
        for table, images in zip(tables, seen, strict=True)
        for place, image in enumerate(images)
        if isinstance(image, Seen)
    ]
    if not places:
        return
    training = np.array([table.source.training for table, _, _ in places])
    sizes = np.array([image.size for _, _, image in places], np.float64)
    small = np.stack([image.small for _, _, image in places])
    for kind, wanted, among in (
        ("duplicate image", training, training),
        ("duplicate image", ~training, ~training),
        ("image in train and val", ~training, training),
    ):
        found = alike(sizes, small, wanted, among)
        for index in np.flatnonzero(found >= 0):
            (table, place, _), (of, other, _) = places[index], places[found[index]]
            yield Suspicion(str(table.file(place)), table.image_ids[place], "", kind, f"as {of.file(other)}")


def hashes_of(small: Array) -> Array:
    """The difference hash of small pictures [I, 8, 9]: whether each of 64 places is darker than that to its right;
    [I] uint64."""
    bits = small[:, :, 1:] > small[:, :, :-1]
    packed: Array = np.packbits(bits.reshape(len(small), 64), axis=1)
    return packed.view(np.uint64).ravel()


def bits_in(numbers: Array) -> Array:
    """How many bits of each uint64 are one; [I]. numpy has a function for it since 2.0."""
    count: Array = np.unpackbits(numbers[:, None].view(np.uint8), axis=1).sum(1)
    return count


def alike(sizes: Array, small: Array, wanted: Array, among: Array) -> Array:
    """For each image of `wanted` one of `among` that looks as it does, else -1; [I].

    Hashes differ by at most SAME_BITS. As all gradients of light have one hash, the small pictures must be alike, too.
    Of images that look the same, where both masks are one, one has no partner.

    Args:
        sizes: [I, 2], pixels.
        small: [I, 8, 9] uint8.
        wanted, among: [I] masks, the same or without a common image.
    """
    hashes, light = hashes_of(small), small.reshape(len(small), -1).mean(1)
    found = np.full(len(sizes), -1)
    both = np.flatnonzero(wanted | among)
    for begin, end in BLOCKS:
        block = (hashes >> np.uint64(begin)) & np.uint64((1 << (end - begin)) - 1)
        order = both[np.lexsort((both, light[both], block[both]))]
        for direction in (1, -1) if not (wanted & among).any() else (1,):
            later = np.flatnonzero(wanted[order] & (found[order] < 0))
            for step in range(1, NEIGHBOURS + 1):
                other = later - direction * step
                inside = (other >= 0) & (other < len(order))
                later, other = later[inside], other[inside]
                one, two = order[later], order[other]
                near = (block[one] == block[two]) & (abs(light[one] - light[two]) <= SAME_GREY)
                later, one, two = later[near], one[near], two[near]
                if not len(later):
                    break
                same = among[two] & (bits_in(hashes[one] ^ hashes[two]) <= SAME_BITS)
                same &= (abs(sizes[one] - sizes[two]) <= SAME_SIZE * np.maximum(sizes[one], sizes[two])).all(1)
                close = np.flatnonzero(same)
                difference = abs(small[one[close]].astype(np.int16) - small[two[close]]).reshape(-1, 72).mean(1)
                same[close] = difference <= SAME_GREY
                found[one[same]] = two[same]
                later = later[~same]
    return found
