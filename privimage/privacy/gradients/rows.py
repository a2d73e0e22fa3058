"""How images and their noise draws lie in rows: image-major, the draws of one image side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from privimage.errors import ConfigError

__all__ = ["LossOfRows", "Network", "Precision", "autocast", "check_rows", "chunks", "losses_of"]

Network = Callable[..., Any]
Precision = Literal["float32", "bfloat16"]


# From the module with the parameters in question, and rows, to one loss per row, shape (rows,). The module must be
# reached through this argument, and a row's loss depend on the rows of its image only.
LossOfRows = Callable[..., Tensor]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Inside, layers that can do so compute in `precision`; weights and results stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def check_rows(rows: Sequence[Tensor], draws: int) -> int:
    """The number of rows.

    Raises:
        ConfigError: the tensors differ in length, or the rows are no whole number of images.
    """
    lengths = sorted({len(tensor) for tensor in rows})
    if len(lengths) != 1 or draws < 1 or lengths[0] % draws:
        raise ConfigError(f"Rows must be images x {draws} draws in every tensor, found lengths {lengths}.")
    return lengths[0]


def chunks(rows: Sequence[Tensor], draws: int, rows_at_once: int) -> Iterator[list[Tensor]]:
    """Whole images, at most `rows_at_once` rows of them at a time, but at least one image. Raises as `check_rows`."""
    count = check_rows(rows, draws)
    size = max(1, rows_at_once // draws) * draws
    for start in range(0, count, size):
        yield [tensor[start : start + size] for tensor in rows]


def losses_of(loss_of_rows: LossOfRows, network: Network, rows: Sequence[Tensor]) -> Tensor:
    """The losses in float32, shape (rows,).

    Raises:
        ConfigError: the loss has another shape.
    """
    losses = loss_of_rows(network, *rows)
    if losses.shape != (len(rows[0]),):
        raise ConfigError(f"The loss must give one number per row, ({len(rows[0])},), found {tuple(losses.shape)}.")
    return losses.float()
