"""Images that are chosen together: whose they are, and how near their mean embedding comes."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from privimage.data.pixels import from_pixels
from privimage.generators.mean_embedding.choice import choose, share_believed
from privimage.generators.mean_embedding.critic import Critic
from privimage.generators.mean_embedding.embedding import Embedding, draw
from privimage.generators.mean_embedding.features import RandomFeatures, Scaling, new_features
from privimage.generators.mean_embedding.matching import new_embedding_generator
from privimage.methods.generators.mean_embedding import MeanEmbedding
from privimage.payloads import GeneratorAbout

EACH = 7
WANTED = torch.arange(3 * EACH) % 3


class Bright(nn.Module):
    """Class 0 is what is darker than most, 1 the rest, and 2 nothing is."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean((1, 2, 3))
        return torch.stack([-grey, grey, torch.full_like(grey, -10)], dim=1)


@pytest.fixture(scope="module")
def painted() -> tuple[Tensor, Tensor]:
    config = MeanEmbedding(channel_multipliers=(1, 1))
    painter = new_embedding_generator(config, channels=1, resolution=8, num_classes=3, seed=0)
    about = GeneratorAbout(
        kind="mean_embedding",
        network={},
        channels=1,
        resolution=8,
        class_names=("a", "b", "c"),
        num_parameters=1,
        loss_curve=(),
    )
    return draw(painter, about, torch.arange(5 * EACH * 3))


@pytest.fixture(scope="module")
def features() -> RandomFeatures:
    return new_features(64, 100, lengthscale=3.0, seed=0, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def public() -> tuple[Tensor, Tensor]:
    """Every fifth was selected for a class in which the critic does not see it."""
    images = torch.randint(0, 256, (50, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return images, torch.where(torch.arange(50) % 5 == 0, 1 - seen_as(images), seen_as(images))


@pytest.fixture(scope="module")
def embedding(features: RandomFeatures, public: tuple[Tensor, Tensor], painted: tuple[Tensor, Tensor]) -> Embedding:
    """Half-way between the public images and the painted ones of each class, so that both are needed."""
    images, seen, of_painted = public[0], seen_as(public[0]), seen_as(painted[0])

    def mean(images: Tensor) -> Tensor:
        return features(from_pixels(images)).mean(0)

    rows = [(mean(images[seen == label]) + mean(painted[0][of_painted == label])) / 2 for label in (0, 1)]
    nothing = Scaling(mean=torch.zeros(0), deviation=torch.zeros(0))
    critic = Critic(network=cast(Any, Bright()), scaling=nothing, lengthscale=1.0)
    return Embedding(means=torch.stack([*rows, rows[0]]), features=features, critic=critic)


@pytest.fixture(scope="module")
def chosen(
    painted: tuple[Tensor, Tensor], public: tuple[Tensor, Tensor], embedding: Embedding
) -> tuple[Tensor, Tensor]:
    return choose(painted, public, embedding, WANTED, reject_drawn=True)


def seen_as(images: Tensor) -> Tensor:
    return Bright()(from_pixels(images)).argmax(1)


def none() -> tuple[Tensor, Tensor]:
    return torch.empty(0, 1, 8, 8, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)


def rows_of(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_as_many_of_each_class_in_turn_and_nothing_twice(chosen: tuple[Tensor, Tensor]) -> None:
    images, is_public = chosen
    assert images.shape == (3 * EACH, 1, 8, 8) and images.dtype == torch.uint8 and is_public.shape == (3 * EACH,)
    assert len(rows_of(images)) == 3 * EACH


def test_what_is_chosen_is_of_its_class_unless_there_is_too_little(
    painted: tuple[Tensor, Tensor], chosen: tuple[Tensor, Tensor]
) -> None:
    assert torch.equal(seen_as(chosen[0]).view(EACH, 3)[:, :2], torch.tensor([0, 1]).expand(EACH, 2))
    # Of the last class the critic sees nothing: what was painted for it is taken as it comes.
    assert rows_of(chosen[0][2::3]) == rows_of(painted[0][painted[1] == 2][:EACH])


def test_public_images_are_told_from_painted_ones(
    painted: tuple[Tensor, Tensor], chosen: tuple[Tensor, Tensor], public: tuple[Tensor, Tensor]
) -> None:
    images, is_public = chosen
    assert 0 < is_public.sum() < 2 * EACH and not is_public[2::3].any()
    for label in range(3):
        # Selected for this class, and seen in it: neither alone is enough.
        fitting = public[0][(public[1] == label) & (seen_as(public[0]) == label)]
        assert rows_of(images[label::3][is_public[label::3]]) <= rows_of(fitting)
        assert rows_of(images[~is_public & (torch.arange(3 * EACH) % 3 == label)]) <= rows_of(painted[0][label::3])


def test_painted_images_that_are_not_rejected_are_all_candidates_and_others_may_be_rejected_always(
    painted: tuple[Tensor, Tensor], public: tuple[Tensor, Tensor], embedding: Embedding
) -> None:
    agreed = seen_as(painted[0]) == painted[1]
    assert share_believed(painted, embedding) == pytest.approx(float(agreed.float().mean()))
    images, is_public = choose(painted, public, embedding, WANTED, reject_drawn=False)
    rejected = rows_of(painted[0][~agreed & (painted[1] < 2)])
    for label in (0, 1):
        own, others = images[label::3][~is_public[label::3]], images[label::3][is_public[label::3]]
        assert rows_of(own) <= rows_of(painted[0][label::3]) and rows_of(own) & rejected
        assert torch.equal(seen_as(others), torch.full((len(others),), label))


def test_classes_of_any_sizes_in_any_order_have_images_of_their_own(
    painted: tuple[Tensor, Tensor], public: tuple[Tensor, Tensor], embedding: Embedding
) -> None:
    wanted = torch.tensor([2, 1, 1, 0, 1, 1, 1, 2, 1, 1])
    images, is_public = choose(painted, public, embedding, wanted, reject_drawn=True)
    assert len(rows_of(images)) == len(wanted) and 0 < is_public.sum() < 8
    assert torch.equal(seen_as(images)[wanted < 2], wanted[wanted < 2])
    assert rows_of(images[wanted == 2]) == rows_of(painted[0][painted[1] == 2][:2])
    nothing, _ = choose(painted, public, embedding, torch.zeros(0, dtype=torch.int64), reject_drawn=True)
    assert nothing.shape == (0, 1, 8, 8)


def test_without_public_images_all_are_painted(painted: tuple[Tensor, Tensor], embedding: Embedding) -> None:
    images, is_public = choose(painted, none(), embedding, WANTED, reject_drawn=True)
    assert len(rows_of(images)) == 3 * EACH and rows_of(images) <= rows_of(painted[0]) and not is_public.any()


def test_the_choice_is_nearer_to_the_released_means_than_either_kind_alone(
    painted: tuple[Tensor, Tensor], chosen: tuple[Tensor, Tensor], public: tuple[Tensor, Tensor], embedding: Embedding
) -> None:
    def distance(images: Tensor, label: int) -> float:
        return float((embedding.features(from_pixels(images)).mean(0) - embedding.means[label]).norm())

    drawn, labels = painted
    alone, _ = choose(painted, none(), embedding, WANTED, reject_drawn=True)
    for label in (0, 1):
        found = distance(chosen[0][label::3], label)
        assert found < distance(alone[label::3], label)
        assert found < distance(drawn[(labels == label) & (seen_as(drawn) == label)][:EACH], label)
        assert found < distance(public[0][seen_as(public[0]) == label][:EACH], label)
