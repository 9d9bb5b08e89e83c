"""A trained checkpoint as an ONNX file, on the images that it has learned."""

import json
import re
import sys

import cv2
import numpy as np
import pytest
import torch
from tiny import ROOT, sentence

from yolox_plugin import Detector
from yolox_plugin.core.checkpoint import read_checkpoint
from yolox_plugin.run import export as exporting
from yolox_plugin.run.configs import text_of
from yolox_plugin.run.exported import Exported, Thresholds, thresholds_of
from yolox_plugin.run.messages import InputError
from yolox_plugin.run.model_input import COLOUR, ModelInput, input_of
from yolox_plugin.run.saved_config import config_in

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from yolox_plugin.run import onnx_file  # noqa: E402

CLASSES = ("disc", "square", "triangle", "star", "ring")
SIZE = (256, 256)


def export(checkpoint, out, *options):
    return exporting.main([f"--pth-path={checkpoint}", f"--out={out}", *map(str, options)])


@pytest.fixture(scope="module")
def made(learned, tmp_path_factory):
    """The detector, what its network gets of the images that it has learned, and its files without and with NMS."""
    data, _, checkpoint = learned
    folder = tmp_path_factory.mktemp("exported")
    files = [folder / "plain.onnx", folder / "nms.onnx"]
    assert export(checkpoint, files[0]) == export(checkpoint, files[1], "--nms", "--opset=13") == 0
    detector = Detector(checkpoint, device="cpu")
    pictures = [cv2.imread(str(path)) for path in sorted((data / "val2017").iterdir())]
    network = detector.network
    return detector, pictures, network.images([network.sample(picture) for picture in pictures]), files


def read(file):
    return onnx.load(str(file))


def sides(pictures, rows):
    """Rows (x1, y1, x2, y2, ...) of the network's input in pixels of each picture."""
    factors = [min(SIZE[0] / picture.shape[0], SIZE[1] / picture.shape[1]) for picture in pictures]
    return [row[row[:, 4] > 0] / [*[factor] * 4, 1, 1] for row, factor in zip(rows, factors, strict=True)]


def same(rows, expected):
    """Whether rows (box, score, class) are a picture's detections. The host rounds the factors of each side."""
    assert rows[:, 5].tolist() == expected.labels.tolist()
    np.testing.assert_allclose(rows[:, 4], expected.scores, atol=1e-5)
    np.testing.assert_allclose(rows[:, :4], expected.boxes, rtol=0.01, atol=0.01)


@pytest.mark.slow
def test_a_file_has_the_boxes_and_scores_of_mmdetections_own_code(made):
    detector, _, images, (file, _) = made
    model, session = detector.network.model, onnx_file.Session(file)
    for count in (1, 3):
        boxes, scores = session(images[:count])
        with torch.no_grad():
            levels = model.bbox_head(model.extract_feat(images[:count]))
            cls, box, obj = (
                torch.cat([level.permute(0, 2, 3, 1).reshape(count, -1, level.shape[1]) for level in kind], 1)
                for kind in levels
            )
            sizes = [level.shape[2:] for level in levels[0]]
            priors = torch.cat(model.bbox_head.prior_generator.grid_priors(sizes, device="cpu", with_stride=True))
            expected = model.bbox_head._bbox_decode(priors, box)
        assert boxes.shape == (count, 1344, 4) and scores.shape == (count, 1344, 5)
        torch.testing.assert_close(boxes, expected, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(scores, cls.sigmoid() * obj.sigmoid(), rtol=1e-4, atol=1e-6)
        assert scores.max() > 0.1


@pytest.mark.slow
def test_nms_in_the_file_leaves_the_detections_of_the_detector(made, tmp_path):
    detector, pictures, images, (_, file) = made
    expected = detector(pictures)
    assert sum(len(found.scores) for found in expected) > 5
    detections = onnx_file.Session(file)(images)[2].double().numpy()
    for rows, found in zip(sides(pictures, detections), expected, strict=True):
        same(rows, found)
    assert not detections[:, max(len(found.scores) for found in expected) :].any()
    # So many at most, and at a threshold that is one of the scores.
    limit = np.float32(detections[0, 1, 4])
    for thresholds, kept in ((Thresholds(0.01, 0.65, 3), 3), (Thresholds(float(limit), 0.65, 0), 2)):
        network = Exported(detector.network.model, SIZE, thresholds, suppresses=True)
        other = tmp_path / f"{kept}.onnx"
        onnx_file.write(network, other, SIZE, 11, {"version": "0"})
        session = onnx_file.Session(other)
        [rows] = sides(pictures[:1], session(images[:1])[2].double().numpy())
        assert len(rows) == kept
        same(rows, type(expected[0])(*(column[:kept] for column in expected[0])))
        onnx_file.compare(session, network, images)


@pytest.mark.slow
def test_the_graph_has_the_operators_of_the_docs_and_every_weight_once(made):
    detector, _, _, files = made
    plain, nms = map(read, files)
    text = (ROOT / "docs/export.md").read_text()
    listed = [set(re.findall(r"`(\w+)`", line)) for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    for model, names in ((plain, listed[0]), (nms, listed[0] | listed[1])):
        assert {node.op_type for node in model.graph.node} == names
        assert {node.domain for node in model.graph.node} == {""}
        weights = sum(len(weight.raw_data) for weight in model.graph.initializer)
        assert weights == 4 * sum(value.numel() for value in detector.network.model.parameters())
        [entry] = model.graph.input
        shapes = {
            value.name: [part.dim_value or part.dim_param for part in value.type.tensor_type.shape.dim]
            for value in (entry, *model.graph.output)
        }
        expected = {"images": ["N", 3, *SIZE], "boxes": ["N", 1344, 4], "scores": ["N", 1344, 5]}
        assert shapes == expected | ({"detections": ["N", 1344, 6]} if model is nms else {})
    assert [model.opset_import[0].version for model in (plain, nms)] == [11, 13]


@pytest.mark.slow
def test_the_metadata_say_what_the_images_and_numbers_are(made):
    model = read(made[3][0])
    found = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    version = found.pop("version")
    assert found == {
        "classes": list(CLASSES), "size": [*SIZE], "padding": 114.0, "channels": "BGR", "values": [0, 255],
        "score_threshold": 0.01, "iou_threshold": 0.65, "max_detections": 0,
    }  # fmt: skip
    assert (model.producer_name, model.producer_version) == ("yolox-ops", version)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--nms", "--img-size", "256", "256"]])
def test_check_finds_the_map_of_the_detector(learned, tmp_path, capfd, options):
    data, _, checkpoint = learned
    assert export(checkpoint, tmp_path / "new/model.onnx", f"--check={data}", *options) == 0
    printed = capfd.readouterr().out.splitlines()
    found, expected = re.search(r"mAP ([\d.]+) of the file, ([\d.]+) of the detector, 4 images", printed[-2]).groups()
    assert float(found) == pytest.approx(float(expected), abs=0.0005) and float(found) > 0.1
    assert re.match(
        r".*/model\.onnx: [\d.]+ MB, opset 11, images \[N, 3, 256, 256\] to boxes \[N, 1344, 4\], scores \[N, 1344, 5\]"
        r".*; from the detector's boxes at most \S+ pixels, from its scores \S+; [\d.]+ ms an image in onnxruntime$",
        printed[-1],
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_a_file_that_differs_is_none(learned, tmp_path, capfd, monkeypatch):
    data, _, checkpoint = learned
    own = onnx_file.Session.__call__

    for options, output, words in (
        ([], 0, "boxes of the exported network are up to 5"),
        ([], 1, "scores of the exported network are up to 5 from"),
        (["--nms"], 2, "detections of the exported network are not those of its boxes"),
        ([f"--check={data}"], 0, "the exported network has mAP 0."),
    ):

        def moved(self, images, output=output):
            outputs = own(self, images)
            outputs[output] += 5
            return outputs

        monkeypatch.setattr(onnx_file.Session, "__call__", moved)
        assert export(checkpoint, tmp_path / "out.onnx", *options) == 1
        assert words in capfd.readouterr().err
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_another_size_and_no_onnxruntime(learned, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export(learned[2], tmp_path / "out.onnx", "--img-size", 64, 96) == 0
    printed = capfd.readouterr()
    assert "images [N, 3, 64, 96] to boxes [N, 126, 4], scores [N, 126, 5]; not compared" in printed.out
    assert "pip install onnxruntime" in printed.err
    assert export(learned[2], tmp_path / "no.onnx", f"--check={learned[0]}") == 2
    assert "--check needs the package onnxruntime" in capfd.readouterr().err


@pytest.mark.slow
def test_inputs_that_cannot_be(learned, tmp_path, capfd, monkeypatch):
    data, _, checkpoint = learned
    content = read_checkpoint(checkpoint)
    weights, meta = {"state_dict": content["state_dict"]}, content["meta"]
    entries = config_in(meta, checkpoint)
    nameless = {"config": text_of(entries.items())}

    def saved(name, meta, **changes):
        model = {**entries["model"], **changes}
        kept = {
            key: value for key, value in model.items() if not key.startswith(("input_size", "random_size", "size_"))
        }
        text = text_of({**entries, "model": kept if changes.get("type") else model}.items())
        torch.save(weights | {"meta": {**meta, "config": text}}, tmp_path / name)
        return tmp_path / name

    torch.save(weights, tmp_path / "bare.pth")
    torch.save(weights | {"meta": nameless}, tmp_path / "nameless.pth")
    named = {"CLASSES": CLASSES}
    other = saved("other.pth", named, type="SingleStageDetector")
    soft = saved("soft.pth", named, test_cfg={"score_thr": 0.01, "nms": {"type": "soft_nms", "iou_threshold": 0.65}})
    there, sealed = tmp_path / "there.onnx", tmp_path / "sealed"
    there.write_text("mine")
    sealed.mkdir(mode=0o500)
    monkeypatch.setattr("os.access", lambda path, mode: path != sealed)  # root may write anywhere
    out = tmp_path / "out.onnx"
    before = sorted(tmp_path.iterdir())
    for path, file, options, words in (
        (checkpoint, there, [], f"--out {there} exists already, and would be overwritten"),
        (checkpoint, there / "out.onnx", [], f"--out {there} is not a folder"),
        (checkpoint, sealed / "out.onnx", [], "cannot be written to"),
        (checkpoint, out, ["--img-size", 100], "--img-size must be multiples of 32, got 100"),
        (checkpoint, out, ["--img-size", 64, 65], "--img-size must be multiples of 32, got 64 x 65"),
        (checkpoint, out, ["--img-size", 64, 64, 64], "must be one number, or height and width, got 3 numbers"),
        (checkpoint, out, ["--img-size", 64, f"--check={data}"], "leave --img-size out, or name (256, 256)"),
        (checkpoint, out, [f"--check={tmp_path / 'absent'}"], "absent is not a folder"),
        (checkpoint, out, [f"--check={tmp_path}"], "has no annotations/instances_train2017.json"),
        (tmp_path / "absent.pth", out, [], "absent.pth does not exist"),
        (there, out, [], "is no readable checkpoint"),
        (tmp_path / "bare.pth", out, [], "has no config in it: name the one it was trained with by --config"),
        (tmp_path / "nameless.pth", out, [], "does not say what its classes are called"),
        (other, out, [], "only MMDetection's YOLOX with its own head is exported"),
        (soft, out, ["--nms"], "--nms knows MMDetection's nms alone"),
    ):
        status = export(path, file, *options)
        assert words in sentence(status, capfd.readouterr().err)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "an export needs the package onnx: pip install onnx onnxruntime" in sentence(
        export(checkpoint, out), capfd.readouterr().err
    )
    assert sorted(tmp_path.iterdir()) == before and there.read_text() == "mine"


class Pipeline:
    """Letterboxes images to 64 x 64, with a change."""

    def __init__(self, size=(64, 64), change=lambda image: image, padding=7):
        self.size, self.change, self.padding = size, change, padding

    def sample(self, image):
        scale = min(self.size[0] / image.shape[0], self.size[1] / image.shape[1])
        resized = cv2.resize(image, (round(image.shape[1] * scale), round(image.shape[0] * scale)))
        canvas = np.full((*self.size, 3), self.padding, np.uint8)
        canvas[: resized.shape[0], : resized.shape[1]] = resized
        return self.change(canvas)

    def images(self, samples):
        return torch.from_numpy(np.stack(samples).transpose(0, 3, 1, 2).copy())


def test_what_the_network_sees_is_read_off_images():
    assert input_of(Pipeline()) == ModelInput((64, 64), 7.0, "BGR")
    assert input_of(Pipeline((32, 96), lambda image: image[..., ::-1])) == ModelInput((32, 96), 7.0, "RGB")
    for pipeline, words in (
        (Pipeline(change=lambda image: image / 255), rf"normalises pixels: of \[{COLOUR[0]}, 20, 30\] it makes"),
        (Pipeline(change=lambda image: np.roll(image, 1, (0, 1))), "normalises pixels|at the top left"),
        (Pipeline(change=lambda image: image[: np.flatnonzero(image[:, 0, 0] == COLOUR[0])[-1] + 1]), "no fixed size"),
        (Pipeline(change=lambda image: np.tile(image[:1, :1], (64, 64, 1))), "pads with one value"),
        (Pipeline(padding=(1, 2, 3)), "pads with one value"),
    ):
        with pytest.raises(InputError, match=words):
            input_of(pipeline)


def test_thresholds_of_a_config():
    class Head:
        bbox_head = type("", (), {"test_cfg": None})

    assert thresholds_of(Head) is None

    class Config(dict):
        __getattr__ = dict.__getitem__

    Head.bbox_head.test_cfg = Config(score_thr=0.1, nms={"type": "nms", "iou_threshold": 0.5, "max_num": 9})
    assert thresholds_of(Head) == Thresholds(0.1, 0.5, 9)
    Head.bbox_head.test_cfg = Config(score_thr=0.1, nms={"type": "nms", "iou_threshold": 0.5, "class_agnostic": True})
    assert thresholds_of(Head) is None
