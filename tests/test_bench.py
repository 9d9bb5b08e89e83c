"""The benchmark tells agreement from disagreement, and writes what it is asked to write."""

import json
import shutil
from functools import partial
from pathlib import Path

import cases
import figures
import limits
import npu_model
import ops_bench
import parity
import peers
import pytest
import report
import torch
from mmcv import Config
from mmdet import __file__ as mmdet_file
from mmdet.models import build_detector
from programs import run

import yolox_ops
from yolox_ops import reference
from yolox_ops.simota import DEFAULTS


def bench(*options, preparation=""):
    return run("ops_bench", "--quick", *options, preparation=preparation)


def train_bench(*options, preparation=""):
    nano = ("--config", "yolox_nano_8x8_300e_coco", "--batch", 1, "--rounds", 1, "--gts", 10, "--threads", 1)
    return run("train_bench", *nano, *options, preparation=preparation)


@pytest.mark.slow
def test_json_and_chart(tmp_path):
    result = bench("--only", "box_iou", "--json", tmp_path / "b.json", "--plot", tmp_path / "b.png")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((tmp_path / "b.json").read_text())
    assert data["machine"]["threads"] == 2
    case = next(case for case in data["cases"] if case["case"] == "8400x40")
    assert {"reference", "mmdet", "torchvision"} <= case["verdicts"].keys()
    assert {"yolox_ops", "mmdet", "torchvision"} <= case["timings"].keys()
    assert all(timing["median"] > 0 for timing in case["timings"].values())
    assert max(case["limits"].values()) > 0


# A case of each operator, and what is wrong with the function behind it.
WRONG = {
    ("box_iou", "8400x40"): ("box_iou", lambda right, *a: right(*a) + 1e-3),
    ("box_iou_backward", "8400x40"): ("box_iou", lambda right, *a: right(*a) * 1.001),
    ("simota_assign", "radius 4, top 5"): ("simota_assign", lambda right, *a: (right(*a)[0].roll(1), right(*a)[1])),
    ("simota_assign", "weights 2 and 0.5"): ("simota_assign", lambda right, *a: right(*a[:6])),  # parameters of its own
    ("batched_nms", "1000, 80 classes"): ("batched_nms", lambda right, *a: right(*a)[1:]),
    ("yolox_detect", "8 images of 8400"): ("yolox_detect", lambda right, *a: (right(*a)[0] + 1, *right(*a)[1:])),
    ("ema_update_", "YOLOX-M, 25.4 M values"): ("ema_update_", lambda right, a, v, m: right(a, v, m + 0.01)),
    ("batch_norm_silu", "48x320x320, float32"): ("batch_norm_silu", lambda right, *a: right(*a) + 1e-2),
    ("batch_norm_silu_backward", "48x320x320, float32"): ("batch_norm_silu", lambda right, *a: right(*a) * 1.001),
    ("mixup_blend", "640x640, enlarged"): (
        "mixup_blend", lambda right, *a: right(*a[:4], (a[4][0], a[4][1] + 1), *a[5:])),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG, ids=" ".join)
def test_a_wrong_operator_is_a_mismatch(name, monkeypatch):
    function, wrong = WRONG[name]
    monkeypatch.setattr(yolox_ops, function, partial(wrong, getattr(yolox_ops, function)))
    case = next(case for case in cases.CASES if (case.op, case.name) == name)
    row = ops_bench.bench_case(case, [], ops_bench.parse(["--quick"]), rates=None)
    assert row.verdicts["reference"].problems
    assert not row.timings
    assert f"MISMATCH {case.op} " in report.lines(row)


@pytest.mark.slow
def test_a_mismatch_is_the_programs_status():
    wrong = "right = yolox_ops.batched_nms; yolox_ops.batched_nms = lambda *a: right(*a)[1:]"
    result = bench("--only", "batched_nms", preparation=f"import yolox_ops; {wrong}")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "MISMATCH batched_nms " in result.stdout
    assert "DIFFER" in result.stdout


@pytest.mark.parametrize(("nudge", "equal"), [(0.0, True), (1e-5, False)])
def test_only_equal_costs_excuse_another_assignment(nudge, equal):
    """Ten of a gt's priors are cheaper than the others by `nudge`; one of them and one of the others change places."""
    images, box = 20, torch.tensor([8.0, 8.0, 88.0, 88.0])
    centers = reference.grid_centers(96)
    scores = torch.full((images, len(centers), 3), 0.5)
    near = torch.stack(reference._regions(centers, box[None], 2.5)).all(0)[:, 0].nonzero()[:, 0]
    scores[:, near[:10], 1] += nudge
    args = (scores, centers, box.expand(images, len(centers), 4), box.expand(images, 1, 4))
    args += (torch.ones(images, 1, dtype=torch.int64), torch.ones(images, dtype=torch.int64))
    right = reference.simota_assign(*args)
    assert (right[0][0] == 0).nonzero()[:, 0].tolist() == near[:10].tolist()
    index = right[0].clone()
    index[0, near[9]], index[0, near[10]] = -1, 0
    verdict = parity.compare("simota_assign", args, (index, right[1]), right)
    assert verdict.ties == (2 if equal else 0)
    assert bool(verdict.problems) != equal


def test_ties_of_rival_gts_and_of_nobody_at_all():
    centers, box = reference.grid_centers(96), torch.tensor([[8.0, 8.0, 88.0, 88.0]])
    image = (torch.full((len(centers), 3), 0.5), centers, box.expand(len(centers), 4))
    near = torch.stack(reference._regions(centers, box, 2.5)).all(0)[:, 0]
    two = parity.outcomes(*image, box.repeat(2, 1), torch.tensor([1, 1]), DEFAULTS)
    assert two[near].all() and not two[~near, :2].any()
    assert parity.outcomes(*image, box + 1000, torch.tensor([1]), DEFAULTS)[:, -1].all()
    assert parity.outcomes(*image, box[:0], torch.zeros(0, dtype=torch.int64), DEFAULTS).shape == (len(centers), 1)


BOXES = torch.tensor([[1.0, 2, 30, 40, 0.9], [1, 2, 30, 40, 0.8], [50, 60, 70, 80, 0.7]])
LABELS = torch.tensor([0, 1, 0])


@pytest.mark.parametrize(
    ("move", "agree"),
    [
        (lambda d, n: (d.flip(0), n.flip(0)), True),
        (lambda d, n: (d + 1e-6, n), True),
        (lambda d, n: (d[:2], n[:2]), False),
        (lambda d, n: (d, n.flip(0) * 2), False),
        (lambda d, n: (d + torch.tensor([0.01, 0, 0, 0, 0]), n), False),
        (lambda d, n: (d + torch.tensor([0, 0, 0, 0, 1e-4]), n), False),
        (lambda d, n: (d[[0, 0, 1]], n[[0, 0, 1]]), False),
    ],
)
def test_detections_are_compared_one_by_one(move, agree):
    verdict = parity.Verdict()
    parity.compare_boxes(verdict, "image 0", move(BOXES, LABELS), (BOXES, LABELS))
    assert (not verdict.problems) == agree


@pytest.mark.parametrize(("error", "agree"), [(1e-6, True), (1e-4, False), (torch.nan, False)])
def test_losses_are_compared_to_float32_rounding(error, agree):
    verdict, losses = parity.Verdict(), {"loss_cls": torch.tensor(3.5), "loss_obj": torch.tensor(80.0)}
    parity.compare_losses(verdict, "30 gts", losses | {"loss_obj": losses["loss_obj"] * (1 + error)}, losses)
    assert (not verdict.problems) == agree
    parity.compare_losses(verdict, "30 gts", {"loss_cls": losses["loss_cls"]}, losses)
    assert "30 gts: ['loss_cls'] and" in verdict.problems[-1]


def test_a_peer_of_other_semantics_is_timed_and_not_compared():
    """And Megvii's steps are those of LibreYOLO, where it is there to ask."""
    case = cases.Case("simota_assign", "small", lambda: cases.assign_case("trained-like", 3))
    options = ops_bench.parse(["--quick", "--threads", "1"])
    rates = limits.measure_rates(torch.device("cpu"), 0.001)
    row = ops_bench.bench_case(case, [peers.megvii()["simota_assign"]], options, rates)
    assert row.verdicts.keys() == {"reference"} and not row.verdicts["reference"].problems
    assert row.timings.keys() == {"yolox_ops", "Megvii's steps"}
    assert "centre region of 1.5 strides alone" in ops_bench.report.summary([row], [])


@pytest.mark.parametrize("kind", ["trained-like", "untrained"])
@pytest.mark.parametrize("gts", [1, 40])
def test_megviis_steps_are_those_of_libreyolo(kind, gts):
    nn = pytest.importorskip("libreyolo.models.yolox.nn")
    cls, obj, boxes, centers, gt_boxes, labels = cases.predictions(kind, gts, seed=gts, size=320)
    as_centre = lambda b: torch.cat([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], 1)  # noqa: E731
    shifts = centers[:, :2] / centers[:, 2:] - 0.5
    head = nn.YOLOXHead(80, width=0.125)
    _, positive, iou, owner, count = head.get_assignments(
        0, gts, as_centre(gt_boxes), labels, as_centre(boxes), centers[None, :, 2], shifts[None, :, 0],
        shifts[None, :, 1], cls[None], obj[None, :, None],
    )  # fmt: skip
    scores = cls.sigmoid() * obj.sigmoid()[:, None]
    gt_index, matched = peers.megvii_assign(scores, centers, boxes, gt_boxes, labels)
    assert count > 0 and torch.equal((gt_index >= 0).nonzero()[:, 0], positive.nonzero()[:, 0])
    assert torch.equal(gt_index[positive], owner)
    torch.testing.assert_close(matched[positive], iou)


@pytest.mark.slow
def test_works_without_the_peers():
    hide = "sys.modules.update(dict.fromkeys(('mmdet', 'mmcv', 'torchvision')))"
    result = bench("--only", "batched_nms", preparation=hide)
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("mmdet", "mmcv", "torchvision"):
        assert f"missing: {name}" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--threads", 0), "--threads must be at least 1, got 0"),
        (("--json", "/no/such/folder/b.json"), "the folder of /no/such/folder/b.json does not exist"),
        (("--device", "xpu"), "--device xpu: this build has backends for cpu, npu, cuda only"),
    ],
)
def test_bad_options(options, message):
    result = bench(*options)
    assert result.returncode == 2
    assert message in result.stderr


def test_the_shapes_of_yolox_m_are_those_of_mmdet():
    config = Path(mmdet_file).parent / ".mim/configs/yolox/yolox_m_8x8_300e_coco.py"
    state = build_detector(Config.fromfile(str(config)).model).state_dict().values()
    assert sorted(cases.yolox_m_shapes()) == sorted(tuple(t.shape) for t in state if t.is_floating_point())


@pytest.mark.slow
def test_steps_with_json_chart_and_profile(tmp_path):
    result = train_bench("--json", tmp_path / "t.json", "--plot", tmp_path / "t.png", "--profile")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "parity: assignments, losses and gradients agree" in result.stdout
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((tmp_path / "t.json").read_text())
    [found] = data["results"]
    assert found["gts"] == 10
    assert {"cpu", "cores", "instructions", "torch", "date"} <= data["machine"].keys()
    for name in ("mmdet", "mmdet bfloat16", "plugin", "plugin bfloat16"):
        side = found["sides"][name]
        assert side["step"] > sum(side["stages"].values()) * 0.5 > 0
        assert 0 < side["outside the network"] < 1
    assert all(all_calls > 1000 for _, all_calls in (side["all"] for side in found["profile"].values()))
    assert "missing: LibreYOLO" in result.stdout or "LibreYOLO 1.6" in found["sides"]


@pytest.mark.slow
def test_a_step_with_another_assignment_is_a_mismatch():
    replace = (
        "import yolox_ops; right = yolox_ops.simota_assign;"
        " yolox_ops.simota_assign = lambda *a: (right(*a)[0].roll(1, 1), right(*a)[1])"
    )
    result = train_bench(preparation=replace)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "simota_assign: image 0" in result.stdout
    assert "priors have another gt, of" in result.stdout
    assert "DIFFER" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rounds", 0), "--rounds must be at least 1, got 0"),
        (("--gts", -1), "--gts must be at least 0, got -1"),
        (("--config", "yolox_xl"), "--config must be one of"),
    ],
)
def test_bad_options_of_the_step_benchmark(options, message):
    result = train_bench(*options)
    assert result.returncode == 2
    assert message in result.stderr


def pipeline_bench(*options, preparation=""):
    few = ("--samples", 4, "--images", 6, "--workers", 1)
    return run("pipeline_bench", *few, *options, preparation=preparation)


@pytest.mark.slow
def test_samples_with_json_and_chart(tmp_path):
    result = pipeline_bench("--json", tmp_path / "p.json", "--plot", tmp_path / "p.png")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "parity: 4 samples are equal, bit by bit" in result.stdout
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((tmp_path / "p.json").read_text())
    for name in ("mmdet", "plugin", "plugin, cache=ram"):
        side = data["sides"][name]
        assert sum(side["stages"].values()) > 0
        assert side["images a second"]["1"] > 0
    assert data["sides"]["plugin, cache=ram"]["stages"]["read, decode"] == 0
    assert data["sides"]["mmdet"]["stages"]["read, decode"] > 0


@pytest.mark.slow
def test_another_blend_is_a_mismatch():
    replace = (
        "from yolox_plugin.core import mixup as p; right = p.mixup_blend;"
        " p.mixup_blend = lambda image, *a: right(image ^ 1, *a)"
    )
    result = pipeline_bench(preparation=replace)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "MISMATCH of plugin, seed" in result.stdout
    assert "DIFFER" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--samples", 1), "--samples must be at least 2, got 1"),
        (("--workers", 0), "--workers must be at least 1, got 0"),
        (("--plot", "/no/such/folder/b.png"), "the folder of /no/such/folder/b.png does not exist"),
    ],
)
def test_bad_options_of_the_pipeline_benchmark(options, message):
    result = pipeline_bench(*options)
    assert result.returncode == 2
    assert message in result.stderr


@pytest.fixture
def docs(monkeypatch, tmp_path):
    """The benchmarks' `figures`, at work on a copy of docs/."""
    for page in {page for page, _ in figures.TABLES.values()}:
        shutil.copy(figures.DOCS / page, tmp_path)
    shutil.copytree(figures.DOCS / "figures", tmp_path / "figures")
    monkeypatch.setattr(figures, "DOCS", tmp_path)
    return figures


def test_tables_of_the_docs_are_those_of_the_committed_runs():
    runs = {name: figures.read(name) for name in figures.TABLES}
    for page in {page for page, _ in figures.TABLES.values()}:
        assert (figures.DOCS / page).read_text() == figures.with_tables(page, runs)


def test_one_command_redraws_tables_and_charts(docs, tmp_path, capsys):
    data = docs.read("train")
    data["machine"]["cpu"] = "Another Processor"
    data["results"][0]["sides"]["plugin"]["stages"]["assignment"] = 0.0123
    (tmp_path / "figures/train.json").write_text(json.dumps(data))
    (tmp_path / "figures/npu.json").unlink()
    npu = (tmp_path / "npu.md").read_text()
    assert docs.main([]) == 1
    assert "docs/figures/npu.json is missing" in capsys.readouterr().out
    text = (tmp_path / "training.md").read_text()
    assert "One run on Another Processor" in text and "| 12.3 |" in text
    assert (tmp_path / "npu.md").read_text() == npu
    for chart in ("train_bench.png", "pipeline_bench.png"):
        assert (tmp_path / chart).read_bytes().startswith(b"\x89PNG")


def test_a_page_without_its_markers_is_an_error(docs, tmp_path):
    (tmp_path / "npu.md").write_text("nothing")
    with pytest.raises(ValueError, match=r"docs/npu.md must have <!-- npu.json: .* once, has them 0 times"):
        docs.with_tables("npu.md", {"npu": docs.read("npu")})


def counts(launches, waits, ai_cpu):
    return {"launches": launches, "host syncs": waits, "AICPU risk": ai_cpu, "copies": 0}


def counted_run(**plugin):
    """A run of two numbers of gts, which MMDetection's loss depends on and the plugin's does not."""
    rows = {
        "mmdet": [counts(5000, 100, 50), counts(1000, 20, 10), counts(3000, 60, 40)],
        "plugin": [counts(1000, 0, 0) | plugin, counts(100, 0, 0), counts(100, 0, 0)],
    }
    names = ("step, float16", "head.loss, 10 gts", "head.loss, 30 gts")
    found = [
        {"what": what, "who": who, **row} for who, some in rows.items() for what, row in zip(names, some, strict=True)
    ]
    return {"machine": {"SOC": "A2", "images": 8}, "rows": found}


GIVEN = {"launch": 10.0, "wait": 50.0, "ai-cpu": 100.0, "device": 50.0, "sample": 20.0}


def test_modelled_images_a_second():
    mmdet10, mmdet30, plugin = npu_model.modelled(counted_run(), GIVEN, workers=4)
    assert [row.what for row in (mmdet10, plugin)] == ["A2, mmdet, 10 gts", "A2, plugin, 10 to 30 gts"]
    assert mmdet10.step == pytest.approx(0.05 + 0.005 + 0.005)  # the host's 5000 launches are the device's time
    assert mmdet30.step == pytest.approx(0.07 + 0.007 + 0.008)  # 7000 launches, 140 waits, 80 calls on the AI CPU
    assert mmdet30.rate == pytest.approx(64 / 0.085)
    assert plugin.rate == pytest.approx(64 / 0.05) == plugin.low == plugin.high  # no cost is assumed
    assert npu_model.modelled(counted_run(), GIVEN, workers=2)[2].rate == pytest.approx(800)  # the loader's


def test_assumed_costs_alone_are_doubled_and_halved():
    assumed = npu_model.modelled(counted_run(), {}, workers=4)[1]
    assert (assumed.low * 2, assumed.high / 2) == pytest.approx((assumed.rate, assumed.rate))
    some = npu_model.modelled(counted_run(), {"launch": 10.0, "device": 50.0}, workers=4)[1]
    assert some.rate / 2 < some.low < some.rate < some.high < some.rate * 2


@pytest.mark.parametrize("given", [{}, GIVEN, {"device": 1.0}])
@pytest.mark.parametrize("what", ["launches", "host syncs", "AICPU risk"])
def test_a_step_that_asks_less_is_not_modelled_slower(given, what):
    rates = [
        npu_model.modelled(counted_run(**{what: count}), given, workers=4)[-1].rate
        for count in (20000, 10000, 5000, 500, 100, 0)
    ]
    assert rates == sorted(rates) and rates[0] < rates[-1]


def test_the_model_of_the_committed_counts(capsys, tmp_path):
    assert npu_model.main(["--plot", str(tmp_path / "m.png")]) == 0
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    text = capsys.readouterr().out
    assert "trust it to a factor of 2" in text
    assert all(what in text for what, _ in npu_model.PUBLISHED)
    for committed in figures.read("npu_model").values():
        soc = committed["machine"]["SOC"]
        step = next(row for row in committed["rows"] if (row["what"], row["who"]) == ("step, float16", "mmdet"))
        by_gts = npu_model.counted(committed, "mmdet")
        assert step.items() >= by_gts[10].items() and list(by_gts) == [10, 30, 60, 120]
        rows = npu_model.modelled(committed, {}, npu_model.WORKERS)
        mmdet, plugin = ([row.rate for row in rows if row.who == who] for who in ("mmdet", "plugin"))
        assert mmdet == sorted(mmdet, reverse=True) and min(plugin) > max(mmdet)
        assert all(f"| {row.what}" in text for row in rows) and f"- {soc}: " in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--launch", 0), "--launch must be more than 0, got 0"),
        (("--workers", 0), "--workers must be at least 1, got 0"),
        (("--plot", "/no/such/folder/m.png"), "the folder of /no/such/folder/m.png does not exist"),
        (("no.json",), "no.json does not exist"),
        ((figures.DOCS / "figures/ops.json",), "expected what npu_launch_bench.py --json writes of YOLOX-M on"),
    ],
)
def test_bad_options_of_the_model(options, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        npu_model.main([str(option) for option in options])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
