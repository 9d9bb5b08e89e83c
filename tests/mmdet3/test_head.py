"""The plugin's assigner and head for MMDetection 3 beside MMDetection's own, on the same predictions."""

import re
from unittest.mock import patch

import pytest
import torch
from mmdet.models.dense_heads import YOLOXHead as StockHead
from mmdet.models.dense_heads import yolox_head
from mmdet.models.task_modules.assigners import BboxOverlaps2D
from mmdet.models.task_modules.assigners import SimOTAAssigner as StockAssigner
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from samples import detector, head, instances, train_data
from scenes import batch, predictions

from yolox_plugin.core.predictions import decode, flatten
from yolox_plugin.mmdet3.assigner import SimOTAAssigner
from yolox_plugin.mmdet3.head import YOLOXHead

SIZE = 320
COUNTS = [(0,), (1,), (10,), (200,), (10, 30), (0, 25, 1), (0, 0)]
IDS = {"ids": lambda gts: "-".join(map(str, gts))}


@pytest.fixture
def heads():
    made = [head(stock=stock) for stock in (True, False)]
    assert [type(h) for h in made] == [StockHead, YOLOXHead]
    assert [type(h.assigner) for h in made] == [StockAssigner, SimOTAAssigner]
    return made


def scene(gts, seed=3):
    """The predictions of a trained network for a batch, its gts, and what the head is told of its images."""
    _, boxes, labels = batch(seed, gts, SIZE)
    metas = [{"scale_factor": (1.5 * (i + 1), 1.25 * (i + 1))} for i in range(len(gts))]
    return predictions(seed + 1, boxes, labels, SIZE), instances(boxes, labels), metas


def losses_and_gradients(losses, levels, **options):
    """The losses and the gradients of all predictions, each of which has one."""
    tensors = [tensor for level in levels for tensor in level]
    return losses, torch.autograd.grad(sum(losses.values()), tensors, **options)


# Assigner


def images(gts, seed=5):
    """The predictions of a trained network for one image as the assigner gets them, and its gts."""
    levels, [gt], _ = scene((gts,), seed)
    flat = flatten(*levels, [(8, 8), (16, 16), (32, 32)], 0)
    scores = (flat.cls_logits.sigmoid() * flat.obj_logits.sigmoid()[..., None]).sqrt()
    boxes = decode(flat.box_preds, flat.priors)
    return InstanceData(bboxes=boxes[0].detach(), scores=scores[0].detach(), priors=flat.centers), gt


def assert_same_assignment(pred, gt, ours=None, stock=None):
    mine, theirs = (ours or SimOTAAssigner()).assign(pred, gt), (stock or StockAssigner()).assign(pred, gt)
    assert mine.num_gts == theirs.num_gts == len(gt)
    for field in ("gt_inds", "labels", "max_overlaps"):
        torch.testing.assert_close(getattr(mine, field), getattr(theirs, field), msg=field)
    return mine


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gts", [0, 1, 10, 200])
@pytest.mark.parametrize(
    "options", [{}, {"center_radius": 1.0, "candidate_topk": 5, "iou_weight": 2.0, "cls_weight": 0.5}], ids=str
)
def test_an_assignment_has_the_fields_of_stock(gts, options, seed):
    pred, gt = images(gts, seed)
    found = assert_same_assignment(pred, gt, SimOTAAssigner(**options), StockAssigner(**options))
    assert (found.gt_inds > 0).any() == (gts > 0)
    assert gts != 10 or {0, *range(1, 11)} == set(found.gt_inds.tolist())


def test_the_inputs_of_an_assignment_stay_as_they_are():
    pred, gt = images(10)
    before = [value.clone() for each in (pred, gt) for value in each.values()]
    SimOTAAssigner().assign(pred, gt)
    assert all(map(torch.equal, before, [*pred.values(), *gt.values()]))


def test_gts_where_no_prior_is():
    """Stock says then that overlaps are 0, and not -100000."""
    pred, gt = images(3)
    gt.bboxes += 10 * SIZE
    assert not assert_same_assignment(pred, gt).max_overlaps.any()


@pytest.mark.parametrize("labels", [torch.int32, torch.uint8, torch.float32], ids=str)
def test_gts_of_any_type(labels):
    pred, gt = images(10)
    gt = InstanceData(bboxes=gt.bboxes.long(), labels=gt.labels.to(labels))
    assert (assert_same_assignment(pred, gt).gt_inds > 0).any()


def test_a_label_that_no_class_has():
    pred, gt = images(3)
    gt.labels[1] = 80
    with pytest.raises(ValueError, match=r"in \[0, 80\), got 80"):
        SimOTAAssigner().assign(pred, gt)


def test_every_gt_is_kept_if_it_is_asked_for():
    """Of two that are alike, stock gives all priors to one."""
    pred, gt = images(10)
    twice = InstanceData(bboxes=torch.cat([gt.bboxes, gt.bboxes[:1]]), labels=torch.cat([gt.labels, gt.labels[:1]]))
    found = assert_same_assignment(pred, twice)
    assert not {1, 11} <= set(found.gt_inds.tolist())
    kept = SimOTAAssigner(keep_every_gt=True).assign(pred, twice)
    assert set(kept.gt_inds.tolist()) == set(range(12))
    assert torch.equal(kept.labels[kept.gt_inds > 0], twice.labels[kept.gt_inds[kept.gt_inds > 0] - 1])


def test_the_head_keeps_every_gt(heads):
    cfg = ConfigDict(assigner={"type": "SimOTAAssigner", "center_radius": 2.5, "keep_every_gt": True})
    keeping = head(stock=False, train_cfg=cfg)
    assert keeping.assigner.parameters.keep_every_gt and keeping.assigner.center_radius == 2.5
    levels, [gt], metas = scene((10,))
    assert keeping.loss_by_feat(*levels, [gt], metas) == heads[1].loss_by_feat(*levels, [gt], metas)
    twice = InstanceData(bboxes=torch.cat([gt.bboxes, gt.bboxes]), labels=torch.cat([gt.labels, gt.labels]))
    assert keeping.loss_by_feat(*levels, [twice], metas) != heads[1].loss_by_feat(*levels, [twice], metas)


@TASK_UTILS.register_module(force=True)
class HalfOverlaps(BboxOverlaps2D):
    """Overlaps of a config's own kind."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs) / 2


class ManyPositives(SimOTAAssigner):
    """With a piece of its own: a tenth of all candidates is positive."""

    def dynamic_k_matching(self, cost, pairwise_ious, num_gt, valid_mask):
        matched = torch.arange(len(cost)) % 10 == 0
        valid_mask[valid_mask.clone()] = matched
        return pairwise_ious[matched].max(1)


def test_overlaps_of_another_kind_are_asked(heads):
    pred, gt = images(10)
    usual = SimOTAAssigner().assign(pred, gt)
    options = {"iou_calculator": {"type": "HalfOverlaps"}}
    found = assert_same_assignment(pred, gt, SimOTAAssigner(**options), StockAssigner(**options))
    assert found.max_overlaps.max() <= 0.5 < usual.max_overlaps.max()
    levels, gts, metas = scene((10, 3))
    for each, assigner in zip(heads, (StockAssigner, SimOTAAssigner), strict=True):
        each.assigner = assigner(**options)
    theirs, ours = (each.loss_by_feat(*levels, gts, metas) for each in heads)
    torch.testing.assert_close(ours, theirs)


def test_what_the_operator_does_not_compute_stock_does():
    pred, gt = images(10)
    pred.bboxes.requires_grad_()
    assert assert_same_assignment(pred, gt).max_overlaps.requires_grad
    with pytest.raises(ValueError, match="keep_every_gt=True needs"):
        SimOTAAssigner(keep_every_gt=True).assign(pred, gt)
    with torch.no_grad():
        assert not SimOTAAssigner(keep_every_gt=True).assign(pred, gt).max_overlaps.requires_grad


def test_boxes_that_are_no_tensors_go_to_stock(heads):
    """Which refuses them, in its own words."""
    pred, gt = images(10)
    levels, _, metas = scene((10,))
    boxed = InstanceData(bboxes=HorizontalBoxes(gt.bboxes), labels=gt.labels)
    calls = [each.assigner.assign for each in heads], [each.loss_by_feat for each in heads]
    for (theirs, ours), arguments in zip(calls, [(pred, boxed), (*levels, [boxed], metas)], strict=True):
        with pytest.raises(AssertionError) as refused:
            theirs(*arguments)
        with pytest.raises(AssertionError, match=f"^{re.escape(str(refused.value))}$"):
            ours(*arguments)


def test_an_assigner_of_somebody_else_is_asked_image_by_image(heads):
    levels, gts, metas = scene((10, 30))
    usual = heads[1].loss_by_feat(*levels, gts, metas)
    for each in heads:
        each.assigner = ManyPositives()
    with patch.object(ManyPositives, "assign", autospec=True, side_effect=ManyPositives.assign) as assign:
        theirs, ours = (each.loss_by_feat(*levels, gts, metas) for each in heads)
    assert assign.call_count == 4
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert ours["loss_cls"] != usual["loss_cls"]


# Losses


@pytest.mark.parametrize("use_l1", [False, True])
@pytest.mark.parametrize("gts", COUNTS, **IDS)
def test_losses_and_their_gradients(heads, gts, use_l1):
    levels, gt, metas = scene(gts)
    results = []
    for each in heads:
        each.use_l1 = use_l1
        results.append(losses_and_gradients(each.loss_by_feat(*levels, gt, metas), levels))
    (theirs, their_gradients), (ours, our_gradients) = results
    assert list(ours) == list(theirs) == ["loss_cls", "loss_bbox", "loss_obj", *(["loss_l1"] if use_l1 else [])]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-4, atol=1e-6)
    assert any(gradient.any() for gradient in our_gradients[3:6]) == any(gts)


@pytest.mark.parametrize("use_l1", [False, True])
@pytest.mark.parametrize("iou_loss", ["square", "log", "linear"])
@pytest.mark.parametrize("gts", COUNTS, **IDS)
def test_static_shapes_give_the_same_losses_and_gradients(heads, gts, iou_loss, use_l1):
    """The path of accelerators, here on the CPU."""
    levels, gt, _ = scene(gts)
    with torch.no_grad():  # where no positive is: the area of that box is infinite
        levels[1][0][0, 2:, 0, 0] = 60.0
    ours = heads[1]
    ours.use_l1, ours.loss_bbox.mode, ours.loss_cls.loss_weight = use_l1, iou_loss, 0.5
    assert ours._has_standard_losses()
    boxes, labels = [g.bboxes for g in gt], [g.labels for g in gt]
    results = []
    for static_shapes in (False, True):
        losses = ours._batch_loss(ours._flatten(*levels), boxes, labels, static_shapes)
        # mmdet's IoU of no boxes is cut off from them: None stands for 0.
        results.append(losses_and_gradients(losses, levels, materialize_grads=True))
    (gathered, their_gradients), (masked, our_gradients) = results
    assert list(masked) == list(gathered)
    torch.testing.assert_close(masked, gathered, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        {"loss_bbox": {"type": "GIoULoss", "reduction": "sum", "loss_weight": 5.0}},
        {"loss_cls": {"type": "MSELoss", "reduction": "sum"}},
        {"loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "reduction": "mean"}},
        {"loss_obj": {"type": "MSELoss", "reduction": "sum"}},
        {"loss_l1": {"type": "SmoothL1Loss", "reduction": "sum"}},
    ],
    ids=lambda loss: "-".join(f"{name}-{cfg['type']}-{cfg['reduction']}" for name, cfg in loss.items()),
)
def test_losses_of_another_kind_are_asked_themselves(heads, loss):
    levels, gt, metas = scene((10, 3))
    with_it = [head(stock=stock, **loss) for stock in (True, False)]
    for each in with_it:
        each.use_l1 = True
    assert not with_it[1]._has_standard_losses()
    theirs, ours = (losses_and_gradients(each.loss_by_feat(*levels, gt, metas), levels) for each in with_it)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    heads[1].use_l1 = True
    [name] = loss
    assert ours[0][name] != heads[1].loss_by_feat(*levels, gt, metas)[name]


@pytest.mark.parametrize("own_assigner", [False, True])
@pytest.mark.parametrize("value", [0.0, 100.0, torch.inf, torch.nan])
def test_without_a_positive_every_prediction_is_still_in_the_graph(heads, own_assigner, value):
    """Or DistributedDataParallel waits for its gradient. In the plugin's own code that is 0 even where sizes overflow,
    or are nothing at all."""
    ours = heads[1]
    ours.use_l1 = True
    levels, gt, metas = scene((0, 0))
    with torch.no_grad():
        levels[1][0][:] = value
    if own_assigner:
        ours.assigner = StockAssigner()
    losses, gradients = losses_and_gradients(ours.loss_by_feat(*levels, gt, metas), levels)
    assert all(loss.requires_grad for loss in losses.values())
    assert all(gradient.any() for gradient in gradients[6:])
    if value == 0 or not own_assigner:
        assert losses["loss_cls"] == losses["loss_bbox"] == losses["loss_l1"] == 0
        assert not any(gradient.any() for gradient in gradients[:6])


def test_without_a_positive_every_parameter_has_a_gradient():
    model, data = detector(), train_data(0, (0, 0))
    losses = model(torch.stack(data["inputs"]).float(), data["data_samples"], mode="loss")
    assert losses["loss_bbox"] == losses["loss_cls"] == 0
    sum(losses.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_errors_are_told(heads):
    levels, gt, metas = scene((5,))
    gt[0].labels[:] = 80
    with pytest.raises(ValueError, match=r"gt_labels must be in \[0, 80\), got 80"):
        heads[1].loss_by_feat(*levels, gt, metas)


# Detections


def assert_same_detections(ours, theirs, **tolerance):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert set(mine.keys()) == set(other.keys()) == {"bboxes", "scores", "labels"}
        assert torch.equal(mine.labels, other.labels)
        for field in ("bboxes", "scores"):
            torch.testing.assert_close(mine[field], other[field], **{"rtol": 1e-5, "atol": 1e-5, **tolerance})


@pytest.mark.parametrize("gts", COUNTS, **IDS)
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(
    "cfg",
    [
        {},
        {"score_thr": 0.3},
        {"score_thr": 0.0, "nms": {"iou_threshold": 0.5, "max_num": 7}},
        {"nms": {"type": "nms", "iou_threshold": 0.65, "max_num": 100, "split_thr": 10}},
        {"nms": {"type": "nms", "iou_threshold": 0.65, "class_agnostic": True}},
    ],
    ids=str,
)
@torch.no_grad()
def test_detections(heads, cfg, rescale, gts):
    levels, _, metas = scene(gts)
    cfg = ConfigDict({**heads[1].test_cfg, **cfg}) if cfg else None
    theirs, ours = (each.predict_by_feat(*levels, metas, cfg, rescale) for each in heads)
    assert_same_detections(ours, theirs)
    assert not any(gts) or max(map(len, ours)) > 0
    if cfg and "max_num" in cfg.nms:
        assert max(map(len, ours)) <= cfg.nms.max_num
    if cfg and any(gts):
        assert min(found.scores.min() for found in ours if len(found)) >= cfg.score_thr


@torch.no_grad()
def test_a_scale_factor_is_of_width_and_height(heads):
    levels, _, metas = scene((10,))
    plain, scaled = (heads[1].predict_by_feat(*levels, metas, rescale=rescale)[0] for rescale in (False, True))
    # Scaled boxes overlap as those did, so that the same ones stay.
    torch.testing.assert_close(scaled.bboxes * torch.tensor([1.5, 1.25, 1.5, 1.25]), plain.bboxes)


@pytest.mark.parametrize("scale_factor", [(2.0, 1.5), torch.tensor([2.0, 1.5]).numpy(), [2, 1.5]], ids=str)
@torch.no_grad()
def test_scale_factors_of_any_type(heads, scale_factor):
    levels, _, _ = scene((10,))
    theirs, ours = (each.predict_by_feat(*levels, [{"scale_factor": scale_factor}], rescale=True) for each in heads)
    assert_same_detections(ours, theirs)


@pytest.mark.parametrize("rescale", [False, True])
@torch.no_grad()
def test_nothing_above_the_threshold(heads, rescale):
    levels, _, metas = scene((3, 2))
    cfg = ConfigDict(heads[1].test_cfg | {"score_thr": 1.0})
    theirs, ours = (each.predict_by_feat(*levels, metas, cfg, rescale) for each in heads)
    assert_same_detections(ours, theirs)
    assert [(found.bboxes.shape, found.scores.shape, found.labels.shape) for found in ours] == [
        ((0, 4), (0,), (0,))
    ] * 2


@torch.no_grad()
def test_detections_without_nms_are_those_of_stock(heads):
    levels, _, metas = scene((10,))
    theirs, ours = (each.predict_by_feat(*levels, metas, with_nms=False) for each in heads)
    assert_same_detections(ours, theirs, rtol=0, atol=0)
    assert len(ours[0]) > len(heads[1].predict_by_feat(*levels, metas)[0])


@pytest.mark.parametrize(
    "nms",
    [
        {"type": "soft_nms", "iou_threshold": 0.3, "min_score": 0.05},
        {"type": "nms", "iou_threshold": 0.65, "class_agnostic": True},
        {"type": "nms", "iou_threshold": 1.5},
    ],
    ids=str,
)
@torch.no_grad()
def test_an_nms_of_another_kind_is_mmcvs(heads, nms):
    """Without mmcv's compiled operators there is no soft-NMS here to compare with; stock's code asks for it."""
    levels, _, metas = scene((10, 3))
    with patch.object(yolox_head, "batched_nms", side_effect=lambda b, s, l, cfg: (s[:3, None], [2, 0, 1])) as asked:  # noqa: E741
        found = heads[1].predict_by_feat(*levels, metas, ConfigDict(score_thr=0.01, nms=nms))
    assert [dict(call.args[3]) for call in asked.call_args_list] == [nms] * 2
    assert [len(each) for each in found] == [3, 3]


def test_detections_have_gradients_where_stock_gives_them(heads):
    levels, _, metas = scene((12,))
    gradients = []
    for each in heads:
        [found] = each.predict_by_feat(*levels, metas)
        gradients.append(torch.autograd.grad(found.bboxes.sum() + found.scores.sum(), [*levels[1], *levels[2]]))
    torch.testing.assert_close(gradients[1], gradients[0])
    assert any(gradient.any() for gradient in gradients[1])


# Precision


def lowered(levels):
    return [[tensor.detach().bfloat16() for tensor in level] for level in levels]


@torch.no_grad()
def test_detections_under_bfloat16_are_those_of_float32(heads):
    """All that is lost is what the network's outputs are rounded to. Stock decodes in bfloat16 as well, in which pixels
    beyond 256 are 2 apart."""
    levels, _, metas = scene((10, 30))
    low = lowered(levels)
    stock, ours = heads
    theirs = stock.predict_by_feat(*[[t.float() for t in level] for level in low], metas, rescale=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours.predict_by_feat(*low, metas, rescale=True)
    assert all(each.bboxes.dtype == each.scores.dtype == torch.float32 for each in found)
    assert_same_detections(found, theirs)

    everything = ConfigDict(stock.test_cfg | {"score_thr": -1.0})
    exact = stock.predict_by_feat(*[[t.float() for t in level] for level in low], metas, everything, with_nms=False)
    with torch.autocast("cpu", torch.bfloat16):
        rough = stock.predict_by_feat(*low, metas, everything, with_nms=False)
    off = max(float((a.bboxes - b.bboxes).abs().max()) for a, b in zip(exact, rough, strict=True))
    assert 1 < off < 10  # pixels


@pytest.mark.parametrize("use_l1", [False, True])
def test_losses_under_bfloat16_are_those_of_float32(heads, use_l1):
    levels, gt, metas = scene((10, 30))
    low = lowered(levels)
    stock, ours = heads
    stock.use_l1 = ours.use_l1 = use_l1
    theirs = stock.loss_by_feat(*[[t.float() for t in level] for level in low], gt, metas)
    with torch.autocast("cpu", torch.bfloat16):
        losses, rough = (each.loss_by_feat(*low, gt, metas) for each in (ours, stock))
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    torch.testing.assert_close(losses, theirs, rtol=1e-5, atol=1e-6)
    assert abs(rough["loss_bbox"].float() / theirs["loss_bbox"] - 1) > 0.005


# Pieces of somebody else


@pytest.mark.parametrize(
    "name", ["_bbox_decode", "_get_targets_single", "_get_l1_target", "_bbox_post_process", "loss_by_feat"]
)
@pytest.mark.parametrize("way", ["subclass", "instance", "patched stock class"])
def test_a_piece_of_the_head_that_somebody_replaces_is_asked(heads, monkeypatch, name, way):
    """By the stock class's own code, which it was written for."""
    ours = heads[1]
    ours.use_l1 = True
    calls = []

    def mine(self, *args, **kwargs):
        calls.append(name)
        return original(self, *args, **kwargs)

    original = getattr(StockHead, name)
    if way == "subclass":
        ours.__class__ = type("Mine", (YOLOXHead,), {name: mine})
    elif way == "instance":
        setattr(ours, name, mine.__get__(ours))
    else:
        monkeypatch.setattr(StockHead, name, mine)
    levels, gt, metas = scene((12, 40))
    ours.loss_by_feat(*levels, gt, metas)
    with torch.no_grad():
        ours.predict_by_feat(*levels, metas)
    assert calls


@pytest.mark.parametrize("name", ["assign", "dynamic_k_matching", "get_in_gt_and_in_center_info"])
@pytest.mark.parametrize("way", ["instance", "patched stock class"])
def test_a_patch_of_the_assigner_is_called(heads, monkeypatch, name, way):
    calls = []
    where = heads[1].assigner if way == "instance" else StockAssigner
    stock = getattr(where, name)
    monkeypatch.setattr(where, name, lambda *args, **kwargs: calls.append(name) or stock(*args, **kwargs))
    levels, gt, metas = scene((10, 3))
    heads[1].loss_by_feat(*levels, gt, metas)
    assert len(calls) == 2


def test_a_sampler_of_somebody_else_is_called(heads, monkeypatch):
    sampler, calls = heads[1].sampler, []
    stock = sampler.sample
    monkeypatch.setattr(sampler, "sample", lambda *args, **kwargs: calls.append(1) or stock(*args, **kwargs))
    levels, gt, metas = scene((10, 3))
    heads[1].loss_by_feat(*levels, gt, metas)
    assert len(calls) == 2


def test_priors_of_somebody_else_are_asked_for(heads):
    levels, gt, metas = scene((12, 40))
    usual = heads[1].loss_by_feat(*levels, gt, metas)
    for each in heads:
        each.prior_generator.offset = 0.25  # changed after a first use
    theirs, ours = (each.loss_by_feat(*levels, gt, metas) for each in heads)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert ours["loss_bbox"] != usual["loss_bbox"]

    class Mine(type(heads[0].prior_generator)):
        def grid_priors(self, *args, **kwargs):
            return [level + 2 for level in super().grid_priors(*args, **kwargs)]

    for each in heads:
        each.prior_generator = Mine([8, 16, 32], offset=0)
    theirs, ours = (each.loss_by_feat(*levels, gt, metas) for each in heads)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert ours["loss_bbox"] != usual["loss_bbox"]
    with torch.no_grad():
        theirs, ours = (each.predict_by_feat(*levels, metas) for each in heads)
    assert_same_detections(ours, theirs, rtol=0, atol=0)
