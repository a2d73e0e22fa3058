"""Precision and recall against cases that can be counted by hand."""

from __future__ import annotations

import numpy as np
import sklearn

from privimage.evaluation.manifold import inside

LINE = np.array([[0.0], [1.0], [2.0], [4.0]])  # third-nearest others: 4, 3, 2, 4 away


def test_a_row_is_inside_where_a_ball_of_the_third_neighbour_s_distance_reaches() -> None:
    # The balls are [-4, 4], [-2, 4], [0, 4] and [0, 8].
    points = np.array([[-4.1], [-3.9], [3.0], [7.9], [8.1]])
    assert inside(points, manifold_of=LINE).tolist() == [False, True, True, True, False]


def test_one_side_may_cover_the_other_and_not_be_covered() -> None:
    random = np.random.default_rng(0)
    real = random.normal(size=(400, 2))
    collapsed = 0.05 * random.normal(size=(400, 2))
    assert inside(collapsed, manifold_of=real).mean() == 1.0
    assert inside(real, manifold_of=collapsed).mean() < 0.05
    assert not inside(real + 100, manifold_of=real).any()


def test_equal_rows_are_neighbours_of_each_other_and_make_balls_of_no_size() -> None:
    assert inside(np.array([[0.0], [1e-3]]), manifold_of=np.zeros((5, 1))).tolist() == [True, False]


def test_two_draws_of_one_distribution_cover_each_other() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 500, 3))
    assert inside(a, manifold_of=b).mean() > 0.85
    assert inside(b, manifold_of=a).mean() > 0.85


def test_it_is_the_same_in_blocks() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 300, 3))
    whole = inside(a + 0.5, manifold_of=b)
    with sklearn.config_context(working_memory=0.05):
        assert np.array_equal(inside(a + 0.5, manifold_of=b), whole)
    assert whole.any() and not whole.all()
