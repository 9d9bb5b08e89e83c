"""The plugin's assigner and head beside MMDetection's own, on the same weights and batches."""

import pytest
import torch
import torch.distributed as dist
from batches import CONFIGS, build
from mmcv import Config, ConfigDict
from mmdet.core import MlvlPointGenerator
from mmdet.core.bbox.assigners.sim_ota_assigner import SimOTAAssigner as StockAssigner
from mmdet.models.dense_heads.yolox_head import YOLOXHead as StockHead
from scenes import batch, predictions
from torch._subclasses.fake_tensor import FakeTensorMode

from yolox_plugin.core.predictions import grid_priors
from yolox_plugin.core.targets import bucket, constant
from yolox_plugin.mmdet2.assigner import SimOTAAssigner
from yolox_plugin.mmdet2.head import YOLOXHead
from yolox_plugin.network import quicken
from yolox_plugin.precision import Precision


def detector(name, *, stock):
    """A detector from MMDetection's unmodified config, on MMDetection's own classes or on the plugin's."""
    model = build(Config.fromfile(str(CONFIGS / f"{name}_8x8_300e_coco.py")).model, stock=stock)
    assert type(model.bbox_head) is (StockHead if stock else YOLOXHead)
    assert type(model.bbox_head.assigner) is (StockAssigner if stock else SimOTAAssigner)
    return model.train()


def losses_and_gradients(head, levels, boxes, labels):
    for tensor in (t for level in levels for t in level):
        tensor.grad = None
    losses = head.loss(*levels, [b.clone() for b in boxes], labels, [{}] * len(boxes))
    sum(losses.values()).backward()
    # mmdet's IoU of no boxes is cut off from them: None stands for 0.
    grads = [torch.zeros_like(t) if t.grad is None else t.grad for level in levels for t in level]
    return losses, grads


@pytest.fixture
def heads():
    return [detector("yolox_nano", stock=stock).bbox_head for stock in (True, False)]


@pytest.mark.parametrize("use_l1", [False, True])
@pytest.mark.parametrize(
    "gts", [(10, 30), (0, 25, 1), (0, 0), (200,), (1, 60, 3, 0)], ids=lambda gts: "-".join(map(str, gts))
)
def test_losses_and_gradients_of_trained_like_predictions(heads, gts, use_l1):
    _, boxes, labels = batch(3, gts, 320)
    levels = predictions(4, boxes, labels, 320)
    results = []
    for head in heads:
        head.use_l1 = use_l1
        results.append(losses_and_gradients(head, levels, boxes, labels))
    (theirs, their_gradients), (ours, our_gradients) = results
    assert list(ours) == list(theirs)
    assert ("loss_l1" in ours) == use_l1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("use_l1", [False, True])
@pytest.mark.parametrize("iou_loss", ["square", "log", "linear"])
@pytest.mark.parametrize("gts", [(10, 30), (0, 25, 1), (0, 0), (200,)], ids=lambda gts: "-".join(map(str, gts)))
def test_static_shapes_give_the_same_losses_and_gradients(heads, gts, iou_loss, use_l1):
    """The path of accelerators, here on the CPU."""
    _, boxes, labels = batch(3, gts, 320)
    levels = predictions(4, boxes, labels, 320)
    with torch.no_grad():  # where no positive is: the area of that box is infinite
        levels[1][0][0, 2:, 0, 0] = 60.0
    head = heads[1]
    head.use_l1, head.loss_bbox.mode = use_l1, iou_loss
    results = []
    for static_shapes in (False, True):
        for tensor in (t for level in levels for t in level):
            tensor.grad = None
        losses = head._batch_loss(head._flatten(*levels), boxes, labels, static_shapes=static_shapes)
        sum(losses.values()).backward()
        # mmdet's IoU of no boxes is cut off from them: None stands for 0.
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for level in levels for t in level]
        results.append((losses, grads))
    (gathered, their_gradients), (masked, our_gradients) = results
    assert list(masked) == list(gathered)
    torch.testing.assert_close(masked, gathered, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-4, atol=1e-6)


def test_losses_of_another_kind_are_asked_themselves(heads, monkeypatch):
    _, boxes, labels = batch(3, (10, 3), 320)
    levels = predictions(4, boxes, labels, 320)
    head = heads[1]
    assert head._has_standard_losses()
    head.loss_bbox = torch.nn.L1Loss(reduction="sum")
    assert not head._has_standard_losses()
    masked, gathered = (head._batch_loss(head._flatten(*levels), boxes, labels, static_shapes=s) for s in (True, False))
    torch.testing.assert_close(masked, gathered)


@pytest.mark.parametrize(("count", "padded"), [(0, 8), (1, 8), (8, 8), (9, 16), (30, 32), (120, 128), (129, 256)])
def test_buckets(count, padded):
    assert bucket(count) == padded


def test_assign_result_has_the_fields_of_stock(situation):
    stock, ours = StockAssigner(center_radius=2.5), SimOTAAssigner(center_radius=2.5)
    for gts in (0, 1, 50):
        case = situation(7, gts=gts, size=320)
        case["gt_boxes"].mul_(0.5)  # leaves priors that belong to nobody
        arguments = (
            case["scores"][0], case["centers"], case["boxes"][0], case["gt_boxes"][0], case["gt_labels"][0]
        )  # fmt: skip
        a, b = stock.assign(*arguments), ours.assign(*arguments)
        assert a.num_gts == b.num_gts
        for field in ("gt_inds", "labels", "max_overlaps"):
            theirs, mine = getattr(a, field), getattr(b, field)
            assert mine.dtype == theirs.dtype
            torch.testing.assert_close(mine, theirs)
        assert (b.gt_inds > 0).any() == (gts > 0)


def assigner_arguments(situation, gts=20):
    case = situation(7, gts=gts, size=320)
    return {
        "pred_scores": case["scores"][0], "priors": case["centers"], "decoded_bboxes": case["boxes"][0],
        "gt_bboxes": case["gt_boxes"][0].round(), "gt_labels": case["gt_labels"][0],
    }  # fmt: skip


def assert_same_assignment(arguments, ours=None, **more):
    theirs = StockAssigner().assign(*arguments.values(), **more)
    mine = (ours or SimOTAAssigner()).assign(*arguments.values(), **more)
    assert mine.num_gts == theirs.num_gts
    for field in ("gt_inds", "labels", "max_overlaps"):
        torch.testing.assert_close(getattr(mine, field), getattr(theirs, field), msg=field)
    return mine


@pytest.mark.parametrize(
    "changes",
    [
        {"gt_labels": torch.int32}, {"gt_labels": torch.uint8}, {"gt_labels": torch.float32}, {"priors": torch.int64},
        {"gt_bboxes": torch.int64}, {"gt_bboxes": torch.float64, "priors": torch.int32},
    ],
    ids=str,
)  # fmt: skip
def test_the_assigner_takes_numbers_of_any_type(situation, changes):
    arguments = assigner_arguments(situation)
    arguments |= {name: arguments[name].to(dtype) for name, dtype in changes.items()}
    assert (assert_same_assignment(arguments).gt_inds > 0).any()


def test_what_the_operator_does_not_compute_the_assigner_asks_stock(situation):
    arguments = assigner_arguments(situation)
    assert_same_assignment(arguments, eps=0.1)
    with pytest.raises(ValueError, match="keep_every_gt=True needs eps=1e-7"):
        SimOTAAssigner(keep_every_gt=True).assign(*arguments.values(), eps=0.1)
    nothing = {**arguments, "gt_bboxes": torch.zeros(0, 4), "gt_labels": None}
    assert SimOTAAssigner().assign(*nothing.values()).labels is None
    arguments["decoded_bboxes"].requires_grad_()
    assert assert_same_assignment(arguments).max_overlaps.requires_grad


def test_a_piece_of_the_assigner_that_a_subclass_replaces_is_asked(situation):
    class Mine(SimOTAAssigner):
        def dynamic_k_matching(self, cost, pairwise_ious, num_gt, valid_mask):
            valid_mask[:] = False
            return pairwise_ious.new_zeros(0), torch.zeros(0, dtype=torch.long)

    assert not Mine().assign(*assigner_arguments(situation).values()).gt_inds.any()


@pytest.mark.parametrize("labels", [torch.int32, torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize("coordinates", [torch.int64, torch.float64], ids=str)
@pytest.mark.parametrize("static_shapes", [False, True])
def test_the_head_takes_gts_of_any_type(heads, labels, coordinates, static_shapes):
    _, boxes, classes = batch(3, (10, 3), 320)
    boxes = [b.round() for b in boxes]
    levels = predictions(4, boxes, classes, 320)
    flat = heads[1]._flatten(*levels)
    expected = heads[1]._batch_loss(flat, boxes, classes, static_shapes)
    given = [b.to(coordinates) for b in boxes], [c.to(labels) for c in classes]
    torch.testing.assert_close(heads[1]._batch_loss(flat, *given, static_shapes), expected)


@pytest.mark.parametrize("name", ["_bbox_decode", "_get_target_single", "_get_l1_target", "_bboxes_nms"])
@pytest.mark.parametrize("way", ["subclass", "instance", "patched stock class"])
def test_a_piece_of_the_head_that_somebody_replaces_is_asked(heads, monkeypatch, name, way):
    """By the stock class's own code, which it was written for."""
    head = heads[1]
    head.use_l1 = True
    calls = []

    def mine(self, *args, **kwargs):
        calls.append(name)
        return original(self, *args, **kwargs)

    original = getattr(StockHead, name)
    if way == "subclass":
        head.__class__ = type("Mine", (YOLOXHead,), {name: mine})
    elif way == "instance":
        setattr(head, name, mine.__get__(head))
    else:
        monkeypatch.setattr(StockHead, name, mine)
    _, boxes, labels = batch(5, (12, 40), 320)
    levels = predictions(6, boxes, labels, 320)
    head.loss(*levels, boxes, labels, [{}] * 2)
    with torch.no_grad():
        head.get_bboxes(*levels, img_metas=[{"scale_factor": 1.0}] * 2)
    assert calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0, 0.5])
def test_priors_are_mmdets(offset, dtype):
    strides, sizes = [(8, 8), (16, 12), (32, 32)], ((5, 7), (3, 4), (1, 2))
    stock = MlvlPointGenerator(strides, offset).grid_priors(list(sizes), dtype, "cpu", with_stride=True)
    priors, centers = grid_priors(tuple(strides), offset, sizes, dtype, torch.device("cpu"))
    assert priors.dtype == dtype
    assert torch.equal(priors, torch.cat(stock))
    assert torch.equal(centers[:, :2], priors[:, :2] + priors[:, 2:] / 2)
    assert torch.equal(centers[:, 2:], priors[:, 2:])


def test_priors_of_somebody_else_are_asked_for(heads):

    _, boxes, labels = batch(5, (12, 40), 320)
    levels = predictions(6, boxes, labels, 320)
    losses = [head.loss(*levels, boxes, labels, [{}] * 2) for head in heads]
    for head in heads:
        head.prior_generator.offset = 0.25  # changed after a first use
    shifted = [head.loss(*levels, boxes, labels, [{}] * 2) for head in heads]
    torch.testing.assert_close(shifted[1], shifted[0], rtol=1e-5, atol=1e-6)
    assert shifted[1]["loss_bbox"] != losses[1]["loss_bbox"]

    class Mine(MlvlPointGenerator):
        def grid_priors(self, *args, **kwargs):
            return [level + 2 for level in super().grid_priors(*args, **kwargs)]

    for head in heads:
        head.prior_generator = Mine([8, 16, 32], offset=0)
    own = [head.loss(*levels, boxes, labels, [{}] * 2) for head in heads]
    torch.testing.assert_close(own[1], own[0], rtol=1e-5, atol=1e-6)


def test_an_evaluation_in_inference_mode_does_not_spoil_training(heads):
    """What it makes and keeps, training would refuse: "Inference tensors cannot be saved for backward"."""
    head = heads[1]
    size = 352  # that no other test has used
    grid_priors.kept.cache_clear(), constant.kept.cache_clear()
    _, boxes, labels = batch(3, (10, 3), size)
    levels = predictions(4, boxes, labels, size)
    with torch.inference_mode():
        head.get_bboxes(*levels, img_metas=[{"scale_factor": 1.0}] * 2)
        head._batch_loss(head._flatten(*levels), boxes, labels, static_shapes=True)
    losses, _ = losses_and_gradients(head, levels, boxes, labels)
    masked = head._batch_loss(head._flatten(*levels), boxes, labels, static_shapes=True)
    sum(masked.values()).backward()
    torch.testing.assert_close(masked, losses, rtol=1e-5, atol=1e-6)


def test_fake_tensors_are_not_kept(heads):
    """As torch.export and estimators of memory make them."""
    head = heads[1]
    grid_priors.kept.cache_clear(), constant.kept.cache_clear()
    _, boxes, labels = batch(3, (10, 3), 320)
    with FakeTensorMode():
        levels = [[torch.zeros(1, c, 320 // stride, 320 // stride) for stride in (8, 16, 32)] for c in (80, 4, 1)]
        assert type(head._flatten(*levels)[3]) is not torch.Tensor
        assert type(constant((1, 2), torch.float32, torch.device("cpu"))) is not torch.Tensor
    losses, _ = losses_and_gradients(head, predictions(4, boxes, labels, 320), boxes, labels)
    assert all(type(loss) is torch.Tensor and loss.isfinite() for loss in losses.values())
    assert type(constant((1, 2), torch.float32, torch.device("cpu"))) is torch.Tensor


@pytest.mark.parametrize(
    ("cls", "name"),
    [(StockHead, "loss"), (StockHead, "get_bboxes"), (StockHead, "_get_l1_target"), (StockHead, "_get_target_single"),
     (StockAssigner, "assign"), (StockAssigner, "dynamic_k_matching")],
)  # fmt: skip
def test_a_patch_of_stock_is_called(heads, monkeypatch, cls, name):
    """Made before the plugin was imported, or after it."""
    stock, calls = getattr(cls, name), []
    monkeypatch.setattr(cls, name, lambda *args, **kwargs: calls.append(name) or stock(*args, **kwargs))
    _, boxes, labels = batch(3, (10, 3), 320)
    levels = predictions(4, boxes, labels, 320)
    heads[1].use_l1 = True
    losses_and_gradients(heads[1], levels, boxes, labels)
    heads[1].get_bboxes(*levels, img_metas=[{"scale_factor": 1.0}] * 2)
    assert calls


@pytest.mark.parametrize("where", ["assigner.assign", "assigner.dynamic_k_matching", "sampler.sample"])
def test_a_patch_of_an_instance_is_called(heads, monkeypatch, where):
    part, name = where.split(".")
    part, calls = getattr(heads[1], part), []
    stock = getattr(part, name)
    monkeypatch.setattr(part, name, lambda *args, **kwargs: calls.append(name) or stock(*args, **kwargs))
    _, boxes, labels = batch(3, (10, 3), 320)
    losses_and_gradients(heads[1], predictions(4, boxes, labels, 320), boxes, labels)
    assert len(calls) >= 2


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_detections_have_gradients_if_anything_does(heads, branch):
    _, boxes, labels = batch(3, (10, 3), 320)
    levels = predictions(4, boxes, labels, 320)
    for i, tensors in enumerate(levels):
        for tensor in tensors:
            tensor.requires_grad_(i == branch)
    found = [head.get_bboxes(*levels, img_metas=[{"scale_factor": 1.0}] * 2) for head in heads]
    assert [d.requires_grad for d, _ in found[1]] == [d.requires_grad for d, _ in found[0]] == [True, True]


def test_what_is_kept_for_later_is_bounded(heads):
    for i in range(1, 60):
        levels = [[torch.zeros(1, c, i, i)] * 3 for c in (80, 4, 1)]
        heads[1]._flatten(*levels)
        constant((i,), torch.float32, torch.device("cpu"))
    assert max(made.kept.cache_info().currsize for made in (grid_priors, constant)) == 32


@pytest.fixture
def one_of_several():
    """A process group, of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("own_assigner", [False, True])
@pytest.mark.parametrize("value", [0.0, 100.0, torch.inf, torch.nan])
def test_without_a_positive_every_prediction_is_still_in_the_graph(heads, one_of_several, own_assigner, value):
    """Or DistributedDataParallel waits for its gradient. That is 0 even where sizes overflow, or are nothing at all."""
    head = heads[1]
    head.use_l1 = True
    if own_assigner:
        head.assigner = StockAssigner()
    _, boxes, labels = batch(3, (0, 0), 320)
    levels = predictions(4, boxes, labels, 320)
    with torch.no_grad():
        levels[1][0][:] = value
    losses = head.loss(*levels, boxes, labels, [{}] * 2)
    sum(losses.values()).backward()
    assert all(loss.requires_grad for loss in losses.values())
    assert losses["loss_bbox"] == losses["loss_l1"] == 0
    for level in levels[1]:
        assert torch.equal(level.grad, torch.zeros_like(level))
    assert all(level.grad.any() for level in levels[2])


def test_alone_a_batch_without_a_positive_moves_what_it_moves_in_stock(heads):
    """No gradient, not one of 0, which momentum and weight decay would take for a step."""
    _, boxes, labels = batch(3, (0, 0), 320)
    gradients = []
    for head in heads:
        levels = predictions(4, boxes, labels, 320)
        sum(head.loss(*levels, boxes, labels, [{}] * 2).values()).backward()
        gradients.append([level.grad for level in levels[1]])
    assert gradients == [[None] * 3] * 2


def test_errors_are_not_taken_for_lack_of_memory(heads):
    """Stock answers any RuntimeError with `out of memory` and a second try (open-mmlab/mmdetection#6731)."""
    _, boxes, labels = batch(3, (5,), 320)
    levels = predictions(4, boxes, labels, 320)
    with pytest.raises(ValueError, match=r"gt_labels must be in \[0, 80\), got 80"):
        heads[1].loss(*levels, boxes, [torch.full_like(labels[0], 80)], [{}])


def test_an_assigner_of_somebody_else_is_asked_image_by_image(heads):
    class Mine(SimOTAAssigner):
        calls = 0

        def assign(self, *args, **kwargs):
            Mine.calls += 1
            return super().assign(*args, **kwargs)

    _, boxes, labels = batch(3, (10, 30), 320)
    levels = predictions(4, boxes, labels, 320)
    expected, _ = losses_and_gradients(heads[1], levels, boxes, labels)
    heads[1].assigner = Mine(center_radius=2.5)
    losses, _ = losses_and_gradients(heads[1], levels, boxes, labels)
    assert Mine.calls == 2
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize(
    "nms",
    [
        {"type": "nms", "iou_threshold": 0.65},
        {"iou_threshold": 0.5, "max_num": 7},
        {"type": "nms", "iou_threshold": 0.65, "max_num": 100, "split_thr": 10},
        {"type": "nms", "iou_threshold": 0.65, "class_agnostic": True},
        {"type": "nms", "iou_threshold": 1.5},
        {"type": "soft_nms", "iou_threshold": 0.3, "min_score": 0.05},
    ],
    ids=str,
)
@pytest.mark.parametrize("rescale", [False, True])
def test_detections(heads, nms, rescale):
    _, boxes, labels = batch(5, (12, 0, 40), 320)
    levels = predictions(6, boxes, labels, 320)
    metas = [{"scale_factor": torch.tensor([1.5, 1.25, 1.5, 1.25]).numpy() * (i + 1)} for i in range(3)]
    cfg = ConfigDict(score_thr=0.01, nms=nms)
    with torch.no_grad():
        theirs, ours = (head.get_bboxes(*levels, img_metas=metas, cfg=cfg, rescale=rescale) for head in heads)
    assert len(ours) == len(theirs) == 3
    assert len(ours[0][0]) > 5
    for (our_boxes, our_labels), (their_boxes, their_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(our_labels, their_labels)
        torch.testing.assert_close(our_boxes, their_boxes, rtol=1e-5, atol=1e-5)


def test_nothing_above_the_threshold(heads):
    """Five columns even then; stock gives four, which breaks who reads the score column."""
    _, boxes, labels = batch(5, (3,), 320)
    levels = predictions(6, boxes, labels, 320)
    cfg = ConfigDict(score_thr=1.0, nms={"type": "nms", "iou_threshold": 0.65})
    with torch.no_grad():
        [(detections, classes)] = heads[1].get_bboxes(*levels, img_metas=[{"scale_factor": 1.0}], cfg=cfg)
    assert detections.shape == (0, 5)
    assert classes.shape == (0,)


def test_detections_have_gradients_where_stock_gives_them(heads):
    _, boxes, labels = batch(5, (12,), 320)
    levels = predictions(6, boxes, labels, 320)
    gradients = []
    for head in heads:
        [(detections, _)] = head.get_bboxes(*levels, img_metas=[{"scale_factor": 1.0}])
        gradients.append(torch.autograd.grad(detections.sum(), levels[1]))
    torch.testing.assert_close(gradients[1], gradients[0])
    assert any(gradient.any() for gradient in gradients[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolox_nano", "yolox_m"])
def test_the_network_has_the_outputs_gradients_and_statistics_of_stocks(name):
    """In float64, where rounding decides nothing. (Stock's assigner knows no float64.)"""
    results = []
    for stock in (True, False):
        torch.manual_seed(0)
        model = detector(name, stock=stock)
        model.init_weights()
        model.double()
        levels = model.bbox_head(model.extract_feat(batch(1, (12, 5), 256)[0].double()))
        outputs = {f"{kind} {i}": level for kind, kinds in enumerate(levels) for i, level in enumerate(kinds)}
        sum((out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum() for out in outputs.values()).backward()
        results.append((outputs, {name: p.grad for name, p in model.named_parameters()}, dict(model.named_buffers())))
    for theirs, ours in zip(*results, strict=True):
        assert ours.keys() == theirs.keys()
        for where, value in theirs.items():
            atol = 1e-8 * float(value.abs().max()) + 1e-12
            torch.testing.assert_close(ours[where], value, rtol=1e-7, atol=atol, msg=where)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolox_nano", "yolox_m"])
def test_steps_of_the_whole_detector(name):
    """Forward, backward and SGD from the unmodified config; before each step both start from the same weights."""
    torch.manual_seed(0)
    stock = detector(name, stock=True)
    stock.init_weights()
    plugin = detector(name, stock=False)
    quicken(stock)  # as the last bits of its own network would make another assignment
    Precision(None).prepare(stock, "cpu")
    models = (stock, plugin)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9, nesterov=True) for m in models]
    situations = [(20, 5), (0, 30), (200, 3), (0, 0), (12, 60), (1, 1)]
    for step, gts in enumerate(situations):
        plugin.load_state_dict(stock.state_dict())
        image, boxes, labels = batch(step, gts, 256)
        results = []
        for model, optimizer in zip(models, optimizers, strict=True):
            model.bbox_head.use_l1 = step >= 3
            optimizer.zero_grad()
            metas = [{"img_shape": (256, 256, 3)}] * len(gts)
            losses = model.forward_train(image.clone(), metas, [b.clone() for b in boxes], labels)
            sum(losses.values()).backward()
            optimizer.step()
            results.append(losses)
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
        assert ("loss_l1" in results[1]) == (step >= 3)
        for (where, theirs), ours in zip(stock.named_parameters(), plugin.parameters(), strict=True):
            scale = float(theirs.grad.abs().max())
            torch.testing.assert_close(
                ours.grad, theirs.grad, rtol=1e-4, atol=1e-5 * scale + 1e-7, msg=lambda m, w=where: f"{w}: {m}"
            )
