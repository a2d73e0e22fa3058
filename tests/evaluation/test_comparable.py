"""What cannot be compared is refused, in one sentence."""

from __future__ import annotations

import numpy as np
import pytest

from privimage.errors import DataError
from privimage.evaluation.comparable import check_comparable

NAMES = ("anna", "berta", "carla")
LABELS = np.array([0, 1, 2, 0])


def images(num: int, channels: int = 1, size: int = 8) -> np.ndarray:
    return np.zeros((num, channels, size, size), dtype=np.uint8)


def test_sets_of_one_form_with_every_class_are_comparable() -> None:
    check_comparable(images(4), LABELS, images(1), NAMES)


@pytest.mark.parametrize(
    ("synthetic", "form"),
    [
        (images(4, size=16), "are 16 x 16 pixels with 1 channel,"),
        (images(4, channels=3), "are 8 x 8 pixels with 3 channels,"),
    ],
)
def test_another_resolution_or_colour_is_refused_and_both_forms_are_named(synthetic: np.ndarray, form: str) -> None:
    with pytest.raises(DataError, match=f"{form} the sensitive ones 8 x 8 pixels with 1 channel: evaluate"):
        check_comparable(synthetic, LABELS, images(5), NAMES)


def test_a_class_without_synthetic_images_is_named_with_the_setting_that_helps() -> None:
    with pytest.raises(
        DataError, match="no image of 2 of 3 classes, 'anna' the first of them: set synthesize.num_images to 3"
    ):
        check_comparable(images(2), np.array([1, 1]), images(5), NAMES)


def test_without_test_images_nothing_is_compared() -> None:
    with pytest.raises(DataError, match="no sensitive test images to compare with: raise sensitive.test_fraction"):
        check_comparable(images(4), LABELS, images(0), NAMES)
