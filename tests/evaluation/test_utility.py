"""Classifiers trained on synthetic images: they learn, repeat themselves, keep their best epoch, and leave no trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from privimage.config.evaluate import EvaluateConfig
from privimage.errors import DataError
from privimage.evaluation import utility
from privimage.evaluation.classifiers import ARCHITECTURES, new_classifier
from privimage.evaluation.utility import check_enough, check_shape, hold_out, train

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
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_easy_task_is_learned(name: str, channels: int, size: int) -> None:
    trained = train(name, *bars(300, channels, size), 3, CONFIG, "cpu", seed=0)
    result = utility.test(trained.model, *bars(150, channels, size, seed=1), 3)
    assert result.accuracy > 0.9
    assert trained.accuracy > 0.9
    assert result.num_images == 150


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_seed_gives_one_model_and_another_seed_another(name: str) -> None:
    first, again, other = (train(name, *bars(70), 3, CONFIG, "cpu", seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    train("cnn", *bars(20), 3, CONFIG, "cpu", seed=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_last_batch_of_one_image_is_no_problem(name: str) -> None:
    # Three of 36 images are held out.
    trained = train(name, *bars(36), 3, EvaluateConfig(epochs=1, batch_size=32), "cpu", seed=0)
    assert trained.num_steps == 2
    images = torch.randn(3, 1, 8, 8)
    together, alone = trained.model(images), torch.cat([trained.model(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-5), "what is said of an image depends on no other"


def test_of_few_images_a_training_takes_a_thousand_steps_if_nothing_else_is_said() -> None:
    few = train("logistic-regression", *bars(36), 3, EvaluateConfig(), "cpu", seed=0)
    assert (few.num_steps, len(few.curve)) == (1000, 15)
    many = train("logistic-regression", *bars(3000), 3, EvaluateConfig(), "cpu", seed=0)
    assert (many.num_steps, len(many.curve)) == (15 * 85, 15)  # 2,700 images in batches of 32


@pytest.mark.parametrize("size", [8, 28, 64])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_takes_every_size_and_is_small(name: str, size: int) -> None:
    model = new_classifier(name, (3, size, size), 10, seed=0)
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 10)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert weights < 350_000 or (name == "mlp" and weights == (3 * size**2 + 1) * 100 + 1010)


def test_the_epoch_that_is_kept_is_the_best_on_held_out_images_and_its_model_is_the_one_returned() -> None:
    # Nothing but noise: the accuracy on held-out images jumps about.
    images = torch.randint(0, 256, (90, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    labels = torch.arange(90) % 3
    config = EvaluateConfig(epochs=8, batch_size=16, held_out_fraction=0.3)
    trained = train("mlp", images, labels, 3, config, "cpu", seed=3)
    assert len(set(trained.curve)) > 1
    assert trained.accuracy == max(trained.curve) == trained.curve[trained.epoch - 1]
    assert trained.accuracy not in trained.curve[trained.epoch :]
    _, held = hold_out(labels, config.held_out_fraction, torch.Generator().manual_seed(3))
    assert utility.test(trained.model, images[held], labels[held], 3).accuracy == pytest.approx(trained.accuracy)


def test_held_out_images_are_a_share_of_each_class_and_are_not_trained_on() -> None:
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] * 2 + [3])
    kept, held = hold_out(labels, 0.1, torch.Generator().manual_seed(0))
    assert sorted(torch.cat([kept, held]).tolist()) == list(range(53))
    assert labels[held].bincount(minlength=4).tolist() == [4, 1, 1, 0]
    with pytest.raises(DataError, match="one to train on and one held out"):
        hold_out(torch.tensor([0, 1, 2]), 0.1, torch.Generator())


def test_a_number_of_steps_replaces_the_passes_and_is_kept_to() -> None:
    images, labels = bars(300)
    trained = train("cnn", images, labels, 3, EvaluateConfig(epochs=4, batch_size=64), "cpu", seed=0, num_steps=10)
    assert (trained.num_steps, len(trained.curve)) == (10, 4)


def test_a_class_with_too_few_synthetic_images_is_named_with_what_to_do() -> None:
    check_enough(torch.tensor([0, 0, 1, 1]), ("anna", "berta"))
    with pytest.raises(
        DataError, match=r"too few synthetic images of berta \(1\), carla \(0\).*num_images to at least 6"
    ):
        check_enough(torch.tensor([0, 0, 1]), ("anna", "berta", "carla"))


def test_images_of_another_resolution_than_was_trained_on_are_refused() -> None:
    check_shape(torch.zeros(2, 1, 8, 8), (1, 8, 8))
    with pytest.raises(DataError, match=r"trained on images of 1 x 8 x 8 .*these have 1 x 16 x 16"):
        check_shape(torch.zeros(2, 1, 16, 16), (1, 8, 8))


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

    train("cnn", *bars(20), 3, EvaluateConfig(epochs=2), "cpu", seed=0, progress=progress, description="bars")
    assert seen == [("bars", 2)] * 2


def test_labels_outside_the_classes_and_images_of_another_form_are_refused() -> None:
    images, labels = bars(20)
    with pytest.raises(DataError, match=r"outside 0\.\.1"):
        train("cnn", images, labels, 2, CONFIG, "cpu", seed=0)
    with pytest.raises(DataError, match="uint8 images"):
        train("cnn", images.float(), labels, 3, CONFIG, "cpu", seed=0)
    with pytest.raises(DataError, match="one label each"):
        utility.test(Always(0), images, labels[:3], 3)
