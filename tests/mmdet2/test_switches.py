"""What importing the plugin replaces, and how to keep it from doing so."""

import inspect
import os
import subprocess
import sys

import pytest

from yolox_plugin.mmdet2 import PARTS
from yolox_plugin.parts import stock_of

PROGRAM = """
import yolox_plugin
from mmcv.runner import HOOKS, OPTIMIZERS, RUNNERS
from mmdet.core.bbox.builder import BBOX_ASSIGNERS
from mmdet.datasets import DATASETS, PIPELINES, dataset_wrappers
from mmdet.models import DETECTORS, HEADS
parts = {
    "assigner": [BBOX_ASSIGNERS.get("SimOTAAssigner")],
    "head": [HEADS.get("YOLOXHead")],
    "training": [
        DETECTORS.get("YOLOX"), OPTIMIZERS.get("SGD"), RUNNERS.get("EpochBasedRunner"), DATASETS.get("CocoDataset"),
        DATASETS.get("MultiImageMixDataset"), dataset_wrappers.MultiImageMixDataset,
        *map(HOOKS.get, ("ExpMomentumEMAHook", "YOLOXModeSwitchHook", "SyncNormHook", "CheckpointHook")),
    ],
    "pipeline": [*map(PIPELINES.get, ("Mosaic", "RandomAffine", "MixUp", "YOLOXHSVRandomAug"))],
}
print(*(part for part, classes in parts.items() for c in classes if c.__module__.startswith("yolox_plugin")))
"""
TRAINING = " ".join(10 * ["training"])
PIPELINE = " ".join(4 * ["pipeline"])
PIPELINE_NAMES = "Mosaic, RandomAffine, MixUp, YOLOXHSVRandomAug"
TRAINING_NAMES = (
    "YOLOX, ExpMomentumEMAHook, YOLOXModeSwitchHook, SyncNormHook, CheckpointHook, SGD, EpochBasedRunner, CocoDataset,"
    " MultiImageMixDataset, _get_stream, scatter_kwargs"
)


def run(program=PROGRAM, **env):
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("env", "classes", "message"),
    [
        ({}, f"assigner head {TRAINING} {PIPELINE}", f"SimOTAAssigner, YOLOXHead, {TRAINING_NAMES}, {PIPELINE_NAMES}"),
        ({"YOLOX_PLUGIN": "off"}, "", "nothing (switched off)"),
        (
            {"YOLOX_PLUGIN_HEAD": "off", "YOLOX_PLUGIN_PIPELINE": "off"},
            f"assigner {TRAINING}",
            f"SimOTAAssigner, {TRAINING_NAMES}",
        ),
        (
            {"YOLOX_PLUGIN_ASSIGNER": "off"},
            f"head {TRAINING} {PIPELINE}",
            f"YOLOXHead, {TRAINING_NAMES}, {PIPELINE_NAMES}",
        ),
        (
            {"YOLOX_PLUGIN_TRAINING": "off"},
            f"assigner head {PIPELINE}",
            f"SimOTAAssigner, YOLOXHead, {PIPELINE_NAMES}",
        ),
    ],
    ids=str,
)
def test_parts(env, classes, message):
    result = run(**env)
    assert result.stdout.strip() == classes, result.stderr
    lines = [line for line in result.stderr.splitlines() if "yolox_plugin" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f"replaced in MMDetection: {message}")


def test_a_class_that_somebody_has_patched_stays():
    """Before the import; the patch would be lost with the class."""
    patch = (
        "from mmdet.datasets.pipelines import Mosaic\n"
        "from mmdet.models import YOLOXHead\n"
        "Mosaic._mosaic_transform = lambda self, results: results\n"
        "YOLOXHead.__repr__ = lambda self: 'a head'\n"  # of which the plugin has no code of its own
    )
    result = run(patch + PROGRAM)
    assert result.stdout.strip() == f"assigner head {TRAINING} {' '.join(3 * ['pipeline'])}", result.stderr
    assert "; left: Mosaic (somebody has patched it)" in result.stderr


def test_only_one_rank_speaks():
    result = run(RANK="3")
    assert result.stdout.strip() == f"assigner head {TRAINING} {PIPELINE}"
    assert "yolox_plugin" not in result.stderr


def test_a_typing_error_is_refused():
    result = run(YOLOX_PLUGIN="of")
    assert result.returncode != 0
    assert "YOLOX_PLUGIN must be on or off, got 'of'" in result.stderr


@pytest.mark.parametrize(
    ("before", "left"),
    [
        (f"{name} = {registry}.register_module(force=True)(type('{name}', (), {{}}))", name)
        for registry, name in zip(
            ("DATASETS", "RUNNERS", "PIPELINES", "OPTIMIZERS"), ("CocoDataset", "EpochBasedRunner", "Mosaic", "SGD"),
            strict=True,
        )
    ] + [
        ("MultiImageMixDataset = dataset_wrappers.MultiImageMixDataset = type('MultiImageMixDataset', (), {})\n"
         "DATASETS.register_module(module=MultiImageMixDataset, force=True)", "MultiImageMixDataset"),
    ],
    ids=lambda value: value if value.isidentifier() else "",
)  # fmt: skip
def test_a_class_of_the_users_own_is_left(before, left):
    """Registered before the plugin comes; what it is named, too."""
    program = f"""
import logging
from mmcv.runner import OPTIMIZERS, RUNNERS
from mmdet.datasets import DATASETS, PIPELINES, dataset_wrappers
{before}
import yolox_plugin
found = [r.get("{left}") for r in (OPTIMIZERS, RUNNERS, DATASETS, PIPELINES) if r.get("{left}")]
assert found == [{left}], found
if "{left}" == "MultiImageMixDataset":
    assert dataset_wrappers.MultiImageMixDataset is {left}
"""
    result = run(program)
    assert result.returncode == 0, result.stderr
    [line] = [line for line in result.stderr.splitlines() if "replaced in MMDetection" in line]
    assert f"left: {left} (registered is __main__.{left})" in line
    assert f" {left}," not in line.split("left:")[0]


def test_a_second_import_changes_nothing():
    again = "import yolox_plugin\nfrom yolox_plugin import mmdet2, parts\nparts.apply(mmdet2.PARTS)"
    result = run(PROGRAM.replace("import yolox_plugin", again, 1))
    assert result.stdout.strip() == f"assigner head {TRAINING} {PIPELINE}", result.stderr
    assert "left" not in result.stderr


def test_all_can_be_put_back():
    back = "import yolox_plugin\nfrom yolox_plugin import mmdet2, parts\nparts.revert()"
    result = run(PROGRAM.replace("import yolox_plugin", back, 1))
    assert result.stdout.strip() == "", result.stderr
    there_again = f"{back}\nparts.apply(mmdet2.PARTS)"
    result = run(PROGRAM.replace("import yolox_plugin", there_again, 1))
    assert result.stdout.strip() == f"assigner head {TRAINING} {PIPELINE}", result.stderr


def import_beside(folder, versions, failing=None):
    """What comes of importing the plugin where of MMDetection's packages these are, of these versions, and no others;
    `failing` cannot be imported."""
    for name, version in versions.items():
        (folder / name).mkdir()
        fails = 'raise ImportError("libcudart.so.12: no such\\nfile")' if name == failing else ""
        (folder / name / "__init__.py").write_text(f"from .version import __version__\n{fails}\n")
        (folder / name / "version.py").write_text(f"# Copyright\n__version__ = '{version}'\n")
    program = f"""
import importlib.machinery, sys
PATH_FINDER = importlib.machinery.PathFinder
class Finder:
    def find_spec(name, path=None, target=None):
        if name in ("mmcv", "mmdet", "mmengine"):
            return PATH_FINDER.find_spec(name, [{str(folder)!r}])
        if name.split(".")[0] == "mmdet":
            raise AssertionError(f"imports {{name}}")
class Rest:
    def find_spec(name, path=None, target=None):
        return None if name in ("mmcv", "mmdet", "mmengine") else PATH_FINDER.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PATH_FINDER)] = Rest
sys.meta_path.insert(0, Finder)
try:
    import yolox_plugin
except ImportError as error:
    print(type(error).__name__, error)
assert not {{"mmdet", "mmcv._ext"}} & set(sys.modules)
"""
    result = run(program)
    assert result.returncode == 0, result.stderr
    [line] = result.stdout.splitlines()
    return line


@pytest.mark.parametrize(
    ("mmcv", "mmdet"),
    [
        ("2.1.0", "2.28.2"), ("1.7.2", "2.27.0"), ("1.7.2", "3.3.0"), ("2.1.0", "3.2.0"), ("2.1.0", "3.6.0"),
        ("1.7.2", None), ("2.1.0", None), (None, "3.3.0"), (None, None),
    ],
    ids=str,
)  # fmt: skip
def test_versions_that_it_is_not_made_for(tmp_path, mmcv, mmdet):
    """One sentence, before anything is imported of them."""
    versions = {name: version for name, version in (("mmcv", mmcv), ("mmdet", mmdet)) if version}
    assert import_beside(tmp_path, versions, failing="mmcv") == (
        "ImportError yolox_plugin needs mmcv 1.x with MMDetection 2.28.x, or mmcv 2.x with MMDetection 3.3 to 3.5;"
        f" found mmcv {mmcv or 'not there'} and mmdet {mmdet or 'not there'}:"
        " pip install mmcv-full==1.7.2 mmdet==2.28.2 (MMDetection 2.28);"
        " or pip install mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0 (MMDetection 3.3);"
        " or MMCV_WITH_OPS=0 pip install onedl-mmengine==0.10.12 onedl-mmcv==2.3.6 onedl-mmdetection==3.5.1"
        " (onedl's MMDetection 3.5)"
    )


@pytest.mark.parametrize(
    ("versions", "failing", "reason"),
    [
        ({"mmcv": "1.7.2", "mmdet": "2.28.2"}, "mmcv", "libcudart.so.12: no such file"),
        ({"mmcv": "2.1.0", "mmdet": "3.3.0", "mmengine": "0.10.7"}, "mmcv", "libcudart.so.12: no such file"),
        ({"mmcv": "2.3.6", "mmdet": "3.5.1", "mmengine": "0.10.12"}, "mmengine", "libcudart.so.12: no such file"),
        ({"mmcv": "2.1.0", "mmdet": "3.3.0"}, "mmengine", "No module named 'mmengine'"),
    ],
    ids=str,
)
def test_packages_that_cannot_be_imported(tmp_path, versions, failing, reason):
    install = {
        "2.28.2": "pip install mmcv-full==1.7.2 mmdet==2.28.2",
        "3.3.0": "pip install mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0",
        "3.5.1": "MMCV_WITH_OPS=0 pip install onedl-mmengine==0.10.12 onedl-mmcv==2.3.6 onedl-mmdetection==3.5.1",
    }
    assert import_beside(tmp_path, versions, failing) == (
        f"ImportError yolox_plugin found mmcv {versions['mmcv']} and mmdet {versions['mmdet']}, but {failing} cannot be"
        f" imported ({reason}): pip uninstall mmcv mmcv-full mmcv-lite mmengine onedl-mmcv onedl-mmengine, then"
        f" {install[versions['mmdet']]}"
    )


REPLACEMENTS = [part for pairs in PARTS.values() for _, part in pairs if isinstance(part, type)]


@pytest.mark.parametrize("ours", REPLACEMENTS, ids=lambda c: c.__name__)
def test_whoever_calls_a_replaced_class_as_stock_is_understood(ours):
    """Every parameter of the stock class by its place and by its name, with its default; every attribute of it."""
    stock = stock_of(ours)
    assert stock.__name__ == ours.__name__ and not stock.__module__.startswith("yolox_plugin")
    for name, theirs in inspect.getmembers(stock):
        mine = getattr(ours, name)
        if mine is theirs or not inspect.isfunction(theirs) or (name.startswith("__") and name != "__init__"):
            assert callable(mine) == callable(theirs) or name == "__doc__", name
            continue
        wanted, given = inspect.signature(theirs).parameters, inspect.signature(mine)
        places = [p for p in wanted.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        names = [p.name for p in wanted.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        required = [p.name for p in places if p.default is p.empty]
        given.bind(*places)
        given.bind(**dict.fromkeys(names))
        given.bind(**dict.fromkeys(required))
        for place, parameter in enumerate(wanted.values()):
            other = given.parameters.get(parameter.name)
            if other is not None and other.kind not in (other.VAR_POSITIONAL, other.VAR_KEYWORD):
                assert other.default == parameter.default, f"{name}({parameter.name})"
                assert list(given.parameters).index(other.name) == place, f"{name}({parameter.name})"
