"""The two demo sets: real digits, and glyphs that are the same for the same seed."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from privimage.config.images import ImageConfig
from privimage.config.sources import DemoGlyphs
from privimage.data.decode import canonical
from privimage.data.demo import GLYPH_SIZE, demo_digits, demo_glyphs, render_glyph
from privimage.data.sources import open_source


def test_the_digits_are_scikit_learns_scaled_to_eight_bits() -> None:
    source = demo_digits()
    pixels = np.stack([np.asarray(item.load()) for item in source])
    np.testing.assert_array_equal(pixels, np.rint(load_digits().images * 255 / 16))
    assert [item.label for item in source] == load_digits().target.tolist()


def test_glyphs_depend_on_seed_category_and_number_only() -> None:
    glyph = np.asarray(render_glyph(10, 3, 0))
    np.testing.assert_array_equal(glyph, np.asarray(render_glyph(10, 3, 0)))
    for other in ((11, 3, 0), (10, 4, 0), (10, 3, 1)):
        assert (glyph != np.asarray(render_glyph(*other))).any()


def test_the_order_of_rendering_changes_nothing() -> None:
    items = list(demo_glyphs(images_per_category=10, seed=5))
    forwards = [items[index].load().tobytes() for index in range(0, 620, 31)]
    backwards = [items[index].load().tobytes() for index in reversed(range(0, 620, 31))]
    assert forwards == backwards[::-1]


def test_there_are_62_categories_whose_names_differ_without_case() -> None:
    source = open_source(DemoGlyphs(images_per_category=10))
    assert len(source) == 620 and len({name.lower() for name in source.class_names}) == 62
    assert source.class_names[3] == "digit-3" and source.class_names[10] == "upper-A"
    assert source.class_names[36] == "lower-a"
    assert np.bincount([item.label for item in source]).tolist() == [10] * 62


def test_glyphs_are_white_on_black_and_fill_the_frame() -> None:
    config = ImageConfig(resolution=8, channels=1)
    originals = [render_glyph(label, index, 0) for label in range(62) for index in range(4)]
    assert {image.size for image in originals} == {(GLYPH_SIZE, GLYPH_SIZE)}
    small = np.stack([canonical(image, config)[0] for image in originals]).astype(float)
    assert (small.max(axis=(1, 2)) > 60).all()
    assert small.mean(axis=0)[0].max() > 60 and small.mean(axis=0)[-1].max() > 60
    assert small.mean(axis=0)[:, [0, -1]].max() < small.mean(axis=0)[:, 3:5].min()
