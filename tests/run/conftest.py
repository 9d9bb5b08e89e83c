"""What the commands are tried on."""

import json
import shutil
import subprocess

import pytest
from tiny import ENV, ROOT, small

from yolox_plugin.core.checkpoint import newest_checkpoint
from yolox_plugin.run import train as training
from yolox_plugin.run.demo_data import make_dataset


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A data set of shapes, which no test may change."""
    root = tmp_path_factory.mktemp("trained") / "data"
    make_dataset(root, train=16, val=5)
    return root


@pytest.fixture(scope="session")
def config(data):
    """A config file for it, of 20 epochs."""
    return small.write_config(data.parent / "tiny.py", data, epochs=20)


@pytest.fixture(scope="session")
def learned(made_once):
    """A data set of four images to train and to evaluate on, a config, and a checkpoint that has learned them."""

    def learn(root):
        data = root / "data"
        make_dataset(data, train=4, val=1)
        shutil.rmtree(data / "val2017")
        shutil.copytree(data / "train2017", data / "val2017")
        shutil.copy(data / "annotations/instances_train2017.json", data / "annotations/instances_val2017.json")
        config = small.write_config(root / "learns.py", data, epochs=120, more=small.LEARNS)
        options = [f"--data-path={data}", f"--config={config}", "--device=cpu", f"--work-dir={root / 'run'}"]
        assert training.main(options) == 0
        assert json.loads((root / "run/result.json").read_text())["mAP"] > 0.1

    root = made_once("learned", learn)
    return root / "data", root / "learns.py", newest_checkpoint(root / "run")


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
