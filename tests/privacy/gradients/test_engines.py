"""Whole networks: every engine gives the clipped sum of a plain loop over images, however the rows are computed."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privimage.errors import ConfigError
from privimage.privacy.clipping import block_norms, clip_and_sum, clip_factors, row_norms
from privimage.privacy.gradients import Backend, gradient_engine

from .conftest import DenoiserCase, clipped_loop, gradients_alone, moved, parameters_of, seeded, squared_error

BACKENDS: list[Backend] = ["bookkeeping", "vmap", "opacus"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture(scope="session")
def alone(case: DenoiserCase) -> Tensor:
    return gradients_alone(case.denoiser, case.loss, case.parameters, case.rows, case.draws)


def clipped(
    case: DenoiserCase,
    backend: Backend = "bookkeeping",
    *,
    bound: float,
    rows: list[Tensor] | None = None,
    rows_at_once: int = 1000,
    **settings: Any,
) -> Tensor:
    engine = gradient_engine(case.denoiser, case.loss, backend=backend, **settings)
    rows = case.rows if rows is None else rows
    found = engine.clipped_sum(case.parameters, rows, draws=case.draws, max_grad_norm=bound, rows_at_once=rows_at_once)
    assert found.sensitivity == bound
    assert found.value.dtype == torch.float32
    return found.value


def without(case: DenoiserCase, image: int) -> list[Tensor]:
    start = image * case.draws
    return [torch.cat([tensor[:start], tensor[start + case.draws :]]) for tensor in case.rows]


def test_every_engine_gives_the_sum_of_a_plain_loop(case: DenoiserCase, alone: Tensor, backend: Backend) -> None:
    bound = float(alone.norm(dim=1).median())
    found = clipped(case, backend, bound=bound).double()
    assert (found - clipped_loop(alone, bound)).norm() <= 1e-4 * len(alone) * bound


def test_rows_at_once_changes_nothing(case: DenoiserCase, backend: Backend) -> None:
    whole = clipped(case, backend, bound=0.5)
    for rows_at_once in (1, 6, 7):
        found = clipped(case, backend, bound=0.5, rows_at_once=rows_at_once)
        assert float((found - whole).norm() / whole.norm()) <= 1e-6


def test_the_order_of_an_images_draws_changes_nothing(case: DenoiserCase, backend: Backend) -> None:
    order = torch.arange(len(case.rows[0])).view(-1, case.draws).flip(1).flatten()
    found = clipped(case, backend, bound=0.5, rows=[tensor[order] for tensor in case.rows])
    whole = clipped(case, backend, bound=0.5)
    assert float((found - whole).norm() / whole.norm()) <= 1e-6


@pytest.mark.parametrize("bound", [1e-3, 1.0])
def test_zeroing_out_any_image_changes_the_sum_by_at_most_the_bound(case: DenoiserCase, bound: float) -> None:
    whole = clipped(case, bound=bound)
    changes = [
        float((whole - clipped(case, bound=bound, rows=without(case, image))).norm()) for image in range(case.images)
    ]
    assert max(changes) <= bound * (1 + 1e-5)
    assert max(changes) >= 0.99 * bound, "no image reaches the bound: this test would show nothing"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_image_counts_as_zero_and_poisons_no_other(case: DenoiserCase, backend: Backend, bad: float) -> None:
    rows = [tensor.clone() for tensor in case.rows]
    rows[3][2 * case.draws + 1, 0, 0, 0] = bad  # in one of its draws
    found = clipped(case, backend, bound=0.5, rows=rows)
    torch.testing.assert_close(found, clipped(case, backend, bound=0.5, rows=without(case, 2)), rtol=1e-4, atol=1e-6)


def test_an_empty_batch_gives_zeros_whatever_came_before(case: DenoiserCase, backend: Backend) -> None:
    engine = gradient_engine(case.denoiser, case.loss, backend=backend)
    for rows in (case.rows, [tensor[:0] for tensor in case.rows]):
        found = engine.clipped_sum(case.parameters, rows, draws=case.draws, max_grad_norm=0.5, rows_at_once=99).value
    assert found.shape == (sum(parameter.numel() for parameter in case.parameters.values()),)
    assert not found.any()


def test_no_image_changes_the_gradient_of_another(case: DenoiserCase, backend: Backend) -> None:
    changed = [tensor.clone() for tensor in case.rows]
    of_image = slice(2 * case.draws, 3 * case.draws)
    changed[0][of_image] = changed[0][of_image].flip(2)
    difference = clipped(case, backend, bound=0.5, rows=changed) - clipped(case, backend, bound=0.5)
    alone, before = ([tensor[of_image] for tensor in rows] for rows in (changed, case.rows))
    expected = clipped(case, backend, bound=0.5, rows=alone) - clipped(case, backend, bound=0.5, rows=before)
    assert expected.norm() > 0.01
    torch.testing.assert_close(difference, expected, rtol=0, atol=1e-5)


def test_randomness_inside_the_loss_is_an_error() -> None:
    module = nn.Linear(2, 2)
    engine = gradient_engine(module, lambda network, rows: (network(rows) * torch.rand(2)).sum(1), backend="vmap")
    with pytest.raises(RuntimeError, match="random"):
        engine.clipped_sum(parameters_of(module), [torch.ones(3, 2)], draws=1, max_grad_norm=1.0, rows_at_once=3)


def test_parameters_that_are_not_named_stay_fixed(case: DenoiserCase, alone: Tensor, backend: Backend) -> None:
    chosen = {name: value for name, value in case.parameters.items() if "norm" in name or "attention.qkv" in name}
    engine = gradient_engine(case.denoiser, case.loss, backend=backend)
    found = engine.clipped_sum(chosen, case.rows, draws=case.draws, max_grad_norm=1e6, rows_at_once=99).value
    parts = alone.sum(0).split([value.numel() for value in case.parameters.values()])
    expected = torch.cat([part for name, part in zip(case.parameters, parts, strict=True) if name in chosen])
    assert (found - expected).norm() <= 1e-3 * expected.norm()


def test_the_modules_own_weights_and_gradients_are_left_alone(case: DenoiserCase, backend: Backend) -> None:
    before = {name: value.clone() for name, value in case.denoiser.state_dict().items()}
    doubled = {name: 2 * value for name, value in case.parameters.items()}
    engine = gradient_engine(case.denoiser, case.loss, backend=backend)
    engine.clipped_sum(doubled, case.rows, draws=case.draws, max_grad_norm=1.0, rows_at_once=99)
    assert all(torch.equal(value, before[name]) for name, value in case.denoiser.state_dict().items())
    assert all(parameter.grad is None for parameter in case.denoiser.parameters())


@pytest.mark.parametrize("name", ["bookkeeping", "vmap"])
def test_low_precision_is_close_and_keeps_the_bound(case: DenoiserCase, alone: Tensor, name: Backend) -> None:
    bound = float(alone.norm(dim=1).min()) / 2
    exact, low = (clipped(case, name, bound=bound, precision=kind) for kind in ("float32", "bfloat16"))
    assert 1e-5 < float((low - exact).norm() / exact.norm()) < 0.05
    one = clipped(case, name, bound=bound, precision="bfloat16", rows=[tensor[: case.draws] for tensor in case.rows])
    assert 0.999 * bound <= float(one.double().norm()) <= bound * (1 + 1e-6)


class Canary(torch.autograd.Function):
    """The identity; what its node in the graph is given dies with the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, companion: set[int]) -> Tensor:
        ctx.companion = companion
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def test_a_step_leaves_no_graph_behind() -> None:
    """A record that held the graph that holds the record would keep all activations in memory."""
    companions = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, rows: Tensor) -> Tensor:
            companion = {1}
            companions.append(weakref.ref(companion))
            out: Tensor = self.second(Canary.apply(self.first(rows), companion))
            return out

    net = Net()
    engine = gradient_engine(net, squared_error)
    gc.disable()
    try:
        engine.clipped_sum(parameters_of(net), [torch.randn(4, 4)], draws=1, max_grad_norm=1.0, rows_at_once=4)
        assert companions[0]() is None
    finally:
        gc.enable()


class Shared(nn.Module):
    """One layer used twice, one weight in two modules, one weight used as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(2, 2, 3, padding=1)
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.second.weight = self.first.weight
        self.scale = nn.Linear(32, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        assert self.scale.weight.shape == (32, 32)  # to ask for a shape is no use of a parameter
        h = self.twice(torch.tanh(self.twice(x))).flatten(1)
        h = self.second(torch.relu(self.first(h)))
        return functional.linear(h, self.scale.weight) + self.scale(h.square())


@pytest.mark.parametrize("name", ["bookkeeping", "vmap"])
@pytest.mark.parametrize("draws", [1, 2])
def test_parameters_that_are_shared_or_used_several_times_count_once(name: Backend, draws: int) -> None:
    module = moved(Shared())
    parameters, rows = parameters_of(module), [torch.randn(6, 2, 4, 4, generator=seeded())]
    expected = gradients_alone(module, squared_error, parameters, rows, draws)
    bound = float(expected.norm(dim=1).median())
    engine = gradient_engine(module, squared_error, backend=name)
    found = engine.clipped_sum(parameters, rows, draws=draws, max_grad_norm=bound, rows_at_once=4).value.double()
    assert (found - clipped_loop(expected, bound)).norm() <= 1e-4 * len(expected) * bound


@pytest.mark.parametrize("length", [1, 31, 257, 14_400, 131_072, 99_991])
def test_the_rule_in_parts_is_the_rule(length: int) -> None:
    gradients = [torch.randn(4, length, generator=seeded()), 3 * torch.randn(4, 7, generator=seeded(1))]
    gradients[0][2] *= 1e19
    gradients[1][3] = math.nan
    norms = torch.stack([row_norms(block_norms(rows)) for rows in gradients], dim=1)
    factors = clip_factors(norms, 2.0)
    dropped = factors == 0
    found = torch.cat([factors @ rows.masked_fill(dropped[:, None], 0.0) for rows in gradients])
    torch.testing.assert_close(found, clip_and_sum(gradients, 2.0), rtol=1e-5, atol=1e-7)
    assert dropped.tolist() == [False, False, True, True]


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_that_is_none_is_refused(case: DenoiserCase, backend: Backend, bound: float) -> None:
    with pytest.raises(ConfigError, match="max_grad_norm must be positive and finite"):
        clipped(case, backend, bound=bound)


def test_rows_that_are_no_whole_images_are_refused(case: DenoiserCase, backend: Backend) -> None:
    for rows in ([tensor[:4] for tensor in case.rows], [case.rows[0][:3], *case.rows[1:]]):
        with pytest.raises(ConfigError, match="Rows must be images x 3 draws in every tensor"):
            clipped(case, backend, bound=1.0, rows=rows)
