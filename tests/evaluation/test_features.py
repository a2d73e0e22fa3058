"""Feature extraction: what goes into the network, what comes out, and that nothing is ever downloaded."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from torch import Tensor, nn

from privimage.errors import DataError
from privimage.evaluation import features
from privimage.evaluation.features import inception_extractor, network_extractor

GRAY = torch.arange(5 * 8 * 8).reshape(5, 1, 8, 8).remainder(256).to(torch.uint8)


class TinyInception(nn.Module):
    """A network with the outward form of clean-fid's weights: `layers`, 299 x 299 to 2,048 features; `output`, to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2048))
        self.output = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.layers(images))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, TinyInception]:
    """Weights that pass for the published ones."""
    network = TinyInception().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(tmp_path / "inception-2015-12-05.pt"))
    digest = hashlib.sha256((tmp_path / "inception-2015-12-05.pt").read_bytes()).hexdigest()
    monkeypatch.setattr(features, "INCEPTION_SHA256", digest)
    return tmp_path, network


def test_a_network_sees_images_in_minus_one_to_one() -> None:
    seen: list[Tensor] = []
    extract = network_extractor("mean", lambda batch: seen.append(batch) or batch.flatten(1), "cpu", 8)
    result = extract(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1))
    assert extract.name == "mean"
    assert seen[0].dtype == torch.float32
    assert result.dtype == np.float64
    assert result.tolist() == [[-1.0], [1.0]]


def test_the_batch_size_changes_no_feature() -> None:
    one, many = (network_extractor("f", lambda b: b.flatten(1), "cpu", size)(GRAY) for size in (1, 100))
    assert np.array_equal(one, many)


def test_arrays_and_tensors_give_the_same_features_even_when_read_only() -> None:
    extract = network_extractor("f", lambda b: b.flatten(1), "cpu", 2)
    array = GRAY.numpy().copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(extract(array), extract(GRAY))


@pytest.mark.parametrize("images", [GRAY.float(), GRAY[0], GRAY[:0], GRAY.expand(-1, 2, -1, -1)])
def test_images_of_another_form_are_refused(images: Tensor) -> None:
    with pytest.raises(DataError, match="uint8 image"):
        network_extractor("f", lambda b: b.flatten(1), "cpu", 2)(images)


def test_unpooled_features_are_refused() -> None:
    with pytest.raises(DataError, match="pool or flatten"):
        network_extractor("f", lambda b: b, "cpu", 2)(GRAY)


def test_missing_inception_weights_name_file_and_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CLEANFID_FOLDER", str(tmp_path))
    for folder in (str(tmp_path), None):
        with pytest.raises(DataError, match=r"inception-2015-12-05\.pt.*evaluate\.inception_weights") as caught:
            inception_extractor(folder, "cpu")
        assert str(tmp_path) in str(caught.value)


def test_other_inception_weights_are_refused_before_they_are_loaded_with_both_digests(
    weights: tuple[Path, TinyInception],
) -> None:
    folder, _ = weights
    file = folder / "inception-2015-12-05.pt"
    file.write_bytes(file.read_bytes() + b"\0")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=f"have SHA-256 {found}, expected {features.INCEPTION_SHA256}: download"):
        inception_extractor(str(folder), "cpu")


def test_inception_gets_gray_images_as_clean_fid_resizes_them(weights: tuple[Path, TinyInception]) -> None:
    folder, network = weights
    result = inception_extractor(str(folder), "cpu")(GRAY)
    resize = build_resizer("clean")
    by_hand = np.stack([resize(np.repeat(image.numpy().transpose(1, 2, 0), 3, axis=2)) for image in GRAY])
    batch = (torch.from_numpy(by_hand).permute(0, 3, 1, 2) - 128) / 128
    assert result.shape == (5, 2048)
    assert np.allclose(result, network.layers(batch).detach().numpy(), atol=1e-5)


def test_inception_s_probabilities_come_from_its_last_layer_without_the_bias(
    weights: tuple[Path, TinyInception],
) -> None:
    folder, network = weights
    extract = inception_extractor(str(folder), "cpu")
    found = extract(GRAY)
    probabilities = extract.probabilities(found)
    assert probabilities is not None
    by_hand = torch.from_numpy(found).float() @ network.output.weight.T
    assert probabilities.shape == (5, 1008)
    assert np.allclose(probabilities, by_hand.softmax(dim=1).detach().numpy(), atol=1e-6)
    assert np.allclose(probabilities.sum(axis=1), 1)


def test_a_network_without_categories_has_no_probabilities() -> None:
    extract = network_extractor("f", lambda b: b.flatten(1), "cpu", 2)
    assert extract.probabilities(extract(GRAY)) is None
