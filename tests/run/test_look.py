"""A look at data sets: faults that were put there are found and no others, and samples are those of a training."""

import copy
import csv
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from tiny import HOST, sentence, small

from yolox_ops import box_iou, simota_cost
from yolox_ops.reference import grid_centers
from yolox_plugin.run import look as looking
from yolox_plugin.run import train as training
from yolox_plugin.run.annotations import Source
from yolox_plugin.run.demo_data import CLASSES
from yolox_plugin.run.survey import Table
from yolox_plugin.run.suspicions import KINDS, alike, bits_in, duplicate_boxes, has_prior, hashes_of

IMAGES = {"train": 24, "val": 5}
SIZE = (96, 72)  # (w, h), which the config's scale of 96 leaves as they are


def look(*options):
    return looking.main([*map(str, options)])


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A data set without anything suspicious: blotches, and a box of each class."""
    root = tmp_path_factory.mktemp("look") / "data"
    (root / "annotations").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in IMAGES.items():
        (root / f"{split}2017").mkdir()
        images, things = [], []
        for number in range(1, count + 1):
            blotches = cv2.resize(rng.integers(0, 255, (8, 9, 3)).astype(np.uint8), SIZE)
            cv2.imwrite(str(root / f"{split}2017/{number}.jpg"), blotches)
            images.append({"id": number, "file_name": f"{number}.jpg", "width": SIZE[0], "height": SIZE[1]})
            for category in range(len(CLASSES)):
                x, y = 4 + 30 * (category % 3), 4 + 34 * (category // 3)
                things.append({"id": len(things) + 1, "image_id": number, "category_id": category + 1, "iscrowd": 0,
                               "bbox": [x, y, 24, 28], "area": 672})  # fmt: skip
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
        content = {"images": images, "annotations": things, "categories": categories}
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def its_config(clean):
    return small.write_config(clean.parent / "tiny.py", clean, epochs=20)


def rows_of(out):
    with (out / "suspicious.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_nothing_is_suspicious_in_a_clean_set(clean, its_config, tmp_path, capfd):
    out = tmp_path / "out"
    assert look(f"--data-path={clean}", f"--config={its_config}", f"--out={out}") == 0
    assert rows_of(out) == []
    assert "29 images, 145 boxes, 5 classes, 0 suspicious things, " in capfd.readouterr().out.splitlines()[-1]
    assert {path.name for path in out.iterdir()} == {
        "samples_1.png", "samples_2.png", "images_1.png", "images_2.png", "statistics.png", "suspicious.csv",
    }  # fmt: skip
    for path in out.glob("*.png"):
        assert cv2.imread(str(path)).std() > 10
    # Nothing is overwritten.
    before = {path: path.read_bytes() for path in out.iterdir()}
    status = look(f"--data-path={clean}", f"--config={its_config}", f"--out={out}")
    assert f"--out {out} has a samples_1.png, which would be overwritten" in sentence(status, capfd.readouterr().err)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.slow
def test_every_planted_fault_is_found_and_nothing_else(clean, its_config, tmp_path, capfd):
    root = shutil.copytree(clean, tmp_path / "data")
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    images, things = content["images"], content["annotations"]
    train, val = root / "train2017", root / "val2017"
    planted = {
        1001: ("box outside", [-40, 10, 24, 28], 672),
        1002: ("box partly outside", [-5, 40, 24, 28], 672),
        1003: ("box without area", [10, 10, 0, 28], 672),
        1004: ("box without area", [40, 40, 20, 20], 0),
        1005: ("tiny box", [11.3, 8, 1.5, 28], 42),
        1006: ("duplicate box", [4.2, 4, 24, 28], 672),  # of the disc
        1007: ("box without a prior", [24.5, 40.5, 3, 3], 9),
    }
    for number, (_, box, area) in planted.items():
        category = 2 if number == 1004 else 1
        things.append({"id": number, "image_id": 1, "category_id": category, "bbox": box, "area": area, "iscrowd": 0})
    # A crowd and a box a little over the edge are as they should be.
    things.append({"id": 1008, "image_id": 2, "category_id": 1, "bbox": [-9, 0, 50, 50], "area": 1, "iscrowd": 1})
    things.append({"id": 1009, "image_id": 2, "category_id": 2, "bbox": [60, 2, 36.4, 20], "area": 728, "iscrowd": 0})
    things[:] = [thing for thing in things if thing["image_id"] != 3]  # no boxes
    things[:] = [thing for thing in things if not (thing["image_id"] > 18 and thing["category_id"] == 5)]  # 17 rings
    images[3] |= {"width": SIZE[1], "height": SIZE[0]}  # turned, with a box that is outside then
    things[:] = [thing for thing in things if thing["image_id"] != 4 or thing["bbox"][0] < 40]
    cv2.imwrite(str(train / "6.jpg"), cv2.imread(str(train / "5.jpg")), [cv2.IMWRITE_JPEG_QUALITY, 60])
    cv2.imwrite(str(val / "2.jpg"), cv2.imread(str(train / "7.jpg")), [cv2.IMWRITE_JPEG_QUALITY, 60])
    (train / "8.jpg").write_bytes((train / "8.jpg").read_bytes()[:100])
    (train / "9.jpg").unlink()
    path.write_text(json.dumps(content))
    out = tmp_path / "out"
    assert look(f"--data-path={root}", f"--config={its_config}", f"--out={out}") == 0
    expected = {
        ("unreadable image", str(train / "8.jpg"), ""),
        ("unreadable image", str(train / "9.jpg"), ""),
        ("other image size", str(train / "4.jpg"), ""),
        ("image in train and val", str(val / "2.jpg"), ""),
        ("image without boxes", str(train / "3.jpg"), ""),
        ("few boxes", str(path), ""),
        *((kind, str(train / "1.jpg"), str(number)) for number, (kind, _, _) in planted.items()),
    }
    rows = rows_of(out)
    found = {(row["kind"], row["file"], row["annotation_id"]) for row in rows}
    [twin] = [one for one in found if one[0] == "duplicate image"]  # either of two may be the copy
    assert twin[1] in {str(train / "5.jpg"), str(train / "6.jpg")}
    assert found - {twin} == expected
    assert len(rows) == len(expected) + 1
    assert {row["kind"] for row in rows} == set(KINDS)
    details = {row["kind"]: row["detail"] for row in rows}
    assert details["other image size"] == "96 x 72, in the annotations 72 x 96, as if turned"
    assert details["few boxes"] == "ring: 17"
    assert details["image in train and val"] == f"as {train / '7.jpg'}"
    printed = capfd.readouterr()
    assert "box without area: 2 (MMDetection leaves it out)" in printed.out
    assert "2 of the training's images cannot be read" in printed.err
    assert not list(out.glob("samples_*")) and list(out.glob("images_*"))


@pytest.mark.slow
def test_an_image_that_no_sample_can_be_made_of(clean, its_config, tmp_path, capfd):
    """OpenCV makes nothing of one that is to have less than a row; its annotation tells another size."""
    root = tmp_path / "data"
    shutil.copytree(clean, root)
    for path in (root / "train2017").iterdir():
        cv2.imwrite(str(path), np.zeros((1, 400, 3), np.uint8))
    assert look(f"--data-path={root}", f"--config={its_config}", f"--out={tmp_path / 'out'}") == 0
    [warning] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: samples")]
    assert "as the training would end at one: " in warning and ".jpg: OpenCV" in warning and "Traceback" not in warning
    assert (tmp_path / "out/statistics.png").exists() and not list((tmp_path / "out").glob("samples_*.png"))


@pytest.mark.slow
def test_samples_are_those_of_a_training(data, config, tmp_path, monkeypatch):
    workers = "data.workers_per_gpu=2" if HOST == "mmdet2" else "train_dataloader.num_workers=2"
    given = [f"--data-path={data}", f"--config={config}", "--seed=3", "--batch-size=2", "--cfg-options", workers]
    batches = []
    if HOST == "mmdet2":
        from yolox_plugin.mmdet2.runner import EpochBasedRunner as Loop
    else:
        from yolox_plugin.mmdet3.loop import EpochBasedTrainLoop as Loop

    def keep(self, *arguments, **options):
        batches.append(copy.deepcopy(arguments[-1]))
        super(Loop, self).run_iter(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "run_iter", keep, raising=False)
        assert training.main([*given, "--device=cpu", "--iterations=8", f"--work-dir={tmp_path / 'run'}"]) == 0
    theirs = []
    for batch in batches:
        if HOST == "mmdet2":
            parts = [batch[key].data[0] for key in ("img", "gt_bboxes", "gt_labels")]
            theirs += zip(*parts, strict=True)
        else:
            for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
                theirs.append((image, sample.gt_instances.bboxes.tensor, sample.gt_instances.labels))
    drawn = []
    monkeypatch.setattr(looking, "write_sheets", lambda pictures, *_: drawn.append(pictures))
    assert look(*given, f"--out={tmp_path / 'out'}") == 0
    mine = drawn[0]
    assert len(mine) == len(theirs) == 16
    for picture, (image, boxes, labels) in zip(mine, theirs, strict=True):
        assert image.dtype == torch.uint8
        assert np.array_equal(picture.image, image.permute(1, 2, 0).numpy())
        assert np.array_equal(picture.boxes, boxes.numpy()) and np.array_equal(picture.labels, labels.numpy())
    assert sum(len(picture.boxes) for picture in mine) > 50
    assert look(*given, f"--out={tmp_path / 'other'}", "--seed=4") == 0
    assert not all(np.array_equal(one.image, other.image) for one, other in zip(mine, drawn[2], strict=True))


def test_no_prior_in_a_box_is_a_cost_above_1e5_everywhere():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 150, (400, 2))
    boxes = np.hstack([low, low + rng.uniform(1, 10, (400, 2))]).astype(np.float32)
    boxes[0] = [4, 4, 12, 12]  # between two centres, which are no part of it, and around that of stride 16
    boxes[1] = [4, 5, 8, 12]
    centers = grid_centers(160)
    scores = torch.full((len(centers), 1), 0.5)
    predicted = torch.cat([centers[:, :2] - 8, centers[:, :2] + 8], 1)
    cost, _ = simota_cost(scores, centers, predicted, torch.from_numpy(boxes), torch.zeros(400, dtype=torch.int64))
    expected = cost.amin(0).numpy() < 1e5
    assert np.array_equal(has_prior(boxes, (8, 16, 32)), expected)
    assert expected[0] and not expected[1] and 50 < expected.sum() < 350


def test_duplicate_boxes_are_those_of_a_comparison_of_all():
    rng = np.random.default_rng(0)
    n = 1500
    boxes = rng.uniform(10, 60, (n, 4))
    boxes[n // 2 :] = boxes[: n - n // 2] + rng.normal(0, 0.3, (n - n // 2, 4))
    image, label = rng.integers(0, 3, n), rng.integers(0, 2, n)
    image[n // 2 :], label[n // 2 :] = image[: n - n // 2], label[: n - n // 2]
    source = Source("", "", None, None, (), training=True, sizes=True, keeps_empty=True, min_size=0,
                    byte_order_mark=False)  # fmt: skip
    table = Table(source, [], [], np.zeros((3, 2)), list(range(n)), boxes, boxes[:, 2], image, label)
    corners = torch.from_numpy(np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]))
    same = (box_iou(corners, corners).numpy() > 0.95) & (image[:, None] == image) & (label[:, None] == label)
    np.fill_diagonal(same, val=False)
    found = duplicate_boxes(table)
    assert same[np.flatnonzero(found >= 0), found[found >= 0]].all()
    kept = found < 0
    assert not same[np.ix_(kept, kept)].any()  # none is left that is another's duplicate
    assert 300 < (~kept).sum() < n / 2 + 50


@pytest.mark.parametrize("across", [False, True])
def test_images_that_look_the_same_are_those_of_a_comparison_of_all(across):
    rng = np.random.default_rng(0)
    n = 1200
    small_pictures = rng.integers(0, 250, (n, 8, 9)).astype(np.uint8)
    small_pictures[:300] = np.arange(0, 90, 10, dtype=np.uint8) + rng.integers(0, 150, (300, 1, 1)).astype(np.uint8)
    small_pictures[600:] = small_pictures[:600] + rng.integers(0, 4, (600, 8, 9)).astype(np.uint8)
    sizes = np.full((n, 2), 100.0)
    sizes[1000:] = 130
    among = rng.random(n) < 0.7
    wanted = ~among if across else among
    hashes = hashes_of(small_pictures)
    apart = bits_in((hashes[:, None] ^ hashes).ravel()).reshape(n, n)
    grey = abs(small_pictures.reshape(n, 1, 72).astype(float) - small_pictures.reshape(1, n, 72)).mean(2)
    same = (apart <= 2) & (grey <= 8) & (sizes[:, None, 0] == sizes[:, 0])
    np.fill_diagonal(same, val=False)
    found = alike(sizes, small_pictures, wanted, among)
    has = found >= 0
    assert same[np.flatnonzero(has), found[has]].all() and wanted[has].all() and among[found[has]].all()
    if across:
        assert np.array_equal(has, wanted & (same & among).any(1))
    else:
        kept = wanted & ~has
        assert not same[np.ix_(kept, kept)].any()
    assert has.sum() > 50


def test_inputs_that_cannot_be(clean, its_config, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    (tmp_path / "there").mkdir()
    (tmp_path / "there/suspicious.csv").write_text("mine")
    other = shutil.copytree(clean, tmp_path / "other")
    shutil.rmtree(other / "val2017")
    given = [f"--data-path={clean}", f"--config={its_config}", f"--out={tmp_path / 'out'}"]
    for options, words in (
        ([f"--data-path={tmp_path / 'absent'}"], "absent is not a folder"),
        ([f"--data-path={other}"], "none of the 5 images that "),
        (["--config=absent"], "--config must be a file or one of"),
        ([f"--out={tmp_path / 'file'}"], "file is not a folder"),
        ([f"--out={tmp_path / 'there'}"], "has a suspicious.csv, which would be overwritten"),
        (["--cfg-options", "load_from=nowhere.pth", "model.bbox_head.num_classes=7"], "num_classes=7"),
    ):
        assert words in sentence(look(*given, *options), capfd.readouterr().err)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["suspicious.csv"]
