"""MMDetection's augmentations of the standard YOLOX config with less work: the same draws, boxes and labels, and the
same pixels within a grey level. Inputs are left as they are, so that nobody has to copy them."""

import math
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmdet.core import find_inside_bboxes
from mmdet.datasets.pipelines import MixUp as StockMixUp
from mmdet.datasets.pipelines import Mosaic as StockMosaic
from mmdet.datasets.pipelines import RandomAffine as StockRandomAffine
from mmdet.datasets.pipelines import YOLOXHSVRandomAug as StockYOLOXHSVRandomAug
from numpy import random

from yolox_ops import mixup_blend

from ..core.images import Array, MosaicImage, Tile, pixels

Results = dict[str, Any]


def _is_colour(image: Array) -> bool:
    return image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


class Mosaic(StockMosaic):
    """The stock class.

    Attributes:
        deferred: whether the picture is a `MosaicImage`, painted when it is known what is seen of it. For a caller who
            asks for `pixels` before anybody else sees it.
    """

    deferred = False

    def _mosaic_transform(self, results: Results) -> Results:
        assert "mix_results" in results
        height, width = self.img_scale
        centre = tuple(int(random.uniform(*self.center_ratio_range) * side) for side in (width, height))
        tiles, boxes, labels = [], [], []
        places = ("top_left", "top_right", "bottom_left", "bottom_right")
        for i, place in enumerate(places):
            patch = results["mix_results"][i - 1] if i else results
            image = patch["img"]
            h, w = image.shape[:2]
            scale = min(height / h, width / w)
            size = (int(w * scale), int(h * scale))
            target, source = self._mosaic_combine(place, centre, size)
            tiles.append(Tile(image, size, source[:2], target, mmcv.imresize))
            moved = patch["gt_bboxes"].copy()
            if len(moved):
                moved[:, 0::2] = scale * moved[:, 0::2] + (target[0] - source[0])
                moved[:, 1::2] = scale * moved[:, 1::2] + (target[1] - source[1])
            boxes.append(moved)
            labels.append(patch["gt_labels"])
        all_boxes, all_labels = np.concatenate(boxes), np.concatenate(labels)
        if self.bbox_clip_border:
            all_boxes[:, 0::2] = all_boxes[:, 0::2].clip(0, 2 * width)
            all_boxes[:, 1::2] = all_boxes[:, 1::2].clip(0, 2 * height)
        if not self.skip_filter:
            all_boxes, all_labels = self._filter_box_candidates(all_boxes, all_labels)
        inside = find_inside_bboxes(all_boxes, 2 * height, 2 * width)
        image = results["img"]
        shape = (int(height * 2), int(width * 2), *image.shape[2:])
        mosaic = MosaicImage(shape, tiles, self.pad_val, getattr(image, "dtype", np.uint8))
        return results | {
            "img": mosaic if self.deferred else mosaic.pixels(),
            "img_shape": shape,
            "gt_bboxes": all_boxes[inside],
            "gt_labels": all_labels[inside],
        }


class RandomAffine(StockRandomAffine):
    """The stock class; of a mosaic it asks only for what its picture shows."""

    def __call__(self, results: Results) -> Results:
        image = results["img"]
        height, width = (side + 2 * border for side, border in zip(image.shape[:2], self.border, strict=True))
        rotation = self._get_rotation_matrix(random.uniform(-self.max_rotate_degree, self.max_rotate_degree))
        ratio = random.uniform(*self.scaling_ratio_range)
        shears = [random.uniform(-self.max_shear_degree, self.max_shear_degree) for _ in range(2)]
        shifts = [
            random.uniform(-self.max_translate_ratio, self.max_translate_ratio) * side for side in (width, height)
        ]
        matrix = (
            self._get_translation_matrix(*shifts)
            @ self._get_shear_matrix(*shears)
            @ rotation
            @ self._get_scaling_matrix(ratio)
        )
        if isinstance(image, MosaicImage):
            image = image.part(*_visible(matrix, image.shape, height, width))
        image = cv2.warpPerspective(pixels(image), matrix, dsize=(width, height), borderValue=self.border_val)
        results = results | {"img": image, "img_shape": image.shape}
        for key in results.get("bbox_fields", []):
            boxes = results[key]
            if not len(boxes):
                continue
            if "gt_masks" in results:
                raise NotImplementedError("RandomAffine only supports bbox.")
            corners = np.vstack([boxes[:, [0, 0, 2, 2]].ravel(), boxes[:, [1, 3, 3, 1]].ravel(),
                                 np.ones(4 * len(boxes), boxes.dtype)])  # fmt: skip
            moved = matrix @ corners
            xs, ys = (moved[:2] / moved[2]).reshape(2, -1, 4)
            warped = np.vstack((xs.min(1), ys.min(1), xs.max(1), ys.max(1))).T
            if self.bbox_clip_border:
                warped[:, [0, 2]] = warped[:, [0, 2]].clip(0, width)
                warped[:, [1, 3]] = warped[:, [1, 3]].clip(0, height)
            valid = find_inside_bboxes(warped, height, width)
            if not self.skip_filter:
                valid &= self.filter_gt_bboxes(boxes * ratio, warped)
            results[key] = warped[valid]
            if key == "gt_bboxes" and "gt_labels" in results:
                results["gt_labels"] = results["gt_labels"][valid]
        return results


def _visible(matrix: Array, shape: tuple[int, ...], height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what an affine `matrix` maps into a picture, with all that interpolation reads;
    not empty, inside of `shape`."""
    corners = np.array([[-1, width, -1, width], [-1, -1, height, height], [1, 1, 1, 1]], np.float64)
    x, y = (np.linalg.inv(matrix.astype(np.float64)) @ corners)[:2]
    left, right = (int(np.clip(side, 0, shape[1])) for side in (math.floor(x.min()) - 2, math.ceil(x.max()) + 3))
    top, bottom = (int(np.clip(side, 0, shape[0])) for side in (math.floor(y.min()) - 2, math.ceil(y.max()) + 3))
    return left, top, max(right, 1), max(bottom, 1)


class MixUp(StockMixUp):
    """The stock class, by one pass over the picture."""

    def _mixup_transform(self, results: Results) -> Results:
        assert "mix_results" in results
        assert len(results["mix_results"]) == 1, "MixUp only support 2 images now !"
        partner = results["mix_results"][0]
        if not len(partner["gt_bboxes"]):
            return results
        image, other = pixels(results["img"]), pixels(partner["img"])
        # With a `pad_val` that is no float, MMDetection enlarges in uint8.
        level = self.pad_val if isinstance(self.pad_val, float) else -1.0
        if not (_is_colour(image) and _is_colour(other) and level in range(256)):
            partner = partner | {"img": other, "gt_bboxes": partner["gt_bboxes"].copy()}  # which is written to
            stock: Results = super()._mixup_transform(results | {"img": image, "mix_results": [partner]})
            return stock
        factor = random.uniform(*self.ratio_range)
        flipped = random.uniform(0, 1) < self.flip_ratio
        scale = min(self.dynamic_scale[0] / other.shape[0], self.dynamic_scale[1] / other.shape[1])
        size = (int(other.shape[1] * scale), int(other.shape[0] * scale))
        if size != other.shape[1::-1]:
            other = mmcv.imresize(other, size)
        scale *= factor
        h, w = (int(side * factor) for side in self.dynamic_scale)
        height, width = image.shape[:2]
        y = random.randint(0, h - height) if h > height else 0
        x = random.randint(0, w - width) if w > width else 0
        image, other = (torch.from_numpy(np.ascontiguousarray(part)) for part in (image, other))
        mixed = mixup_blend(
            image, other, self.dynamic_scale, (h, w), (y, x), flipped, int(level), cv2.ipp.useIPP()
        ).numpy()

        boxes = partner["gt_bboxes"].copy()
        boxes *= scale
        if self.bbox_clip_border:
            boxes[:, 0::2] = boxes[:, 0::2].clip(0, w)
            boxes[:, 1::2] = boxes[:, 1::2].clip(0, h)
        if flipped:
            boxes[:, 0::2] = w - boxes[:, 0::2][:, ::-1]
        moved = boxes - np.array([x, y, x, y], boxes.dtype)
        if self.bbox_clip_border:
            moved[:, 0::2] = moved[:, 0::2].clip(0, width)
            moved[:, 1::2] = moved[:, 1::2].clip(0, height)
        labels = partner["gt_labels"]
        if not self.skip_filter:
            keep = self._filter_box_candidates(boxes.T, moved.T)
            moved, labels = moved[keep], labels[keep]
        all_boxes = np.concatenate((results["gt_bboxes"], moved))
        all_labels = np.concatenate((results["gt_labels"], labels))
        inside = find_inside_bboxes(all_boxes, height, width)
        return results | {
            "img": mixed,
            "img_shape": mixed.shape,
            "gt_bboxes": all_boxes[inside],
            "gt_labels": all_labels[inside],
        }


class YOLOXHSVRandomAug(StockYOLOXHSVRandomAug):
    """The stock class, by a table for each channel."""

    def __call__(self, results: Results) -> Results:
        image = pixels(results["img"])
        if not _is_colour(image):
            changed: Results = super().__call__(results | {"img": image.copy()})  # which is written to
            return changed
        deltas = (self.hue_delta, self.saturation_delta, self.value_delta)
        gains = (random.uniform(-1, 1, 3) * deltas * random.randint(0, 2, 3)).astype(np.int16)
        levels = np.arange(256, dtype=np.int16)[:, None] + gains
        tables = np.stack([levels[:, 0] % 180, *levels[:, 1:].clip(0, 255).T], 1).astype(np.uint8)
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), tables[None])
        return results | {"img": cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)}
