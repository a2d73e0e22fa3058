"""Kernel herding: the mean of what is taken is near the one that was asked for, from the first on, and nothing is taken twice."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from privimage.generators.sampling.herding import herd


def vectors(count: int, *, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(count, 20, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_each_beginning_of_what_is_taken_has_nearly_the_mean_and_no_random_choice_has() -> None:
    candidates = vectors(2000)
    mean = candidates[:300].mean(0) + 0.1 * vectors(1, seed=1)[0]
    taken = herd(candidates, mean, 100)
    assert len(set(taken.tolist())) == 100
    for count in (10, 30, 100):
        far = (candidates[taken[:count]].mean(0) - mean).norm()
        by_chance = (candidates[torch.randperm(2000)[:count]].mean(0) - mean).norm()
        assert far < 0.4 * by_chance and far < 1 / count


def test_of_two_groups_it_takes_as_many_of_each_as_the_mean_says() -> None:
    groups = torch.eye(2).repeat_interleave(50, dim=0)
    taken = herd(groups, torch.tensor([0.75, 0.25]), 40)
    assert (taken < 50).sum() == 30


def test_all_can_be_taken_but_no_more() -> None:
    candidates = vectors(7)
    assert sorted(herd(candidates, candidates.mean(0), 7).tolist()) == list(range(7))
    with pytest.raises(ValueError, match="8 rows cannot be taken of 7"):
        herd(candidates, candidates.mean(0), 8)
