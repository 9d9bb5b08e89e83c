"""Data sets of images that are hard to get right."""

import json

import cv2
import numpy as np

SHAPES = [(64, 96), (96, 64), (96, 96), (48, 96), (1, 1), (1, 9), (9, 1), (33, 17), (131, 200), (200, 60), (3, 3),
          (96, 72), (95, 97), (12, 150)]  # fmt: skip


def photograph(rng, height, width):
    """Smooth and sharp parts, and noise."""
    image = cv2.resize(rng.normal(110, 60, (height // 8 + 2, width // 8 + 2, 3)), (width, height))
    image += rng.normal(0, 8, image.shape)
    image[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    return image.clip(0, 255).astype(np.uint8)


def write_images(root, shapes, seed=0, name="{:03}.jpg", crowds=False):
    """A COCO data set of photographs; every fifth has no object, and every third object may be a crowd."""
    rng = np.random.default_rng(seed)
    root.mkdir()
    images, annotations = [], []
    for i, (height, width) in enumerate(shapes):
        file_name = name.format(i)
        assert cv2.imwrite(str(root / file_name), photograph(rng, height, width))
        images.append({"id": i, "file_name": file_name, "height": height, "width": width})
        for _ in range(0 if i % 5 == 4 else rng.integers(1, 9)):
            w, h = rng.uniform(1, [max(width, 2), max(height, 2)])
            box = [float(v) for v in (rng.uniform(0, max(width - w, 1)), rng.uniform(0, max(height - h, 1)), w, h)]
            crowd = int(crowds and len(annotations) % 3 == 2)
            annotations.append({"id": len(annotations), "image_id": i, "category_id": int(rng.integers(3)),
                                "bbox": box, "area": box[2] * box[3], "iscrowd": crowd})  # fmt: skip
    categories = [{"id": i, "name": str(i)} for i in range(3)]
    path = root / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root
