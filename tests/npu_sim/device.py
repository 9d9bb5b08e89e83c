"""Runs every ATen kernel of the simulated NPU on the CPU, over the same memory, and records each call.

Needs the fake runtime of `fake_cann.py` on the library path; comes before mmcv and mmdet. What it proves: dispatch,
logic, and the numbers of launches and waits. What it does not: numerics and speed of a real device.

The environment's SOC chooses the device: A2 (Ascend 910B) or 910A. What their kernels do behind ATen's calls (which run
on the AI CPU, how lists are split, what is rounded) is from the sources of op-plugin, torch_npu and CANN's operators.
"""

import contextlib
import ctypes
import functools
import importlib.machinery
import inspect
import os
import sys
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_npu

ROOT = Path(__file__).resolve().parents[2]
OWN_NAME = "tests/npu_sim/device.py"
# The host has to wait for the result: a value, or a shape that depends on values.
READS = {"_local_scalar_dense", "is_nonzero", "equal"}
DYNAMIC = {"nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "bincount", "repeat_interleave"}
# Known to run on the AI CPU of Ascend, slowly: these always, the others for 64-bit numbers.
AICPU = {"nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "index_put", "index_put_",
         "_index_put_impl_", "scatter", "scatter_", "scatter_add", "scatter_add_", "repeat_interleave"}  # fmt: skip
AICPU_64 = {"topk", "sort", "argsort", "cumsum", "masked_fill", "masked_fill_"}
# Where an Ascend 910A casts between float32 and int64 on its AI CPU: casts, and kernels in which both meet.
CASTS = {"_to_copy", "copy_", "npu_dtype_cast", "_npu_dtype_cast", "sum", "mean", "cumsum"}
MEETING = {"add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "eq", "ne", "lt", "le", "gt", "ge", "pow",
           "maximum", "minimum", "cat", "stack"}  # fmt: skip
# How many tensors one launch of a foreach operator takes, by the number of lists that it reads and writes.
FOREACH = {1: 48, 2: 24, 3: 16}
FINITE_CHECK = 250  # of _amp_foreach_non_finite_check_and_unscale_
CAT = 32  # inputs of one launch; their results are concatenated in turn
SOC = os.environ.get("SOC", "A2")
if SOC not in ("A2", "910A"):
    raise ValueError(f"SOC must be A2 or 910A, got {SOC!r}")
CPU = torch.device("cpu")
# What torch_npu's own kernels say of a wait under `set_sync_debug_mode`, to standard error and not through Python.
WARNING = b"Warning: called a synchronizing NPU operation (simulated)\n"
# Computed in float32: under torch 2.1 CPUs have no float16 for them.
NO_FLOAT16 = {"convolution", "convolution_backward", "native_batch_norm", "native_batch_norm_backward",
              "max_pool2d_with_indices", "max_pool2d_with_indices_backward", "upsample_nearest2d",
              "upsample_nearest2d_backward", "upsample_bilinear2d"}  # fmt: skip
CHECK = "_amp_foreach_non_finite_check_and_unscale_"  # CPUs have it from torch 2.3 on
# Served by torch_npu itself, without a kernel: they handle memory and shapes.
METADATA = {
    "empty.memory_format", "empty_strided", "as_strided", "view", "_reshape_alias", "set_.source_Storage",
    "set_.source_Storage_storage_offset", "set_.source_Tensor", "set_", "resize_", "record_stream", "is_pinned",
    "_pin_memory", "unfold", "_to_copy",
}  # fmt: skip


class NoOperators(types.ModuleType):
    """mmcv's compiled part and torchvision, which this torch has not: whoever calls them fails."""

    __version__ = "none"  # for mmengine's log

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise AssertionError(f"{self.__name__}.{name} was called: nothing here may need it")

        return missing


for _name in ("mmcv._ext", "torchvision"):
    sys.modules.setdefault(_name, NoOperators(_name))
    sys.modules[_name].__spec__ = importlib.machinery.ModuleSpec(_name, loader=None)


@dataclass(frozen=True)
class Call:
    """A kernel, and the line of this project that asked for it (a C++ operator by its name)."""

    name: str
    place: str
    waits: bool
    dynamic: bool
    aicpu: bool
    copy: str  # "", "to host" or "to device"
    strided: int = 0  # inputs that lie in memory in pieces, and are copied together before the kernel runs

    def __str__(self) -> str:
        return f"{self.name} at {self.place}"


@dataclass
class Record:
    """The calls made while it was open, and how often the runtime was asked to wait beside them."""

    calls: list[Call] = field(default_factory=list)
    runtime_waits: int = 0

    def launches(self) -> list[Call]:
        return [call for call in self.calls if not call.copy]

    def waits(self) -> list[Call]:
        return [call for call in self.calls if call.waits]

    def dynamic(self) -> list[Call]:
        return [call for call in self.calls if call.dynamic]

    def aicpu(self) -> list[Call]:
        return [call for call in self.calls if call.aicpu]

    def copies(self) -> list[Call]:
        return [call for call in self.calls if call.copy]

    def strided(self) -> list[Call]:
        """A call for each of its inputs that has to be copied together first."""
        return [call for call in self.calls for _ in range(call.strided)]

    def counts(self) -> dict[str, int]:
        """The numbers of the benchmark's table."""
        return {
            "launches": len(self.launches()),
            "host syncs": len(self.waits()) + self.runtime_waits,
            "dynamic shapes": len(self.dynamic()),
            "AICPU risk": len(self.aicpu()),
            "copies": len(self.copies()),
            "strided": len(self.strided()),
        }


def by_place(calls: list[Call], most: int = 12) -> str:
    """The places that most of these calls come from, a line each."""
    return "\n".join(f"{count:8} {place}" for place, count in Counter(map(str, calls)).most_common(most))


_open: list[Record] = []


@contextlib.contextmanager
def recorded() -> Iterator[Record]:
    """Records the calls of a block."""
    record = Record()
    _open.append(record)
    before = _runtime().fakeCannWaits()
    try:
        yield record
    finally:
        _open.remove(record)
        record.runtime_waits = _runtime().fakeCannWaits() - before


@functools.cache
def _runtime() -> ctypes.CDLL:
    """The fake runtime, which is loaded already."""
    return ctypes.CDLL("libascendcl.so")


@contextlib.contextmanager
def unrecorded(name: str) -> Iterator[None]:
    """A block that counts as one launch of this name, whatever it does."""
    records = list(_open)
    for record in records:
        record.calls.append(Call(name, _place(), waits=False, dynamic=False, aicpu=False, copy=""))
    _open.clear()
    try:
        yield
    finally:
        _open[:] = records


def _place() -> str:
    """Where in this project (or in mmdet, which is compared) the call comes from."""
    frame: Any = sys._getframe(1)
    operator = ""
    while frame is not None:
        path = frame.f_code.co_filename
        if path.endswith("torch/_ops.py") and "yolox_ops" in str(
            getattr(frame.f_locals.get("self"), "_qualified_op_name", "")
        ):
            operator = f" in {frame.f_locals['self']._qualified_op_name}"
        name = path.split("site-packages/")[-1].removeprefix(f"{ROOT}/")
        if name.startswith(("yolox_ops/", "yolox_plugin/", "mmdet/", "tests/", "benchmarks/")) and name != OWN_NAME:
            return f"{name}:{frame.f_lineno}{operator}"
        frame = frame.f_back
    return "autograd"


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor over the fake device memory of `tensor`."""
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    memory = (ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr())
    flat = torch.from_numpy(np.ctypeslib.as_array(memory))
    whole = torch.empty(0, dtype=tensor.dtype)
    return whole.set_(flat.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _describe(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """What the call would mean on a device; None for a copy of nothing."""
    base = name.split(".")[0]
    tensors = list(_tensors([*args, *kwargs.values()]))
    mask = base in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
        t.dtype == torch.bool for t in _tensors(args[1])
    )
    copy, asynchronous, cast = "", False, ""
    if base in ("copy_", "_copy_from", "_copy_from_and_resize"):
        target, source = (args[0], args[1]) if base == "copy_" else (args[1], args[0])
        if not source.numel():
            return None
        if target.dtype != source.dtype:
            cast = f" [{source.dtype} to {target.dtype}]".replace("torch.", "")
        if target.device != source.device:
            copy = "to host" if target.device.type == "cpu" else "to device"
            on_host = target if target.device.type == "cpu" else source
            asked = bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
            asynchronous = asked and on_host.is_pinned()
    checks_floats = base.startswith("_amp_foreach_non_finite") and SOC == "910A"  # by a flag that the host reads
    return Call(
        name + (" [bool mask]" if mask else "") + (f" [{copy}]" if copy else "") + cast,
        _place(),
        waits=base in READS or base in DYNAMIC or mask or bool(copy and not asynchronous) or checks_floats,
        dynamic=base in DYNAMIC or (mask and base == "index"),
        aicpu=_runs_on_aicpu(base, args, kwargs),
        copy=copy,
        # A copy on the device is what the strides ask for, and launched for that alone.
        strided=0 if base in ("copy_", "clone") else sum(not t.is_contiguous() for t in tensors if t.device != CPU),
    )


def _runs_on_aicpu(base: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    tensors = list(_tensors([*args, *kwargs.values()]))
    if base in AICPU or any(t.dtype == torch.float64 for t in tensors):
        return True
    if base in AICPU_64 and any(t.dtype == torch.int64 for t in tensors[:1]):
        return True
    if SOC != "910A" or {t.device.type for t in tensors} != {"npu"}:
        return False
    kinds = {t.dtype for t in tensors if base in CASTS | MEETING}
    if base in CASTS:
        kinds |= {value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)}
    return {torch.int64, torch.float32} <= kinds


def _launches(base: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many launches op-plugin makes of a call that takes lists."""
    lists = [value for value in (*args, *kwargs.values()) if isinstance(value, (list, tuple)) and [*_tensors(value)]]
    if base == "cat":
        count = len(lists[0]) if lists else 1
        total = 0
        while count > CAT:
            count = -(-count // CAT)
            total += count
        return total + 1
    if not lists or "foreach" not in base:
        return 1
    count = len(lists[0])
    if base.startswith("_amp_foreach"):
        return -(-count // FINITE_CHECK) if SOC == "A2" else 1 + count
    if SOC == "910A" or any(not t.is_contiguous() for t in _tensors(lists)):
        return count
    written = not base.endswith("_")
    return -(-count // FOREACH[min(len(lists) + written, 3)])


def _topk_of_910a(values: torch.Tensor, k: int, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 goes through float16 where the device's fast kernel needs it."""
    if values.dtype != torch.float32 or (k < 8 and values.numel() > 32768):
        return torch.topk(values, k, *args, **kwargs)
    return torch.topk(values.half().float(), k, *args, **kwargs)


def _in_float32(op: Callable[..., Any], *args: Any) -> Any:
    """An operator whose results are float16 if all its inputs are; of norm layers' (weights in float32), the first."""
    kinds = {tensor.dtype for tensor in _tensors(args) if tensor.is_floating_point()}
    if torch.float16 not in kinds:
        return op(*args)
    found = op(*[arg.float() if isinstance(arg, torch.Tensor) and arg.dtype == torch.float16 else arg for arg in args])
    if isinstance(found, torch.Tensor):
        return found.half()
    return tuple(
        t.half() if t is not None and t.is_floating_point() and (i == 0 or kinds == {torch.float16}) else t
        for i, t in enumerate(found)
    )


def _bce_with_logits_backward(
    grad: torch.Tensor, logits: torch.Tensor, target: torch.Tensor, weight: Any, pos_weight: Any, reduction: int
) -> torch.Tensor:
    """torch_npu's own operator, in the place of the formula that other devices derive."""
    result = logits.sigmoid() - target
    if pos_weight is not None:
        result = (pos_weight * target + 1 - target) * logits.sigmoid() - pos_weight * target
    result = result * grad if weight is None else result * grad * weight
    return result / logits.numel() if reduction == 1 else result  # 1 stands for the mean


def _cast(tensor: torch.Tensor, dtype: torch.dtype, *args: Any) -> torch.Tensor:
    return tensor.to(dtype)


class _Saturation:
    """An Ascend 910A's arithmetic has no infinities in float16: it raises a flag, which a loss scaler clears and
    reads."""

    flag = False

    @classmethod
    def apply(cls, result: Any) -> None:
        for tensor in _tensors(result):
            if tensor.dtype == torch.float16 and tensor.isinf().any():
                cls.flag = True
                tensor.clamp_(-65504, 65504)

    @classmethod
    def read(cls, status: torch.Tensor) -> torch.Tensor:
        return torch.full_like(status, float(cls.flag))

    @classmethod
    def clear(cls, status: torch.Tensor) -> torch.Tensor:
        cls.flag = False
        return torch.zeros_like(status)


def _check_and_unscale(gradients: list[torch.Tensor], found_inf: torch.Tensor, inverse_scale: torch.Tensor) -> None:
    if _Saturation.flag or not all(gradient.isfinite().all() for gradient in gradients):
        found_inf.fill_(1)
    for gradient in gradients:
        gradient.mul_(inverse_scale)


# Operators of torch_npu's own that ATen's kernels, or its loss scaler, end in.
CUSTOM: dict[str, Callable[..., Any]] = {
    "npu_binary_cross_entropy_with_logits_backward": _bce_with_logits_backward,
    "npu_dtype_cast": _cast,
    "_npu_dtype_cast": _cast,
    "npu_clear_float_status": _Saturation.clear,
    "npu_get_float_status": _Saturation.read,
}


def _on_cpu(op: Any, name: str) -> Callable[..., Any]:
    returns = op._schema.returns if hasattr(op, "_schema") else ()
    is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    base = name.split(".")[0]
    if name == "topk" and SOC == "910A":
        op = _topk_of_910a
    if base in NO_FLOAT16 and torch.__version__ < "2.2":
        op = functools.partial(_in_float32, op)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        call = None if is_view else _describe(name, args, kwargs)
        if call is not None:
            if call.waits and torch_npu.npu.get_sync_debug_mode() == 2:  # "error", as torch_npu's own kernels do
                raise RuntimeError("called a synchronizing NPU operation")
            for record in _open:
                record.calls += [call, *[replace(call, waits=False)] * (_launches(base, args, kwargs) - 1)]
            if call.waits and torch_npu.npu.get_sync_debug_mode():
                os.write(2, WARNING)
        if SOC == "910A" and any(t.dtype == torch.bfloat16 for t in _tensors([*args, *kwargs.values()])):
            raise RuntimeError(f"{name}: 910A has no bfloat16")
        seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def down(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and value.device.type == "npu":
                cpu = _alias(value)
                seen[id(cpu)] = (cpu, value)
                return cpu
            if isinstance(value, torch.device):
                return torch.device("cpu")
            return type(value)(map(down, value)) if isinstance(value, (list, tuple)) else value

        def up(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                if id(value) in seen:
                    return seen[id(value)][1]
                for cpu, device in seen.values():
                    if value.numel() and value.untyped_storage().data_ptr() == cpu.untyped_storage().data_ptr():
                        return device.as_strided(value.shape, value.stride(), value.storage_offset())
                out = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="npu")
                if value.numel():
                    _alias(out).copy_(value)
                return out
            return type(value)(map(up, value)) if isinstance(value, (list, tuple)) else value

        result = op(*down(args), **{key: down(value) for key, value in kwargs.items()})
        if SOC == "910A" and not is_view:
            _Saturation.apply(result)
        try:
            return up(result)
        finally:
            seen.clear()  # what it holds, autograd would take for in use, and copy

    return kernel


def _override(library: Any, name: str, kernel: Callable[..., Any], key: str = "PrivateUse1") -> None:
    new = "allow_override" in inspect.signature(library.impl).parameters  # older torch asks for no permission
    library.impl(name, kernel, key, **({"allow_override": True} if new else {}))


def install() -> int:
    """Puts CPU kernels in the place of torch_npu's; returns how many. Those without one are refused by the runtime."""
    library, own = (torch.library.Library(name, "IMPL") for name in ("aten", "npu"))  # type: ignore[no-untyped-call]
    count = 0
    install.libraries = library, own  # type: ignore[attr-defined]  # the overrides go when they go
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, kernel in CUSTOM.items():
            if f"npu::{name}" in torch._C._dispatch_get_all_op_names():
                _override(own, name, _on_cpu(kernel, name))
        _override(library, CHECK, _on_cpu(_check_and_unscale, CHECK))
        for full in torch._C._dispatch_get_all_op_names():
            name = full.removeprefix("aten::")
            if name == full or name in {*METADATA, CHECK} or not has(full, "PrivateUse1"):
                continue
            if not (has(full, "CPU") or has(full, "CompositeExplicitAutograd") or name == "one_hot"):
                continue
            base, _, overload = name.partition(".")
            packet = getattr(torch.ops.aten, base, None)
            if packet is not None and hasattr(packet, overload or "default"):
                op = getattr(packet, overload or "default")
                _override(library, name, _on_cpu(op, name))
                if name == "one_hot":  # which torch_npu does not hand on from here
                    _override(library, name, _on_cpu(op, name), "AutogradPrivateUse1")
                count += 1
    return count
