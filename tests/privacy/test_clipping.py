"""Per-image clipping: equal to the plain loop, bounded for every input, blind to how it is batched."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from privimage.errors import ConfigError
from privimage.privacy.clipping import check_bound, clip_and_sum


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_clip_and_sum(gradients: Sequence[Tensor], max_grad_norm: float) -> Tensor:
    """The obvious loop over images, in float64."""
    total = torch.zeros(sum(gradient.shape[1:].numel() for gradient in gradients), dtype=torch.float64)
    for number in range(len(gradients[0])):
        whole = torch.cat([gradient[number].flatten() for gradient in gradients]).double()
        total += whole * min(1.0, max_grad_norm / max(float(whole.norm()), 1e-300))
    return total


@given(
    count=st.integers(0, 6),
    shapes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=4),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    max_grad_norm=st.floats(1e-4, 1e3),
    seed=st.integers(0, 2**31),
)
@example(count=2, shapes=[[2], [3, 2]], scale=1.0, max_grad_norm=0.5, seed=0)
@settings(max_examples=80, deadline=None)
def test_the_sum_is_that_of_a_plain_loop(
    count: int, shapes: list[list[int]], scale: float, max_grad_norm: float, seed: int
) -> None:
    gradients = [scale * torch.randn(count, *shape, generator=seeded(seed)) for shape in shapes]
    expected = slow_clip_and_sum(gradients, max_grad_norm)
    found = clip_and_sum(gradients, max_grad_norm).double()
    assert (found - expected).norm() <= 1e-4 * count * max_grad_norm


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=12), max_grad_norm=st.floats(1e-4, 1e3))
@settings(max_examples=200, deadline=None)
def test_no_float_whatsoever_passes_the_bound(values: list[float], max_grad_norm: float) -> None:
    found = clip_and_sum([torch.tensor([values], dtype=torch.float32)], max_grad_norm).double()
    assert torch.isfinite(found).all()
    assert found.norm() <= max_grad_norm


@pytest.mark.parametrize("length", [256, 257, 100_000, 3_000_000])
@pytest.mark.parametrize("kind", ["equal", "one large among small", "random"])
def test_the_bound_holds_for_long_gradients_too(length: int, kind: str) -> None:
    gradient = torch.full((1, length), 1e-4) if kind != "random" else torch.randn(1, length, generator=seeded())
    if kind == "one large among small":
        gradient[0, 0] = 1.0
    gradient *= 10 / gradient.double().norm().float()
    norm = clip_and_sum([gradient], 1.0).double().norm()
    assert 0.9998 <= norm <= 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_a_bad_image_counts_as_zero_and_poisons_no_other(bad: float) -> None:
    first, second = torch.randn(4, 3, 2, generator=seeded()), torch.randn(4, 5, generator=seeded(1))
    good = clip_and_sum([first[1:].clone(), second[1:].clone()], 0.5)
    first[0, 1, 1] = bad
    torch.testing.assert_close(clip_and_sum([first.clone(), second.clone()], 0.5), good)
    second[0] = bad
    torch.testing.assert_close(clip_and_sum([first, second], 0.5), good)


def test_a_gradient_below_the_bound_keeps_its_length() -> None:
    gradient = torch.tensor([[0.3, 0.4]])
    torch.testing.assert_close(clip_and_sum([gradient.clone()], 1.0), gradient[0], rtol=1e-4, atol=0)
    assert clip_and_sum([torch.zeros(1, 2)], 1.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("max_grad_norm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_that_is_none_is_refused(max_grad_norm: float) -> None:
    with pytest.raises(ConfigError, match="max_grad_norm must be positive and finite"):
        check_bound(max_grad_norm)
