"""Per-image gradients of each layer are those of a plain loop, for every shape, and one bad image spoils no other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from privimage.privacy.gradients import gradient_engine

from .conftest import clipped_loop, gradients_alone, moved, parameters_of, seeded, squared_error

FEW = settings(max_examples=30, deadline=None)
counts = st.integers(0, 5)
draws_of = st.integers(1, 3)
bad_values = st.sampled_from([None, None, math.nan, math.inf, -math.inf, 3e38])


def check(module: nn.Module, rows: list[Tensor], draws: int, bad: float | None = None) -> None:
    """Against the loop, at a bound that clips some images and not others."""
    parameters = parameters_of(moved(module))
    rows = [tensor.clone() for tensor in rows]
    if bad is not None and len(rows[0]) and rows[0].is_floating_point():
        rows[0].view(len(rows[0]), -1)[draws - 1, 0] = bad
    engine = gradient_engine(module, squared_error)
    if not len(rows[0]):
        assert not engine.clipped_sum(parameters, rows, draws=draws, max_grad_norm=1.0, rows_at_once=4).value.any()
        return
    alone = gradients_alone(module, squared_error, parameters, rows, draws)
    norms = alone.norm(dim=1)
    good = norms[norms < 1e18]
    bound = (float(good.median()) if len(good) else 0.0) or 1.0
    alone[~(norms < 1e18)] = math.nan
    expected = clipped_loop(alone, bound)
    images = len(rows[0]) // draws
    for rows_at_once in (1, 2 * draws, images * draws):
        found = engine.clipped_sum(parameters, rows, draws=draws, max_grad_norm=bound, rows_at_once=rows_at_once)
        assert found.sensitivity == bound
        assert (found.value.double() - expected).norm() <= 2e-4 * images * bound


@given(
    images=counts,
    draws=draws_of,
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    groups=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "reflect"]),
    bias=st.booleans(),
    size=st.tuples(st.integers(5, 8), st.integers(5, 8)),
    bad=bad_values,
)
@settings(max_examples=80, deadline=None)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions(  # type: ignore[no-untyped-def]
    images, draws, channels, groups, kernel, stride, padding, dilation, mode, bias, size, bad
) -> None:
    stride = 1 if padding == "same" else stride
    layer = nn.Conv2d(
        groups * channels[0],
        groups * channels[1],
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=mode,
        bias=bias,
    )
    rows = torch.randn(images * draws, groups * channels[0], *size, generator=seeded(images))
    check(layer, [rows], draws, bad)


@pytest.mark.parametrize("images", [2, 19])
@pytest.mark.parametrize("size", [4, 30])
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_however_many_images_a_call_takes(images: int, size: int, kernel: int) -> None:
    for draws in (1, 2):
        rows = torch.randn(images * draws, 3, size, size, generator=seeded())
        check(nn.Conv2d(3, 17, kernel, padding=kernel // 2), [rows], draws)


@pytest.mark.parametrize("dims", [1, 3])
def test_convolutions_of_one_and_three_dimensions(dims: int) -> None:
    layer = {1: nn.Conv1d, 3: nn.Conv3d}[dims](2, 4, 3, stride=2, padding=1, groups=2)
    check(layer, [torch.randn(8, 2, *[5] * dims, generator=seeded())], 2)


@given(
    images=counts,
    draws=draws_of,
    positions=st.lists(st.integers(1, 3), max_size=2),
    width=st.tuples(st.integers(1, 6), st.integers(1, 300)),
    bias=st.booleans(),
    bad=bad_values,
)
@FEW
def test_linear_layers(images, draws, positions, width, bias, bad) -> None:  # type: ignore[no-untyped-def]
    rows = torch.randn(images * draws, *positions, width[0], generator=seeded(images))
    check(nn.Linear(*width, bias=bias), [rows], draws, bad)


@given(
    images=counts,
    draws=draws_of,
    groups=st.integers(1, 3),
    each=st.integers(1, 3),
    size=st.integers(1, 4),
    bad=bad_values,
)
@FEW
def test_group_norms(images, draws, groups, each, size, bad) -> None:  # type: ignore[no-untyped-def]
    assume(each * size > 1)
    rows = torch.randn(images * draws, groups * each, size, size, generator=seeded(images))
    check(nn.GroupNorm(groups, groups * each), [rows], draws, bad)


@given(
    images=counts,
    draws=draws_of,
    shape=st.lists(st.integers(2, 4), min_size=1, max_size=2),
    bias=st.booleans(),
    bad=bad_values,
)
@FEW
def test_layer_norms(images, draws, shape, bias, bad) -> None:  # type: ignore[no-untyped-def]
    rows = torch.randn(images * draws, 3, *shape, generator=seeded(images))
    check(nn.LayerNorm(shape, bias=bias), [rows], draws, bad)


@given(
    images=counts,
    draws=draws_of,
    positions=st.lists(st.integers(1, 4), max_size=2),
    padding=st.sampled_from([None, 0, -1]),
)
@FEW
def test_embeddings(images, draws, positions, padding) -> None:  # type: ignore[no-untyped-def]
    rows = torch.randint(0, 4, (images * draws, *positions), generator=seeded(images))
    check(nn.Embedding(4, 3, padding_idx=padding), [rows], draws)


def test_an_image_of_norms_beyond_all_bounds_poisons_no_other() -> None:
    layer = moved(nn.Linear(3, 2))
    parameters = parameters_of(layer)
    engine = gradient_engine(layer, squared_error)
    rows = torch.randn(4, 3, generator=seeded())
    kept = engine.clipped_sum(parameters, [rows[1:]], draws=1, max_grad_norm=0.1, rows_at_once=9).value
    for bad in (math.nan, math.inf, 3e38, 1e25):
        rows[0] = bad
        before = rows.clone()
        found = engine.clipped_sum(parameters, [rows], draws=1, max_grad_norm=0.1, rows_at_once=9).value
        torch.testing.assert_close(found, kept)
        assert torch.equal(rows.nan_to_num(), before.nan_to_num()), "the caller's rows were changed"
