"""For tests that need a GPU, which `make test-gpu` runs; elsewhere they are skipped."""

import contextlib
import warnings

import pytest
import torch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="make test-gpu, on a GPU")


def on_gpu(value):
    """Tensors, also in dictionaries, lists and tuples, on the GPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cuda().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: on_gpu(item) for key, item in value.items()}
    return type(value)(map(on_gpu, value)) if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def no_waits():
    """A block in which it is an error if the host waits for the GPU, as far as torch notices."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def counted_waits():
    """Gives a list of the places at which the host waits for the GPU in a block, as far as torch notices."""
    torch.cuda.synchronize()
    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
            found += [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA" in str(w.message)]
