"""Configs of other shapes than the standard one: the same commands train them, or say in a sentence why not."""

import copy
import json
import shutil

import pytest
from mmengine.config import Config
from tiny import sentence
from tiny3 import write_config

from yolox_plugin.run import train as training
from yolox_plugin.run.mmdet3.config import CONFIG_DIRS, load_config
from yolox_plugin.run.mmdet3.log import read_log
from yolox_plugin.run.mmdet3.recipe import schedule

STANDARD = str(CONFIG_DIRS[1] / "yolox_m_8xb8-300e_coco.py")


@pytest.fixture(scope="module")
def tiny(data, tmp_path_factory):
    """The tiny config, resolved."""
    return Config.fromfile(str(write_config(tmp_path_factory.mktemp("configs") / "tiny.py", data, epochs=6)))


@pytest.fixture
def train(data, tiny, tmp_path, capfd):
    """Trains a variant of the tiny config in this process: the exit status, and what was written to stderr."""

    def run(change, *options):
        cfg = copy.deepcopy(tiny)
        change(cfg)
        cfg.dump(str(tmp_path / "variant.py"))
        common = [f"--data-path={data}", f"--config={tmp_path / 'variant.py'}", "--device=cpu"]
        status = training.main([*common, f"--work-dir={tmp_path / 'run'}", *options])
        return status, capfd.readouterr().err

    return run


def result(tmp_path):
    return json.loads((tmp_path / "run/result.json").read_text())


@pytest.mark.parametrize("name", ["yolox_m_8x8_300e_coco", "yolox_m_8xb8-300e_coco", STANDARD])
def test_a_config_has_the_names_of_both_lines(data, name):
    cfg = load_config(training.parser().parse_args([f"--data-path={data}", f"--config={name}"]))
    assert cfg.model.backbone.widen_factor == 0.75
    assert cfg.work_dir == "work_dirs/yolox_m_8xb8-300e_coco"
    assert cfg.train_dataloader.dataset.dataset.data_root == f"{data}/"
    assert cfg.val_evaluator.ann_file == f"{data}/annotations/instances_val2017.json"


@pytest.mark.parametrize("epochs", [None, 1, 2, 30, 300, 400])
def test_a_short_run_is_the_whole_recipe(epochs):
    """Against what the config says: nothing but the length changes, and the lowest learning rate is at the end."""
    cfg = Config.fromfile(STANDARD)
    schedule(cfg, epochs, iterations_per_epoch=100)
    length = epochs or 300
    share = min(length / 300, 1)
    closing = {1: 0, 2: 1, 30: 2}.get(length, 15)
    assert cfg.train_cfg.max_epochs == length
    assert cfg.custom_hooks[0].num_last_epochs == closing
    interval = max(round(10 * share), 1)
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == interval
    if not epochs:
        assert cfg.param_scheduler == Config.fromfile(STANDARD).param_scheduler
        return
    warm_up, cosine, *constant = cfg.param_scheduler
    assert (warm_up.begin, warm_up.by_epoch) == (0, False)
    assert warm_up.end == cosine.begin == pytest.approx(500 * (length - closing) / 285 if length < 300 else 500, abs=1)
    assert cosine.end == cosine.T_max == (length - closing) * 100
    assert "convert_to_iter_based" not in warm_up and "convert_to_iter_based" not in cosine
    assert [(part.begin, part.end, part.by_epoch) for part in constant] == (
        [(length - closing, length, True)] if closing else []
    )


@pytest.mark.parametrize(
    ("milestones", "epochs", "expected"),
    [([8, 11], 6, [4, 6]), ([8, 11], 1, [1, 1]), ([8, 11], 24, [8, 11])],
)
def test_steps_shrink_in_proportion(milestones, epochs, expected):
    cfg = Config({
        "train_cfg": {"max_epochs": 12}, "custom_hooks": [], "default_hooks": {},
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 120},
            {"type": "MultiStepLR", "by_epoch": True, "begin": 0, "end": 12, "milestones": milestones},
        ],
    })  # fmt: skip
    schedule(cfg, epochs, iterations_per_epoch=100)
    assert cfg.param_scheduler[1].milestones == expected
    assert cfg.param_scheduler[1].end == epochs
    assert cfg.param_scheduler[0].end == round(120 * min(epochs / 12, 1))


def nothing(cfg):
    cfg.val_evaluator = cfg.val_dataloader = cfg.val_cfg = None


def repeat_inside(cfg):
    inner = cfg.train_dataloader.dataset.dataset
    cfg.train_dataloader.dataset.dataset = {"type": "RepeatDataset", "times": 2, "dataset": inner}


def join_inside(cfg):
    inner = cfg.train_dataloader.dataset.dataset
    cfg.train_dataloader.dataset.dataset = {"type": "ConcatDataset", "datasets": [inner, copy.deepcopy(inner)]}


def steps(cfg):
    cfg.param_scheduler = [{"type": "MultiStepLR", "by_epoch": True, "milestones": [3, 5], "gamma": 0.1}]


def no_workers(cfg):
    for split in ("train", "val"):
        cfg[f"{split}_dataloader"].update(num_workers=0, persistent_workers=False)


@pytest.mark.slow
@pytest.mark.parametrize("change", [nothing, repeat_inside, join_inside, steps, no_workers])
def test_other_shapes_train(train, tmp_path, change):
    status, error = train(change, "--epochs=2")
    assert status == 0, error[-2000:]
    found = result(tmp_path)
    assert (found["epochs"], found["batch_size"]) == (2, 4)
    assert found["images_per_second"]["median"] > 0
    assert (found["mAP"] is None) == (change is nothing)
    per_epoch = 8 if change in (repeat_inside, join_inside) else 4
    log = [line for line in read_log(tmp_path / "run", per_epoch) if line["mode"] == "train"]
    assert log[-1]["at"] == 2.0


def by_iterations(cfg):
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 7, "val_interval": 3}
    cfg.train_dataloader.sampler = {"type": "InfiniteSampler"}
    cfg.param_scheduler = [{"type": "MultiStepLR", "by_epoch": False, "milestones": [4]}]
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type == "EMAHook"]
    cfg.default_hooks.checkpoint = {"type": "CheckpointHook", "by_epoch": False, "interval": 3}
    cfg.log_processor = {"type": "LogProcessor", "by_epoch": False}


@pytest.mark.slow
@pytest.mark.parametrize(("options", "trained"), [([], 7), (["--iterations=4"], 4), (["--performance"], 4)])
def test_a_training_without_epochs(train, tmp_path, options, trained):
    status, error = train(by_iterations, *options)
    assert status == 0, error[-2000:]
    found = result(tmp_path)
    assert found["epochs"] is None
    assert found["images_per_second"]["median"] > 0
    log = read_log(tmp_path / "run", None)
    assert [line["at"] for line in log if line["mode"] == "train"] == list(range(1, trained + 1))
    evaluated = [line["at"] for line in log if line["mode"] == "val"]
    assert evaluated == ([] if "--performance" in options else [at for at in (3, 6, 7) if at <= trained])


def two_val_files(cfg):
    cfg.val_dataloader.dataset = {"type": "ConcatDataset", "datasets": [cfg.val_dataloader.dataset] * 2}


def restarts(cfg):
    cfg.param_scheduler = [
        {"type": "CosineRestartLR", "periods": [2, 4], "restart_weights": [1, 1], "eta_min": 0.0, "by_epoch": True}
    ]


def epochs_of_iterations(cfg):
    by_iterations(cfg)
    cfg.param_scheduler[0].by_epoch = True


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (two_val_files, [], "val_dataloader.dataset must be one data set with one annotation file"),
        (restarts, ["--epochs=2"], "--epochs cannot shorten the config's CosineRestartLR"),
        (by_iterations, ["--epochs=2"], "has max_iters and no epochs, in which --epochs counts"),
        (epochs_of_iterations, [], "has max_iters and no epochs, in which the MultiStepLR counts"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_trained(train, tmp_path, change, options, words):
    assert words in sentence(*train(change, *options))
    assert not (tmp_path / "run").exists()


def test_a_byte_order_mark_is_refused(train, data, tmp_path):
    """MMDetection 3's CocoDataset reads with pycocotools alone."""
    copied = shutil.copytree(data, tmp_path / "copy")
    path = copied / "annotations/instances_train2017.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    words = "begins with a byte order mark, which CocoDataset does not read"
    assert words in sentence(*train(lambda cfg: None, f"--data-path={copied}"))
