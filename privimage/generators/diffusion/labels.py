"""From the classes that a generator was pre-trained with to those that it is fine-tuned with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["with_other_classes"]

LABELS = "net.embed_label.weight"  # of the U-Net: a row for each class, the last for "no label"


def with_other_classes(weights: Mapping[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """A denoiser's weights for `num_classes` classes that it has never seen, whatever classes it was trained with.

    Each class starts as "no label": the generator draws for it what it would draw unasked, and fine-tuning tells the
    classes apart. A public category's row would be a guess about which of them resembles which class.
    """
    return {**weights, LABELS: weights[LABELS][-1:].repeat(num_classes + 1, 1)}
