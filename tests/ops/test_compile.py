"""Through torch.compile's own code generator, gradient included."""

import pytest
import torch

from yolox_ops import batch_norm_silu, batched_nms, box_iou, simota_assign


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_takes_the_operators_into_one_graph(situation):
    case = situation(8, gts=5, size=96)

    def step(boxes):
        gt_index, iou = simota_assign(**{**case, "boxes": boxes.detach()})
        giou = box_iou(boxes[0, :20] * 2, case["gt_boxes"][0] * 2, mode="giou")
        keep = batched_nms(boxes[0], iou[0] + 0.5, gt_index[0].clamp(min=0), 0.5)
        return (giou * giou).sum() + iou.sum(), keep

    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        boxes = case["boxes"].clone().requires_grad_()
        loss, keep = function(boxes)
        loss.backward()
        results.append((loss.detach(), keep, boxes.grad))
    torch.testing.assert_close(results[1], results[0])
    assert results[0][2].abs().sum() > 0


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_takes_a_norm_that_changes_its_statistics():
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(2, 5, 6, 7, generator=generator), torch.randn(5, generator=generator)

    def step(x, mean, var, bias):
        return batch_norm_silu(x * 2, mean, var, None, bias, training=True).sin().sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        leaves, running = [t.clone().requires_grad_() for t in (x, bias)], [torch.zeros(5), torch.ones(5)]
        loss = function(leaves[0], *running, leaves[1])
        loss.backward()
        results.append([loss.detach(), *running, *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(results[1], results[0])
    assert results[0][1].abs().sum() > 0 and all(gradient.abs().sum() > 0 for gradient in results[0][3:])
