"""Kernel herding (Welling 2009; Chen, Welling and Smola 2010, arXiv:1203.3472): few vectors whose mean is a given one.

Of candidates the one is taken that brings the mean of those taken so far nearest to where it belongs, again and again. So each
beginning of the list is a good choice, too. Images that were drawn one by one are alike in what the generator does best;
those that are herded make up for each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["herd"]


def herd(vectors: Tensor, mean: Tensor, count: int) -> Tensor:
    """Numbers of `count` different rows of `vectors`, (candidates, features), in the order in which they were taken.

    Args:
        vectors: of one norm; none of them is private.
        mean: (features,), released with noise, or public.

    Raises:
        ValueError: there are fewer candidates.
    """
    if count > len(vectors):
        raise ValueError(f"{count} rows cannot be taken of {len(vectors)}.")
    taken = torch.empty(count, dtype=torch.int64, device=vectors.device)
    left = torch.zeros(len(vectors), device=vectors.device)
    missing = mean.clone()  # the sum that as many rows, and one more, should have, less what they have
    for number in range(count):
        best = (vectors @ missing + left).argmax()
        taken[number] = best
        left[best] = -torch.inf
        missing += mean - vectors[best]
    return taken
