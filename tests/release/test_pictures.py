"""Pictures: their size, their content, and that the same input gives the same bytes."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from privimage.errors import DataError
from privimage.reports import pictures
from privimage.reports.pictures import bar_svg, curve_svg, sample_grid, thumbnail_strip


def noise(num: int, channels: int = 1, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, channels, size, size), dtype=np.uint8)


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize(
    ("channels", "size", "cell"), [(1, 8, 64), (1, 28, 56), (3, 32, 64), (3, 64, 64), (3, 128, 64)]
)
def test_cells_are_enlarged_by_whole_factors_to_about_64_pixels(channels: int, size: int, cell: int) -> None:
    assert decoded(thumbnail_strip(noise(3, channels, size))).shape == (cell, 3 * cell + 2 * pictures.GAP, 3)


def test_an_enlarged_pixel_keeps_its_colour() -> None:
    images = noise(2, 3)
    strip = decoded(thumbnail_strip(images))
    assert np.array_equal(strip[:64:8, :64:8], images[0].transpose(1, 2, 0))
    assert np.array_equal(strip[7:64:8, 64 + pictures.GAP + 7 :: 8], images[1].transpose(1, 2, 0))


def test_a_reduced_pixel_is_the_mean_of_its_block() -> None:
    images = np.zeros((1, 1, 128, 128), dtype=np.uint8)
    images[..., ::2] = 200
    assert (decoded(thumbnail_strip(images)) == 100).all()


@pytest.mark.parametrize(("num_classes", "channels"), [(2, 1), (10, 3), (100, 1)])
def test_a_grid_has_a_row_for_each_class_and_room_for_names(num_classes: int, channels: int) -> None:
    labels = np.arange(num_classes * 4) % num_classes
    names = [f"class {number}" for number in range(num_classes)]
    grid = decoded(sample_grid(noise(num_classes * 4, channels), labels, names, per_class=3))
    assert grid.shape[0] == num_classes * (64 + pictures.GAP) + pictures.GAP
    assert 3 * (64 + pictures.GAP) + 20 < grid.shape[1] < 3 * (64 + pictures.GAP) + 200


def test_a_grid_shows_each_image_in_the_row_of_its_class() -> None:
    images = np.stack([np.full((1, 8, 8), value, dtype=np.uint8) for value in (10, 20, 30)])
    grid = decoded(sample_grid(torch.from_numpy(images), torch.tensor([1, 0, 1]), ["a", "b"], scale=1))
    gap = pictures.GAP
    right = grid[:, -(2 * (8 + gap)) :]
    assert right[gap, 0].tolist() == [20] * 3
    assert right[gap, 8 + gap].tolist() == list(pictures.BACKGROUND)
    assert right[gap + 8 + gap, 0].tolist() == [10] * 3
    assert right[gap + 8 + gap, 8 + gap].tolist() == [30] * 3


def test_a_grid_with_an_empty_class_and_a_long_or_foreign_name_is_drawn() -> None:
    names = ["w" * 500, "", "two\nlines", "Großmünster Ω 猫"]
    grid = decoded(sample_grid(noise(4), [0, 0, 1, 3], names))
    assert grid.shape[1] < 2 * (64 + pictures.GAP) + pictures.MAX_LABEL_WIDTH + 20


def test_a_grid_that_would_be_too_large_loses_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sample_grid(noise(20, 3, 64), np.arange(20) % 2, ["a", "b"])
    monkeypatch.setattr(pictures, "MAX_GRID_BYTES", len(whole) // 2)
    smaller = sample_grid(noise(20, 3, 64), np.arange(20) % 2, ["a", "b"])
    assert len(smaller) <= len(whole) // 2
    assert decoded(smaller).shape[0] == decoded(whole).shape[0]


def test_a_label_without_a_name_and_images_of_another_form_are_refused() -> None:
    for labels in ([0, 1, 2], [0, 1], [0, 1, -1]):
        with pytest.raises(DataError, match="check the class names"):
            sample_grid(noise(3), labels, ["a", "b"])
    with pytest.raises(DataError, match="uint8 image"):
        thumbnail_strip(noise(3).astype(np.float32))
    with pytest.raises(DataError, match="uint8 image"):
        thumbnail_strip(noise(3)[:0])


CURVES = {"training <b>": [(step, math.exp(-step / 9)) for step in range(30)], "cost in $ or $": [(0, 0.5), (29, 0.1)]}


@pytest.mark.parametrize(
    "svg", [curve_svg(CURVES, "step", "loss", "A & B"), bar_svg(["A <b>", "B"], [12.4, -3.0], "A & B")]
)
def test_an_svg_is_one_element_that_takes_the_colour_of_its_page(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == "A & B"
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "<metadata" not in svg
    references = [value for element in root.iter() for name, value in element.items() if name.endswith(("href", "src"))]
    assert all(reference.startswith("#") for reference in references)
    assert "&lt;b&gt;" in svg


def test_the_same_curve_gives_the_same_text_and_keeps_dollar_signs() -> None:
    assert curve_svg(CURVES, "step", "loss", "t") == curve_svg(CURVES, "step", "loss", "t")
    assert "cost in $ or $" in curve_svg(CURVES, "step", "loss", "t")


def test_empty_and_single_point_curves_are_drawn() -> None:
    assert curve_svg({}, "", "", "none").startswith("<svg")
    assert curve_svg({"one": [(5, 1.0)]}, "", "", "one").startswith("<svg")


def test_bars_show_their_values() -> None:
    svg = bar_svg(["A", "B"], [1234.4, -3.0], "votes")
    assert "1,234" in svg
    assert "-3" in svg or "−3" in svg
