"""torch's SGD, in as few launches as the hyperparameters allow."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from .flat import gradients_together, lay_together, merged, runs, spanned
from .targets import constant

HYPERPARAMETERS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
# By device, what the fused kernel is right for: on a CPU it rounds the momenta of half types wrongly (pytorch#191763).
_EXACT = (torch.float32, torch.float64)
FUSED = {"cpu": _EXACT, "cuda": (*_EXACT, torch.float16, torch.bfloat16)}
HAS_FUSED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4)


class SGD(torch.optim.SGD):
    """The arguments, state and checkpoints of torch.optim.SGD.

    MMDetection's `paramwise_cfg` makes a group of every parameter, and torch steps group by group: hundreds of small
    launches. A step here puts parameters of equal hyperparameters together, for torch's fused kernel where there is one
    (CPU and CUDA, torch 2.4 and newer), else for its foreach kernels. On an NPU the parameters, and their momenta, are
    laid side by side in memory: a step is a few launches whatever their number.
    """

    found_inf: Tensor | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        alike: dict[tuple[Any, ...], list[Tensor]] = {}
        for group in self.param_groups:
            of_npu = [parameter for parameter in group["params"] if parameter.device.type == "npu"]
            alike.setdefault(tuple(group[name] for name in HYPERPARAMETERS), []).extend(of_npu)
        lay_together([parameter for parameters in alike.values() for parameter in parameters])

    def takes_found_inf(self) -> bool:
        """Whether `step` leaves a step out by itself if the attribute `found_inf`, a tensor on the device, is not 0:
        nobody waits for that then. Not with dampening: whether a step is the first, which has none, would be for the
        device to know.

        Not torch's `_step_supports_amp_scaling`, which scalers understand in several ways.
        """
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        with_gradients = [parameter for parameter in parameters if parameter.grad is not None]
        dampened = any(group["dampening"] for group in self.param_groups)
        return bool(with_gradients) and not dampened and self._is_usual() and all(map(self._joins, with_gradients))

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
                    values = [group[name] for name in HYPERPARAMETERS]
                    batches.setdefault((self._way(parameter), has_momentum, *values), []).append(parameter)
        factors: dict[tuple[float, float], _Factors] = {}
        for (way, has_momentum, *values), parameters in batches.items():
            settings = dict(zip(HYPERPARAMETERS, values, strict=True))
            if way == "joined":
                rate = (settings["momentum"], settings["lr"])
                if self.found_inf is not None and rate not in factors:
                    factors[rate] = _factors(settings, self.found_inf)
                self._update_joined(parameters, has_momentum, settings, factors.get(rate))
            else:
                # On a CPU there are no launches to save, and torch's own choice rounds half types in another way.
                self._update(parameters, way == "flat", settings | {"foreach": way == "foreach"})
        return loss

    def _way(self, parameter: Tensor) -> str:
        if self._joins(parameter):
            return "joined"
        if self._can_flatten(parameter):
            return "flat"
        return "one by one" if parameter.device.type == "cpu" else "foreach"

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

    def _joins(self, parameter: Tensor) -> bool:
        """Whether parameter, gradient and momentum can be parts of larger tensors."""
        if parameter.device.type != "npu":
            return False
        parts = [t for t in (parameter, parameter.grad, self._momentum_of(parameter)) if t is not None]
        return all(t.is_contiguous() and t.dtype == torch.float32 for t in parts)

    def _update_joined(
        self,
        parameters: list[Tensor],
        has_momentum: bool,
        settings: dict[str, Any],
        factors: "_Factors | None",
    ) -> None:
        """A step of parameters that lie side by side; with `factors`, one that may be none."""
        if settings["momentum"] and not has_momentum and factors is not None:
            for parameter in parameters:  # torch's first momentum is the gradient; without dampening that is the same
                self.state[parameter]["momentum_buffer"] = torch.empty_like(parameter)
            lay_together(self._momenta(parameters))
            torch._foreach_zero_(merged(self._momenta(parameters))[0])
            has_momentum = True
        lists = [parameters, *([self._momenta(parameters)] if has_momentum else [])]
        found = list(runs(*lists))
        if has_momentum and len(found) > 1 and len(found) > len(list(runs(parameters))):
            # As they come from a checkpoint.
            lay_together(self._momenta(sorted(parameters, key=lambda parameter: parameter.data_ptr())))
            found = list(runs(*lists))
        for run in found:
            own, *momenta = zip(*run, strict=True)
            weights, gradients = spanned(own), gradients_together(own)
            buffer = spanned(momenta[0]) if momenta else None
            if factors is None:
                buffers = [buffer]
                sgd([weights], [gradients], buffers, foreach=False, **settings)
                if buffer is None and buffers[0] is not None:  # made by the first step
                    for parameter in own:
                        begin = parameter.storage_offset() - own[0].storage_offset()
                        made = buffers[0][begin : begin + parameter.numel()].view(parameter.shape)
                        self.state[parameter]["momentum_buffer"] = made
            else:
                _step_or_not(weights, gradients, buffer, settings, factors)

    def _momenta(self, parameters: list[Tensor]) -> list[Tensor]:
        return [self.state[parameter]["momentum_buffer"] for parameter in parameters]

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


functools.update_wrapper(SGD.__init__, torch.optim.SGD.__init__)  # registries read the arguments' names


class _Factors(NamedTuple):
    """What a step depends on, on the device: of a step that is left out, a momentum of 1 and a learning rate of 0."""

    stays: Tensor
    momentum: Tensor
    lr: Tensor


def _factors(settings: dict[str, Any], found_inf: Tensor) -> _Factors:
    stays = found_inf != 0
    one, momentum = (constant((value,), torch.float32, found_inf.device) for value in (1.0, settings["momentum"]))
    return _Factors(stays, torch.where(stays, one, momentum), (found_inf == 0) * settings["lr"])


def _step_or_not(
    weights: Tensor,
    gradients: Tensor,
    momenta: Tensor | None,
    settings: dict[str, Any],
    factors: _Factors,
) -> None:
    """torch's step, or none, as the device finds it."""
    change = -gradients if settings["maximize"] else gradients
    if settings["weight_decay"]:
        change = change.add(weights, alpha=settings["weight_decay"])
    # Not multiplied by 0, of which infinities make NaN.
    change = torch.where(factors.stays, constant((0.0,), change.dtype, change.device), change)
    if momenta is not None:
        momenta.mul_(factors.momentum).add_(change)
        change = change.add_(momenta, alpha=settings["momentum"]) if settings["nesterov"] else momenta
    weights.addcmul_(change, factors.lr, value=-1)


def _layout(tensor: Tensor) -> tuple[int, ...] | None:
    """The strides that matter, or None where elements do not fill one piece of memory."""
    if not (tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)):
        return None
    return tuple(stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)


def _flat(tensor: Tensor) -> Tensor:
    """The elements in the order in which they lie in memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))
