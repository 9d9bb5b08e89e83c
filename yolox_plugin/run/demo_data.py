"""Makes a small detection data set in the COCO 2017 layout: shapes on noisy gradients, drawn from a seed, no download.

python -m yolox_plugin.run.demo_data data/demo
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

CLASSES = ("disc", "square", "triangle", "star", "ring")
Image = NDArray[np.uint8]


def _background(rng: np.random.Generator, height: int, width: int) -> Image:
    """A gradient between two dark to middling colours, with coarse blotches and fine noise."""
    start, end = rng.uniform(30, 200, 3), rng.uniform(30, 200, 3)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width]
    ramp = np.cos(angle) * x / width + np.sin(angle) * y / height
    ramp = (ramp - ramp.min()) / (np.ptp(ramp) + 1e-9)
    blotches = cv2.resize(rng.normal(0, 18, (height // 24, width // 24, 3)), (width, height))
    noise = rng.normal(0, 8, (height, width, 3))
    image: Image = np.clip(start + ramp[..., None] * (end - start) + blotches + noise, 0, 255).astype(np.uint8)
    return image


def _mask(shape: str, center: tuple[float, float], size: float, angle: float, height: int, width: int) -> Image:
    """The pixels of one object of about `size` pixels across, 255 inside."""
    mask = np.zeros((height, width), np.uint8)
    radius = size / 2
    middle = (round(center[0]), round(center[1]))
    if shape in ("disc", "ring"):
        cv2.circle(mask, middle, round(radius), 255, -1)
        if shape == "ring":
            cv2.circle(mask, middle, round(radius * 0.55), 0, -1)
        return mask
    corners = {"square": 4, "triangle": 3, "star": 10}[shape]
    turns = angle + np.arange(corners) * 2 * np.pi / corners
    radii = np.where(np.arange(corners) % 2, radius * 0.45, radius) if shape == "star" else np.full(corners, radius)
    points = np.stack([center[0] + radii * np.cos(turns), center[1] + radii * np.sin(turns)], 1)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 255)
    return mask


def draw(rng: np.random.Generator) -> tuple[Image, list[dict[str, Any]]]:
    """One image and its objects: `bbox` [x, y, w, h] in pixels, `area` in pixels, `category_id` from 1."""
    height, width = int(rng.integers(240, 481)), int(rng.integers(320, 641))
    image = _background(rng, height, width)
    taken = np.zeros((height, width), bool)
    objects = []
    for _ in range(int(rng.integers(2, 10))):
        category = int(rng.integers(len(CLASSES)))
        size = rng.uniform(12, 70)
        center = (rng.uniform(size / 3, width - size / 3), rng.uniform(size / 3, height - size / 3))
        mask = _mask(CLASSES[category], center, size, rng.uniform(0, 2 * np.pi), height, width)
        inside = mask > 0
        area = int(inside.sum())
        if area < 40 or (taken & inside).sum() > 0.2 * area:
            continue
        taken |= inside
        # A colour that stands out from what it covers, but not by much.
        contrast = rng.uniform(35, 110, 3) * rng.choice([-1, 1], 3)
        colour = np.clip(image[inside].mean(0) + contrast, 0, 255)
        image[inside] = np.clip(colour + rng.normal(0, 10, (area, 3)), 0, 255).astype(np.uint8)
        bbox = [int(v) for v in cv2.boundingRect(mask)]
        objects.append({"bbox": bbox, "area": area, "category_id": category + 1})
    return image, objects


def make_dataset(root: Path, train: int = 240, val: int = 60, seed: int = 0) -> None:
    """Writes `annotations/instances_{train,val}2017.json`, `train2017/` and `val2017/` under a new folder `root`.

    The same arguments give the same files. The folder appears only when it is complete.

    Raises:
        FileExistsError: if there is a `root` already.
    """
    if root.exists():
        raise FileExistsError(f"{root} is there already; remove it or name another folder")
    unfinished = root.with_name(f"{root.name}.unfinished-{os.getpid()}")
    try:
        for split, (name, count) in enumerate({"train2017": train, "val2017": val}.items()):
            (unfinished / name).mkdir(parents=True)
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for index in range(count):
                picture, objects = draw(np.random.default_rng([seed, split, index]))
                entry = {"id": index + 1, "file_name": f"{index + 1:06d}.jpg"}
                images.append(entry | {"height": picture.shape[0], "width": picture.shape[1]})
                for thing in objects:
                    extra = {"id": len(annotations) + 1, "image_id": index + 1, "iscrowd": 0, "segmentation": []}
                    annotations.append(thing | extra)
                if not cv2.imwrite(str(unfinished / name / str(entry["file_name"])), picture):
                    raise OSError(f"cannot write to {unfinished / name}")
            categories = [{"id": i + 1, "name": c} for i, c in enumerate(CLASSES)]
            labels = {"images": images, "annotations": annotations, "categories": categories}
            (unfinished / "annotations").mkdir(exist_ok=True)
            (unfinished / "annotations" / f"instances_{name}.json").write_text(json.dumps(labels))
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"demo data: {train} training and {val} validation images in {root}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo data set (COCO 2017 layout).")
    parser.add_argument("root", type=Path, help="folder to create")
    parser.add_argument("--train", type=int, default=240, help="training images (default 240)")
    parser.add_argument("--val", type=int, default=60, help="validation images (default 60)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if min(args.train, args.val, args.seed) < 0:
        parser.error("--train, --val and --seed must be 0 or more")
    if args.root.exists():
        parser.error(f"{args.root} is there already; remove it or name another folder")
    make_dataset(args.root, args.train, args.val, args.seed)


if __name__ == "__main__":
    main()
