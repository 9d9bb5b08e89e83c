"""What the tests on MMDetection 3 share."""

import pytest
from mmengine.registry import DefaultScope
from photographs import SHAPES, write_images

import yolox_plugin  # noqa: F401  registers its classes


@pytest.fixture(autouse=True)
def _scope_of_mmdet():
    """In which MMDetection's tools build data sets."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A data set that no test may change."""
    return write_images(tmp_path_factory.mktemp("images") / "odd", SHAPES, crowds=True)
