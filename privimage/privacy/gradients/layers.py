"""The layers whose per-image gradients are known: outputs, gradients of inputs, per-image gradients of parameters.

Every layer gets rows (images * draws, ...), the draws of one image side by side, and sums its gradients over the
draws. Formulas: those of ordinary backward passes, with the images kept apart.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from privimage.errors import ConfigError
from privimage.privacy.gradients.pieces import Formed, OuterProducts, PerImage

__all__ = [
    "LAYERS",
    "Convolution",
    "Embedding",
    "GroupNorm",
    "Layer",
    "LayerGradients",
    "LayerNorm",
    "Linear",
]

aten = torch.ops.aten
# A convolution on a CPU should see so many positions a call: below, the call costs more than its arithmetic does.
POSITIONS_PER_CALL = 600
# More leave the cache.
MOST_IMAGES_PER_CALL = 8


class LayerGradients(NamedTuple):
    """What one backward pass through a layer gives."""

    input: Tensor | None
    weight: PerImage
    bias: PerImage | None


class Layer(ABC):
    """One use of a layer in a forward pass, with what it was called with."""

    low_precision = False

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.input, self.weight, self.bias = x, weight, bias

    def cast(self, dtype: torch.dtype) -> None:
        """Compute in `dtype`, if the layer can."""
        if self.low_precision:
            self.input, self.weight = self.input.to(dtype), self.weight.to(dtype)
            self.bias = None if self.bias is None else self.bias.to(dtype)

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The output, then whatever tensors else `backward` needs."""

    @abstractmethod
    def backward(self, images: int, g: Tensor, x: Tensor, *kept: Tensor, input_too: bool) -> LayerGradients:
        """From the gradient `g` of the output."""


class Convolution(Layer):
    """In one, two or three dimensions, with stride, padding, dilation and groups."""

    low_precision = True

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> None:
        dims = weight.dim() - 2
        self.stride, self.dilation, self.groups = _each(stride, dims), _each(dilation, dims), groups
        if padding == "same":
            # The odd one of an even kernel goes to the end, as torch has it.
            sums = [d * (k - 1) for d, k in zip(self.dilation, weight.shape[2:], strict=True)]
            edges = [edge for total in reversed(sums) for edge in (total // 2, total - total // 2)]
            input, padding = functional.pad(input, edges), 0
        self.padding = _each(0 if isinstance(padding, str) else padding, dims)
        self.output_padding = [0] * dims
        self.pointwise = groups == 1 and {*weight.shape[2:], *self.stride} == {1} and not any(self.padding)
        super().__init__(input, weight, bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        geometry = (self.stride, self.padding, self.dilation, False, self.output_padding, self.groups)
        return (aten.convolution(x, self.weight, self.bias, *geometry),)

    def backward(self, images: int, g: Tensor, x: Tensor, *kept: Tensor, input_too: bool) -> LayerGradients:
        """Calls of a few images each; the images of one call are groups of one convolution."""
        draws = len(x) // images
        at_once = _images_per_call(images, draws * math.prod(g.shape[2:]), x.device)
        parts = zip(g.split(draws * at_once), x.split(draws * at_once), strict=True)
        input = self._differentiate(g, x, self.weight, self.groups, [True, False, False])[0] if input_too else None
        found = [self._one_call(draws, *part) for part in parts]
        biases = [bias for _, bias in found if bias is not None]
        return LayerGradients(
            input, Formed([weights for weights, _ in found]), Formed([torch.cat(biases)]) if biases else None
        )

    def _one_call(self, draws: int, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients of weight and bias for some images: images become groups, draws become the batch."""
        images = len(x) // draws
        bias = self.bias is not None
        if self.pointwise and images > 1:
            weights = _sum_of_draws(images, g.flatten(2) @ x.flatten(2).transpose(1, 2))
            return weights, _sum_of_draws(images, g.flatten(2).sum(2)) if bias else None
        if images == 1:
            _, weights, biases = self._differentiate(g, x, self.weight, self.groups, [False, True, bias])
            return weights[None], biases[None] if bias else None
        g, x = (rows.unflatten(0, (images, draws)).transpose(0, 1).flatten(1, 2) for rows in (g, x))
        shape_only = self.weight.new_empty((images * len(self.weight), *self.weight.shape[1:]))
        _, weights, biases = self._differentiate(g, x, shape_only, images * self.groups, [False, True, bias])
        return weights.unflatten(0, (images, -1)), biases.view(images, -1) if bias else None

    def _differentiate(self, g: Tensor, x: Tensor, weight: Tensor, groups: int, which: list[bool]) -> list[Tensor]:
        geometry = (self.stride, self.padding, self.dilation, False, self.output_padding, groups)
        found: list[Tensor] = aten.convolution_backward.default(g, x, weight, [g.shape[1]], *geometry, which)
        return found


class Linear(Layer):
    """With any number of positions a row."""

    low_precision = True

    def __init__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(input, weight, bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (functional.linear(x, self.weight, self.bias),)

    def backward(self, images: int, g: Tensor, x: Tensor, *kept: Tensor, input_too: bool) -> LayerGradients:
        outputs, inputs = g.reshape(images, -1, g.shape[-1]), x.reshape(images, -1, x.shape[-1])
        one_position = outputs.shape[1] == 1
        return LayerGradients(
            input=g @ self.weight if input_too else None,
            weight=OuterProducts(outputs[:, 0], inputs[:, 0])
            if one_position
            else Formed([outputs.transpose(1, 2) @ inputs]),
            bias=None if self.bias is None else Formed([outputs.float().sum(1)]),
        )


class GroupNorm(Layer):
    """Normalises groups of channels within each row."""

    def __init__(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> None:
        self.num_groups, self.eps = num_groups, eps
        super().__init__(input.contiguous(), _ones(input, input.shape[1:2]) if weight is None else weight, bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rows, channels, *space = x.shape
        outputs: tuple[Tensor, ...] = aten.native_group_norm(
            x, self.weight, self.bias, rows, channels, math.prod(space), self.num_groups, self.eps
        )
        return outputs

    def backward(self, images: int, g: Tensor, x: Tensor, *kept: Tensor, input_too: bool) -> LayerGradients:
        """Seen as one row with all rows' channels and groups, nothing is summed over rows: they come at no cost."""
        mean, rstd = kept
        rows, channels, *space = x.shape
        input, weight, bias = aten.native_group_norm_backward(
            g.reshape(1, rows * channels, *space),
            x.view(1, rows * channels, *space),
            mean.view(1, -1),
            rstd.view(1, -1),
            self.weight.expand(rows, -1).reshape(-1),
            1,
            rows * channels,
            math.prod(space),
            rows * self.num_groups,
            [input_too, True, True],
        )
        return LayerGradients(
            input=input.view_as(x) if input_too else None,
            weight=Formed([_sum_of_draws(images, weight.view(rows, channels))]),
            bias=Formed([_sum_of_draws(images, bias.view(rows, channels))]),
        )


class LayerNorm(Layer):
    """Normalises the last dimensions."""

    def __init__(
        self,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> None:
        self.shape, self.eps = list(normalized_shape), eps
        super().__init__(input, _ones(input, self.shape) if weight is None else weight, bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = aten.native_layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        return outputs

    def backward(self, images: int, g: Tensor, x: Tensor, *kept: Tensor, input_too: bool) -> LayerGradients:
        mean, rstd = kept
        input = None
        if input_too:
            which = [True, False, False]
            input = aten.native_layer_norm_backward(g, x, self.shape, mean, rstd, self.weight, self.bias, which)[0]
        positions = (images, -1, *self.shape)
        return LayerGradients(
            input=input,
            weight=Formed([(g.float() * ((x - mean) * rstd)).reshape(positions).sum(1)]),
            bias=Formed([g.float().reshape(positions).sum(1)]),
        )


class Embedding(Layer):
    """A table of rows; the input, whole numbers, has no gradient."""

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> None:
        if max_norm is not None or scale_grad_by_freq or sparse:
            raise ConfigError("an Embedding with max_norm, scale_grad_by_freq or sparse; leave these at their defaults")
        self.padding_idx = padding_idx
        super().__init__(input, weight, None)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (functional.embedding(x, self.weight),)

    def backward(self, images: int, g: Tensor, x: Tensor, *kept: Tensor, input_too: bool) -> LayerGradients:
        entries, width = self.weight.shape
        chosen = x.reshape(images, -1)
        g = g.float().reshape(*chosen.shape, width)
        if self.padding_idx is not None:
            g = g.masked_fill((chosen == self.padding_idx % entries)[:, :, None], 0.0)
        table = g.new_zeros(images * entries, width)
        of_image = torch.arange(images, device=x.device)[:, None] * entries
        table.index_add_(0, (chosen + of_image).flatten(), g.flatten(0, 1))
        return LayerGradients(input=None, weight=Formed([table.view(images, entries, width)]), bias=None)


LAYERS: dict[Callable[..., Any], type[Layer]] = {
    functional.conv1d: Convolution,
    functional.conv2d: Convolution,
    functional.conv3d: Convolution,
    functional.linear: Linear,
    functional.group_norm: GroupNorm,
    functional.layer_norm: LayerNorm,
    functional.embedding: Embedding,
}


def _each(value: int | Sequence[int], dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _ones(x: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.ones(tuple(shape), device=x.device)


def _sum_of_draws(images: int, rows: Tensor) -> Tensor:
    return rows if len(rows) == images else rows.float().unflatten(0, (images, -1)).sum(1)


def _images_per_call(images: int, positions: int, device: torch.device) -> int:
    """How many images one call of a convolution takes; a GPU takes all."""
    if device.type != "cpu":
        return max(1, images)
    return min(MOST_IMAGES_PER_CALL, max(1, math.ceil(POSITIONS_PER_CALL / positions)))
