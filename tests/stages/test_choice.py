"""Images that are chosen together: whose they are, how near their mean embedding comes, and what becomes of them in a run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from privimage.config import MerfConfig
from privimage.generators.features import RandomFeatures, new_features
from privimage.generators.merf import Merf, new_merf
from privimage.generators.pixels import from_pixels
from privimage.stages.choice import choose, draw

CONFIG = MerfConfig(channel_multipliers=(1, 1), critic_chosen=20, critic_attempts=5)
FACTS = {"channels": 1, "resolution": 8}


class Bright(nn.Module):
    """Class 0 is what is darker than most, 1 the rest, and 2 nothing is."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean((1, 2, 3))
        return torch.stack([-grey, grey, torch.full_like(grey, -10)], dim=1)


@pytest.fixture(scope="module")
def generator() -> Merf:
    return new_merf(CONFIG, channels=1, resolution=8, num_classes=3, seed=0).eval()


@pytest.fixture(scope="module")
def features() -> RandomFeatures:
    return new_features(64, 100, lengthscale=3.0, seed=0, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def public() -> Tensor:
    return torch.randint(0, 256, (50, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def chosen(generator: Merf, features: RandomFeatures, public: Tensor) -> dict[str, Tensor]:
    return choose(generator, FACTS, Bright(), features, means(features, public), CONFIG, public)


def means(features: RandomFeatures, public: Tensor) -> Tensor:
    """Of some public images for each class: those that the second choice should take."""
    seen = Bright()(from_pixels(public)).argmax(1)
    rows = [features(from_pixels(public[seen == label])).mean(0) for label in (0, 1)]
    return torch.stack([*rows, rows[0]])


def rows_of(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_as_many_of_each_class_in_turn_and_nothing_twice(chosen: dict[str, Tensor]) -> None:
    for name in ("images", "mixed"):
        assert chosen[name].shape == (21, 1, 8, 8) and chosen[name].dtype == torch.uint8  # 20, rounded up
        assert len(rows_of(chosen[name])) == 21
    assert chosen["public"].shape == (21,)


def test_what_is_chosen_is_of_its_class_unless_there_is_too_little(generator: Merf, chosen: dict[str, Tensor]) -> None:
    for name in ("images", "mixed"):
        seen = Bright()(from_pixels(chosen[name])).argmax(1)
        assert torch.equal(seen.view(7, 3)[:, :2], torch.tensor([0, 1]).expand(7, 2))
    # Of the last class the judge sees nothing: what was drawn for it is taken as it comes.
    drawn, _ = draw(generator, FACTS, 105, first=50)
    assert torch.equal(chosen["images"][2::3], drawn[2::3][:7])
    assert torch.equal(chosen["mixed"][2::3], drawn[2::3][:7])


def test_the_first_choice_is_of_drawn_images_that_the_judge_did_not_learn_from(
    generator: Merf, chosen: dict[str, Tensor], public: Tensor
) -> None:
    learned_from, _ = draw(generator, FACTS, len(public))
    candidates, _ = draw(generator, FACTS, 105, first=len(public))
    assert rows_of(chosen["images"]) <= rows_of(candidates)
    assert not rows_of(chosen["images"]) & rows_of(learned_from)


def test_public_images_of_the_second_choice_are_told_from_drawn_ones(chosen: dict[str, Tensor], public: Tensor) -> None:
    assert chosen["public"].any() and not chosen["public"][2::3].any()
    for image, is_public in zip(chosen["mixed"], chosen["public"].tolist(), strict=True):
        assert (image.numpy().tobytes() in rows_of(public)) == is_public


def test_the_choice_has_nearly_the_mean_embedding_and_more_candidates_bring_it_nearer(
    generator: Merf, features: RandomFeatures, chosen: dict[str, Tensor], public: Tensor
) -> None:
    goal = means(features, public)
    drawn, labels = draw(generator, FACTS, 105, first=50)
    agreed = Bright()(from_pixels(drawn)).argmax(1) == labels

    def distance(images: Tensor, label: int) -> float:
        return float((features(from_pixels(images)).mean(0) - goal[label]).norm())

    for label in (0, 1):
        first_ones = distance(drawn[(labels == label) & agreed][:7], label)
        alone, mixed = (distance(chosen[name][label::3], label) for name in ("images", "mixed"))
        assert mixed < alone < first_ones
