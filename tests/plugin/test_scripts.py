"""The seed's commands on the data set of shapes: what they leave, what they refuse, and several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from mmcv import Config
from mmdet.datasets import build_dataset
from pycocotools.cocoeval import COCOeval
from tiny import write_config
from two_ranks import gather_on_a_rank

import yolox_plugin.dataset
from yolox_plugin import launch, results
from yolox_plugin import test as testing
from yolox_plugin import train as training
from yolox_plugin.demo_data import make_dataset

ROOT = Path(__file__).resolve().parents[2]
FINAL = ("Final Performance images/sec : ", "Accuracy : ", "ing Duration sec : ")
ENV = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "-1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("scripts") / "data"
    make_dataset(root, train=16, val=5)
    return root


@pytest.fixture(scope="module")
def config(data):
    return write_config(data.parent / "tiny.py", data, epochs=20)


@pytest.fixture
def script(data, config, tmp_path):
    """Runs a script from another folder; the finished process."""

    def run(name, *options, environment=ENV):
        command = ["bash", ROOT / "scripts" / name, f"--data_path={data}", f"--config={config}", "--device=cpu"]
        return subprocess.run(
            [*command, *options],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def finished(process, work_dir):
    """The result of a complete run: its last lines and files are as they should be."""
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    for words in FINAL:
        assert words in process.stdout
    return json.loads((work_dir / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_full_training_and_evaluation(script, tmp_path, devices):
    several = [f"--devices={devices}", f"--batch_size={4 // devices}"] if devices > 1 else []
    name = "train_full_8p.sh" if devices > 1 else "train_full_1p.sh"
    trained = finished(script(name, *several, "--epochs=2", "--work_dir=run"), tmp_path / "run")
    assert (trained["devices"], trained["epochs"], trained["device"]) == (devices, 2, "cpu")
    assert trained["images_per_second"]["median"] > 0
    assert trained["images_per_second"]["measurements"] > 1
    assert 0 <= trained["data_wait"] < 1
    assert trained["loss"] > 0
    assert trained["seconds"] > 1
    assert trained["versions"]["mmdet"] == "2.28.2"
    assert (tmp_path / "run/curves.png").stat().st_size > 1000
    checkpoint = tmp_path / "run/latest.pth"
    assert torch.load(checkpoint)["meta"]["epoch"] == 2

    name = "test_8p.sh" if devices > 1 else "test_1p.sh"
    options = [f"--pth_path={checkpoint}", "--work_dir=test", "--batch_size=2", "--save-dir=pictures", *several[:1]]
    tested = finished(script(name, *options, "--score-thr=0"), tmp_path / "test")
    assert (tested["devices"], tested["images"]) == (devices, 5)
    assert {key: tested[key] for key in results.FIGURES} == {key: trained[key] for key in results.FIGURES}
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_performance_1p.sh", "train_performance_8p.sh"])
def test_performance(script, tmp_path, name):
    options = ["--devices=2"] if "8p" in name else []
    process = script(name, *options, "--batch_size=2", "--iterations=9", "--work_dir=run")
    result = finished(process, tmp_path / "run")
    assert result["mAP"] is None
    assert "Final Train Accuracy : not measured" in process.stdout
    log = results.read_log(tmp_path / "run")
    assert len(log) == 9
    assert result["images_per_second"]["measurements"] == 8  # without the first
    assert log[-1]["lr"] > log[0]["lr"]  # the schedule's beginning, not its end
    again = script(name, *options, "--work_dir=run")
    assert again.returncode == 2
    assert "has a run already: --resume goes on with it" in again.stderr


def first_lines(error):
    return [line for line in error.splitlines() if line.startswith("error: ")]


def damaged(root, data, kind):
    """A copy of the data set with something wrong."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).symlink_to(data / split)
        (root / f"annotations/instances_{split}.json").symlink_to(data / f"annotations/instances_{split}.json")
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    if kind == "no annotations":
        path.unlink()
    elif kind == "no JSON":
        path.unlink()
        path.write_text("<html>")
    elif kind == "a list":
        path.unlink()
        path.write_text("[]")
    elif kind == "no images":
        path.unlink()
        path.write_text(json.dumps(content | {"images": []}))
    elif kind == "no folder":
        (root / "val2017").unlink()
    elif kind == "other classes":
        path.unlink()
        names = [category | {"name": category["name"] + "s"} for category in content["categories"]]
        path.write_text(json.dumps(content | {"categories": names}))
    else:
        name = content["images"][3]["file_name"]
        (root / "train2017").unlink()
        (root / "train2017").mkdir()
        for image in (data / "train2017").iterdir():
            (root / "train2017" / image.name).symlink_to(image)
        (root / "train2017" / name).unlink()
        if kind == "no image":
            (root / "train2017" / name).write_text("<html>404</html>")
        elif kind == "an empty file":
            (root / "train2017" / name).write_bytes(b"")
    return root


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no annotations", "has no annotations/instances_train2017.json"),
        ("no JSON", "instances_train2017.json is no JSON file"),
        ("a list", "must be an object with the lists images, annotations, categories"),
        ("no images", "lists no images"),
        ("no folder", "val2017 is not a folder"),
        ("other classes", "has none of the config's 5 classes (disc, ...) but discs, rings, squares, stars, triangles"),
        ("no image", "which instances_train2017.json lists, is no readable image"),
        ("an empty file", "which instances_train2017.json lists, is no readable image"),
        ("a missing image", "which instances_train2017.json lists, does not exist"),
    ],
)
def test_data_that_is_not_there(data, config, tmp_path, capsys, kind, words):
    root = damaged(tmp_path / "broken", data, kind)
    status = training.main(
        [f"--data-path={root}", f"--config={config}", "--device=cpu", f"--work-dir={tmp_path / 'w'}"]
    )
    assert status == 2
    [line] = first_lines(capsys.readouterr().err)
    assert words in line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data-path=/nowhere"], "--data-path /nowhere is not a folder"),
        (["--config=yolox_huge"], "--config must be a file or one of yolox_demo, yolox_l_8x8_300e_coco"),
        (["--config=absent.py"], "got absent.py"),
        (["--device=npu"], "--devices=1 --device=npu: this machine has 0 npu devices"),
        (["--device=cuda", "--devices=8"], "--devices=8 --device=cuda: this machine has 0 cuda devices"),
        (["--devices=4096"], "--devices=4096 --device=cpu: this machine has"),
        (["--amp=float16"], "--amp=float16 needs an accelerator"),
        (["--cfg-options", "model.bbox_head.num_classes=7"], "5 classes but model.bbox_head.num_classes=7"),
        (["--work-dir=FILE"], "is not a folder"),
    ],
)
def test_options_that_cannot_be(data, config, tmp_path, capsys, options, words):
    if any("cuda" in option for option in options) and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (tmp_path / "file").write_text("")
    common = [f"--data-path={data}", f"--config={config}", "--device=cpu", f"--work-dir={tmp_path / 'w'}"]
    status = training.main([*common, *(option.replace("FILE", str(tmp_path / "file")) for option in options)])
    assert status == 2
    [line] = first_lines(capsys.readouterr().err)
    assert words in line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("options", [["--devices=0"], ["--epochs=x"], ["--device=tpu"], []])
def test_options_that_argparse_refuses(options, capsys):
    with pytest.raises(SystemExit) as error:
        training.main(options)
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is no checkpoint"),
        (b"<html>404</html>", "is no checkpoint"),
        ({}, "is no checkpoint"),
        ({"state_dict": {}}, "first backbone.stem.conv.conv.weight: expected [8, 12, 3, 3], got nothing"),
        ({"state_dict": {"backbone.stem.conv.conv.weight": torch.zeros(3)}}, "got [3]"),
    ],
)  # fmt: skip
def test_checkpoints_of_something_else(data, config, tmp_path, capsys, content, words):
    path = tmp_path / "some.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    common = [f"--data-path={data}", f"--config={config}", "--device=cpu", f"--work-dir={tmp_path / 'w'}"]
    assert testing.main([*common, f"--pth-path={path}"]) == 2
    [line] = first_lines(capsys.readouterr().err)
    assert words in line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("epochs", [None, 1, 2, 30, 300, 400])
def test_a_short_run_is_the_whole_recipe(epochs):
    """Against what the config says: nothing but the length changes, and the lowest learning rate is at the end."""
    cfg = Config.fromfile(str(launch.CONFIG_DIRS[1] / "yolox_m_8x8_300e_coco.py"))
    training.schedule(cfg, epochs, iterations_per_epoch=100)
    length = epochs or 300
    share = min(length / 300, 1)
    assert cfg.runner.max_epochs == length
    closing = {1: 0, 2: 1, 30: 2}.get(length, 15)
    assert cfg.lr_config.num_last_epochs == closing
    assert [hook.get("num_last_epochs") for hook in cfg.custom_hooks] == [closing, closing, None]
    warm_up = cfg.lr_config.warmup_iters * (100 if cfg.lr_config.warmup_by_epoch else 1)
    assert warm_up == pytest.approx(500 * share, abs=1)
    interval = max(round(10 * share), 1)
    assert cfg.evaluation.interval == cfg.checkpoint_config.interval == cfg.custom_hooks[1].interval == interval
    assert cfg.evaluation.dynamic_intervals[0] == (length - closing, 1)
    assert cfg.evaluation.dynamic_intervals[-1] == (length, 1)


def test_no_image_is_lost_or_doubled_between_ranks(tmp_path):
    totals = (0, 1, 5, 6)
    found = mp.Manager().dict()
    mp.spawn(gather_on_a_rank, (tmp_path / "store", totals, found), nprocs=2)
    assert found[0] == [list(range(total)) for total in totals]
    assert found[1] == [[] for _ in totals]


# Every image in every batch, nothing random, and norms that do not depend on what else is in the batch.
COMPARABLE = """
norm = dict(type="GN", num_groups=4)
model.update(random_size_interval=1000)
for _part in ("backbone", "neck", "bbox_head"):
    model[_part]["norm_cfg"] = norm
data["train"]["pipeline"] = [
    dict(type="Resize", img_scale=img_scale, keep_ratio=True), dict(type="RandomFlip", flip_ratio=0.0), pad,
    dict(type="DefaultFormatBundle"), dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels"]),
]
del _part
custom_hooks = [dict(type="ExpMomentumEMAHook", momentum=0.001, priority=49)]
auto_scale_lr = dict(base_batch_size=16)
log_config = dict(interval=1)
"""


@pytest.mark.slow
def test_two_processes_train_as_one_does(script, tmp_path):
    data = tmp_path / "data"
    make_dataset(data, train=40, val=5)
    path = data / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())  # samplers keep wide and tall images apart: only wide ones
    content["images"] = [image for image in content["images"] if image["width"] > image["height"]][:16]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    path.write_text(json.dumps(content))
    config = write_config(tmp_path / "comparable.py", data, epochs=6, more=COMPARABLE)
    logs, weights = [], []
    for devices in (1, 2):
        work_dir = tmp_path / f"run{devices}"
        options = [f"--devices={devices}", f"--batch_size={16 // devices}", f"--work_dir={work_dir}"]
        finished(script("train_full_8p.sh", *options, f"--config={config}", f"--data-path={data}"), work_dir)
        logs.append([line for line in results.read_log(work_dir) if line["mode"] == "train"])
        weights.append(torch.load(work_dir / "latest.pth")["state_dict"])
    assert len(logs[0]) == len(logs[1]) == 6
    for one, two in zip(*logs, strict=True):
        for name in ("loss", "loss_cls", "loss_bbox", "loss_obj", "lr"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), (one["epoch"], name)
    assert logs[0][0]["loss"] != pytest.approx(logs[0][-1]["loss"], rel=0.01)  # it trains
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def rank_of(work_dir, rank):
    """The process of a rank that trains in this folder; None while there is none."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes()
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                parents = (Path("/proc") / str(parent) / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            mine = f"--work-dir={work_dir}".encode()
            # A data-loading worker has the same command and environment, but a rank for its parent.
            trains = f"RANK={rank}".encode() in environment and mine in command and b"\0-u\0" in command
            if trains and b"\0-u\0" not in parents:
                return int(folder.name)
    return None


@pytest.mark.slow
def test_a_killed_rank_changes_no_bit(data, tmp_path):
    config = write_config(tmp_path / "tiny.py", data, epochs=8)
    checkpoints = {}
    for killed in (False, True):
        work_dir = tmp_path / f"killed-{killed}"
        log = tmp_path / f"{work_dir.name}.log"
        command = ["bash", ROOT / "scripts/train_full_8p_resume.sh", f"--data-path={data}", f"--config={config}",
                   "--device=cpu", "--devices=2", "--batch_size=2", f"--work-dir={work_dir}"]  # fmt: skip
        with log.open("w") as output:
            process = subprocess.Popen(command, env=ENV, stdout=output, stderr=output)
            try:
                while killed and not (work_dir / "epoch_3.pth").exists():
                    assert process.poll() is None, log.read_text()[-3000:]
                    time.sleep(0.02)
                if killed:
                    os.kill(rank_of(work_dir, rank=1), signal.SIGKILL)
                assert process.wait(timeout=300) == 0, log.read_text()[-3000:]
            finally:
                process.kill()
        assert ("resumed epoch" in log.read_text()) == killed
        checkpoints[killed] = torch.load(work_dir / "latest.pth")
        assert json.loads((work_dir / "result.json").read_text())["devices"] == 2
        epochs = [line["epoch"] for line in results.read_log(work_dir) if line["mode"] == "train"]
        assert epochs == [epoch for epoch in range(1, 9) for _ in range(2)]
    whole, cut = checkpoints[False], checkpoints[True]
    assert cut["meta"]["epoch"] == whole["meta"]["epoch"] == 8
    assert not [name for name, value in whole["state_dict"].items() if not torch.equal(cut["state_dict"][name], value)]
    moments = [[s["momentum_buffer"] for s in c["optimizer"]["state"].values()] for c in (whole, cut)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


@pytest.mark.slow
def test_the_end_of_all_restarts_says_why(script, tmp_path):
    broken = ["--cfg-options", "optimizer.lr=none"]
    process = script("train_full_8p_resume.sh", "--devices=2", "--max-restarts=1", "--work-dir=run", *broken)
    assert process.returncode == 1
    assert "error: process" in process.stderr
    assert "after 1 restarts" in process.stderr
    assert "The same command with --resume goes on from the newest checkpoint in run." in process.stderr


def detections(dataset, seed):
    """The gts, some of them moved, missed or doubled, as MMDetection's results."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(len(dataset)):
        info = dataset.get_ann_info(i)
        boxes, labels = info["bboxes"], info["labels"]
        keep = rng.random(len(boxes)) < 0.8
        keep = np.flatnonzero(keep).repeat(rng.integers(1, 3, keep.sum()))
        moved = boxes[keep] + rng.normal(0, 4, (len(keep), 4))
        scored = np.hstack([moved, rng.random((len(keep), 1))]).astype(np.float32)
        found.append([scored[labels[keep] == label] for label in range(len(dataset.CLASSES))])
    return found


def test_the_fast_evaluator_has_the_same_figures(data, config, monkeypatch):
    dataset = build_dataset(Config.fromfile(str(config)).data.val, {"test_mode": True})
    found = detections(dataset, seed=1)
    figures = {}
    assert yolox_plugin.dataset.COCOeval.__module__.startswith("faster_coco_eval")
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr(yolox_plugin.dataset, "COCOeval", COCOeval)
        figures[fast] = dataset.evaluate(found, metric="bbox")
    assert figures[True] == figures[False]
    assert 0.1 < figures[True]["bbox_mAP"] < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("plugin", ["on", "off"])
def test_without_the_operators_of_mmcv(script, tmp_path, plugin):
    """With mmcv 1.7.2 as it comes from pip, which `make test` lays beside mmcv-full; MMDetection's own head as well."""
    lite = Path(sys.prefix) / "mmcv-lite"
    assert (lite / "mmcv").is_dir(), "make test installs it there"
    assert not list((lite / "mmcv").glob("_ext*"))
    env = ENV | {"PYTHONPATH": str(lite), "YOLOX_PLUGIN": plugin}
    process = script("train_full_1p.sh", "--epochs=1", "--work-dir=run", environment=env)
    result = finished(process, tmp_path / "run")
    assert result["versions"]["mmcv"] == "1.7.2"
    tested = script("test_1p.sh", f"--pth-path={tmp_path / 'run/latest.pth'}", "--work-dir=test",
                    "--cfg-options", "model.test_cfg.score_thr=0.0", environment=env)  # fmt: skip
    finished(tested, tmp_path / "test")
    call = (
        "import yolox_plugin, torch as t; from mmcv.ops import roi_align as r; r(t.ones(1, 1, 8, 8), t.ones(1, 5), 2)"
    )
    other = subprocess.run([sys.executable, "-c", call], env=env, capture_output=True, text=True, check=False)
    assert "NotImplementedError: mmcv's operator roi_align_forward was called" in other.stderr
    assert "install mmcv-full==1.7.2" in other.stderr


@pytest.mark.slow
def test_the_figures_are_those_of_plain_mmdet(script, data, config, tmp_path):
    """MMDetection's own test.py without the plugin, on the same checkpoint and images."""
    finished(script("train_full_1p.sh", "--epochs=2", "--work-dir=run"), tmp_path / "run")
    checkpoint = tmp_path / "run/latest.pth"
    options = ["--cfg-options", "model.test_cfg.score_thr=0.0"]
    ours = finished(script("test_1p.sh", f"--pth-path={checkpoint}", "--work-dir=ours", *options), tmp_path / "ours")
    stock = Path(mmdet.__file__).parent / ".mim/tools/test.py"
    process = subprocess.run(
        [sys.executable, stock, config, checkpoint, "--eval", "bbox", "--work-dir", tmp_path / "theirs", *options],
        env=ENV | {"YOLOX_PLUGIN": "off"}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    theirs = json.loads(next((tmp_path / "theirs").glob("eval_*.json")).read_text())["metric"]
    for name, stock_name in results.FIGURES.items():
        assert ours[name] == pytest.approx(theirs[f"bbox_{stock_name}"], abs=5e-4), name
