"""What two trainings have to have in common."""

import torch


def same(ours, theirs, where="checkpoint"):
    """Whether two checkpoints have the same bits, of whatever layout in memory."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours.cpu(), theirs.cpu()), where
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for key in ours:
            same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            same(*pair, f"{where}[{i}]")
    else:
        assert ours == theirs, where
