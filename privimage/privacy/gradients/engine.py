"""Three ways to the same per-image clipped gradient sum, and the check that a network suits one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from privimage.errors import ConfigError
from privimage.privacy.clipping import SHRINK, ClippedSum, clip_factors, row_norms
from privimage.privacy.gradients.bookkeeping import Bookkeeping
from privimage.privacy.gradients.rows import LossOfRows, Precision, losses_of
from privimage.privacy.gradients.vectorised import Vectorised

__all__ = ["Backend", "GradientEngine", "check_engine", "gradient_engine"]

Backend = Literal["bookkeeping", "vmap", "opacus"]


class GradientEngine(Protocol):
    """Computes sums of clipped per-image gradients."""

    def clipped_sum(
        self,
        parameters: Mapping[str, Tensor],
        rows: Sequence[Tensor],
        *,
        draws: int,
        max_grad_norm: float,
        rows_at_once: int,
    ) -> ClippedSum:
        """Sum over images of the clipped gradient of the mean loss of an image's draws.

        Guarantee: one image changes the sum by at most `max_grad_norm` in L2 norm, for every input, provided that the
        network does not mix images (`check_engine`); an image whose gradient is not finite, or longer than 1e18,
        counts as zero and changes no other. `rows_at_once` does not change the result beyond rounding.

        Args:
            parameters: what to differentiate by, names and values; all other parameters of the module stay fixed.
            rows: tensors whose first dimension is images * draws, the draws of one image side by side; may be empty.
            draws: rows an image has. An image is clipped once, after its draws were averaged.
            rows_at_once: rows that are computed at once; at least one image is.

        Returns:
            A flat float32 vector, in the order of `parameters`.

        Raises:
            ConfigError: the bound is none; rows are no whole images; a trainable parameter is used in a way for which
                per-image gradients are not known, or not at all.
        """
        ...


def gradient_engine(
    module: nn.Module, loss_of_rows: LossOfRows, *, backend: Backend = "bookkeeping", precision: Precision = "float32"
) -> GradientEngine:
    """An engine for the gradients of `loss_of_rows(network, *rows)`, where network is `module` with given parameters.

    Args:
        backend: `bookkeeping` costs little more than ordinary training; `vmap` knows no layers and needs several
            times the memory; `opacus` uses Opacus's hooks.
        precision: of forward and backward pass; clipping and summing are float32 always.
    """
    if backend == "vmap":
        return Vectorised(module=module, loss_of_rows=loss_of_rows, precision=precision)
    if backend == "opacus":
        from privimage.privacy.gradients.opacus_hooks import OpacusHooks

        return OpacusHooks(module=module, loss_of_rows=loss_of_rows, precision=precision)
    return Bookkeeping(module=module, loss_of_rows=loss_of_rows, precision=precision)


def check_engine(
    module: nn.Module,
    loss_of_rows: LossOfRows,
    parameters: Mapping[str, Tensor],
    rows: Sequence[Tensor],
    *,
    draws: int,
    backend: Backend = "bookkeeping",
) -> None:
    """Raise ConfigError unless the engine's sum is that of ordinary backward passes, one image alone at a time.

    To be asked before anything is charged, with rows of noise: at least two images. It finds layers that mix images,
    parameters without a gradient, and gradients that are incomplete or given to the wrong image.

    Args:
        parameters: names and shapes count; the check moves them off their values, since a layer that starts at zero
            hides what comes before it, and weights that diverged hide everything.
    """
    _check_layers(module)
    if len(rows[0]) < 2 * draws:
        raise ConfigError(f"The check of per-image gradients needs two images, found {len(rows[0]) / draws:g}.")
    generator = torch.Generator().manual_seed(0)
    moved = {
        name: parameter.detach().nan_to_num(0, 0, 0).clamp(-1, 1)
        + 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter)
        for name, parameter in parameters.items()
    }
    alone = [
        _gradient(module, loss_of_rows, moved, [tensor[start : start + draws] for tensor in rows], draws)
        for start in range(0, len(rows[0]), draws)
    ]
    gradients = torch.stack(alone)
    norms = row_norms(gradients)
    # Every image is clipped, each by another factor: a gradient that goes to the wrong image is seen.
    bound = float(norms.min()) / 2
    if not 0 < bound < float("inf"):
        raise ConfigError(
            f"The check of per-image gradients found gradients of norms {norms.tolist()}; use other rows."
        )
    expected = clip_factors(norms[:, None], bound) @ gradients
    engine = gradient_engine(module, loss_of_rows, backend=backend)
    found = engine.clipped_sum(moved, rows, draws=draws, max_grad_norm=bound, rows_at_once=len(rows[0])).value
    sizes = [parameter.numel() for parameter in moved.values()]
    largest = SHRINK * bound * len(alone)
    for name, ours, theirs in zip(moved, found.split(sizes), expected.split(sizes), strict=True):
        if not float((ours - theirs).norm()) <= 1e-3 * float(theirs.norm()) + 1e-5 * largest:
            owner = module.get_submodule(name.rpartition(".")[0])
            raise ConfigError(
                f"The per-image gradients of the parameter {name} of a {type(owner).__name__} are not those of each "
                "image alone: a layer mixes images, or draws random numbers, or uses the parameter out of sight."
            )


def _gradient(
    module: nn.Module, loss_of_rows: LossOfRows, parameters: Mapping[str, Tensor], rows: Sequence[Tensor], draws: int
) -> Tensor:
    """By an ordinary backward pass, flat."""
    own = {name: parameter.clone().requires_grad_() for name, parameter in parameters.items()}

    def network(*args: object, **kwargs: object) -> object:
        return torch.func.functional_call(module, own, args, kwargs)

    losses = losses_of(loss_of_rows, network, rows)
    found = torch.autograd.grad(losses.sum() / draws, list(own.values()), allow_unused=True)
    for name, gradient in zip(own, found, strict=True):
        if gradient is None:
            raise ConfigError(f"The parameter {name} got no gradient: nothing that reaches the loss uses it.")
    return torch.cat([gradient.flatten().float() for gradient in found])


def _check_layers(module: nn.Module) -> None:
    """Refuse by name what mixes images or draws random numbers."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            problem, instead = "mixes images", "GroupNorm"
        elif isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats:
            problem, instead = "keeps averages over images", "GroupNorm"
        elif isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0:
            problem, instead = "draws random numbers", "no dropout, or p=0"
        else:
            continue
        raise ConfigError(f"The layer {name or 'module'} ({type(layer).__name__}) {problem}; use {instead}.")
