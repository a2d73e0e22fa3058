"""Images that are chosen by released means: each once, of the likeliest class, near the means together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from privimage.generators.sampling.choosing import choose_by_means
from privimage.generators.training.pretrain import by_probability, evenly

CLASSES = 3


def candidates(count: int = 300) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Unit vectors, their probabilities, and means of the classes."""
    random = np.random.default_rng(0)
    vectors = random.normal(0, 1, (count, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    means = 0.5 * np.eye(CLASSES, 4, dtype=np.float32)
    scores = np.exp(4 * vectors @ means.T)
    return vectors, (scores / scores.sum(1, keepdims=True)).astype(np.float32), means


def test_each_is_taken_once_and_is_likeliest_of_its_class() -> None:
    vectors, probabilities, means = candidates()
    chosen = choose_by_means(vectors, probabilities, means, [20, 30, 10])
    assert [len(rows) for rows in chosen] == [20, 30, 10]
    together = np.concatenate(chosen)
    assert len(set(together.tolist())) == 60
    for number, rows in enumerate(chosen):
        assert (probabilities[rows].argmax(1) == number).all()


def test_their_mean_is_nearer_to_the_released_one_than_that_of_images_taken_at_random() -> None:
    vectors, probabilities, means = candidates()
    for number, rows in enumerate(choose_by_means(vectors, probabilities, means, [20] * CLASSES)):
        own = np.flatnonzero(probabilities.argmax(1) == number)
        away = [np.linalg.norm(vectors[some].mean(0) - means[number]) for some in (rows, own[:20])]
        assert away[0] < away[1]


def test_where_a_class_has_too_few_the_likeliest_that_are_left_follow() -> None:
    vectors, probabilities, means = candidates(60)
    probabilities[:, 2] = 0
    chosen = choose_by_means(vectors, probabilities, means, [10, 10, 10])
    assert [len(rows) for rows in chosen] == [10, 10, 10]
    assert len(set(np.concatenate(chosen).tolist())) == 30
    with pytest.raises(ValueError, match="61 images cannot be chosen of 60"):
        choose_by_means(vectors, probabilities, means, [61, 0, 0])


def test_many_are_chosen_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, probabilities, means = candidates()
    monkeypatch.setattr("privimage.generators.sampling.choosing._TOGETHER", 7)
    chosen = choose_by_means(vectors, probabilities, means, [40, 40, 40])
    assert [len(set(rows.tolist())) for rows in chosen] == [40, 40, 40]


def test_classes_are_drawn_equally_often_and_images_by_their_probabilities() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.0, 1.0]])
    rows, labels = by_probability(probabilities)(20_000, torch.Generator().manual_seed(0))
    assert labels.float().mean() == pytest.approx(0.5, abs=0.02)
    for label in (0, 1):
        found = torch.bincount(rows[labels == label], minlength=4) / (labels == label).sum()
        assert torch.allclose(found, probabilities[:, label] / probabilities[:, label].sum(), atol=0.02)
    rows, labels = by_probability(probabilities, 3.0)(20_000, torch.Generator().manual_seed(0))
    cubed = probabilities[:, 0] ** 3
    found = torch.bincount(rows[labels == 0], minlength=4) / (labels == 0).sum()
    assert torch.allclose(found, cubed / cubed.sum(), atol=0.02)


def test_without_probabilities_each_image_has_its_own_label() -> None:
    own = torch.tensor([2, 0, 1])
    rows, labels = evenly(own)(500, torch.Generator().manual_seed(0))
    assert torch.equal(labels, own[rows]) and len(rows.unique()) == 3
