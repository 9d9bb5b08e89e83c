"""A trained checkpoint on images, by command and as a function."""

import csv
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from tiny import HOST, sentence

from yolox_plugin import Detector
from yolox_plugin.core.checkpoint import read_checkpoint
from yolox_plugin.run import evaluate as testing
from yolox_plugin.run import predict as predicting
from yolox_plugin.run.messages import InputError
from yolox_plugin.run.saved_config import config_in, values_in


def predict(*options):
    return predicting.main([*map(str, options), "--device=cpu"])


@pytest.mark.slow
def test_a_checkpoint_alone_finds_what_its_evaluation_finds(learned, tmp_path):
    data, config, checkpoint = learned
    files = sorted((data / "val2017").iterdir())
    detector = Detector(checkpoint, device="cpu", batch_size=3)
    assert detector.classes == ("disc", "square", "triangle", "star", "ring")
    found = detector(files)
    args = testing.parser().parse_args([f"--data-path={data}", f"--config={config}", f"--pth-path={checkpoint}"])
    args.device = "cpu"
    expected = {
        path.name: boxes
        for path, boxes in testing.host.Evaluation(testing.host.load_config(args), checkpoint).pictures()
    }
    assert sum(len(detections.scores) for detections in found) > 5
    for file, detections in zip(files, found, strict=True):
        assert (np.diff(detections.scores) <= 0).all()
        assert detections.names == [detector.classes[label] for label in detections.labels]
        scored = np.hstack([detections.boxes, detections.scores[:, None]])
        for label, theirs in enumerate(expected[file.name]):
            mine = scored[detections.labels == label]
            np.testing.assert_allclose(mine, theirs[np.argsort(-theirs[:, 4], kind="stable")], rtol=1e-4, atol=1e-2)
    # As arrays, one of them, and what stands behind.
    [again] = detector([cv2.imread(str(files[0]))])
    np.testing.assert_allclose(again.boxes, found[0].boxes, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(detector(files[0]).scores, found[0].scores, atol=1e-4)
    with pytest.raises(OSError, match="No such file"):
        detector(data / "absent.jpg")
    with pytest.raises(ValueError, match=r"must be \(h, w, 3\) uint8, got \(8, 8\) float64"):
        detector(np.zeros((8, 8)))


@pytest.mark.slow
def test_the_command_writes_pictures_and_tables_and_skips_what_is_no_image(learned, tmp_path, capfd):
    data, _, checkpoint = learned
    folder = tmp_path / "given" / "below"
    shutil.copytree(data / "val2017", folder)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("none either")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    out = tmp_path / "out"
    options = [tmp_path / "given", f"--pth-path={checkpoint}", f"--save-dir={out}", "--score-thr=0.05"]
    assert predict(*options) == 1
    printed = capfd.readouterr()
    assert "broken.jpg: no image that OpenCV reads" in printed.err
    results = json.loads((out / "predictions.json").read_text())
    assert f"{len(results)} boxes in 4 images, 1 skipped as no images, " in printed.out
    assert len(results) > 5 and all(result["score"] >= 0.05 for result in results)
    assert {result["category_name"] for result in results} <= {"disc", "square", "triangle", "star", "ring"}
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert [row["file"] for row in rows] == [result["file_name"] for result in results]
    assert float(rows[0]["x2"]) - float(rows[0]["x1"]) == pytest.approx(results[0]["bbox"][2], abs=0.02)
    for file in sorted((data / "val2017").iterdir()):
        picture = cv2.imread(str(out / "below" / file.name))
        assert picture.shape == cv2.imread(str(file)).shape
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    # Nothing is overwritten.
    assert predict(*options) == 2
    assert f"--save-dir {out} has a predictions.json, which would be overwritten" in capfd.readouterr().err
    assert predict(data / "val2017/*1.jpg", f"--pth-path={checkpoint}", f"--save-dir={tmp_path / 'one'}") == 0


def write_video(path, images, code="mp4v"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10, images[0].shape[1::-1])
    assert writer.isOpened()
    for image in images:
        writer.write(image)
    writer.release()


def read_video(path):
    reader = cv2.VideoCapture(str(path))
    frames = [reader.read()[1] for _ in range(int(reader.get(cv2.CAP_PROP_FRAME_COUNT)))]
    return frames, reader.get(cv2.CAP_PROP_FPS)


@pytest.mark.slow
def test_a_full_disk_ends_in_a_sentence(learned, disk, tmp_path, capfd):
    data, _, checkpoint = learned
    out = disk(tmp_path / "disk", "8k") / "out"
    assert predict(data / "val2017", f"--pth-path={checkpoint}", f"--save-dir={out}") == 1
    printed = capfd.readouterr()
    assert f"error: No space left on device: {out}/" in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.slow
def test_images_in_which_nothing_is(learned, tmp_path, capfd):
    """To a detector that has learned nothing yet."""
    data, _, checkpoint = learned
    content = read_checkpoint(checkpoint)
    for name, value in content["state_dict"].items():
        if "multi_level_conv_obj" in name and name.endswith("bias"):
            value.fill_(-50)
    torch.save(content, tmp_path / "blind.pth")
    out = tmp_path / "out"
    assert predict(data / "val2017", f"--pth-path={tmp_path / 'blind.pth'}", f"--save-dir={out}") == 0
    assert "0 boxes in 4 images" in capfd.readouterr().out
    assert json.loads((out / "predictions.json").read_text()) == []
    assert [*csv.DictReader((out / "predictions.csv").open())] == []
    for file in (data / "val2017").iterdir():
        assert cv2.imread(str(out / file.name)).shape == cv2.imread(str(file)).shape


def test_videos(learned, tmp_path, capfd):
    """Frame by frame what the images would give, beside images and a second video."""
    data, _, checkpoint = learned
    files = sorted((data / "val2017").iterdir())
    image = cv2.resize(cv2.imread(str(files[0])), (320, 240))
    write_video(tmp_path / "one.mp4", [image, image[:, ::-1].copy(), image])
    write_video(tmp_path / "two.avi", [image] * 2, code="MJPG")
    out = tmp_path / "out"
    given = [tmp_path / "one.mp4", files[1], tmp_path / "two.avi"]
    assert predict(*given, f"--pth-path={checkpoint}", f"--save-dir={out}", "--score-thr=0.05", "--batch-size=2") == 0
    assert " boxes in 6 images, " in capfd.readouterr().out
    results = json.loads((out / "predictions.json").read_text())
    read = [frame for name in ("one.mp4", "two.avi") for frame in read_video(tmp_path / name)[0]]
    detector = Detector(checkpoint)
    for number, (name, frame) in enumerate([("one.mp4", 0), ("one.mp4", 1), ("one.mp4", 2), (None, None),
                                            ("two.avi", 0), ("two.avi", 1)]):  # fmt: skip
        mine = [result for result in results if result["image_id"] == number]
        if name is None:
            assert all(result["file_name"] == str(files[1]) and "frame" not in result for result in mine)
            continue
        assert all((result["file_name"], result["frame"]) == (str(tmp_path / name), frame) for result in mine)
        expected = detector(read[number - (number > 3)])
        scores = [score for score in expected.scores if score >= 0.05]
        assert [result["score"] for result in mine] == pytest.approx(scores, abs=1e-4)
    assert len({result["image_id"] for result in results}) > 3
    for name, count in (("one.mp4", 3), ("two.mp4", 2)):
        frames, rate = read_video(out / name)
        assert len(frames) == count and frames[0].shape == (240, 320, 3) and rate == 10
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert [row["frame"] for row in rows] == [str(result.get("frame", "")) for result in results]


def test_a_video_that_ends_early_or_is_none(learned, tmp_path, capfd):
    data, _, checkpoint = learned
    image = cv2.resize(cv2.imread(str(next((data / "val2017").iterdir()))), (320, 240))
    write_video(tmp_path / "cut.avi", [image] * 9, code="MJPG")
    content = (tmp_path / "cut.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    (tmp_path / "none.mp4").write_bytes(b"no video")
    common = [f"--pth-path={checkpoint}", f"--save-dir={tmp_path / 'out'}"]
    assert "none.mp4 is no video that OpenCV reads" in sentence(
        predict(tmp_path / "none.mp4", *common), capfd.readouterr().err
    )
    assert not (tmp_path / "out").exists()
    assert predict(tmp_path / "cut.avi", *common) == 0
    assert "cut.avi: frame " in capfd.readouterr().err


TEXT = "classes = ('a',)\nmodel = dict(type='YOLOX', size=(1, 2), more=[dict(a=None, b=-1.5)])\n"


def test_a_config_is_read_as_values():
    assert values_in(TEXT)["model"] == {"type": "YOLOX", "size": (1, 2), "more": [{"a": None, "b": -1.5}]}


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "a = __import__('os').system('true')",
        "a = dict(**b)",
        "a = [x for x in 'a']",
        "a = dict(",
        "print(1)",
    ],
)
def test_no_config_of_a_checkpoint_is_executed(text):
    with pytest.raises(InputError, match=r"has a config that is more than values .*: name it by --config"):
        config_in({"config": text}, "some.pth")


def test_inputs_that_cannot_be(data, config, tmp_path, capfd):
    weights = tmp_path / "weights.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}}, weights)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    other = tmp_path / "other.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": {"config": TEXT}}, other)
    image = next((data / "val2017").iterdir())
    asked = "data.test.pipeline" if HOST == "mmdet2" else "test_dataloader.dataset.pipeline"
    for options, words in (
        ([image, "--pth-path=absent.pth"], "--pth-path absent.pth does not exist"),
        ([image, f"--pth-path={tmp_path / 'file'}"], "is no readable checkpoint"),
        ([image, f"--pth-path={weights}"], "has no config in it: name the one it was trained with by --config"),
        ([image, f"--pth-path={other}"], f"the config has no {asked}"),
        ([image, f"--pth-path={weights}", f"--config={config}"], "the config's model cannot be"),
        ([image, f"--pth-path={weights}", "--config=absent"], "got absent"),
        (["absent.jpg", f"--pth-path={weights}"], "absent.jpg does not exist"),
        ([tmp_path / "empty", f"--pth-path={weights}"], "has no images (.bmp, "),
        ([image, f"--pth-path={weights}", f"--save-dir={tmp_path / 'file'}"], "is not a folder"),
        ([image, image.parent, f"--pth-path={weights}", f"--save-dir={image.parent}"], "would be overwritten"),
    ):
        status = predict(f"--save-dir={tmp_path / 'out'}", *options)
        assert words in sentence(status, capfd.readouterr().err)
    assert not (tmp_path / "out").exists()
