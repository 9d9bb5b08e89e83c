"""MMDetection's augmentations of the standard YOLOX config with less work: the same draws, boxes and labels, and the
same pixels within a grey level. Inputs are left as they are, so that nobody has to copy them."""

import mmcv
import numpy as np
from mmdet.datasets.pipelines import MixUp as StockMixUp
from mmdet.datasets.pipelines import Mosaic as StockMosaic
from mmdet.datasets.pipelines import RandomAffine as StockRandomAffine
from mmdet.datasets.pipelines import YOLOXHSVRandomAug as StockYOLOXHSVRandomAug
from numpy import random

from ..core import affine, mixup, mosaic
from ..core.hsv import shift_hsv
from ..core.images import Deferred, Results, is_colour, pixels


class Mosaic(StockMosaic):
    """The stock class. Of an image that is `Deferred`, so is the mosaic."""

    def _mosaic_transform(self, results: Results) -> Results:
        assert "mix_results" in results
        height, width = self.img_scale
        centre = tuple(int(random.uniform(*self.center_ratio_range) * side) for side in (width, height))
        patches = [results, *(results["mix_results"][i] for i in range(3))]
        image, moves = mosaic.arrange(
            [patch["img"] for patch in patches], (height, width), centre, self.pad_val, self._mosaic_combine,
            mmcv.imresize,
        )  # fmt: skip
        boxes = np.concatenate([move(patch["gt_bboxes"]) for move, patch in zip(moves, patches, strict=True)])
        labels = np.concatenate([patch["gt_labels"] for patch in patches])
        if self.bbox_clip_border:
            affine.clip(boxes, 2 * width, 2 * height)
        if not self.skip_filter:
            boxes, labels = self._filter_box_candidates(boxes, labels)
        inside = affine.reach_into(boxes, 2 * width, 2 * height)
        return results | {
            "img": image if isinstance(results["img"], Deferred) else image.pixels(),
            "img_shape": image.shape,
            "gt_bboxes": boxes[inside],
            "gt_labels": labels[inside],
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
        warped = affine.warp_image(image, matrix, (width, height), self.border_val)
        results = results | {"img": warped, "img_shape": warped.shape}
        for key in results.get("bbox_fields", []):
            boxes = results[key]
            if not len(boxes):
                continue
            if "gt_masks" in results:
                raise NotImplementedError("RandomAffine only supports bbox.")
            moved = affine.warp_boxes(boxes, matrix)
            if self.bbox_clip_border:
                affine.clip(moved, width, height)
            valid = affine.reach_into(moved, width, height)
            if not self.skip_filter:
                valid &= self.filter_gt_bboxes(boxes * ratio, moved)
            results[key] = moved[valid]
            if key == "gt_bboxes" and "gt_labels" in results:
                results["gt_labels"] = results["gt_labels"][valid]
        return results


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
        if not (is_colour(image) and is_colour(other) and level in range(256)):
            partner = partner | {"img": other, "gt_bboxes": partner["gt_bboxes"].copy()}  # which is written to
            stock: Results = super()._mixup_transform(results | {"img": image, "mix_results": [partner]})
            return stock
        size = (int(image.shape[0]), int(image.shape[1]))
        factor = random.uniform(*self.ratio_range)
        is_flipped = random.uniform(0, 1) < self.flip_ratio
        offset = mixup.draw_offset(mixup.scaled_canvas(self.dynamic_scale, factor), size)
        draw = mixup.Draw(factor, is_flipped, offset)
        other, scale = mixup.fitted(other, self.dynamic_scale, mmcv.imresize)
        mixed = mixup.blend(image, other, self.dynamic_scale, draw, int(level))
        scaled, moved = mixup.move_boxes(
            partner["gt_bboxes"], scale * factor, self.dynamic_scale, draw, size, self.bbox_clip_border
        )
        labels = partner["gt_labels"]
        if not self.skip_filter:
            keep = self._filter_box_candidates(scaled.T, moved.T)
            moved, labels = moved[keep], labels[keep]
        boxes = np.concatenate((results["gt_bboxes"], moved))
        labels = np.concatenate((results["gt_labels"], labels))
        inside = affine.reach_into(boxes, *size[::-1])
        return results | {
            "img": mixed,
            "img_shape": mixed.shape,
            "gt_bboxes": boxes[inside],
            "gt_labels": labels[inside],
        }


class YOLOXHSVRandomAug(StockYOLOXHSVRandomAug):
    """The stock class, without leaving 8 bits."""

    def __call__(self, results: Results) -> Results:
        image = pixels(results["img"])
        if not is_colour(image):
            changed: Results = super().__call__(results | {"img": image.copy()})  # which is written to
            return changed
        deltas = (self.hue_delta, self.saturation_delta, self.value_delta)
        gains = (random.uniform(-1, 1, 3) * deltas * random.randint(0, 2, 3)).astype(np.int16)
        return results | {"img": shift_hsv(image, gains)}
