"""The public classifier: it learns, repeats itself, and says what is wrong."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
import torch
from torch import Tensor

from privimage.config.classifier import ClassifierConfig
from privimage.errors import DataError, TrainingError
from privimage.semantics.classifier import (
    ResNet,
    TrainedClassifier,
    new_classifier,
    num_training_steps,
    predict,
    train_classifier,
)

CONFIG = ClassifierConfig(base_channels=8, blocks=(1, 1), epochs=5, batch_size=32)
CPU = torch.device("cpu")


def bars(num: int, channels: int = 1, size: int = 8) -> tuple[Tensor, Tensor]:
    """Three categories in noise: a horizontal bar, a vertical bar, neither."""
    generator = torch.Generator().manual_seed(num)
    labels = torch.arange(num) % 3
    images = torch.randint(0, 90, (num, channels, size, size), generator=generator)
    images[labels == 0, :, size // 2 : size // 2 + 2] += 140
    images[labels == 1, :, :, size // 2 : size // 2 + 2] += 140
    return images.to(torch.uint8), labels


def train(config: ClassifierConfig = CONFIG, num: int = 400) -> TrainedClassifier:
    return train_classifier(*bars(num), 3, config, device=CPU)


@pytest.fixture(scope="module")
def trained() -> TrainedClassifier:
    return train()


def test_an_easy_task_is_learned(trained: TrainedClassifier) -> None:
    assert trained.validation_accuracy > 0.9
    images, labels = bars(99)
    logits, embeddings = predict(trained.model, images, CPU)
    assert (logits.argmax(1) == labels).float().mean() > 0.9
    assert logits.shape == (99, 3) and embeddings.shape == (99, trained.model.embedding_size)


def test_the_curves_tell_of_the_whole_training(trained: TrainedClassifier) -> None:
    per_epoch = 360 // 32
    assert trained.loss_curve[0][0] == 0 and trained.loss_curve[-1][0] == 5 * per_epoch - 1
    assert trained.loss_curve[-1][1] < 0.5 * trained.loss_curve[0][1]
    assert [step for step, _ in trained.accuracy_curve] == [per_epoch * epoch for epoch in range(1, 6)]
    assert trained.accuracy_curve[-1][1] == trained.validation_accuracy


def test_one_seed_gives_one_model_and_another_seed_another(trained: TrainedClassifier) -> None:
    again, other = train(), train(CONFIG.model_copy(update={"seed": 1}))
    states = [result.model.state_dict() for result in (trained, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    train(CONFIG.model_copy(update={"epochs": 1}), num=64)
    assert torch.equal(before, torch.get_rng_state())


def test_progress_is_told_after_each_step() -> None:
    told: list[int] = []
    config = CONFIG.model_copy(update={"epochs": 2, "horizontal_flip": True})
    train_classifier(*bars(100), 3, config, device=CPU, on_step=lambda step, _: told.append(step))
    assert told == [1, 2, 3, 4]
    assert num_training_steps(100, config) == 4


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize(("channels", "size", "blocks"), [(1, 8, (1,)), (3, 20, (2, 1, 1)), (1, 12, (1, 1, 1, 1))])
def test_every_shape_of_the_configuration_works(
    bottleneck: bool, channels: int, size: int, blocks: tuple[int, ...]
) -> None:
    config = ClassifierConfig(base_channels=8, blocks=blocks, bottleneck=bottleneck)
    model = new_classifier(config, channels=channels, num_categories=5)
    images = torch.zeros(2, channels, size, size, dtype=torch.uint8)
    logits, embeddings = predict(model, images, CPU)
    assert logits.shape == (2, 5)
    assert embeddings.shape == (2, 8 * 2 ** (len(blocks) - 1) * (4 if bottleneck else 1))


def test_a_prediction_does_not_depend_on_the_batch_it_is_made_in(trained: TrainedClassifier) -> None:
    images, _ = bars(12)
    whole, _ = predict(trained.model.train(), images, CPU)
    single = torch.cat([predict(trained.model, images[row : row + 1], CPU)[0] for row in range(12)])
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-4)


def test_predicting_leaves_the_model_as_it_is(trained: TrainedClassifier) -> None:
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    predict(trained.model, bars(30)[0], CPU)
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.model.state_dict().items())


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match=r"27 training images, fewer than classifier\.batch_size = 32"):
        train(num=30)


def test_a_diverging_training_stops_at_the_step_whose_loss_is_not_finite() -> None:
    told: list[int] = []
    with pytest.raises(TrainingError, match=r"diverged at step 1: lower classifier\.learning_rate"):
        train_classifier(
            *bars(400),
            3,
            CONFIG.model_copy(update={"learning_rate": 1e30}),
            device=CPU,
            on_step=lambda step, _: told.append(step),
        )
    assert told == [1]


def test_a_last_step_that_spoils_the_weights_is_found() -> None:
    config = CONFIG.model_copy(update={"learning_rate": 1e30, "weight_decay": 1e30, "epochs": 1})
    with pytest.raises(TrainingError, match=r"diverged at step 0: lower classifier\.learning_rate"):
        train(config, num=36)


def test_images_mapped_from_a_file_train_the_same_classifier(trained: TrainedClassifier) -> None:
    images, labels = bars(400)
    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, dtype=np.uint8, mode="w+", shape=tuple(images.shape))
    mapped[:] = images.numpy()
    again = train_classifier(torch.from_numpy(mapped), labels, 3, CONFIG, device=CPU)
    states = trained.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert trained.loss_curve == again.loss_curve and trained.accuracy_curve == again.accuracy_curve


def test_the_network_is_the_one_the_seed_makes() -> None:
    first, again = (new_classifier(CONFIG, channels=1, num_categories=3) for _ in range(2))
    assert isinstance(first, ResNet)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
