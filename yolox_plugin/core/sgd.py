"""torch's SGD, in as few launches as the hyperparameters allow."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

HYPERPARAMETERS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
# By device, what the fused kernel is right for: on a CPU it rounds the momenta of half types wrongly (pytorch#191763).
_EXACT = (torch.float32, torch.float64)
FUSED = {"cpu": _EXACT, "cuda": (*_EXACT, torch.float16, torch.bfloat16)}
HAS_FUSED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4)


class SGD(torch.optim.SGD):
    """The arguments, state and checkpoints of torch.optim.SGD.

    MMDetection's `paramwise_cfg` makes a group of every parameter, and torch steps group by group: hundreds of small
    launches. A step here puts parameters of equal hyperparameters together, for torch's fused kernel where there is one
    (CPU and CUDA, torch 2.4 and newer), else for its foreach kernels.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """See the stock class, which itself steps whatever is unusual."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._is_usual():
            stock = torch.optim.SGD.step
            # Once an optimizer of that class exists, torch has wrapped it in hooks that are being called already.
            (stock.__wrapped__ if getattr(stock, "hooked", False) else stock)(self)  # type: ignore[attr-defined]
            return loss
        batches: dict[tuple[Any, ...], list[Tensor]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    # The fused kernel takes momenta for all parameters or for none: one may have its first gradient.
                    has_momentum = self._momentum_of(parameter) is not None
                    on_cpu = parameter.device.type == "cpu"
                    values = [group[name] for name in HYPERPARAMETERS]
                    key = (self._can_flatten(parameter), on_cpu, has_momentum, *values)
                    batches.setdefault(key, []).append(parameter)
        for (flat, on_cpu, _, *values), parameters in batches.items():
            settings = dict(zip(HYPERPARAMETERS, values, strict=True))
            # On a CPU there are no launches to save, and torch's own choice rounds half types otherwise than foreach.
            self._update(parameters, flat, settings | {"foreach": not flat and not on_cpu})
        return loss

    def _is_usual(self) -> bool:
        """Whether no group asks for a way of stepping, has a tensor for a number, or has sparse gradients."""
        return not any(
            group["differentiable"]
            or group["foreach"] is not None
            or group.get("fused")
            or any(isinstance(group[name], Tensor) for name in HYPERPARAMETERS)
            or any(parameter.grad is not None and parameter.grad.is_sparse for parameter in group["params"])
            for group in self.param_groups
        )

    def _momentum_of(self, parameter: Tensor) -> Tensor | None:
        momentum: Tensor | None = self.state.get(parameter, {}).get("momentum_buffer")
        return momentum

    def _update(self, parameters: list[Tensor], flat: bool, settings: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        momenta = [self._momentum_of(parameter) for parameter in parameters]
        if HAS_FUSED:
            settings["fused"] = flat
        if flat:
            buffers = [None if m is None else _flat(m) for m in momenta]
            sgd(list(map(_flat, parameters)), list(map(_flat, gradients)), buffers, **settings)
        else:
            buffers = list(momenta)
            sgd(parameters, gradients, buffers, **settings)
        if settings["momentum"]:
            for parameter, old, new in zip(parameters, momenta, buffers, strict=True):
                if old is None and new is not None:  # made by the first step
                    made = new.as_strided(parameter.shape, parameter.stride()) if flat else new
                    self.state[parameter]["momentum_buffer"] = made

    def _can_flatten(self, parameter: Tensor) -> bool:
        """Whether parameter, gradient and momentum lie in memory alike, so that one flat kernel can walk through them.

        torch's fused kernel on the CPU takes no notice of strides: a gradient, or a momentum from a checkpoint, that is
        laid out otherwise than its parameter would be added to the wrong elements. Those that are alike but not
        contiguous it copies; flat, it need not.
        """
        if not HAS_FUSED or parameter.dtype not in FUSED.get(parameter.device.type, ()):
            return False
        others = [t for t in (parameter.grad, self._momentum_of(parameter)) if t is not None]
        layout = _layout(parameter)
        return layout is not None and all(_layout(t) == layout and t.dtype == parameter.dtype for t in others)


def _layout(tensor: Tensor) -> tuple[int, ...] | None:
    """The strides that matter, or None where elements do not fill one piece of memory."""
    if not (tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)):
        return None
    return tuple(stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)


def _flat(tensor: Tensor) -> Tensor:
    """The elements in the order in which they lie in memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))
