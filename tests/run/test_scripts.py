"""The seed's commands on the data set of shapes: what they leave, what they refuse, and several processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mmcv
import mmdet
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from tiny import LEARNS, write_config
from two_ranks import gather_on_a_rank

from yolox_plugin.run import evaluate as testing
from yolox_plugin.run import report
from yolox_plugin.run import train as training
from yolox_plugin.run.demo_data import make_dataset
from yolox_plugin.run.mmdet2.config import load_config
from yolox_plugin.run.mmdet2.log import read_log

ROOT = Path(__file__).resolve().parents[2]
FINAL = ("Final Performance images/sec : ", "Accuracy : ", "ing Duration sec : ")
ENV = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "-1"}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A data set of four images to train and to evaluate on, a config, and a checkpoint that has learned them."""
    root = tmp_path_factory.mktemp("learned")
    data = root / "data"
    make_dataset(data, train=4, val=1)
    shutil.rmtree(data / "val2017")
    shutil.copytree(data / "train2017", data / "val2017")
    shutil.copy(data / "annotations/instances_train2017.json", data / "annotations/instances_val2017.json")
    config = write_config(root / "learns.py", data, epochs=80, more=LEARNS)
    work_dir = root / "run"
    options = [f"--data-path={data}", f"--config={config}", "--device=cpu", f"--work-dir={work_dir}"]
    assert training.main(options) == 0
    assert json.loads((work_dir / "result.json").read_text())["mAP"] > 0.1
    return data, config, work_dir / "latest.pth"


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
def test_full_training_and_evaluation(script, learned, tmp_path, devices):
    """Of a network that has learned something, so that the figures are not those of nothing."""
    data, config, learned_weights = learned
    several = [f"--devices={devices}", f"--batch_size={4 // devices}"] if devices > 1 else []
    common = [f"--data-path={data}", f"--config={config}"]
    options = ["--epochs=3", "--work_dir=run", "--cfg-options", "optimizer.lr=1e-5", f"load_from={learned_weights}"]
    name = "train_full_8p.sh" if devices > 1 else "train_full_1p.sh"
    trained = finished(script(name, *common, *several, *options), tmp_path / "run")
    assert (trained["devices"], trained["epochs"], trained["device"]) == (devices, 3, "cpu")
    assert trained["images_per_second"]["median"] > 0
    assert trained["images_per_second"]["measurements"] > 1
    assert 0 <= trained["data_wait"] < 1
    assert trained["loss"] > 0
    assert trained["mAP"] > 0.1
    assert trained["seconds"] > 1
    assert trained["versions"]["mmdet"] == "2.28.2"
    assert (tmp_path / "run/curves.png").stat().st_size > 1000
    checkpoint = tmp_path / "run/latest.pth"
    assert torch.load(checkpoint)["meta"]["epoch"] == 3

    name = "test_8p.sh" if devices > 1 else "test_1p.sh"
    options = [f"--pth_path={checkpoint}", "--work_dir=test", "--batch_size=2", "--save-dir=pictures", *several[:1]]
    process = script(name, *common, *options, "--score-thr=0")
    tested = finished(process, tmp_path / "test")
    assert (tested["devices"], tested["images"]) == (devices, 4)
    for key in report.FIGURES:  # batches and norms in another order
        assert tested[key] == pytest.approx(trained[key], abs=5e-4), key
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == 4
    assert "unexpected key" not in process.stdout + process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_performance_1p.sh", "train_performance_8p.sh"])
def test_performance(script, tmp_path, name):
    options = ["--devices=2"] if "8p" in name else []
    process = script(name, *options, "--batch_size=2", "--iterations=9", "--work_dir=run")
    result = finished(process, tmp_path / "run")
    assert result["mAP"] is None
    assert "Final Train Accuracy : not measured" in process.stdout
    log = read_log(tmp_path / "run")
    assert len(log) == 9
    assert result["images_per_second"]["measurements"] == 8  # without the first
    assert log[-1]["lr"] > log[0]["lr"]  # the schedule's beginning, not its end
    again = script(name, *options, "--work_dir=run")
    assert again.returncode == 2
    assert "has a run already: --resume goes on with it" in again.stderr


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
        logs.append([line for line in read_log(work_dir) if line["mode"] == "train"])
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
        epochs = [line["epoch"] for line in read_log(work_dir) if line["mode"] == "train"]
        assert epochs == [epoch for epoch in range(1, 9) for _ in range(2)]
    whole, cut = checkpoints[False], checkpoints[True]
    assert cut["meta"]["epoch"] == whole["meta"]["epoch"] == 8
    assert not [name for name, value in whole["state_dict"].items() if not torch.equal(cut["state_dict"][name], value)]
    moments = [[s["momentum_buffer"] for s in c["optimizer"]["state"].values()] for c in (whole, cut)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


@pytest.mark.slow
def test_the_end_of_all_restarts_says_why(script, data, tmp_path):
    root = Path(shutil.copytree(data, tmp_path / "data"))
    cut = min((root / "val2017").iterdir())
    cut.write_bytes(cut.read_bytes()[:100])  # shows at the first evaluation, after a checkpoint
    options = ["--devices=2", "--max-restarts=1", "--work-dir=run", "--epochs=2", "--batch-size=2"]
    options += ["--cfg-options", "evaluation.interval=1", "checkpoint_config.interval=1"]
    process = script("train_full_8p_resume.sh", f"--data-path={root}", *options)
    assert process.returncode == 1
    assert "error: process" in process.stderr
    assert "after 1 restarts" in process.stderr
    assert cut.name in process.stderr
    assert "The same command with --resume goes on from the newest checkpoint in run." in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_ctrl_c_says_how_to_go_on(data, config, tmp_path, devices):
    work_dir = tmp_path / "run"
    command = [sys.executable, "-m", "yolox_plugin.train", f"--data-path={data}", f"--config={config}", "--device=cpu",
               f"--devices={devices}", "--batch-size=2", f"--work-dir={work_dir}"]  # fmt: skip
    with (tmp_path / "log").open("w") as output:
        process = subprocess.Popen(
            command, env=ENV, stdout=output, stderr=output, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
        )  # fmt: skip
        try:
            while not (work_dir / "epoch_1.pth").exists():
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            assert process.wait(timeout=100) == 130
        finally:
            process.kill()
    log = (tmp_path / "log").read_text()
    assert "error: stopped by SIGINT\n" in log
    assert f"The same command with --resume goes on from the newest checkpoint in {work_dir}.\n" in log
    assert "Traceback" not in log


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
def test_the_figures_are_those_of_plain_mmdet(script, learned, tmp_path):
    """MMDetection's own test.py without the plugin, on the same checkpoint and images: its detections as well."""
    data, config, checkpoint = learned
    options = [f"--data-path={data}", f"--config={config}", f"--pth-path={checkpoint}", "--work-dir=ours"]
    ours = finished(script("test_1p.sh", *options), tmp_path / "ours")
    assert ours["mAP"] > 0.1
    stock = Path(mmdet.__file__).parent / ".mim/tools/test.py"
    process = subprocess.run(
        [sys.executable, stock, config, checkpoint, "--eval", "bbox", "--out", tmp_path / "theirs.pkl",
         "--work-dir", tmp_path / "theirs"],
        env=ENV | {"YOLOX_PLUGIN": "off"}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    theirs = json.loads(next((tmp_path / "theirs").glob("eval_*.json")).read_text())["metric"]
    for name, stock_name in report.FIGURES.items():
        assert ours[name] == pytest.approx(theirs[f"bbox_{stock_name}"], abs=5e-4), name

    cfg = load_config(testing.parser().parse_args([*options, "--device=cpu"]))
    found = testing.host.Evaluation(cfg, checkpoint).detect()
    expected = mmcv.load(tmp_path / "theirs.pkl")
    assert sum(len(boxes) for boxes in expected[0]) > 5
    assert len(found) == len(expected) == 4
    for image, (mine, stocks) in enumerate(zip(found, expected, strict=True)):
        for label, (boxes, stock_boxes) in enumerate(zip(mine, stocks, strict=True)):
            np.testing.assert_allclose(boxes, stock_boxes, rtol=1e-4, atol=1e-3, err_msg=f"image {image} class {label}")


@pytest.mark.slow
def test_processes_find_the_modules_of_the_command(data, config, tmp_path):
    """Not those of the current folder, where a script has kept that out."""
    (tmp_path / "yolox_plugin").mkdir()
    (tmp_path / "yolox_plugin/__init__.py").write_text("raise SystemExit('the wrong package')")
    code = "import sys; sys.path.remove(''); from yolox_plugin.train import main; sys.exit(main())"
    process = subprocess.run(
        [sys.executable, "-c", code, f"--data-path={data}", f"--config={config}", "--device=cpu", "--devices=2",
         "--iterations=2", "--work-dir=run", "--batch-size=2"],
        env=ENV, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    finished(process, tmp_path / "run")


@pytest.mark.slow
def test_what_a_process_refuses_is_the_commands_status(script, tmp_path):
    """What shows only when the data set is built, as the length of an epoch."""
    options = ["lr_config.warmup_by_epoch=False", "lr_config.warmup_iters=2000"]
    process = script("train_full_8p.sh", "--devices=2", "--work-dir=run", "--cfg-options", *options)
    assert process.returncode == 2
    assert "closing phase of 3 must be shorter than its 20 epochs" in process.stderr
    assert not (tmp_path / "run").exists()
