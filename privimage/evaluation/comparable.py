"""Can two sets of images be compared at all? Asked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from privimage.errors import DataError

__all__ = ["check_comparable"]


def check_comparable(
    synthetic: np.ndarray, labels: np.ndarray, private: np.ndarray, class_names: Sequence[str]
) -> None:
    """Refuse what would give figures of something else than was asked for.

    A network that pools takes images of any size, so another resolution would show as bad quality only; and a class
    without images would be missing from a mean. The messages tell nothing about the private images but their form.

    Args:
        synthetic: images, shape (images, channels, height, width), with `labels`, class numbers, shape (images,).
        private: images, shape (images, channels, height, width).

    Raises:
        DataError: other channels, height or width on the two sides, no private images, or a class has no synthetic
            images.
    """
    if synthetic.shape[1:] != private.shape[1:]:
        raise DataError(
            f"The synthetic images are {_form(synthetic)}, the sensitive ones {_form(private)}: evaluate a run with the "
            "`image` settings that its generator was trained with."
        )
    if not len(private):
        raise DataError("There are no sensitive test images to compare with: raise sensitive.test_fraction.")
    missing = [name for number, name in enumerate(class_names) if not (labels == number).any()]
    if missing:
        raise DataError(
            f"The synthetic set has no image of {len(missing)} of {len(class_names)} classes, {missing[0]!r} the first of "
            f"them: set synthesize.num_images to {len(class_names)} or more."
        )


def _form(images: np.ndarray) -> str:
    channels, height, width = images.shape[1:]
    return f"{height} x {width} pixels with {channels} channel{'s' if channels > 1 else ''}"
