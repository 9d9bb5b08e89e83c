"""MMDetection's augmentations of the standard YOLOX config with less work: the same draws, boxes and labels, and the
same pixels within a grey level. Inputs are left as they are, so that nobody has to copy them."""

import copy

import mmcv
import numpy as np
import torch
from mmdet.datasets.transforms import MixUp as StockMixUp
from mmdet.datasets.transforms import Mosaic as StockMosaic
from mmdet.datasets.transforms import RandomAffine as StockRandomAffine
from mmdet.datasets.transforms import YOLOXHSVRandomAug as StockYOLOXHSVRandomAug
from mmdet.structures.bbox import HorizontalBoxes
from numpy import random

from ..core import affine, mixup, mosaic
from ..core.hsv import shift_hsv
from ..core.images import Array, Deferred, Results, decode, is_colour, pixels
from ..patches import has_own

LABELS = ("gt_bboxes_labels", "gt_ignore_flags")


def _is_usual(sample: Results, partners: int = 0) -> bool:
    """Whether a sample is a colour image with horizontal boxes, labels and ignore flags, and so are its partners."""
    mixed = sample.get("mix_results", []) if partners else []
    return (
        is_colour(sample.get("img"))
        and type(sample.get("gt_bboxes")) is HorizontalBoxes
        and all(isinstance(sample.get(key), np.ndarray) for key in LABELS)
        and "gt_masks" not in sample
        and len(mixed) == partners
        and all(map(_is_usual, mixed))
    )


def _for_stock(sample: Results) -> Results:
    """A copy for stock's code, which knows arrays only and writes to what it is given."""
    own = dict(sample)
    if "mix_results" in own:
        own["mix_results"] = [dict(partner) for partner in own["mix_results"]]
    decode(own)
    return copy.deepcopy(own)


def _inside(boxes: Array, samples: list[Results], size: tuple[int, int]) -> Results:
    """Of the boxes of all samples those that reach into a picture of `size` (height, width), with their labels and
    flags."""
    inside = affine.reach_into(boxes, *size[::-1])
    labels = {key: np.concatenate([sample[key] for sample in samples])[inside] for key in LABELS}
    return {"gt_bboxes": HorizontalBoxes(torch.from_numpy(boxes[inside]), clone=False), **labels}


def _project(boxes: Array, matrix: Array) -> Array:
    """To the bit `HorizontalBoxes.project_`, whose product is torch's, in fewer steps."""
    corners = np.ones((len(boxes), 4, 3), boxes.dtype)
    corners[..., 0] = boxes[:, [0, 2, 0, 2]]
    corners[..., 1] = boxes[:, [1, 1, 3, 3]]
    homography = torch.from_numpy(matrix.astype(boxes.dtype))
    moved = torch.matmul(homography, torch.from_numpy(corners).transpose(-1, -2)).numpy()
    x, y = moved[:, 0] / moved[:, 2], moved[:, 1] / moved[:, 2]
    return np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], 1)


class Mosaic(StockMosaic):
    """The stock class. Of an image that is `Deferred`, so is the mosaic."""

    def transform(self, results: Results) -> Results:
        """See the stock class."""
        if has_own(StockMosaic, ["transform"]) or not _is_usual(results, partners=3):
            stock: Results = super().transform(_for_stock(results))
            return stock
        if random.uniform(0, 1) > self.prob:
            return results
        width, height = self.img_scale
        centre = tuple(int(random.uniform(*self.center_ratio_range) * side) for side in self.img_scale)
        samples = [results, *results["mix_results"]]
        image, moves = mosaic.arrange(
            [sample["img"] for sample in samples], (height, width), centre, self.pad_val, self._mosaic_combine,
            mmcv.imresize,
        )  # fmt: skip
        size = (2 * height, 2 * width)
        moved = [move(sample["gt_bboxes"].numpy()) for move, sample in zip(moves, samples, strict=True)]
        boxes = np.concatenate(moved)
        if self.bbox_clip_border:
            affine.clip(boxes, *size[::-1])
        return results | {
            "img": image if isinstance(results["img"], Deferred) else image.pixels(),
            "img_shape": image.shape[:2],
            **_inside(boxes, samples, size),
        }


class RandomAffine(StockRandomAffine):
    """The stock class; of a mosaic it asks only for what its picture shows."""

    def transform(self, results: Results) -> Results:
        """See the stock class."""
        is_stock = not has_own(StockRandomAffine, ["transform"]) and not has_own(HorizontalBoxes, ["project_", "clip_"])
        if not is_stock or not _is_usual(results):
            stock: Results = super().transform(_for_stock(results))
            return stock
        image = results["img"]
        width, height = (side + 2 * border for side, border in zip(image.shape[1::-1], self.border, strict=True))
        matrix = self._get_random_homography_matrix(height, width)
        warped = affine.warp_image(image, matrix, (width, height), self.border_val)
        results = results | {"img": warped, "img_shape": warped.shape[:2]}
        if len(results["gt_bboxes"]):
            moved = _project(results["gt_bboxes"].numpy(), matrix)
            if self.bbox_clip_border:
                affine.clip(moved, width, height)
            results |= _inside(moved, [results], (height, width))
        return results


class MixUp(StockMixUp):
    """The stock class, by one pass over the picture."""

    def transform(self, results: Results) -> Results:
        """See the stock class."""
        # With a `pad_val` that is no float, MMDetection enlarges in uint8.
        level = self.pad_val if isinstance(self.pad_val, float) else -1.0
        if has_own(StockMixUp, ["transform"]) or not _is_usual(results, partners=1) or level not in range(256):
            stock: Results = super().transform(_for_stock(results))
            return stock
        [partner] = results["mix_results"]
        if not len(partner["gt_bboxes"]):
            return results
        image, other = pixels(results["img"]), pixels(partner["img"])
        size = image.shape[:2]
        canvas = self.dynamic_scale[::-1]
        factor = random.uniform(*self.ratio_range)
        is_flipped = random.uniform(0, 1) > self.flip_ratio
        scaled = mixup.scaled_canvas(canvas, factor)
        y, x = mixup.draw_offset(scaled, size)
        other, scale = mixup.fitted(other, canvas, mmcv.imresize)
        drawn = mixup.Draw(factor, is_flipped, (y, x))
        mixed = mixup.blend(image, other, canvas, drawn, pad_val=int(level), beyond=int(level))
        _, moved = mixup.move_boxes(
            partner["gt_bboxes"].numpy(), scale * factor, canvas, drawn, size, self.bbox_clip_border
        )
        boxes = np.concatenate((results["gt_bboxes"].numpy(), moved))
        return results | {
            "img": mixed,
            "img_shape": mixed.shape[:2],
            **_inside(boxes, [results, partner], size),
        }


class YOLOXHSVRandomAug(StockYOLOXHSVRandomAug):
    """The stock class, without leaving 8 bits."""

    def transform(self, results: Results) -> Results:
        """See the stock class."""
        if has_own(StockYOLOXHSVRandomAug, ["transform"]) or not is_colour(results.get("img")):
            stock: Results = super().transform(_for_stock(results))
            return stock
        return results | {"img": shift_hsv(pixels(results["img"]), self._get_hsv_gains())}
