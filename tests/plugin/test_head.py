"""The plugin's assigner and head beside MMDetection's own, on the same weights and batches."""

import pytest
import torch
from batches import CONFIGS, batch
from mmcv import Config, ConfigDict
from mmdet.core.bbox.assigners.sim_ota_assigner import SimOTAAssigner as StockAssigner
from mmdet.core.bbox.builder import BBOX_ASSIGNERS
from mmdet.models import HEADS, build_detector
from mmdet.models.dense_heads.yolox_head import YOLOXHead as StockHead

from yolox_plugin.assigner import SimOTAAssigner
from yolox_plugin.head import YOLOXHead
from yolox_plugin.targets import bucket


def detector(name, monkeypatch, *, stock):
    """A detector from MMDetection's unmodified config, on MMDetection's own classes or on the plugin's."""
    cfg = Config.fromfile(str(CONFIGS / f"{name}_8x8_300e_coco.py"))
    with monkeypatch.context() as patch:
        if stock:
            patch.setitem(HEADS.module_dict, "YOLOXHead", StockHead)
            patch.setitem(BBOX_ASSIGNERS.module_dict, "SimOTAAssigner", StockAssigner)
        model = build_detector(cfg.model)
    assert type(model.bbox_head) is (StockHead if stock else YOLOXHead)
    assert type(model.bbox_head.assigner) is (StockAssigner if stock else SimOTAAssigner)
    return model.train()


def predictions(seed, boxes, labels, size, noise=0.1):
    """What a trained net might say: per level class scores, box predictions and objectness, as leaves."""
    g = torch.Generator().manual_seed(seed)
    levels = []
    for stride in (8, 16, 32):
        n = size // stride
        y, x = torch.meshgrid(torch.arange(n) * stride, torch.arange(n) * stride, indexing="ij")
        prior = torch.stack([x, y], -1).view(-1, 2).float()
        cls, box, obj = [], [], []
        for gt, label in zip(boxes, labels, strict=True):
            logits = torch.randn(n * n, 80, generator=g) - 5
            delta = torch.randn(n * n, 4, generator=g) * noise
            objectness = torch.randn(n * n, 1, generator=g) - 2
            if len(gt):
                center, extent = (gt[:, :2] + gt[:, 2:]) / 2, (gt[:, 2:] - gt[:, :2]).clamp(min=1)
                distance, nearest = torch.cdist(prior + stride / 2, center).min(1)
                delta[:, :2] += (center[nearest] - prior) / stride
                delta[:, 2:] += (extent[nearest] / stride).log()
                logits[torch.arange(n * n), label[nearest]] += 5
                objectness[:, 0] += 3 * (distance < 2 * stride)
            for rows, value in ((cls, logits), (box, delta), (obj, objectness)):
                rows.append(value.t().reshape(-1, n, n))
        levels.append([torch.stack(rows).requires_grad_() for rows in (cls, box, obj)])
    return tuple(zip(*levels, strict=True))


def losses_and_gradients(head, levels, boxes, labels):
    for tensor in (t for level in levels for t in level):
        tensor.grad = None
    losses = head.loss(*levels, [b.clone() for b in boxes], labels, [{}] * len(boxes))
    sum(losses.values()).backward()
    return losses, [t.grad for level in levels for t in level]


@pytest.fixture
def heads(monkeypatch):
    return [detector("yolox_nano", monkeypatch, stock=stock).bbox_head for stock in (True, False)]


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
        losses = head._batch_loss(*head._flatten(*levels), boxes, labels, static_shapes=static_shapes)
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
    masked, gathered = (
        head._batch_loss(*head._flatten(*levels), boxes, labels, static_shapes=s) for s in (True, False)
    )
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
            case["scores"][0], case["priors"], case["boxes"][0], case["gt_boxes"][0], case["gt_labels"][0]
        )  # fmt: skip
        a, b = stock.assign(*arguments), ours.assign(*arguments)
        assert a.num_gts == b.num_gts
        for field in ("gt_inds", "labels", "max_overlaps"):
            theirs, mine = getattr(a, field), getattr(b, field)
            assert mine.dtype == theirs.dtype
            torch.testing.assert_close(mine, theirs)
        assert (b.gt_inds > 0).any() == (gts > 0)


def test_a_foreign_eps_is_refused(situation):
    case = situation(7, gts=2)
    with pytest.raises(ValueError, match=r"eps must be 1e-7, as YOLOXHead leaves it, got 0\.1"):
        SimOTAAssigner().assign(
            case["scores"][0], case["priors"], case["boxes"][0], case["gt_boxes"][0], case["gt_labels"][0], eps=0.1
        )


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
    [(detections, classes)] = heads[1].get_bboxes(*levels, img_metas=[{"scale_factor": 1.0}], cfg=cfg)
    assert detections.shape == (0, 5)
    assert classes.shape == (0,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolox_nano", "yolox_m"])
def test_steps_of_the_whole_detector(name, monkeypatch):
    """Forward, backward and SGD from the unmodified config; before each step both start from the same weights."""
    torch.manual_seed(0)
    stock = detector(name, monkeypatch, stock=True)
    stock.init_weights()
    plugin = detector(name, monkeypatch, stock=False)
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
