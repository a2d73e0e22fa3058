"""Per-image clipped gradient sums from one forward and one backward pass (the default).

Ordinary training computes, layer by layer, the gradient of a layer's input and the sum over images of the gradients
of its parameters. Here the second is computed for each image apart, in the same pass, while input and output gradient
of the layer are at hand. Per-image norms are taken at once; when the pass is over, the images' factors follow from the
norms, and the clipped sum from the gradients that were kept. What is summed is what was measured, so that the bound
holds for every input. Cancellation would break this in methods that measure by one formula and sum by another.

Layers are recognised by the functions that they call (`torch.nn.functional.conv2d` and so on) with a trainable
parameter. So it does not matter which module calls them, how often, or with whose parameter. Every other use of a
trainable parameter is an error. After "book-keeping" (Bu et al. 2023, arXiv:2210.00038).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode, resolve_name

from privimage.errors import ConfigError
from privimage.privacy.clipping import ClippedSum, check_bound, clip_factors
from privimage.privacy.gradients.layers import LAYERS, Layer, LayerGradients
from privimage.privacy.gradients.pieces import Formed, PerImage
from privimage.privacy.gradients.rows import LossOfRows, Precision, autocast, chunks, losses_of

__all__ = ["Bookkeeping"]


@dataclass(frozen=True, kw_only=True)
class Bookkeeping:
    """See `GradientEngine`. Memory: activations of `rows_at_once` rows, and one gradient for each of their images."""

    module: nn.Module
    loss_of_rows: LossOfRows
    precision: Precision = "float32"

    @torch.no_grad()
    def clipped_sum(
        self,
        parameters: Mapping[str, Tensor],
        rows: Sequence[Tensor],
        *,
        draws: int,
        max_grad_norm: float,
        rows_at_once: int,
    ) -> ClippedSum:
        check_bound(max_grad_norm)
        parameters = {name: parameter.detach() for name, parameter in parameters.items()}
        sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        total = torch.zeros(sum(sizes.values()), device=next(iter(parameters.values())).device)
        slices = dict(zip(sizes, total.split(list(sizes.values())), strict=True))
        for chunk in chunks(rows, draws, rows_at_once):
            gradients = self._gradients(parameters, chunk, draws)
            factors = clip_factors(torch.stack([norms for _, norms in gradients.values()], dim=1), max_grad_norm)
            for name, (gradient, _) in gradients.items():
                gradient.drop(factors == 0)
                gradient.add_to(slices[name], factors)
        return ClippedSum(value=total, max_grad_norm=max_grad_norm)

    def _gradients(
        self, parameters: Mapping[str, Tensor], rows: Sequence[Tensor], draws: int
    ) -> dict[str, tuple[PerImage, Tensor]]:
        """Per-image gradients and their norms (images,), in the order of `parameters`."""
        dtype = torch.bfloat16 if self.precision == "bfloat16" else None
        recording = _Recording(self.module, parameters, rows=len(rows[0]), draws=draws, dtype=dtype)

        def network(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.module, dict(parameters), args, kwargs)

        with torch.enable_grad(), autocast(rows[0].device, self.precision), recording:
            loss = losses_of(self.loss_of_rows, network, rows).sum() / draws
        # The anchor has no gradient: asking for it makes autograd visit each recorded layer, and nothing else.
        torch.autograd.grad(loss, recording.anchor, allow_unused=True)
        return recording.finished()


class _Recording(TorchFunctionMode):
    """While active, layers that use a trainable parameter record its per-image gradient in the backward pass."""

    def __init__(
        self, module: nn.Module, parameters: Mapping[str, Tensor], *, rows: int, draws: int, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.module, self.rows, self.images, self.dtype = module, rows, rows // draws, dtype
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.anchor = torch.zeros((), device=next(iter(parameters.values())).device, requires_grad=True)
        self.uses_left = dict.fromkeys(parameters, 0)
        self.found: dict[str, PerImage] = {}
        self.norms: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        names = [self.names[id(part)] for part in _tensors((args, kwargs)) if id(part) in self.names]
        if not names or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if func not in LAYERS:
            return self._unless_differentiable(func, func(*args, **kwargs), names[0])
        try:
            layer = LAYERS[func](*args, **kwargs)
        except ConfigError as error:
            raise ConfigError(f"{self._place(names[0])} is used by {error}.") from None
        owners = self.names.get(id(layer.weight)), self.names.get(id(layer.bias))
        if len(layer.input) != self.rows or sorted(names) != sorted(name for name in owners if name):
            raise ConfigError(
                f"{self._place(names[0])} is used by {resolve_name(func)} with an input of shape "
                f"{tuple(layer.input.shape)}, but per-image gradients need {self.rows} rows first, and a trainable "
                "parameter as weight or bias only."
            )
        if self.dtype is not None:
            layer.cast(self.dtype)
        for name in owners:
            if name is not None:
                self.uses_left[name] += 1
        x = layer.input
        # Autograd frees what it saved layer by layer; kept here, activations would live until the pass is over.
        del layer.input
        return _RecordedLayer.apply(self.anchor, x, layer, self.images, partial(self._record, owners))

    def _record(self, owners: tuple[str | None, str | None], gradients: LayerGradients) -> None:
        for name, gradient in zip(owners, (gradients.weight, gradients.bias), strict=True):
            if name is None or gradient is None:
                continue
            if name in self.found:
                gradient = Formed([self.found[name].formed() + gradient.formed()])
            self.found[name] = gradient
            self.uses_left[name] -= 1
            if self.uses_left[name] == 0:
                self.norms[name] = gradient.norms()

    def finished(self) -> dict[str, tuple[PerImage, Tensor]]:
        for name in self.names.values():
            if name not in self.found:
                raise ConfigError(f"{self._place(name)} got no gradient: no layer that reaches the loss uses it.")
        return {
            name: (self.found[name], self.norms[name] if name in self.norms else self.found[name].norms())
            for name in self.names.values()
        }

    def _place(self, name: str) -> str:
        owner = name.rpartition(".")[0]
        return f"The parameter {name} of a {type(self.module.get_submodule(owner)).__name__}"

    def _unless_differentiable(self, func: Callable[..., Any], result: Any, name: str) -> Any:
        """Sizes, types and detached copies of a parameter have no gradient; all else is an error."""
        if any(tensor.is_floating_point() for tensor in _tensors(result)) and func not in WITHOUT_GRADIENT:
            known = ", ".join(sorted(layer.__name__ for layer in LAYERS))
            raise ConfigError(
                f"{self._place(name)} is used by {resolve_name(func) or func.__name__}, whose per-image gradients are not known."
                f" Use it as weight or bias of one of {known}, or keep it fixed."
            )
        return result


WITHOUT_GRADIENT = {Tensor.detach, Tensor.data.__get__}  # type: ignore[attr-defined]


class _RecordedLayer(torch.autograd.Function):
    """A layer whose backward pass hands per-image gradients of its parameters to `record`."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor, layer: Layer, images: int, record: Callable[..., None]) -> Tensor:
        output, *kept = layer.forward(x)
        ctx.save_for_backward(x, *kept)
        ctx.layer, ctx.images, ctx.record = layer, images, record
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, None, None, None]:
        x, *kept = ctx.saved_tensors
        # What is recorded must not hold the graph that holds the record.
        found = ctx.layer.backward(
            ctx.images, gradients[0].contiguous(), x.detach(), *kept, input_too=ctx.needs_input_grad[1]
        )
        ctx.record(found)
        return None, found.input, None, None, None


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
