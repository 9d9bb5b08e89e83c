"""Configs of other shapes than the standard one: the same commands train them, or say in a sentence why not."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from mmcv import Config
from tiny import sentence
from tiny2 import STANDARD, write_config

import yolox_plugin.mmdet2.dataset
from yolox_plugin.core.checkpoint import newest_checkpoint
from yolox_plugin.run import evaluate as testing
from yolox_plugin.run import train as training
from yolox_plugin.run.messages import InputError
from yolox_plugin.run.mmdet2 import checks
from yolox_plugin.run.mmdet2 import data as data_files
from yolox_plugin.run.mmdet2.config import load_config
from yolox_plugin.run.mmdet2.log import read_log, seed_of
from yolox_plugin.run.mmdet2.recipe import schedule


@pytest.fixture(scope="module")
def tiny(data, tmp_path_factory):
    """The tiny config, resolved, without evaluation until the end."""
    return Config.fromfile(str(write_config(tmp_path_factory.mktemp("configs") / "tiny.py", data, epochs=6)))


@pytest.fixture
def train(data, tiny, tmp_path, capfd):
    """Trains a variant of the tiny config in this process: the exit status, and what was written to stderr."""

    def run(change, *options, root=data, work_dir="run"):
        cfg = copy.deepcopy(tiny)
        change(cfg)
        cfg.dump(str(tmp_path / "variant.py"))
        common = [f"--data-path={root}", f"--config={tmp_path / 'variant.py'}", "--device=cpu"]
        status = training.main([*common, f"--work-dir={tmp_path / work_dir}", *options])
        return status, capfd.readouterr().err

    return run


def result(tmp_path):
    return json.loads((tmp_path / "run/result.json").read_text())


def around(cfg, *path, **wrapper):
    """Puts the data set at this place of the config into another."""
    place = cfg.data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = {**wrapper, "dataset": place[path[-1]]}


def repeat_inside(cfg):
    around(cfg, "train", "dataset", type="RepeatDataset", times=2)


def balance_inside(cfg):
    around(cfg, "train", "dataset", type="ClassBalancedDataset", oversample_thr=0.9)


def repeat_outside(cfg):
    around(cfg, "train", type="RepeatDataset", times=2)


def join_inside(cfg):
    cfg.data.train.dataset = {"type": "ConcatDataset", "datasets": [cfg.data.train.dataset] * 2}


def join_outside(cfg):
    cfg.data.train = [cfg.data.train] * 2


def join_files(cfg):
    cfg.data.train.dataset.ann_file = [cfg.data.train.dataset.ann_file] * 2


def relative(cfg):
    cfg.data.train.dataset.data_root = cfg.data.val.data_root = "elsewhere/"


def own_loader(cfg):
    names = ("samples_per_gpu", "workers_per_gpu", "persistent_workers")
    cfg.data.train_dataloader = {name: cfg.data.pop(name) for name in names}


def no_workers(cfg):
    cfg.data.workers_per_gpu = 0


def nothing(cfg):
    for key in ("checkpoint_config", "evaluation", "log_config", "custom_hooks", "auto_scale_lr", "optimizer_config"):
        cfg[key] = None


def older(cfg):
    cfg.data.imgs_per_gpu = cfg.data.pop("samples_per_gpu")
    cfg.total_epochs = cfg.pop("runner").max_epochs


def steps(cfg):
    cfg.lr_config = {"policy": "step", "step": [2, 3], "warmup": "linear", "warmup_iters": 2, "warmup_ratio": 0.1}


def cosine(cfg):
    cfg.lr_config = {"policy": "CosineAnnealing", "min_lr_ratio": 0.1, "by_epoch": False}


def poly(cfg):
    cfg.lr_config = {"policy": "poly", "power": 0.9, "min_lr": 1e-5, "by_epoch": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "share"),
    [(repeat_inside, 2), (balance_inside, 1), (repeat_outside, 2), (join_inside, 2), (join_outside, 2),
     (join_files, 2), (relative, 1), (own_loader, 1), (no_workers, 1), (nothing, 1), (older, 1), (steps, 1),
     (cosine, 1), (poly, 1)],
)  # fmt: skip
def test_other_shapes_train(train, data, tmp_path, monkeypatch, change, share):
    monkeypatch.chdir(data.parent)  # a relative --data-path is not joined with a data_root
    status, error = train(change, "--epochs=2", root="data")
    assert status == 0, error[-2000:]
    found = result(tmp_path)
    assert found["epochs"] == 2
    assert found["batch_size"] == 4
    assert found["images_per_second"]["median"] > 0
    assert (found["mAP"] is None) == (change is nothing)
    log = [line for line in read_log(tmp_path / "run") if line["mode"] == "train"]
    assert len({line["epoch"] for line in log}) == 2
    assert 4 * share <= max(line["iter"] for line in log) <= 5 * share + 4
    assert (tmp_path / "run/epoch_2.pth").exists() == (change is not nothing)


@pytest.mark.slow
@pytest.mark.parametrize("change", [steps, cosine, poly, join_outside])
def test_performance_of_other_shapes(train, tmp_path, change):
    status, error = train(change, "--performance")
    assert status == 0, error[-2000:]
    assert result(tmp_path)["mAP"] is None
    assert result(tmp_path)["images_per_second"]["median"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("change", [repeat_outside, join_outside])
def test_mosaic_is_closed_inside_of_other_data_sets(train, tmp_path, change):
    def last_two(cfg):
        change(cfg)
        cfg.runner.max_epochs = 4
        cfg.lr_config.update(warmup_iters=1, num_last_epochs=2)
        cfg.custom_hooks[0].num_last_epochs = 2

    assert train(last_two)[0] == 0
    losses = {line["epoch"]: line.get("loss_l1") for line in read_log(tmp_path / "run")
              if line["mode"] == "train"}  # fmt: skip
    assert [epoch for epoch, loss in losses.items() if loss] == [3, 4]


def by_iterations(cfg):
    cfg.runner = {"type": "IterBasedRunner", "max_iters": 7}
    steps(cfg)
    cfg.lr_config.step = [4]
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if "num_last_epochs" not in hook]
    cfg.checkpoint_config = {"interval": 3}
    cfg.evaluation = {"interval": 3}


@pytest.mark.slow
@pytest.mark.parametrize(("options", "trained"), [([], 7), (["--iterations=4"], 4), (["--performance"], 4)])
def test_a_runner_without_epochs(train, tmp_path, options, trained):
    status, error = train(by_iterations, *options)
    assert status == 0, error[-2000:]
    found = result(tmp_path)
    assert found["epochs"] is None
    assert found["images_per_second"]["median"] > 0
    assert found["loss"] > 0
    log = read_log(tmp_path / "run")
    assert [line["iter"] for line in log if line["mode"] == "train"] == list(range(1, trained + 1))
    evaluated = [line["iter"] for line in log if line["mode"] == "val"]
    assert evaluated == ([] if "--performance" in options else [at for at in (3, 6, 7) if at <= trained])


def balance_outside(cfg):
    around(cfg, "train", type="ClassBalancedDataset", oversample_thr=0.1)


def two_val_files(cfg):
    cfg.data.val.ann_file = [cfg.data.val.ann_file] * 2


def other_kind(cfg):
    cfg.data.train.dataset.type = "VOCDataset"


def long_warm_up(cfg):
    cfg.lr_config.update(warmup_by_epoch=True, warmup_iters=3)


def long_warm_up_in_iterations(cfg):
    cfg.lr_config.update(warmup_by_epoch=False, warmup_iters=40)


def both_lengths(cfg):
    cfg.total_epochs = 300


def both_sizes(cfg):
    cfg.data.train_dataloader = {"samples_per_gpu": 2}


def odd_runner(cfg):
    cfg.runner.type = 1.5


def other_runner(cfg):
    cfg.runner.type = "EpochRunner"


def odd_workers(cfg):
    cfg.data.workers_per_gpu = "two"


def workflow(cfg):
    cfg.workflow = [("train", 1), ("val", 1)]


def fp16(cfg):
    cfg.fp16 = {"loss_scale": 512.0}


def autocast(cfg):
    cfg.model.autocast = "float16"


def load_from(cfg):
    cfg.load_from = "/nowhere/yolox.pth"


def no_val(cfg):
    del cfg.data["val"]


def epochs_of_iterations(cfg):
    cfg.runner = {"type": "IterBasedRunner", "max_iters": 7}


def restarts(cfg):
    cfg.lr_config = {"policy": "CosineRestart", "periods": [2, 2], "restart_weights": [1, 1], "min_lr_ratio": 0.1}


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (balance_outside, [], "MultiImageMixDataset in a ClassBalancedDataset"),
        (two_val_files, [], "data.val must be one data set with one annotation file"),
        (other_kind, [], "data.train must be read by a CocoDataset, got VOCDataset"),
        (long_warm_up, [], "warm-up of 3 epochs and closing phase of 3 must be shorter than its 6 epochs"),
        (long_warm_up_in_iterations, [], "closing phase of 3 must be shorter than its 6 epochs"),
        (both_lengths, [], "the config has total_epochs=300 and another length in runner"),
        (both_sizes, [], "samples_per_gpu in data and in data.train_dataloader"),
        (odd_runner, [], "the config's runner.type must be a runner's, as 'EpochBasedRunner', got 1.5"),
        (other_runner, [], "the config's runner.type must be a runner's, as 'EpochBasedRunner', got 'EpochRunner'"),
        (odd_workers, [], "workers_per_gpu must be a whole number of 0 or more, got 'two' for train"),
        (workflow, [], "workflow must be [('train', 1)], got [('train', 1), ('val', 1)]"),
        (fp16, [], "fp16 needs an accelerator"),
        (autocast, [], "model.autocast='float16' needs an accelerator"),
        (load_from, [], "load_from='/nowhere/yolox.pth' does not exist"),
        (no_val, [], "has no data.val"),
        (epochs_of_iterations, [], "IterBasedRunner has no epochs, in which lr_config.warmup_by_epoch counts"),
        (by_iterations, ["--epochs=2"], "IterBasedRunner has no epochs, in which --epochs counts"),
        (by_iterations, ["--resume"], "IterBasedRunner resumes on CUDA alone"),
        (restarts, ["--epochs=2"], "--epochs cannot shorten the config's lr_config.policy='CosineRestart'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_trained(train, tmp_path, change, options, words):
    assert words in sentence(*train(change, *options))
    assert not (tmp_path / "run").exists()


def test_a_device_without_bfloat16(monkeypatch):
    cfg = Config({"device": "cuda", "model": {"type": "YOLOX", "autocast": "bfloat16"}})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(InputError, match="--amp=bfloat16: this cuda device has no bfloat16"):
        checks.check_autocast(cfg, "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    checks.check_autocast(cfg, "bfloat16")


def test_several_annotation_files_keep_their_names(data, tiny, tmp_path):
    """Under --data-path, in the place of the config's data_root; others stay where they are."""

    cfg = copy.deepcopy(tiny)
    cfg.data_root = "data/coco/"
    leaf = cfg.data.train.dataset
    leaf.update(ann_file=["data/coco/a.json", "b.json", "/far/c.json"], img_prefix="data/coco/train2017")
    cfg.dump(str(tmp_path / "several.py"))
    options = [f"--data-path={data}", f"--config={tmp_path / 'several.py'}"]
    found = load_config(training.parser().parse_args(options)).data.train.dataset
    assert found.ann_file == [f"{data}/a.json", f"{data}/b.json", "/far/c.json"]
    assert found.img_prefix == f"{data}/train2017"


@pytest.mark.parametrize("epochs", [None, 1, 2, 30, 300, 400])
def test_a_short_run_is_the_whole_recipe(epochs):
    """Against what the config says: nothing but the length changes, and the lowest learning rate is at the end."""
    cfg = Config.fromfile(str(STANDARD))
    schedule(cfg, epochs, iterations_per_epoch=100)
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


@pytest.mark.parametrize(
    ("step", "epochs", "expected"), [([8, 11], 6, [4, 6]), ([8, 11], 1, [1, 1]), (6, 4, 2), ([8, 11], 24, [8, 11])]
)
def test_steps_shrink_in_proportion(step, epochs, expected):
    cfg = Config({"runner": {"max_epochs": 12}, "lr_config": {"policy": "step", "step": step}, "evaluation": None,
                  "custom_hooks": [{"type": "ExpMomentumEMAHook", "interval": 4}],
                  "checkpoint_config": {"interval": -1}})  # fmt: skip
    schedule(cfg, epochs, iterations_per_epoch=100)
    assert cfg.lr_config.step == expected
    assert cfg.custom_hooks[0].interval == 4  # iterations
    assert cfg.checkpoint_config.interval == -1


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--iterations=3"], ["--epochs=3"], []])
def test_an_epoch_logs_however_short(train, tmp_path, options):
    def long_and_small(cfg):
        cfg.data.samples_per_gpu = 16
        cfg.log_config.interval = 50
        cfg.runner.max_epochs = 40
        cfg.data.workers_per_gpu = 0

    status, error = train(long_and_small, "--performance", *(options or ["--epochs=22"]))
    assert status == 0, error[-2000:]
    found = result(tmp_path)
    assert found["loss"] > 0
    assert found["images_per_second"]["measurements"] >= 2
    log = read_log(tmp_path / "run")
    assert len({line["epoch"] for line in log}) >= (22 if not options else 2)


def logged(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "20261125_010203.log.json").write_text(text)
    return folder


LINE = '{"mode": "train", "epoch": 1, "iter": 1, "loss": 1.0, "time": 0.5, "data_time": 0.1}'


def test_only_the_last_line_of_a_log_may_be_cut_short(tmp_path):
    for cut in range(1, len(LINE)):
        log = read_log(logged(tmp_path / "cut", f'{{"seed": 3}}\n{LINE}\n{LINE[:cut]}'))
        assert [line["loss"] for line in log] == [1.0]
    assert seed_of(tmp_path / "cut/20261125_010203.log.json") == 3
    with pytest.raises(ValueError, match=r"line 1 of .*log\.json is no JSON"):
        read_log(logged(tmp_path / "other", f"{LINE[:30]}\n{LINE}\n"))


@pytest.mark.slow
def test_the_seed_of_a_resumed_run_is_the_checkpoints(train, tmp_path):
    assert train(steps, "--epochs=1", "--seed=7")[0] == 0
    assert result(tmp_path)["seed"] == 7
    assert train(steps, "--epochs=2", "--seed=8", "--resume")[0] == 0
    assert result(tmp_path)["seed"] == 7
    assert torch.load(tmp_path / "run/latest.pth")["meta"]["seed"] == 7


@pytest.mark.parametrize("name", ["epoch_1.pth", "latest.pth", "best_bbox_mAP_epoch_3.pth", "iter_7.pth", "a.log.json"])
@pytest.mark.parametrize("devices", [1, 2])
def test_an_earlier_run_is_not_resumed_unasked(train, tmp_path, name, devices):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_bytes(b"precious")
    words = sentence(*train(steps, f"--devices={devices}"))
    assert "has a run already: --resume goes on with it, or name another" in words
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


@pytest.mark.parametrize("name", ["config.py", "result.json", "curves.png"])
def test_a_file_of_the_users_is_not_overwritten(train, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("precious")
    assert f"has a {name} that would be overwritten" in sentence(*train(steps))
    assert (tmp_path / "run" / name).read_text() == "precious"


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_other_weights_in_the_work_directory_are_no_run(train, tmp_path, devices):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/pretrained_yolox_m.pth").write_bytes(b"weights")
    for options in (["--epochs=1"], ["--epochs=2", "--resume"]):
        status, error = train(steps, *options, f"--devices={devices}", "--batch-size=2")
        assert status == 0, error[-2000:]
    assert (tmp_path / "run/pretrained_yolox_m.pth").read_bytes() == b"weights"


def test_the_newest_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "absent") is None
    for name in (
        "pretrained_yolox_m.pth",
        "yolox_m_8x8_300e_coco_20220829_140254.pth",
        "epoch_x.pth",
        "epoch_4.pth.part",
    ):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "latest.pth").symlink_to("epoch_99.pth")  # which is gone
    assert newest_checkpoint(tmp_path) is None
    for name in ("epoch_2.pth", "epoch_10.pth", "best_bbox_mAP_epoch_8.pth", "best_coco_bbox_mAP_epoch_15.pth"):
        (tmp_path / name).write_bytes(b"")
    assert newest_checkpoint(tmp_path) == tmp_path / "epoch_10.pth"
    (tmp_path / "epoch_99.pth").write_bytes(b"")
    assert newest_checkpoint(tmp_path) == tmp_path / "latest.pth"


@pytest.mark.slow
def test_resuming_what_does_not_fit(train, tmp_path):
    assert train(steps, "--epochs=1")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}

    def wider(cfg):
        steps(cfg)
        cfg.model.bbox_head.feat_channels = 64

    assert "is of another model than --config" in sentence(*train(wider, "--resume"))
    shutil.copy(tmp_path / "run/epoch_1.pth", tmp_path / "whole.pth")
    torch.save({"state_dict": {}, "meta": {"x": Path("/")}}, tmp_path / "run/epoch_1.pth")
    assert "is whole, but torch does not load it" in sentence(*train(steps, "--resume"))
    content = torch.load(tmp_path / "whole.pth")
    content["meta"]["hook_msgs"] = {"mine": torch.ones(2)}
    torch.save(content, tmp_path / "run/epoch_1.pth")
    assert "MMDetection cannot log its meta, where resumed: <class 'torch.Tensor'>" in sentence(
        *train(steps, "--resume")
    )
    shutil.copy(tmp_path / "whole.pth", tmp_path / "run/epoch_1.pth")
    assert {path for path in (tmp_path / "run").iterdir()} == before.keys()


@pytest.mark.slow
def test_the_batch_size_of_the_test_loader_counts(train, data, tiny, tmp_path, capfd):
    assert train(steps, "--epochs=1")[0] == 0
    cfg = copy.deepcopy(tiny)
    cfg.data.test_dataloader = {"samples_per_gpu": 2}
    cfg.data.test.pipeline[1].transforms[3] = {"type": "ImageToTensor", "keys": ["img"]}
    cfg.dump(str(tmp_path / "batched.py"))
    options = [f"--data-path={data}", f"--config={tmp_path / 'batched.py'}", "--device=cpu"]
    assert testing.main([*options, f"--pth-path={tmp_path / 'run/latest.pth'}", f"--work-dir={tmp_path / 't'}"]) == 0
    assert json.loads((tmp_path / "t/result.json").read_text())["batch_size"] == 2
    assert "unexpected key" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_byte_order_mark_is_accepted(train, data, tmp_path):
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    for path in (copy / "annotations").iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    losses = {}
    for name, root in (("plain", data), ("marked", copy)):
        status, error = train(lambda cfg: None, "--epochs=1", root=root)
        assert status == 0, error[-2000:]
        losses[name] = [line["loss"] for line in read_log(tmp_path / "run") if line["mode"] == "train"]
        (tmp_path / "run").rename(tmp_path / name)
    assert losses["plain"] == losses["marked"]


def test_a_byte_order_mark_for_another_class(train, data, tmp_path, monkeypatch):
    """Which reads with pycocotools alone."""
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    path = copy / "annotations/instances_train2017.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    monkeypatch.setattr(data_files, "CocoDataset", type("Mine", (yolox_plugin.mmdet2.dataset.CocoDataset,), {}))
    assert "begins with a byte order mark, which CocoDataset does not read" in sentence(
        *train(lambda cfg: None, root=copy)
    )


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize(
    "evaluation",
    [
        {"metric": ["bbox", "proposal"], "classwise": True, "save_best": "bbox_mAP_50", "interval": 3},
        {"metric_items": ["mAP"], "save_best": "auto", "start": 2},
        {"metric": "proposal", "proposal_nums": [10, 100, 300], "dynamic_intervals": [(3, 1)]},
        {"jsonfile_prefix": "FOLDER/mine", "rule": "less"},
    ],
)
def test_what_an_evaluation_may_ask_for(config, data, tmp_path, capfd, evaluation, distributed):
    options = [f"--data-path={data}", f"--config={config}", "--device=cpu"]
    cfg = load_config(training.parser().parse_args(options))
    cfg.evaluation = json.loads(json.dumps(evaluation).replace("FOLDER", str(tmp_path)))
    checks.check_evaluation(cfg, distributed)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
