"""Per-image gradients of one parameter, in the form that is cheapest to keep until all norms are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from privimage.privacy.clipping import block_norms, row_norms

__all__ = ["Formed", "OuterProducts", "PerImage"]


class PerImage(Protocol):
    """Gradients of some images with respect to one parameter."""

    def norms(self) -> Tensor:
        """L2 norm of each image's gradient, shape (images,), off by less than 2^-13 of it."""
        ...

    def drop(self, images: Tensor) -> None:
        """Set the gradients of some images, a mask (images,), to zero: a zero factor does not silence infinity."""
        ...

    def add_to(self, total: Tensor, factors: Tensor) -> None:
        """Add the sum over images of factor times gradient to the flat `total`."""
        ...

    def formed(self) -> Tensor:
        """The gradients, shape (images, size of the parameter)."""
        ...


class Formed:
    """The gradients themselves, in one or several tensors (some images, *any shape), in the order of the images."""

    def __init__(self, pieces: Sequence[Tensor]) -> None:
        self._pieces = [piece.float().flatten(1) for piece in pieces]
        self._counts = [len(piece) for piece in pieces]

    def norms(self) -> Tensor:
        return row_norms(torch.cat([block_norms(piece) for piece in self._pieces]))

    def drop(self, images: Tensor) -> None:
        if images.device.type != "cpu":
            for piece, dropped in zip(self._pieces, images.split(self._counts), strict=True):
                piece.masked_fill_(dropped[:, None], 0.0)
            return
        # Touches those images only; torch's own indexing takes several times as long, a call a piece.
        mask, start = images.numpy(), 0
        for piece in self._pieces:
            piece.numpy()[mask[start : start + len(piece)]] = 0.0
            start += len(piece)

    def add_to(self, total: Tensor, factors: Tensor) -> None:
        for piece, weights in zip(self._pieces, factors.split(self._counts), strict=True):
            total.addmv_(piece.T, weights)

    def formed(self) -> Tensor:
        return torch.cat(self._pieces)


class OuterProducts:
    """Gradients outputs[i] inputs[i]^T, never formed. Shapes (images, d) and (images, p), the parameter's is (d, p).

    One product an image loses nothing: the norm is that of the factors. A sum of products, as from several positions,
    may cancel, and a norm computed from the factors would then be wrong without bound. Such gradients are formed.
    """

    def __init__(self, outputs: Tensor, inputs: Tensor) -> None:
        self._outputs, self._inputs = outputs.float(), inputs.float()

    def norms(self) -> Tensor:
        return row_norms(self._outputs) * row_norms(self._inputs)

    def drop(self, images: Tensor) -> None:
        # Copies: the inputs may be the caller's own tensor.
        self._outputs = self._outputs.masked_fill(images[:, None], 0.0)
        self._inputs = self._inputs.masked_fill(images[:, None], 0.0)

    def add_to(self, total: Tensor, factors: Tensor) -> None:
        weighted = factors[:, None] * self._outputs
        total.view(weighted.shape[1], -1).addmm_(weighted.T, self._inputs)

    def formed(self) -> Tensor:
        return (self._outputs[:, :, None] * self._inputs[:, None, :]).flatten(1)
