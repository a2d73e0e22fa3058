"""A network that an engine would get wrong is refused by name, before anything is charged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privimage.errors import ConfigError
from privimage.privacy.gradients import Backend, check_engine, gradient_engine

from .conftest import DenoiserCase, parameters_of, seeded, squared_error


class Scale(nn.Module):
    """A parameter that is used by no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class MixesImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return h - h.mean(0)


class Transposes(nn.Module):
    """Rows are no longer first: with as many positions as rows, gradients would go to other images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.T[:, :, None]).transpose(0, 1)


class OutOfSight(nn.Module):
    """Uses its weight in a layer and, beside it, in a product."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x @ self.inner.weight.T


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def check(module: nn.Module, width: int = 4, backend: Backend = "bookkeeping") -> None:
    rows = [torch.randn(6, width, generator=seeded())]
    check_engine(module, squared_error, parameters_of(module), rows, draws=2, backend=backend)


@pytest.mark.parametrize("backend", ["bookkeeping", "vmap", "opacus"])
def test_the_denoiser_is_accepted(case: DenoiserCase, backend: Backend) -> None:
    check_engine(case.denoiser, case.loss, case.parameters, case.rows, draws=case.draws, backend=backend)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), Scale()), r"1\.factor of a Scale is used by .*mul.* not known"),
        (OutOfSight(), r"inner\.weight of a Linear is used by"),
        (nn.Sequential(nn.Linear(4, 4), nn.PReLU()), r"1\.weight of a PReLU"),
        (nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4)), r"1\.weight of a RMSNorm"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)), r"layer 1 \(BatchNorm1d\) mixes images"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), r"layer 1 \(Dropout\) draws random numbers"),
        (MixesImages(), r"inner\.\w+ of a Linear are not those of each image alone"),
        (Transposes(), r"inner\.weight of a Linear is used by .* need \d+ rows first"),
        (Unused(), r"spare\.weight got no gradient"),
        (
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            r"parametrizations\.weight\.original\d of a ParametrizationList",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_the_engine_would_get_wrong_is_refused_by_name(module: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(module)


@pytest.mark.parametrize("backend", ["bookkeeping", "opacus"])
def test_a_parameter_without_a_gradient_is_never_passed_over(backend: Backend) -> None:
    module = Unused()
    engine = gradient_engine(module, squared_error, backend=backend)
    with pytest.raises(ConfigError, match=r"spare\.\w+.* got no gradient"):
        engine.clipped_sum(parameters_of(module), [torch.randn(4, 4)], draws=2, max_grad_norm=1.0, rows_at_once=4)


def test_as_many_positions_as_rows_are_refused_too() -> None:
    with pytest.raises(ConfigError, match="not those of each image alone"):
        check(Transposes(), width=6)


def test_attention_of_torch_is_refused_by_name() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            rows = x[:, None].expand(-1, 3, -1)
            out: Tensor = self.attention(rows, rows, rows)[0]
            return out

    with pytest.raises(ConfigError, match=r"attention\.\w+ of a \w+ is used by"):
        check(Attends())


@pytest.mark.parametrize("settings", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_embeddings_whose_gradient_depends_on_other_rows_are_refused(settings: dict[str, Any]) -> None:
    module = nn.Embedding(5, 3, **settings)
    engine = gradient_engine(module, squared_error)
    with pytest.raises(ConfigError, match="weight of a Embedding is used by an Embedding with max_norm"):
        engine.clipped_sum(parameters_of(module), [torch.arange(4)], draws=2, max_grad_norm=1.0, rows_at_once=4)


def test_a_loss_that_is_not_one_number_per_row_is_refused(case: DenoiserCase) -> None:
    engine = gradient_engine(case.denoiser, lambda network, *rows: case.loss(network, *rows).mean())
    with pytest.raises(ConfigError, match="one number per row"):
        engine.clipped_sum(case.parameters, case.rows, draws=3, max_grad_norm=1.0, rows_at_once=99)
