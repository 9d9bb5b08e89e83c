"""What the commands are tried on."""

import pytest
from tiny import write_config

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
    return write_config(data.parent / "tiny.py", data, epochs=20)
