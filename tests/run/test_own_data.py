"""Data sets of one's own: layouts, classes and a split found from annotations; recipes and weights that fit them."""

import json
import logging
import random
import re
import shutil
import sys
import warnings
from collections import Counter

import mmcv
import pycocotools.coco
import pytest
import torch
from mmdet.datasets import CocoDataset
from tiny import HOST, sentence, small

from yolox_plugin import Detector
from yolox_plugin.core import annotation_index
from yolox_plugin.core.checkpoint import read_checkpoint
from yolox_plugin.run import evaluate as testing
from yolox_plugin.run import predict, splits, terminal
from yolox_plugin.run import train as training
from yolox_plugin.run.demo_data import CLASSES
from yolox_plugin.run.messages import InputError
from yolox_plugin.run.saved_config import values_in

COCO = getattr(CocoDataset, "CLASSES", None) or CocoDataset.METAINFO["classes"]
# The standard nano at a size that trains in seconds; its config names no classes.
STANDARD = ["--model=nano", "--img-size=96", "--epochs=1", "--batch-size=4", "--device=cpu"]


def content_of(data, split):
    return json.loads((data / f"annotations/instances_{split}2017.json").read_text())


def coco(data, root, change):
    shutil.copytree(data, root)
    for split in ("train", "val"):
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(change(content_of(data, split))))


def plain(data, root, change):
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copytree(data / f"{split}2017", root / split)
        (root / f"annotations/{split}.json").write_text(json.dumps(change(content_of(data, split))))


def instances(data, root, change):
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copytree(data / f"{split}2017", root / "images" / split)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(change(content_of(data, split))))


def roboflow(data, root, change):
    """Its files lie beside the images, and a category of number 0 is there for the whole project."""
    for split, name in (("train", "train"), ("val", "valid")):
        shutil.copytree(data / f"{split}2017", root / name)
        content = change(content_of(data, split))
        parts = [{**entry, "supercategory": "shapes"} for entry in content["categories"]]
        content["categories"] = [{"id": 0, "name": "shapes", "supercategory": "none"}, *parts]
        (root / name / "_annotations.coco.json").write_text(json.dumps(content))


def single(data, root, change):
    shutil.copytree(data / "train2017", root / "images")
    (root / "annotations.json").write_text(json.dumps(change(content_of(data, "train"))))


def beside(data, root, change):
    shutil.copytree(data / "train2017", root)
    (root / "_annotations.coco.json").write_text(json.dumps(change(content_of(data, "train"))))


@pytest.fixture
def make(data, tmp_path):
    """Makes the data set of shapes in another layout, its annotations changed; the folder."""

    def made(layout, change=lambda content: content):
        layout(data, tmp_path / "mine", change)
        return tmp_path / "mine"

    return made


@pytest.fixture
def train(tmp_path, capfd, monkeypatch):
    """Runs a training, with a log of its own: the exit status, what it printed, and its errors."""
    if HOST == "mmdet2":  # which has one log for all trainings of a process
        known = {}
        for module in ("mmcv.utils.logging", "mmcv.runner.base_module"):
            monkeypatch.setattr(f"{module}.logger_initialized", known)

    def run(root, *options, standard=STANDARD):
        status = training.main([f"--data-path={root}", f"--work-dir={tmp_path / 'run'}", *standard, *options])
        return status, *capfd.readouterr()

    return run


def configured(*options):
    """The config of a command, which is not run, as plain values."""
    cfg = training.host.configure(training.parser().parse_args([*options, "--device=cpu"]))
    return values_in(training.host.text_of(cfg.items()))


def newest(run):
    return run / "epoch_1.pth"


@pytest.mark.slow
@pytest.mark.parametrize("layout", [roboflow, single])
def test_from_annotations_to_detections_without_a_config(make, train, tmp_path, layout):
    root = make(layout)
    options = ["--val-fraction=0.25"] if layout is single else []
    status, out, err = train(root, *options)
    assert status == 0, err[-3000:]
    assert re.search(r"^classes +5, with boxes: disc \d+, square \d+, triangle \d+, star \d+, ring \d+$", out, re.M)
    assert re.search(r"^training +yolox_nano_8x8_300e_coco, 1 epoch, 4 images at a time on 1 cpu$", out, re.M)
    [log] = tmp_path.glob("run/**/*.log")
    for hidden in ("before and after calling `init_weights`", "before_train_epoch:"):
        assert hidden in log.read_text() and hidden not in out + err
    assert re.search(r"Epoch.*\bloss\b", out + err)
    result = json.loads((tmp_path / "run/result.json").read_text())
    weights = read_checkpoint(newest(tmp_path / "run"))
    assert weights["state_dict"]["bbox_head.multi_level_conv_cls.0.weight"].shape[0] == len(CLASSES)

    assert testing.main([f"--pth-path={newest(tmp_path / 'run')}", "--device=cpu"]) == 0
    again = json.loads((tmp_path / "run/test/result.json").read_text())
    assert again["images"] == (len(json.loads((tmp_path / "run/split/val.json").read_text())["images"])
                               if layout is single else 5)  # fmt: skip
    assert again["mAP"] == pytest.approx(result["mAP"], abs=1e-4)
    assert Detector(newest(tmp_path / "run")).classes == CLASSES


@pytest.mark.parametrize("layout", [coco, plain, instances, roboflow])
def test_layouts(make, layout):
    """Files that are there, with the classes that the annotations have, in their order."""
    root = make(layout)
    args = training.parser().parse_args([f"--data-path={root}", *STANDARD])
    cfg = training.host.configure(args)
    checked = training.host.check_data(args, cfg, ("train", "val"))
    assert [counts.images for counts in checked.files] == [16, 5]
    assert checked.labels == {name: label for label, name in enumerate(CLASSES)}
    assert cfg.model.bbox_head.num_classes == len(CLASSES)


def test_the_layouts_that_were_looked_for(train, tmp_path):
    (tmp_path / "nothing").mkdir()
    status, _, err = train(tmp_path / "nothing")
    words = sentence(status, err)
    assert "annotations/instances_train2017.json, no annotations/train.json" in words
    assert "no train/_annotations.coco.json, no annotations.json" in words
    assert not (tmp_path / "run").exists()


def test_classes_that_are_named_stay(make, data, tmp_path):
    """Those of a config, COCO's 80 where the annotations have these, and a number of them that somebody asks for."""
    config = small.write_config(tmp_path / "named.py", data, epochs=1)
    cfg = training.host.configure(training.parser().parse_args([f"--data-path={data}", f"--config={config}"]))
    assert list(training.host.sources(cfg, ["train"])[0].classes) == list(CLASSES)
    # In another order, they are numbered in another way, and checkpoints have to say so.
    coco_categories = [{"id": number, "name": name} for number, name in enumerate(reversed(COCO), 1)]
    root = make(coco, lambda content: {**content, "categories": coco_categories})
    cfg = training.host.configure(training.parser().parse_args([f"--data-path={root}"]))
    assert cfg.model.bbox_head.num_classes == 80
    assert list(training.host.sources(cfg, ["val"])[0].classes) == list(reversed(COCO))
    options = [f"--data-path={data}", "--model=s", "--cfg-options", "model.bbox_head.num_classes=7"]
    assert configured(*options)["model"]["bbox_head"]["num_classes"] == 7


def test_processes_of_a_command_have_its_classes(monkeypatch, data):
    """But for several annotation files, whose classes it has left as they are."""
    path = data / "annotations/instances_train2017.json"
    monkeypatch.setenv(training.starting.CLASSES, '["a", "b"]')
    assert training.starting.own_classes([path]) == ["a", "b"]
    assert training.starting.own_classes([path, path]) == []
    monkeypatch.delenv(training.starting.CLASSES)
    assert training.starting.own_classes([path]) == list(CLASSES)
    assert training.starting.own_classes([path, path]) == []


def renamed(content):
    content["categories"][1]["name"] = "cube"
    return content


def without_ring(content):
    content["categories"] = content["categories"][:-1]
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] <= 4]
    return content


@pytest.mark.parametrize(
    ("change", "words"), [(renamed, "it has cube and lacks square; give both the same"), (without_ring, "lacks ring")]
)
def test_categories_of_val_that_differ(make, train, tmp_path, change, words):
    root = make(plain)
    path = root / "annotations/val.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    status, _, err = train(root)
    assert words in sentence(status, err)
    assert not (tmp_path / "run").exists()


def twice(content):
    content["categories"].append({"id": 9, "name": "disc"})
    return content


def one_box(content):
    return {**content, "annotations": content["annotations"][:1]}


def surrogate(content):
    content["categories"][0]["name"] = "\ud83d"
    return content


@pytest.mark.parametrize(
    ("layout", "change", "options", "words"),
    [
        (plain, twice, [], "2 categories are named disc"),
        (plain, lambda content: {**content, "categories": [], "annotations": []}, [], "has no categories"),
        (plain, lambda content: content, ["--val-fraction=0.2"], "is split already"),
        (single, lambda content: content, [], "has one annotation file, annotations.json: --val-fraction=0.1 keeps"),
        (single, lambda content: content, ["--val-fraction=0.01"], "leaves 0 of the 16 images"),
        (single, one_box, ["--val-fraction=0.6"], "leaves no box of"),
        (coco, surrogate, [], "name of category 1 must be a name"),
        (coco, lambda content: content, ["--load-from=absent.pth"], "--load-from absent.pth does not exist"),
        (coco, lambda content: content, ["--load-from=README.md"], "--load-from is no checkpoint: README.md"),
    ],
)
def test_data_that_cannot_be(make, train, tmp_path, layout, change, options, words):
    status, _, err = train(make(layout, change), *options)
    assert words in sentence(status, err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--img-size=100"], "must be a multiple of 32, got 100"), (["--model=huge"], "must be one of nano, tiny, s, m"),
     (["--model=s", "--config=yolox_demo"], "not allowed with"), (["--val-fraction=1"], "must be between 0 and 1")],
)  # fmt: skip
def test_options_that_argparse_refuses(data, capsys, options, words):
    with pytest.raises(SystemExit):
        training.main([f"--data-path={data}", *options])
    assert words in capsys.readouterr().err


def test_a_split_has_its_share_of_each_class():
    rng = random.Random(3)
    images = [{"id": number} for number in range(1000)]
    boxes = [
        {"image_id": image["id"], "category_id": rng.choices(range(6), [100, 50, 20, 10, 3, 1])[0]}
        for image in images
        for _ in range(rng.randrange(4))
    ]
    val = splits.draw_images(images, boxes, 0.2, random.Random(0))
    assert val == splits.draw_images(images, boxes, 0.2, random.Random(0))
    assert val != splits.draw_images(images, boxes, 0.2, random.Random(1))
    assert len(val) == pytest.approx(200, abs=20)
    pairs = {(entry["category_id"], entry["image_id"]) for entry in boxes}
    total, kept = Counter(name for name, _ in pairs), Counter(name for name, image in pairs if image in val)
    for name, count in total.items():
        assert kept[name] == pytest.approx(0.2 * count, abs=max(1, 0.04 * count))
    empty = {image["id"] for image in images} - {image for _, image in pairs}
    assert len(empty & val) == pytest.approx(0.2 * len(empty), abs=1)


def test_a_split_keeps_the_entries_of_a_file_together():
    images = [{"id": number, "file_name": f"{number // 2}.jpg"} for number in range(40)]
    boxes = [{"image_id": number, "category_id": number % 3} for number in range(40)]
    val = splits.draw_images(images, boxes, 0.4, random.Random(0))
    assert 8 <= len(val) <= 24 and all((number ^ 1) in val for number in val)


@pytest.mark.slow
def test_a_split_goes_on_as_it_was(make, train, tmp_path):
    root = make(single)
    options = ["--val-fraction=0.25", "--iterations=2"]
    status, _, err = train(root, *options)
    assert status == 0, err[-3000:]
    parts = [json.loads((tmp_path / f"run/split/{name}.json").read_text()) for name in ("train", "val")]
    ids = [{image["id"] for image in part["images"]} for part in parts]
    assert len(ids[0] | ids[1]) == 16 and 3 <= len(ids[1]) <= 5 and not ids[0] & ids[1]
    assert parts[0]["split"] == {"file": "annotations.json", "val_fraction": 0.25, "seed": 0}
    status, _, err = train(root, *options, "--resume", "--seed=1")
    assert "is there already, of another --val-fraction, --seed or --load-from" in sentence(status, err)


def recipe_of(entries):
    """Every size in the config of a training, by where it is."""
    keys = {"img_scale", "scale", "border", "input_size", "random_size_range"}

    def walk(value, place):
        if isinstance(value, dict):
            for key, part in value.items():
                if key in keys and part is not None:
                    yield f"{place}.{value.get('type', '')}.{key}", part
                yield from walk(part, f"{place}.{key}")
        elif isinstance(value, (list, tuple)):
            for number, part in enumerate(value):
                yield from walk(part, f"{place}.{number}")

    return dict(walk(entries, ""))


@pytest.mark.parametrize(("model", "before"), [("nano", 416), ("m", 640)])
def test_a_size_of_images_changes_the_whole_recipe(data, model, before):
    """Against the standard configs: twice the size in evaluation is twice of everything; their own changes nothing."""
    options = [f"--data-path={data}", f"--model={model}"]
    standard = recipe_of(configured(*options))
    assert recipe_of(configured(*options, f"--img-size={before}")) == standard
    twice = recipe_of(configured(*options, f"--img-size={2 * before}"))
    assert len(standard) > 6
    assert twice == {place: tuple(2 * side for side in sides) for place, sides in standard.items()}


def test_a_size_for_a_step_that_nobody_knows(data, train, tmp_path):
    config = small.write_config(tmp_path / "crops.py", data, epochs=1)
    text = config.read_text()
    config.write_text(text.replace('dict(type="YOLOXHSVRandomAug")', 'dict(type="RandomCrop", crop_size=(64, 64))'))
    status, _, err = train(data, f"--config={config}", standard=["--img-size=128", "--device=cpu"])
    assert "--img-size does not know what RandomCrop has to change" in sentence(status, err)


def state_of(data, name, classes):
    """A detector's weights, as numbers that differ in every tensor."""
    given = [f"--data-path={data}", f"--model={name}", "--device=cpu"]
    cfg = training.host.configure(training.parser().parse_args(given))
    cfg.model.bbox_head.num_classes = classes
    generator = torch.Generator().manual_seed(0)
    state = training.host.parts.check_model(cfg).state_dict()
    return {
        key: torch.rand(value.shape, generator=generator) / 50 if value.is_floating_point() else value
        for key, value in state.items()
    }


def as_mmdet(state):
    """With the raw weights that MMDetection 2.28 keeps beside the averages."""
    raw = {f"ema_{name.replace('.', '_')}": value + 1 for name, value in state.items()}
    return {"state_dict": state | raw, "meta": {"epoch": 300, "iter": 1, "CLASSES": COCO}}


MEGVII = (  # parts of MMDetection's names, and what Megvii's YOLOX calls them
    ("backbone.stem.", "backbone.backbone.stem."), ("backbone.stage", "backbone.backbone.dark"),
    ("neck.reduce_layers.0.", "backbone.lateral_conv0."), ("neck.reduce_layers.1.", "backbone.reduce_conv1."),
    ("neck.top_down_blocks.0.", "backbone.C3_p4."), ("neck.top_down_blocks.1.", "backbone.C3_p3."),
    ("neck.downsamples.0.", "backbone.bu_conv2."), ("neck.downsamples.1.", "backbone.bu_conv1."),
    ("neck.bottom_up_blocks.0.", "backbone.C3_n3."), ("neck.bottom_up_blocks.1.", "backbone.C3_n4."),
    ("neck.out_convs.", "head.stems."), ("bbox_head.multi_level_conv_cls.", "head.cls_preds."),
    ("bbox_head.multi_level_conv_reg.", "head.reg_preds."), ("bbox_head.multi_level_conv_obj.", "head.obj_preds."),
    ("bbox_head.multi_level_cls_convs.", "head.cls_convs."), ("bbox_head.multi_level_reg_convs.", "head.reg_convs."),
    (".main_conv.", ".conv1."), (".short_conv.", ".conv2."), (".final_conv.", ".conv3."), (".blocks.", ".m."),
    (".depthwise_conv.", ".dconv."), (".pointwise_conv.", ".pconv."),
)  # fmt: skip


def as_megvii(state):
    def renamed(name):
        for ours, theirs in MEGVII:
            name = name.replace(ours, theirs)
        return re.sub(r"dark(\d)", lambda found: f"dark{int(found[1]) + 1}", name)

    return {"start_epoch": 300, "model": {renamed(name): value for name, value in state.items()}, "optimizer": {}}


@pytest.mark.parametrize("form", [as_mmdet, as_megvii, lambda state: state], ids=["mmdet", "megvii", "weights"])
def test_weights_to_begin_with(data, tmp_path, form):
    """What fits, of every format, and the averages where there are raw weights too; the rest is listed by name."""
    state = state_of(data, "nano", 80)
    torch.save(form(state), tmp_path / "coco.pth")
    args = training.parser().parse_args([f"--data-path={data}", "--model=nano", f"--load-from={tmp_path / 'coco.pth'}",
                                         f"--work-dir={tmp_path / 'run'}", "--device=cpu"])  # fmt: skip
    cfg = training.host.configure(args)
    ready = training.host.check(args, cfg)
    assert ready.weights.unfit == [f"bbox_head.multi_level_conv_cls.{level}" for level in range(3)]
    assert "drawn anew: bbox_head.multi_level_conv_cls.0, " in training.host.describe(args, cfg, ready)
    training.starting.write(tmp_path / "run", ready)
    written = read_checkpoint(tmp_path / "run/initial_weights.pth")["state_dict"]
    assert written.keys() == {name for name in state if "multi_level_conv_cls" not in name}
    assert all(torch.equal(value, state[name]) for name, value in written.items())


def test_weights_of_another_size(data, train, tmp_path):
    other = {name.replace("backbone", "trunk"): value for name, value in state_of(data, "tiny", 5).items()}
    torch.save({name: value for name, value in other.items() if "stem" in name}, tmp_path / "tiny.pth")
    status, _, err = train(data, f"--load-from={tmp_path / 'tiny.pth'}")
    assert "has no weights of this model: is it of another size?" in sentence(status, err)
    assert not (tmp_path / "run").exists()


def test_weights_of_other_classes(data, tmp_path):
    """As many, but others: what predicts classes is drawn anew."""
    state = state_of(data, "nano", len(CLASSES))
    for named, unfit in ((CLASSES, 0), (CLASSES[::-1], 3)):
        torch.save({"state_dict": state, "meta": {"CLASSES": named}}, tmp_path / "other.pth")
        args = training.parser().parse_args([f"--data-path={data}", "--model=nano", "--device=cpu",
                                             f"--load-from={tmp_path / 'other.pth'}"])  # fmt: skip
        ready = training.host.check(args, training.host.configure(args))
        assert len(ready.weights.unfit) == unfit


def test_a_config_by_name_for_a_checkpoint_without_one(data, tmp_path):
    """As of another MMDetection, whose config is in other words: classes and their number are the checkpoint's."""
    torch.save({"state_dict": state_of(data, "nano", 5), "meta": {"CLASSES": CLASSES}}, tmp_path / "weights.pth")
    detector = Detector(tmp_path / "weights.pth", "yolox_nano_8x8_300e_coco", device="cpu")
    assert detector.classes == CLASSES
    assert detector.network.model.bbox_head.num_classes == 5


def test_files_in_the_work_directory_are_all_written_or_none(data, tmp_path):
    torch.save({"state_dict": state_of(data, "nano", 80)}, tmp_path / "coco.pth")
    args = training.parser().parse_args([f"--data-path={data}", "--model=nano", f"--load-from={tmp_path / 'coco.pth'}",
                                         "--device=cpu"])  # fmt: skip
    ready = training.host.check(args, training.host.configure(args))
    ready = ready._replace(split=splits.Split("{}", "[]", 0))
    run = tmp_path / "run"
    run.mkdir()
    for name in ("initial_weights.pth", "split"):
        (run / name).write_text("the user's")
        with pytest.raises(InputError):
            training.starting.write(run, ready)
        assert [path.name for path in run.iterdir()] == [name] and (run / name).read_text() == "the user's"
        (run / name).unlink()
    training.starting.write(run, ready)
    before = {path: path.read_bytes() for path in run.rglob("*.*")}
    training.starting.write(run, ready)  # as a command does that begins again
    assert {path: path.read_bytes() for path in run.rglob("*.*")} == before and len(before) == 3


@pytest.mark.parametrize(
    "entries",
    [
        {"custom_imports": {"imports": ["evil"]}},
        {"model": {"type": "YOLOX", "backbone": {"type": "os.system"}}},
        {"model": {"test_cfg": {"nms": {"type": "exec('import evil')"}}}},
        {"model": {"type": "mmengine.fileio.dump"}},
        {"model": {"type": "mmengine.dump"}},
        {"test_dataloader": {"dataset": {"pipeline": [{"type": "LoadImageFromFile"}, {"type": "evil"}]}},
         "data": {"test": {"pipeline": [{"type": "LoadImageFromFile"}, {"type": "evil"}]}}},
    ],
)  # fmt: skip
def test_no_checkpoint_runs_code(data, tmp_path, monkeypatch, capfd, entries):
    """Nor has a module imported that happens to be there, or another function of the host called."""
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = training.host.configure(training.parser().parse_args([f"--data-path={data}", "--model=nano", "--device=cpu"]))
    cfg.merge_from_dict(entries)
    meta = {"config": training.host.text_of(cfg.items() if HOST == "mmdet2" else cfg.to_dict().items())}
    torch.save({"state_dict": state_of(data, "nano", 5), "meta": {**meta, "CLASSES": CLASSES}}, "evil.pth")
    image = str(next((data / "val2017").iterdir()))
    for status in (predict.main([image, "--pth-path=evil.pth", "--device=cpu"]),
                   testing.main([f"--data-path={data}", "--pth-path=evil.pth", "--device=cpu"])):  # fmt: skip
        assert status == 2, capfd.readouterr().err
    assert not (tmp_path / "ran").exists() and "evil" not in sys.modules


@pytest.mark.slow
def test_a_training_begins_with_the_weights(data, train, tmp_path):
    """At a learning rate of nothing, its first checkpoint has them, but for the layers of other classes."""
    state = state_of(data, "nano", 80)
    for name, value in state.items():
        if name.endswith("running_var"):
            value.add_(1)
    torch.save(as_megvii(state), tmp_path / "coco.pth")
    still = ["optim_wrapper.optimizer.lr=0.0", "param_scheduler=None"] if HOST == "mmdet3" else ["optimizer.lr=0.0"]
    status, _, err = train(data, f"--load-from={tmp_path / 'coco.pth'}", "--cfg-options", *still)
    assert status == 0, err[-3000:]
    found = read_checkpoint(newest(tmp_path / "run"))["state_dict"]
    for name, value in state.items():
        if name.endswith(".weight") and "multi_level_conv_cls" not in name:
            torch.testing.assert_close(
                found[name], value, msg=lambda text, name=name: f"{name}: {text}"
            )  # averaged with themselves


def test_what_libraries_tell_goes_to_the_log(tmp_path, recwarn, capsys):
    """Those before there is one, too; the user's own stay on the terminal."""
    logger = logging.Logger("run")
    with terminal.libraries_kept() as kept:
        warnings.warn_explicit("early", UserWarning, f"{torch.__path__[0]}/utils/data/dataloader.py", 7)
        logger.addHandler(logging.FileHandler(tmp_path / "run.log"))
        kept.write_to(logger)
        warnings.warn_explicit("late", UserWarning, f"{mmcv.__path__[0]}/parallel.py", 9)
        warnings.warn_explicit("mine", UserWarning, "/home/me/torch/losses.py", 3)
        pycocotools.coco.COCO().createIndex()
    lines = (tmp_path / "run.log").read_text()
    assert "dataloader.py:7: UserWarning: early" in lines and "late" in lines and "mine" not in lines
    assert [str(found.message) for found in recwarn] == ["mine"]
    assert "index created!" in lines and capsys.readouterr() == ("", "")
    pycocotools.coco.COCO().createIndex()
    assert "index created!" in capsys.readouterr().out


def test_what_is_on_the_terminal(monkeypatch):
    def shown(text, level=logging.INFO):
        return bool(progress.filter(logging.LogRecord("mmdet", level, "x.py", 1, text, None, None)))

    clock = iter([0.0, 0.0, 5.0, 11.0, 11.0]).__next__
    monkeypatch.setattr(terminal.time, "monotonic", clock)
    progress = terminal.Progress()
    assert shown("Epoch [1][10/31]\tlr: 1e-3")
    assert not shown("Epoch(train)  [1][20/31]  lr: 1e-3")
    assert shown("Iter [30/31]\tlr: 1e-3")
    assert not shown("Hooks will be executed in the following order:")
    assert shown("Epoch(val) [8][60]\tbbox_mAP: 0.1") and shown("resumed epoch 2, iter 10")
    assert shown("anything", logging.WARNING)
    assert not shown("Epoch(val) [1][5/5]    eta: 0:00:00  time: 2.1")
    assert not shown("x.py - compute_metrics - 465 - The testing results of the whole dataset is empty.", logging.ERROR)


def test_an_annotation_file_is_read_once(data, tmp_path, monkeypatch):
    """By the checks, which make the index that data sets take; a later command takes the same."""
    root = tmp_path / "data"
    shutil.copytree(data, root)
    monkeypatch.setattr(annotation_index, "LARGE", 0)
    path = root / "annotations/instances_train2017.json"
    args = training.parser().parse_args([f"--data-path={root}", "--model=nano", "--device=cpu"])
    ready = training.host.check(args, training.host.configure(args))
    assert [of for _, of in ready.data.indexes] == [path] and not annotation_index.find(path)
    training.starting.write(tmp_path / "run", ready)
    assert ready.data.indexes == []
    monkeypatch.setattr(annotation_index, "read_coco", None)
    assert len(annotation_index.open_index(path)) == len(json.loads(path.read_text())["images"])
    assert training.host.check(args, training.host.configure(args)).data.indexes == []
