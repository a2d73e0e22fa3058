"""The classifier trained on synthetic images: it learns, it repeats itself, and it leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from privimage.config import EvaluateConfig
from privimage.errors import DataError
from privimage.evaluation import utility
from privimage.evaluation.utility import train_on_synthetic

CONFIG = EvaluateConfig(epochs=6, batch_size=32)


def bars(num: int, channels: int = 1, size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three classes in noise: a horizontal bar, a vertical bar, neither."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    images = torch.randint(0, 90, (num, channels, size, size), generator=generator)
    images[labels == 0, :, size // 2 : size // 2 + 2] += 140
    images[labels == 1, :, :, size // 2 : size // 2 + 2] += 140
    return images.to(torch.uint8), labels


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 12)])
def test_an_easy_task_is_learned(channels: int, size: int) -> None:
    model = train_on_synthetic(*bars(300, channels, size), 3, CONFIG, "cpu")
    result = utility.test(model, *bars(150, channels, size, seed=1), 3)
    assert result.accuracy > 0.95
    assert result.num_images == 150


def test_one_seed_gives_one_model_and_another_seed_another() -> None:
    first, again = (train_on_synthetic(*bars(70), 3, CONFIG, "cpu").state_dict() for _ in range(2))
    other = train_on_synthetic(*bars(70), 3, CONFIG.model_copy(update={"seed": 1}), "cpu").state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    train_on_synthetic(*bars(20), 3, CONFIG, "cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_a_last_batch_of_one_image_is_no_problem() -> None:
    train_on_synthetic(*bars(33), 3, EvaluateConfig(epochs=1, batch_size=32), "cpu")


@pytest.mark.parametrize("size", [8, 28, 64])
def test_the_network_takes_every_size_and_is_small(size: int) -> None:
    model = utility._classifier(3, 10, seed=0)
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 10)
    assert 100_000 < sum(parameter.numel() for parameter in model.parameters()) < 300_000


def test_shifts_move_each_image_by_its_own_offset() -> None:
    images = torch.arange(2 * 9.0).reshape(2, 1, 3, 3)
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1)
    offsets = torch.tensor([[1, 1], [0, 2]])
    shifted = utility._windows(padded, torch.tensor([1, 0]), offsets)
    assert torch.equal(shifted[0], images[1])
    assert shifted[1, 0].tolist() == [[1, 2, 2], [1, 2, 2], [4, 5, 5]]


class Always(nn.Module):
    """Answers with one class."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(nn.functional.one_hot(torch.tensor(answer), 3).float())

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), 3)


def test_the_result_counts_by_true_class_and_predicted_class() -> None:
    images, _ = bars(4)
    result = utility.test(Always(1), images, torch.tensor([0, 1, 1, 0]), 3)
    assert result.accuracy == 0.5
    assert result.confusion == ((0, 2, 0), (0, 2, 0), (0, 0, 0))
    assert result.per_class == (0.0, 1.0, None)


def test_progress_sees_every_epoch() -> None:
    seen: list[tuple[str, int | None]] = []

    def progress(epochs, description, total):
        for epoch in epochs:
            seen.append((description, total))
            yield epoch

    train_on_synthetic(*bars(20), 3, EvaluateConfig(epochs=2), "cpu", progress)
    assert seen == [("Training on synthetic images", 2)] * 2


def test_labels_outside_the_classes_and_images_of_another_form_are_refused() -> None:
    images, labels = bars(20)
    with pytest.raises(DataError, match=r"outside 0\.\.1"):
        train_on_synthetic(images, labels, 2, CONFIG, "cpu")
    with pytest.raises(DataError, match="uint8 images"):
        train_on_synthetic(images.float(), labels, 3, CONFIG, "cpu")
    with pytest.raises(DataError, match="one label each"):
        utility.test(Always(0), images, labels[:3], 3)
