"""Whole trainings by MMDetection 3's own tools/train.py and tools/test.py, with the plugin named in the config."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from mmengine.runner import checkpoint
from spy import equal
from tiny3 import LEARNS, run, start, write_config

from yolox_plugin.run.demo_data import make_dataset

pytestmark = pytest.mark.slow
STATE = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers")
SEEDED = "randomness = dict(seed=5)\n"
SPIED = 'custom_hooks.append(dict(type="Spy"))\n'
KILLABLE = 'custom_hooks.append(dict(type="Killed"))\n'
PER_EPOCH = 3  # iterations: 12 images, 4 a device
HERE = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "data"
    make_dataset(root, train=12, val=4)
    return root


def load(path):
    return torch.load(path, map_location="cpu", weights_only=False)


def killed(config, work_dir, at, after=0.0, *options, **environment):
    """A training that is killed that many seconds after the iteration number `at`."""
    process = start(
        "train", config, "--work-dir", work_dir, *options, KILLED_AT=str(at), KILLED_AFTER=str(after), **environment
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, output[-5000:]


def killed_and_resumed(config, work_dir, at, **environment):
    killed(config, work_dir, at, **environment)
    return run("train", config, "--work-dir", work_dir, "--resume", **environment)


def killable(path, data_root, epochs, more=""):
    config = write_config(path / "tiny.py", data_root, epochs, more + KILLABLE, imports=("yolox_plugin", "spy"))
    return config, {"PYTHONPATH": os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])}


def test_kills_change_no_bit(tmp_path, data_root):
    """At some iterations of a run, and some random time later, while it trains, reads, validates or saves. Those of
    `make test-faults` are more, of the plugin's commands."""
    config, environment = killable(tmp_path, data_root, 7, SEEDED)
    run("train", config, "--work-dir", tmp_path / "whole", **environment)
    rng = random.Random(time.time_ns())
    for attempt in range(3):
        at, after = PER_EPOCH * (attempt + 2) + rng.randrange(PER_EPOCH), rng.uniform(0, 0.5)
        print(f"kill {attempt + 1}: {after:.3f} s after iteration {at}")
        killed(config, tmp_path / "cut", at, after, "--resume", **environment)
    output = run("train", config, "--work-dir", tmp_path / "cut", "--resume", **environment)
    assert re.search(r"resumed epoch: [3-6], iter: (9|12|15|18)", output)
    whole, cut = (load(tmp_path / name / "epoch_7.pth") for name in ("whole", "cut"))
    assert all(equal(whole[key], cut[key]) for key in STATE)
    assert whole["meta"]["seed"] == cut["meta"]["seed"] == 5


def test_stock_does_not(tmp_path, data_root):
    """The same with MMDetection's own classes, which torch 2.6 lets load only when it is told to trust the file."""
    config, environment = killable(tmp_path, data_root, 4, SEEDED)
    environment["YOLOX_PLUGIN"] = "off"
    run("train", config, "--work-dir", tmp_path / "whole", **environment)
    if not hasattr(checkpoint, "get_torch_safe_globals"):  # by which onedl-mmengine loads its own
        refused = start("train", config, "--work-dir", tmp_path / "whole", "--resume", **environment)
        output, _ = refused.communicate(timeout=300)
        assert refused.returncode != 0 and "HistoryBuffer" in output
    environment["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    # Not in the third epoch, at which the mode switch starts new workers in a run that goes on, too.
    output = killed_and_resumed(config, tmp_path / "killed", 5, **environment)
    assert "resumed epoch: 1, iter: 3" in output
    whole, killed = (load(tmp_path / name / "epoch_4.pth") for name in ("whole", "killed"))
    assert not equal(whole["state_dict"], killed["state_dict"])


def test_the_seed_of_a_run_without_one_outlives_it(tmp_path, data_root):
    config, environment = killable(tmp_path, data_root, 3)
    killed_and_resumed(config, tmp_path / "run", 5, **environment)
    seeds = {load(tmp_path / "run" / f"epoch_{epoch}.pth")["meta"]["seed"] for epoch in (2, 3)}
    assert len(seeds) == 1


def test_a_damaged_checkpoint_costs_an_epoch_and_not_the_run(tmp_path, data_root):
    config = write_config(tmp_path / "tiny.py", data_root, 3, SEEDED)
    work_dir = tmp_path / "run"
    run("train", config, "--work-dir", work_dir)
    last = load(work_dir / "epoch_3.pth")
    with (work_dir / "epoch_3.pth").open("rb+") as file:
        file.truncate(10_000)
    (work_dir / "last_checkpoint").write_text("")  # killed while it was written
    output = run("train", config, "--work-dir", work_dir, "--resume")
    assert "epoch_3.pth is no readable checkpoint" in output and "resumed epoch: 2" in output
    assert all(equal(last[key], load(work_dir / "epoch_3.pth")[key]) for key in STATE)
    assert not (work_dir / "epoch_1.pth").exists()  # max_keep_ckpts=2


def test_two_processes_on_a_cpu(tmp_path, data_root):
    """They see the same sizes and other images, log the mean of both, and save the mean of their norms."""
    config = write_config(tmp_path / "tiny.py", data_root, 3, SEEDED + SPIED, imports=("yolox_plugin", "spy"))
    path = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
    work_dir = tmp_path / "run"
    output = run("train", config, "--work-dir", work_dir, processes=2, PYTHONPATH=path)
    assert output.count("replaced in MMDetection") == 1
    ranks = [json.loads((work_dir / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    lines = list(zip(*(rank["lines"] for rank in ranks), strict=True))
    assert len(lines) == 3 * 2  # 12 images, 4 a device
    sizes = [line["own"]["size"] for line, _ in lines]
    assert len(set(map(tuple, sizes))) > 1
    for one, other in lines:
        assert one["own"]["size"] == other["own"]["size"]
        assert one["own"]["pixels"] != other["own"]["pixels"]
        assert one["logged"] == pytest.approx(other["logged"], rel=1e-6)
        for name in ("loss_cls", "loss_bbox", "loss_obj"):
            assert one["logged"][name] == pytest.approx((one["own"][name] + other["own"][name]) / 2, rel=1e-5)
    assert ranks[0]["means"] == ranks[1]["means"]  # averaged before the last validation
    # What is a parameter in EMAHook's terms: the raw weights of the last epoch.
    raw = {
        name.removeprefix("module."): value for name, value in load(work_dir / "epoch_3.pth")["ema_state_dict"].items()
    }
    for name, mean in ranks[0]["means"].items():
        torch.testing.assert_close(raw[name], torch.tensor(mean))


def test_evaluation_with_and_without_the_plugin(tmp_path, data_root):
    config = write_config(tmp_path / "learns.py", data_root, 100, LEARNS + SEEDED)
    run("train", config, "--work-dir", tmp_path / "run")
    figures = []
    for switch in ("on", "off"):
        output = run(
            "test", config, tmp_path / "run" / "epoch_100.pth", "--work-dir", tmp_path / switch, YOLOX_PLUGIN=switch,
            TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1",
        )  # fmt: skip
        figures.append(re.findall(r"coco/(bbox_\w+): (-?[\d.]+)", output))
    assert figures[0] == figures[1]
    assert float(dict(figures[0])["bbox_mAP"]) > 0.1
