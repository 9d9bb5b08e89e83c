"""What the commands refuse or warn of: each a sentence, status 2 if it cannot be, and nothing written then."""

import errno
import gc
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import HOST, sentence, small

from yolox_plugin.core.checkpoint import newest_checkpoint
from yolox_plugin.run import demo as demonstration
from yolox_plugin.run import demo_data, folders, report
from yolox_plugin.run import evaluate as testing
from yolox_plugin.run import train as training
from yolox_plugin.run.messages import InputError
from yolox_plugin.run.predictor import Unreadable, pixels_of


@pytest.fixture
def copy(data, tmp_path):
    """A copy of the data set, which may be changed."""
    return Path(shutil.copytree(data, tmp_path / "copy"))


def changed(root, change, split="train"):
    path = root / f"annotations/instances_{split}2017.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


@pytest.fixture
def train(config, tmp_path, capfd):
    """Runs a training in this process: the exit status, and what was written to stderr."""

    def run(root, *options):
        common = [f"--data-path={root}", f"--config={config}", "--device=cpu", f"--work-dir={tmp_path / 'run'}"]
        status = training.main([*common, *options])
        return status, capfd.readouterr().err

    return run


def warnings(error):
    return [line for line in error.splitlines() if line.startswith("warning: ")]


def first_name(content):
    return content["images"][3]["file_name"]


FILES = {
    "no annotations": (
        lambda root, path, name: path.unlink(), "has no annotations/instances_train2017.json"),
    "no JSON": (
        lambda root, path, name: path.write_text("<html>"), "instances_train2017.json is no JSON file"),
    "Latin-1": (
        lambda root, path, name: path.write_bytes(b'{"\xe9": 1}'), "instances_train2017.json is no JSON file"),
    "a list": (
        lambda root, path, name: path.write_text("[]"),
        "must be an object with the lists images, annotations, categories"),
    "no folder": (
        lambda root, path, name: shutil.rmtree(root / "val2017"), "val2017 is not a folder"),
    "no image": (
        lambda root, path, name: name.unlink() or name.write_text("<html>404</html>"),
        "which instances_train2017.json lists, is no readable image"),
    "an empty file": (
        lambda root, path, name: name.unlink() or name.write_bytes(b""),
        "which instances_train2017.json lists, is no readable image"),
    "a missing image": (
        lambda root, path, name: name.unlink(), "which instances_train2017.json lists, does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_not_there(train, copy, tmp_path, kind):
    change, words = FILES[kind]
    path = copy / "annotations/instances_train2017.json"
    change(copy, path, copy / "train2017" / first_name(json.loads(path.read_text())))
    assert words in sentence(*train(copy))
    assert not (tmp_path / "run").exists()


def without(part, place, field):
    def change(content):
        del content[part][place][field]

    return change


def having(part, place, **fields):
    def change(content):
        content[part][place].update(fields)

    return change


def emptied(part):
    def change(content):
        content[part] = []

    return change


def twice(part, **fields):
    def change(content):
        content[part].append(content[part][1] | fields)

    return change


def renamed(content):
    for category in content["categories"]:
        category["name"] += "s"


def crowded(content):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


def tiny_images(content):
    for image in content["images"]:
        image["width"] = 31


def several(content):
    for annotation in content["annotations"][2:5]:
        del annotation["bbox"]


CONTENTS = [
    ("train", emptied("images"), "lists no images"),
    ("train", emptied("annotations"), "has no annotation of the config's classes to train on"),
    ("train", crowded, "has no annotation of the config's classes to train on"),
    ("train", tiny_images, "MMDetection leaves out all images, as of less than 32 pixels"),
    ("train", renamed, "has none of the config's 5 classes (disc, ...) but discs, rings, squares, stars, triangles"),
    ("train", without("images", 3, "id"), "id of image number 3 is missing"),
    ("train", without("images", 3, "file_name"), "file_name of image 4 is missing"),
    ("train", without("images", 3, "width"), "width of image 4 is missing"),
    ("train", without("images", 3, "height"), "height of image 4 is missing"),
    ("train", having("images", 3, height=0), "height of image 4 must be a number of pixels, got 0"),
    ("train", having("images", 3, file_name=7), "file_name of image 4 must be the name of a file, got 7"),
    ("train", having("images", 3, id=[1]), "id of image number 3 must be a number or a string, got [1]"),
    ("train", lambda content: content["images"].append("x.jpg"), "image number 16 must be an object, got 'x.jpg'"),
    ("train", twice("images"), "2 entries have the image id 2"),
    ("train", twice("annotations"), "2 entries have the annotation id 2"),
    ("train", twice("categories"), "2 entries have the category id 2"),
    ("train", twice("categories", id=9), "2 categories are named square"),
    ("train", without("categories", 0, "name"), "name of category 1 is missing"),
    ("train", without("annotations", 2, "id"), "id of annotation number 2 is missing"),
    ("train", without("annotations", 2, "image_id"), "image_id of annotation 3 is missing"),
    ("train", without("annotations", 2, "category_id"), "category_id of annotation 3 is missing"),
    ("train", without("annotations", 2, "bbox"), "bbox of annotation 3 is missing"),
    ("train", several, "bbox of annotation 3 is missing, and 2 more like it"),
    ("train", without("annotations", 2, "area"), "area of annotation 3 is missing"),
    ("train", having("annotations", 2, bbox=[1, 2, 3]), "bbox of annotation 3 must be 4 finite numbers"),
    ("train", having("annotations", 2, bbox=[1, 2, 3, math.nan]), "bbox of annotation 3 must be 4 finite numbers"),
    ("train", having("annotations", 2, bbox=[1, 2, 3, math.inf]), "bbox of annotation 3 must be 4 finite numbers"),
    ("train", having("annotations", 2, bbox="1 2 3 4"), "bbox of annotation 3 must be 4 finite numbers"),
    ("train", having("annotations", 2, bbox=None), "bbox of annotation 3 must be 4 finite numbers"),
    ("val", without("images", 3, "file_name"), "file_name of image 4 is missing"),
    ("val", without("annotations", 2, "iscrowd"), "iscrowd of annotation 3 is missing"),
    ("val", twice("annotations"), "2 entries have the annotation id 2"),
    ("val", lambda content: content["categories"].reverse(), "is label 0 in"),
]  # fmt: skip


@pytest.mark.parametrize(("split", "change", "words"), CONTENTS, ids=[words[:40] for *_, words in CONTENTS])
def test_contents_that_cannot_be(train, copy, tmp_path, split, change, words):
    changed(copy, change, split)
    line = sentence(*train(copy))
    assert words in line
    assert f"instances_{split}2017.json" in line
    assert not (tmp_path / "run").exists()


def unknown(content):
    content["annotations"][0]["image_id"] = 1000
    del content["annotations"][0]["bbox"]  # which nobody reads
    for annotation in content["annotations"][1:3]:
        annotation["category_id"] = 1000


def lacking(content):
    content["categories"] = [category for category in content["categories"] if category["name"] != "ring"]


@pytest.mark.slow
def test_what_is_odd_is_told_and_trained(train, copy, tmp_path):
    for split in ("train", "val"):
        changed(copy, unknown, split)
        changed(copy, lacking, split)
    status, error = train(copy, "--epochs=1")
    assert status == 0, error[-2000:]
    told = warnings(error)
    for split in ("train", "val"):
        mine = [line for line in told if f"instances_{split}2017.json" in line]
        assert any("the image_id of 1 of" in line for line in mine)
        assert any("annotations is unknown" in line and "the category_id of " in line for line in mine)
        assert any("lacks 1 of the config's 5 classes: ring" in line for line in mine)
    assert (tmp_path / "run/result.json").exists()


@pytest.mark.slow
def test_nothing_to_evaluate_with(train, config, copy, tmp_path, capfd):
    changed(copy, emptied("annotations"), "val")
    status, error = train(copy, "--epochs=1", "--cfg-options", "model.test_cfg.score_thr=0.0")
    assert status == 0, error[-2000:]
    [line] = warnings(error)
    assert "instances_val2017.json has no annotation of the config's classes: mAP will be null" in line
    options = [f"--data-path={copy}", f"--config={config}", "--device=cpu", f"--work-dir={tmp_path / 'test'}"]
    checkpoint = f"--pth-path={newest_checkpoint(tmp_path / 'run')}"
    assert testing.main([*options, checkpoint, "--cfg-options", "model.test_cfg.score_thr=0.0"]) == 0
    assert testing.main([*options, checkpoint, "--cfg-options", "model.test_cfg.score_thr=1.0"]) == 0
    for folder in ("run", "test"):
        found = json.loads((tmp_path / folder / "result.json").read_text())
        assert [found[name] for name in report.FIGURES] == [None] * 6
    assert "Final Test Accuracy : not measured" in capfd.readouterr().out


def test_figures_that_were_not_asked_for():
    """By `evaluation=dict(metric_items=...)`, or of another metric."""
    some = report.accuracy({"bbox_mAP_50": 0.3, "bbox_mAP_copypaste": "0.1 0.3"})
    assert some == dict.fromkeys(report.FIGURES) | {"AP50": 0.3}
    assert report.accuracy({"AR@100": 0.5}) == dict.fromkeys(report.FIGURES)


def test_nothing_detected_is_0():
    assert report.accuracy({}) == dict.fromkeys(report.FIGURES, 0.0)


OPTIONS = [
    (["--data-path=/nowhere"], "--data-path /nowhere is not a folder"),
    (["--data-path=--"], "/-- is not a folder"),
    (["--config=absent.py"], "got absent.py"),
    (["--config=BASELESS"], "absent_base.py"),
    (["--device=npu"], "--devices=1 --device=npu: this machine has 0 npu devices"),
    (["--device=cuda", "--devices=8"], "--devices=8 --device=cuda: this machine has 0 cuda devices"),
    (["--devices=4096"], "--devices=4096 --device=cpu: this machine has"),
    (["--amp=float16"], "--amp=float16 needs an accelerator"),
    (["--cfg-options", "model.autocast=half"], "model.autocast='half' must be 'float32', 'bfloat16' or 'float16'"),
    (["--cfg-options", "model.bbox_head.num_classes=7"], "5 classes but model.bbox_head.num_classes=7"),
    (["--cfg-options", "load_from=/nowhere.pth"], "load_from='/nowhere.pth' does not exist"),
    (["--config=STRANGE"], "NameError: name 'undefined' is not defined"),
    (["--cfg-options", "load_from=OTHER"], "has no tensor of the config's model"),
    (["--cfg-options", "log_level=it's"], "log_level cannot be: ValueError: "),
    (["--work-dir=FILE"], "is not a folder"),
    (["--work-dir=FILE/below"], "is not a folder"),
    (["--work-dir=LINK"], "is not a folder"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "words"), [*OPTIONS, *small.CONFIG_OPTIONS])
def test_options_that_cannot_be(train, data, tmp_path, options, words):
    if any("cuda" in option for option in options) and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (tmp_path / "file").write_text("")
    (tmp_path / "broken.py").write_text("model = dict(")
    (tmp_path / "baseless.py").write_text("_base_ = 'absent_base.py'")
    (tmp_path / "strange.py").write_text("model = undefined")
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    places = {"FILE": "file", "BROKEN": "broken.py", "BASELESS": "baseless.py", "STRANGE": "strange.py",
              "LINK": "link", "OTHER": "other.pth"}  # fmt: skip
    for word, name in places.items():
        options = [option.replace(word, str(tmp_path / name)) for option in options]
    assert words in sentence(*train(data, *options))
    assert not (tmp_path / "run").exists()


def test_a_precision_that_cannot_be_tested_with(data, config, tmp_path, capfd):
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "a.pth")
    common = [
        f"--data-path={data}",
        f"--config={config}",
        f"--pth-path={tmp_path}/a.pth",
        f"--work-dir={tmp_path / 'run'}",
    ]
    common.append("--device=cpu")
    status = testing.main([*common, "--amp=float16"])
    assert "--amp=float16 needs an accelerator: on a CPU use --amp=bfloat16" in sentence(status, capfd.readouterr().err)
    status = testing.main([*common, "--amp=bfloat16", "--cfg-options", "model.type=FCOS"])
    assert "--amp=bfloat16 is for the plugin's YOLOX: the config's detector is MMDetection's FCOS" in sentence(
        status, capfd.readouterr().err
    )
    status = testing.main([*common, "--amp=bfloat16", "--cfg-options", "model.type=YOLOZ"])
    assert "YOLOZ" in sentence(status, capfd.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_precision_that_no_block_takes(data, config, tmp_path, monkeypatch, capfd):
    common = [f"--data-path={data}", f"--config={config}", "--device=cpu", f"--work-dir={tmp_path / 'run'}"]
    path = tmp_path / "untrained.pth"
    args = testing.parser().parse_args([*common, f"--pth-path={path}"])
    model = testing.host.parts.check_model(testing.host.load_config(args))
    torch.save({"state_dict": model.state_dict()}, path)
    monkeypatch.setenv("YOLOX_PLUGIN_NETWORK", "off")
    status = testing.main([*common, f"--pth-path={path}", "--amp=bfloat16"])
    words = "--amp=bfloat16: bfloat16 is for blocks whose norms can be folded, of which this network has none"
    assert words in sentence(status, capfd.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--devices=0"],
        ["--epochs=x"],
        ["--device=tpu"],
        ["--seed=-1"],
        ["--seed=4294967296"],
        ["--max-restarts=-1"],
        ["--data-path=x", "--epochs=--"],
        ["--data-path=x", "--cfg-options", "nonsense"],
        ["--data-path=x", f"--work-dir={'x' * 300}"],
        ["--data-path=x", f"--load-from={'x/' * 3000}"],
        [],
    ],
)
def test_options_that_argparse_refuses(options, capsys):
    with pytest.raises(SystemExit) as error:
        training.main(options)
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--seed=-1"], ["--train=-1"], []])
def test_demo_data_that_cannot_be(monkeypatch, data, tmp_path, capsys, options):
    monkeypatch.setattr(sys, "argv", ["demo_data", str(tmp_path / "new" if options else data), *options])
    with pytest.raises(SystemExit) as error:
        demo_data.main()
    assert error.value.code == 2
    assert ("must be 0 or more" if options else "is there already") in capsys.readouterr().err


def test_the_home_folder(data, config, monkeypatch, capfd):
    """No shell puts it in after `--data-path=`."""
    monkeypatch.setenv("HOME", str(data.parent))
    options = training.parser().parse_args(["--data-path=~/data", "--config=~/tiny.py", "--work-dir=~/run"])
    assert options.data_path == data
    assert options.work_dir == data.parent / "run"
    [source] = training.host.sources(training.host.configure(options), ["train"])
    assert source.folder == data / "train2017"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is no checkpoint"),
        (b"<html>404</html>", "is no checkpoint"),
        ({}, "is no checkpoint"),
        ({"state_dict": {}, "meta": {"of": Path("/")}}, "is whole, but torch does not load it without your word"),
        ({"state_dict": {}}, "first backbone.stem.conv.conv.weight: expected [8, 12, 3, 3], got nothing"),
        ({"state_dict": {"backbone.stem.conv.conv.weight": torch.zeros(3)}}, "got [3]"),
    ],
)  # fmt: skip
def test_checkpoints_of_something_else(data, config, tmp_path, capfd, content, words):
    path = tmp_path / "some.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    common = [f"--data-path={data}", f"--config={config}", "--device=cpu", f"--work-dir={tmp_path / 'w'}"]
    assert words in sentence(testing.main([*common, f"--pth-path={path}"]), capfd.readouterr().err)
    assert not (tmp_path / "w").exists()


def inputs(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def checkpoint(config, data):
    path = data.parent / "untrained.pth"
    args = testing.parser().parse_args([f"--data-path={data}", f"--config={config}", f"--pth-path={path}"])
    model = testing.host.parts.check_model(testing.host.load_config(args))
    model.init_weights()
    torch.save({"state_dict": model.state_dict(), "meta": {"CLASSES": demo_data.CLASSES[:1]}}, path)
    return path


@pytest.fixture
def draw(config, checkpoint, tmp_path, capfd):
    """Tests with pictures in this process: the exit status, and what was written to stderr."""

    def run(root, save_dir, *options):
        common = [f"--data-path={root}", f"--config={config}", "--device=cpu", f"--work-dir={tmp_path / 'test'}"]
        status = testing.main([*common, f"--pth-path={checkpoint}", f"--save-dir={save_dir}", *options])
        return status, capfd.readouterr().err

    return run


def absolute(root):
    return lambda content: content["images"][1].update(file_name=str(root / "val2017/000002.jpg"))


def upwards(root):
    return lambda content: content["images"][1].update(file_name="../train2017/000002.jpg")


def doubled(root):
    return lambda content: content["images"][1].update(file_name="../val2017/000003.jpg")


def same(root):
    return lambda content: content["images"][1].update(file_name="000003.jpg")


def nothing(root):
    return lambda content: None


@pytest.mark.parametrize(
    ("change", "save_dir", "words"),
    [
        (absolute, "pictures", "would be outside of it"),
        (upwards, "pictures", "would be outside of it"),
        (upwards, "copy/pictures", "would be outside of it"),
        (doubled, "pictures/val2017", "would be the same picture"),
        (same, "pictures", "000003.jpg and 000003.jpg would be the same picture"),
        (nothing, "copy/val2017", "has 000001.jpg already, which would be overwritten"),
        (nothing, "link", "has 000001.jpg already, which would be overwritten"),
        (nothing, "hard", "has 000004.jpg already, which would be overwritten"),
        (nothing, "soft", "would be outside of it"),
        (nothing, "copy/annotations/instances_val2017.json", "is not a folder"),
    ],
)
def test_pictures_that_would_cost_a_file(draw, copy, tmp_path, change, save_dir, words):
    changed(copy, change(copy), "val")
    (tmp_path / "link").symlink_to(copy / "val2017")
    for name in ("hard", "soft"):
        (tmp_path / name).mkdir()
    (tmp_path / "hard/000004.jpg").hardlink_to(copy / "val2017/000004.jpg")
    (tmp_path / "soft/000004.jpg").symlink_to(copy / "val2017/000004.jpg")
    before = inputs(tmp_path)
    assert words in sentence(*draw(copy, tmp_path / save_dir))
    assert inputs(tmp_path) == before


def reverse_categories(content):
    content["categories"].reverse()


def test_labels_are_numbered_as_in_the_training(draw, train, checkpoint, copy, tmp_path):
    """MMDetection numbers classes as the file lists them: another order makes other classes of a network's answers."""
    content = torch.load(checkpoint)
    content["meta"] = {"CLASSES": demo_data.CLASSES, "LABELS": list(demo_data.CLASSES), "epoch": 1, "iter": 4}
    trained = tmp_path / "trained.pth"
    torch.save(content, trained)
    for split in ("train", "val"):
        changed(copy, reverse_categories, split)
    words = "was trained with disc as label 0, but the annotations make it 4"
    assert words in sentence(*draw(copy, tmp_path / "pictures", f"--pth-path={trained}"))
    assert words in sentence(*train(copy, "--cfg-options", *small.resume_from(trained)))


def test_resuming_what_cannot_go_on(train, config, data, tmp_path):
    args = training.parser().parse_args([f"--data-path={data}", f"--config={config}"])
    model = training.host.parts.check_model(training.host.load_config(args))
    whole = {"state_dict": model.state_dict(), "meta": {"epoch": 3, "iter": 12}}
    adam = torch.optim.AdamW(model.parameters()).state_dict()
    trials = [
        ({"state_dict": whole["state_dict"]}, [], "has weights alone, of no training that could go on"),
        (whole, ["--epochs=3"], "has 3 of 3 epochs: nothing is left to train"),
        (whole, ["--performance"], "has 3 of 1 epochs: nothing is left to train"),
        (whole, ["--iterations=5"], "has 12 of 5 iters: nothing is left to train"),
        (whole | {"optimizer": adam}, [], "with other groups of parameters in its optimizer"),
    ]
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    for content, options, words in trials:
        torch.save(content, work_dir / "epoch_3.pth")
        assert words in sentence(*train(data, "--resume", *options))
        assert [path.name for path in work_dir.iterdir()] == ["epoch_3.pth"]


LOCK = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_run_that_is_going_on_is_left_alone(train, data, tmp_path):
    assert train(data, "--iterations=2")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    command = [sys.executable, "-c", LOCK, tmp_path / "run/config.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        assert "has a run that is going on: name another" in sentence(*train(data, "--resume"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before
    assert train(data, "--resume", "--iterations=3")[0] == 0


@pytest.mark.parametrize(("length", "found"), [("--iterations=2", "logs"), ("--epochs=1", "checkpoints, logs")])
def test_the_last_line_names_what_is_there(config, data, tmp_path, capfd, length, found):
    """Two iterations are less than an epoch, after which the first checkpoint is written."""
    run = tmp_path / "run"
    options = [f"--data-path={data}", f"--config={config}", "--device=cpu", f"--work-dir={run}"]
    assert training.main([*options, length]) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    assert last == f"  in {run}: {found}, config.py, result.json, curves.png"
    assert ("checkpoints" in found) == any(run.glob("*.pth"))


def test_a_run_that_came_after_the_checks_is_left_alone(tmp_path):
    (tmp_path / "now.log").write_text("")
    (tmp_path / "config.py").write_text("theirs = True")
    with pytest.raises(InputError, match="has a run already"), training.claimed(tmp_path, False, "ours = True"):
        pass
    assert (tmp_path / "config.py").read_text() == "theirs = True"


def test_a_folder_that_cannot_be_locked(tmp_path, monkeypatch, capsys):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(training.fcntl, "lockf", lockf)
    with training.claimed(tmp_path / "run", False, "ours = True"):
        assert (tmp_path / "run/config.py").read_text() == folders.MARK + "ours = True"
    assert "cannot be locked against other runs: [Errno 37] No locks available" in capsys.readouterr().err


def test_names_that_python_writes_in_another_way(config, data, tmp_path, capfd):
    """config.py says what was meant, as does the copy of it in checkpoints: mmcv's own text did not."""
    odd = tmp_path / "it's \\new {{ fileDirname }}"
    root = shutil.copytree(data, odd / "data")
    options = [f"--data-path={root}", f"--config={config}", "--device=cpu", f"--work-dir={odd / 'run'}"]
    assert training.main([*options, "--epochs=1"]) == 0, capfd.readouterr().err
    cfg = training.host.Config.fromfile(str(odd / "run/config.py"))
    assert cfg.work_dir == str(odd / "run")
    [source] = training.host.sources(cfg, ["train"])
    assert source.path == root / "annotations/instances_train2017.json"
    again = [f"--data-path={root}", f"--config={odd / 'run/config.py'}", "--device=cpu", f"--work-dir={odd / 'again'}"]
    assert training.main([*again, "--iterations=2"]) == 0, capfd.readouterr().err
    text = (odd / "run/config.py").read_text()
    assert text.startswith(folders.MARK)
    if HOST == "mmdet2":  # mmengine writes its own text there
        assert torch.load(odd / "run/epoch_1.pth")["meta"]["config"] == text.removeprefix(folders.MARK)


def test_a_resume_without_a_run_overwrites_nothing(train, data, tmp_path):
    mine = tmp_path / "run/config.py"
    mine.parent.mkdir()
    mine.write_text("mine = True")
    for log in (None, "slurm.log"):  # which is no sign of a run by itself
        if log:
            (mine.parent / log).write_text("")
        assert "has a config.py that would be overwritten" in sentence(*train(data, "--resume"))
        assert mine.read_text() == "mine = True"


def test_the_users_own_imports_stay(config, data, tmp_path, monkeypatch):
    (tmp_path / "own_module_of_mine.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    changed_config = tmp_path / "own.py"
    imports = ["own_module_of_mine", "yolox_plugin"]
    changed_config.write_text(f"{config.read_text()}\ncustom_imports['imports'] = {imports}\n")
    for file, names in ((config, ["yolox_plugin"]), (changed_config, imports)):
        cfg = training.host.load_config(training.parser().parse_args([f"--data-path={data}", f"--config={file}"]))
        assert cfg.custom_imports == {"imports": names, "allow_failed_imports": False}


@pytest.mark.parametrize(
    ("content", "allowed"), [({"task": "train"}, False), ([], False), ("<html>", False), ({"task": "test"}, True)]
)
def test_an_evaluation_replaces_only_an_evaluations_result(draw, data, tmp_path, content, allowed):
    path = tmp_path / "test/result.json"
    path.parent.mkdir()
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    before = path.read_bytes()
    (tmp_path / "pictures").mkdir()
    status, error = draw(data, tmp_path / "pictures", *([] if allowed else ["--score-thr=0.5"]))
    if allowed:
        assert status == 0, error[-2000:]
        assert json.loads(path.read_text())["images"] == 5
    else:
        assert "has a result.json that would be overwritten: name another" in sentence(status, error)
        assert path.read_bytes() == before


def test_an_evaluation_leaves_the_trainings_files_alone(config, data, checkpoint, tmp_path, monkeypatch):
    """Of the same config, by default."""
    monkeypatch.chdir(tmp_path)
    training_result = tmp_path / "work_dirs" / config.stem / "result.json"
    training_result.parent.mkdir(parents=True)
    training_result.write_text('{"task": "train"}')
    assert testing.main([f"--data-path={data}", f"--config={config}", "--device=cpu", f"--pth-path={checkpoint}"]) == 0
    assert training_result.read_text() == '{"task": "train"}'
    assert json.loads((training_result.parent / "test/result.json").read_text())["task"] == "test"


def test_boxes_without_bounds_are_drawn(tmp_path):
    """As of an untrained network."""
    boxes = np.array([[-np.inf, 1, np.inf, 9, 0.9], [np.nan, 3, 1e30, 1e9, 0.8], [5, 5, 20, 20, 0.7]])
    image = np.zeros((40, 60, 3), np.uint8)
    found = [report.drawable(boxes, image.shape)]
    assert np.isfinite(found[0]).all()
    assert found[0][2].tolist() == boxes[2].tolist()
    report.draw_boxes(image, [boxes], ["disc"], 0.3)
    assert image.any()
    report.write_image(tmp_path / "drawn.jpg", image)
    assert (tmp_path / "drawn.jpg").stat().st_size > 500


@pytest.mark.slow
@pytest.mark.parametrize("save_dir", ["pictures", "copy/val2017/drawn", "copy"])
def test_pictures_beside_their_images(draw, copy, tmp_path, save_dir):
    def below(content):
        content["images"][0]["file_name"] = "a/b/1.jpg"

    (copy / "val2017/a/b").mkdir(parents=True)
    (copy / "val2017/000001.jpg").rename(copy / "val2017/a/b/1.jpg")
    changed(copy, below, "val")
    before = inputs(tmp_path)
    status, error = draw(copy, tmp_path / save_dir)
    assert status == 0, error[-2000:]
    assert [line for line in warnings(error) if "was trained on disc, the config's classes are disc, square" in line]
    assert {name: content for name, content in inputs(tmp_path).items() if name in before} == before
    assert (tmp_path / save_dir / "a/b/1.jpg").stat().st_size > 1000
    assert len(list((tmp_path / save_dir).glob("*.jpg"))) == 4


def run_demo(monkeypatch, work_dir, data):
    monkeypatch.setattr(sys, "argv", ["demo", f"--work-dir={work_dir}", f"--data-path={data}", "--epochs=1"])
    return demonstration.main()


@pytest.mark.parametrize("names", [["thesis.tex"], ["20261125_010203.log.json", "epoch_300.pth"], ["config.py"]])
def test_the_demo_does_not_empty_a_folder_of_something_else(monkeypatch, data, tmp_path, capsys, names):
    (tmp_path / "run").mkdir()
    for name in names:
        (tmp_path / "run" / name).write_text("years of work")
    before = inputs(tmp_path)
    with pytest.raises(SystemExit) as error:
        run_demo(monkeypatch, tmp_path / "run", data)
    assert error.value.code == 2
    assert "holds something else than a training run of this demo" in capsys.readouterr().err
    assert inputs(tmp_path) == before


def test_the_demo_removes_only_what_it_made(monkeypatch, data, tmp_path, capsys):
    """Not what somebody has put there, or trained further, since."""
    runs = []

    def train(args):
        runs.append(sorted(path.name for path in (tmp_path / "run").iterdir()))
        (tmp_path / "run/epoch_1.pth").write_text(f"run {len(runs)}")
        (tmp_path / "run/latest.pth").symlink_to("epoch_1.pth")
        return 0

    monkeypatch.setattr(demonstration, "run", train)
    for _ in range(2):
        assert run_demo(monkeypatch, tmp_path / "run", data) == 0
    assert runs == [[], []]
    for name, text in (("thesis.tex", "years of work"), ("epoch_1.pth", "trained further")):
        (tmp_path / "run" / name).write_text(text)
        with pytest.raises(SystemExit):
            run_demo(monkeypatch, tmp_path / "run", data)
        assert name in capsys.readouterr().err
        assert (tmp_path / "run" / name).read_text() == text
        (tmp_path / "run/thesis.tex").unlink(missing_ok=True)


def test_a_stopped_demo_begins_again(monkeypatch, data, tmp_path, capsys):
    """It cannot go on, and says nothing of that."""
    found = []

    def stopped(args, cfg, start, resume):
        work_dir = Path(cfg.work_dir)
        found.append(sorted(path.name for path in work_dir.iterdir()))
        for name in ("mid_epoch.pth", "mid_epoch.pth.part"):
            (work_dir / name).write_text("in an epoch")
        return 143

    monkeypatch.setattr(training, "train", stopped)
    for _ in range(2):
        assert run_demo(monkeypatch, tmp_path / "run", data) == 143
    assert found[0] == found[1]
    assert "--resume" not in capsys.readouterr().err


def test_a_pipe_among_the_images(train, copy, tmp_path):
    """Whoever opens it would wait for ever."""
    path = copy / "train2017" / first_name(json.loads((copy / "annotations/instances_train2017.json").read_text()))
    path.unlink()
    os.mkfifo(path)
    assert "which instances_train2017.json lists, is no readable image" in sentence(*train(copy))
    assert isinstance(pixels_of(path), Unreadable)


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000])
def test_a_name_that_no_file_has(train, copy, name):
    changed(copy, having("images", 3, file_name=name))
    assert "which instances_train2017.json lists, does not exist" in sentence(*train(copy))


def test_an_annotation_file_that_cannot_be_read(train, copy):
    path = copy / "annotations/instances_train2017.json"
    path.unlink()
    path.symlink_to("/proc/self/mem")
    assert "instances_train2017.json cannot be read: " in sentence(*train(copy))


def test_names_with_anything_in_them_are_told_in_one_line(train, tmp_path):
    line = sentence(*train(tmp_path / "a\nb\x1b[31m\u202e"))
    assert line.endswith(r"a\nb\x1b[31m\u202e is not a folder")


@pytest.mark.parametrize(
    "options",
    [
        ["custom_hooks=[1]"],
        ["custom_hooks=x"],
        ["model.bbox_head=1"],
        [f"{small.LEARNING_RATE.split('.')[0]}=x"],
        ["load_from=1"],
        ["custom_imports=x"],
    ],
)
def test_parts_of_another_kind(train, data, tmp_path, options):
    assert " must be " in sentence(*train(data, "--cfg-options", *options))
    assert not (tmp_path / "run").exists()


def test_a_config_that_cannot_be_read_leaves_nothing_to_tell(train, data, tmp_path, capfd):
    """mmcv's temporary file, of which Python told after the command's sentence."""
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe")
    status, error = train(data, f"--config={tmp_path / 'bytes.py'}")
    gc.collect()
    assert "bytes.py cannot be: UnicodeDecodeError" in sentence(status, error)
    assert error.splitlines()[-1].startswith("error: ")
    assert "ignored" not in capfd.readouterr().err


METAS = [
    (torch.zeros(0), "meta must be a dict, got Tensor"),
    ({"epoch": "3", "iter": 1}, "meta['epoch'] must be a whole number, got '3'"),
    ({"epoch": 1, "iter": None}, "meta['iter'] must be a whole number, got None"),
    ({"epoch": -1, "iter": 1}, "meta['epoch'] must be a whole number, got -1"),
    ({"epoch": 1, "iter": 4, "seed": "x"}, "meta['seed'] must be a whole number below 2**32, got 'x'"),
    ({"epoch": 1, "iter": 4, "seed": -1}, "meta['seed'] must be a whole number below 2**32, got -1"),
]


@pytest.mark.parametrize(("meta", "words"), METAS)
def test_what_a_checkpoint_tells_of_its_training(train, data, checkpoint, tmp_path, meta, words):
    content = torch.load(checkpoint, weights_only=True)
    (tmp_path / "run").mkdir()
    torch.save({**content, "meta": meta}, tmp_path / "run/epoch_1.pth")
    assert words in sentence(*train(data, "--resume"))


def test_an_optimizer_state_that_is_none(train, data, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    (tmp_path / "run").mkdir()
    torch.save({**content, "meta": {"epoch": 1, "iter": 4}, "optimizer": [1]}, tmp_path / "run/epoch_1.pth")
    assert "other groups of parameters in its optimizer" in sentence(*train(data, "--resume"))


def test_no_checkpoint_to_go_on_from_is_whole(train, data, tmp_path):
    (tmp_path / "run").mkdir()
    for epoch in (1, 2):
        (tmp_path / f"run/epoch_{epoch}.pth").write_bytes(b"PK")
    line = sentence(*train(data, "--resume"))
    assert "epoch_2.pth is no readable checkpoint" in line
    assert "epoch_1.pth is no readable checkpoint" in line


@pytest.mark.parametrize("classes", [7, torch.zeros(()), {"a": 1}, None, [torch.zeros(1)]])
def test_classes_of_a_checkpoint_that_are_none(data, config, checkpoint, tmp_path, capfd, classes):
    content = torch.load(checkpoint, weights_only=True)
    meta = {"CLASSES": classes, "LABELS": classes, "dataset_meta": {"classes": classes}}
    torch.save({**content, "meta": meta}, tmp_path / "odd.pth")
    common = [f"--data-path={data}", f"--config={config}", "--device=cpu", f"--pth-path={tmp_path / 'odd.pth'}"]
    assert testing.main([*common, f"--work-dir={tmp_path / 'test'}"]) == 0, capfd.readouterr().err
