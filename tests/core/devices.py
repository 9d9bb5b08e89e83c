"""What the tests of operators on other devices share: a GPU and the simulated NPU beside the CPU."""

import torch

from yolox_ops import reference


def on_cpu(value):
    """Tensors, also in lists and tuples, on the CPU."""
    return value.cpu() if isinstance(value, torch.Tensor) else type(value)(map(on_cpu, value))


def random_boxes(seed, n, strange=False):
    """Boxes of which some are inverted and some equal; `strange` ones are partly NaN, infinite or far away."""
    g = torch.Generator().manual_seed(seed)
    xy = torch.rand(n, 2, generator=g) * 80
    boxes = torch.cat([xy, xy + torch.rand(n, 2, generator=g) * 40 - 4], 1)  # some are inverted
    boxes[::7] = boxes[:1].clone()
    if strange:
        values = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e18, 0.0])
        flat = boxes.view(-1)
        where = torch.randint(max(len(flat), 1), (n // 3,), generator=g)
        flat[where] = values[torch.randint(len(values), where.shape, generator=g)]
    return boxes


def same_assignment(case, ours, theirs):
    """Equal but where two costs that compete for a place are equal up to rounding; how many priors differ."""
    for b, prior in (ours[0] != theirs[0]).nonzero().tolist():
        n = int(case["num_gts"][b])
        cost, _ = reference.simota_cost(
            case["scores"][b], case["centers"], case["boxes"][b], case["gt_boxes"][b, :n], case["gt_labels"][b, :n]
        )
        for owner in {int(ours[0][b, prior]), int(theirs[0][b, prior])} - {-1}:
            rivals = torch.cat([cost[:, owner], cost[prior]])
            close = (rivals - cost[prior, owner]).abs() <= 1e-5 * cost[prior, owner].abs() + 1e-4
            assert close.sum() > 2, (b, prior, owner)  # more than the two times that it is itself
    same = ours[0] == theirs[0]
    torch.testing.assert_close(ours[1][same], theirs[1][same], rtol=1e-5, atol=1e-6)
    return int((~same).sum())
