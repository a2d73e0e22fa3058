"""Record and replay of stage `feature_means`: one image moves the sums by what is accounted, and nothing else that is written.

As in `test_class_means_neighbours`, "no image" holds its place: a blank picture there, whose vector is dropped before it is
summed. Features of the others must not change with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from privimage.data.facts import SensitiveFacts
from privimage.machine.interrupts import StopRequest
from privimage.machine.progress import Silent
from privimage.pipeline.stage import Paid, StageContext
from privimage.privacy.class_sums import PER_UNIT, class_sums
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import ClassSums
from privimage.running.runner import run_all
from privimage.semantics.space import FeatureSpace
from privimage.stages import feature_means
from privimage.store.artifacts import list_artifacts
from tests.pipeline_fixtures import Place

CLASSES = 3
SETTINGS = ("selection.strategy=images", "generator.finetune.num_steps=0")
Images = NDArray[np.uint8]


@dataclass
class Recorded:
    """What the mechanism was given and gave, and what was written and told."""

    sums: NDArray[np.int64]
    noisy: NDArray[np.float64]
    payload: dict[str, bytes]
    metrics: dict[str, Any]


def odd_images() -> tuple[Images, NDArray[np.int64]]:
    """Noise, black, white, two that are the same, and a class of one."""
    images = np.random.default_rng(0).integers(0, 256, (9, 1, 8, 8), dtype=np.uint8)
    images[1], images[2], images[3] = 0, 255, images[4]
    return images, np.array([0, 0, 1, 1, 1, 0, 1, 0, 2])


@pytest.fixture(scope="module")
def spaced(granted: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """With a space of features; nothing is charged yet. Do not change."""
    place = granted.copy_to(tmp_path_factory.mktemp("spaced") / "store")
    run_all(place.run(*SETTINGS), "space")
    return place


def ask(
    place: Place,
    images: Images,
    labels: NDArray[np.int64],
    folder: Path,
    *,
    without: int | None = None,
    frozen: NDArray[np.float64] | None = None,
) -> Recorded:
    """Run the stage with draws that are the same each time; `frozen` is what the mechanism then gives."""
    folder.mkdir()
    made = {artifact.ref.stage: artifact for artifact in list_artifacts(place.store)}
    dimension = int(made["space"].manifest.metrics["dimensions"]) + 1  # type: ignore[arg-type]
    mechanism = ClassSums(num_images=len(images), num_classes=CLASSES, dimension=dimension, noise_multiplier=2.0)
    real = feature_means.noisy_class_sums
    given: list[NDArray[np.int64]] = []
    gave: list[NDArray[np.float64]] = []

    def noisy(
        vectors: NDArray[np.float32], of: NDArray[np.int64], mechanism: ClassSums, **named: Any
    ) -> NDArray[np.float64]:
        left = vectors.copy()
        if without is not None:
            left[without] = 0
        given.append(class_sums(left, of, mechanism))
        gave.append(real(left, of, mechanism, **named))
        return gave[-1] if frozen is None else frozen

    context = StageContext(
        config=place.run(*SETTINGS).config,
        key="0" * 64,
        inputs={name: made[name] for name in ("public", "classifier", "space")},
        facts=SensitiveFacts(
            num_train=len(images),
            num_validation=0,
            num_test=1,
            class_names=("a", "b", "c"),
            resolution=8,
            channels=1,
            identity="0" * 64,
        ),
        folder=folder,
        store=place.store,
        progress=Silent(),
        ledger=None,
        paid=Paid(
            mechanism=mechanism,
            random=InsecureRandomForTests(1),
            reservations=("paid",),
            from_step=0,
            record_step=lambda step: None,
            pause=lambda step: None,
        ),
        private_images=lambda split: (images, labels),
        make_parts=lambda ranges: [],
        write_private=lambda title, text: "",
        stop=StopRequest(),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_means, "noisy_class_sums", noisy)
        outcome = feature_means.run(context)
    payload = {file.name: file.read_bytes() for file in folder.iterdir()}
    return Recorded(sums=given[0], noisy=gave[0], payload=payload, metrics=dict(outcome.metrics))


def check(place: Place, folder: Path) -> None:
    """Compare the set with each of its neighbours."""
    images, labels = odd_images()
    whole = ask(place, images, labels, folder / "whole")
    for number in range(len(images)):
        gone = images.copy()
        gone[number] = 128
        other = ask(place, gone, labels, folder / f"without-{number}", without=number, frozen=whole.noisy)
        change = whole.sums - other.sums
        assert sum(int(c) ** 2 for c in change.ravel()) <= PER_UNIT**2, "an image moves the sums by more than 1"
        assert set(np.flatnonzero(change.any(axis=1))) <= {labels[number]}, "an image moves the sum of another class"
        noise = (whole.noisy - whole.sums / PER_UNIT) - (other.noisy - other.sums / PER_UNIT)
        assert float(np.abs(noise).max()) < 1e-9, "the noise depends on the images"
        assert whole.payload == other.payload, "the payload differs by more than the mechanism released"
        assert whole.metrics == other.metrics, "the metrics differ by more than the mechanism released"


def test_no_image_moves_the_sums_by_more_than_is_accounted_nor_anything_but_the_sums(
    spaced: Place, tmp_path: Path
) -> None:
    check(spaced, tmp_path)


def centred_by_the_sensitive_images(patch: pytest.MonkeyPatch) -> None:
    """Vectors are taken from the mean of the images themselves: each changes with every image."""
    real = FeatureSpace.vectors

    def centred(self: FeatureSpace, features: NDArray[np.floating]) -> NDArray[np.float32]:
        return real(self, features - features.mean(0))

    patch.setattr(FeatureSpace, "vectors", centred)


def scaled_by_the_largest(patch: pytest.MonkeyPatch) -> None:
    def scaled(self: FeatureSpace, features: NDArray[np.floating]) -> NDArray[np.float32]:
        found = (features - self.mean) @ self.directions
        longest: NDArray[np.float32] = (found / np.linalg.norm(found, axis=1).max()).astype(np.float32)
        return longest

    patch.setattr(FeatureSpace, "vectors", scaled)


def true_sizes_of_classes(patch: pytest.MonkeyPatch) -> None:
    real = feature_means.class_means_of

    def sizes(sums: NDArray[np.float64], num_images: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        means, found = real(sums, num_images)
        return means, found + TRUE[0]

    opened = StageContext

    def told(**named: Any) -> StageContext:
        TRUE[0] = float(named["private_images"]("train")[0].mean()) / 1e6
        return opened(**named)

    patch.setattr(feature_means, "class_means_of", sizes)
    patch.setitem(globals(), "StageContext", told)


TRUE = [0.0]


@pytest.mark.parametrize("fault", [centred_by_the_sensitive_images, scaled_by_the_largest, true_sizes_of_classes])
def test_a_fault_is_found(
    spaced: Place, tmp_path: Path, fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError, match="an image moves|the noise depends|differs by more"):
        check(spaced, tmp_path)


def test_an_image_whose_features_are_no_numbers_is_left_out_and_nothing_is_said(
    spaced: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = odd_images()
    real = feature_means.features_of

    def broken(*given: Any) -> NDArray[np.float32]:
        found = real(*given)
        found[3] = np.nan
        return found

    without = ask(spaced, images, labels, tmp_path / "without", without=3)
    monkeypatch.setattr(feature_means, "features_of", broken)
    assert np.array_equal(ask(spaced, images, labels, tmp_path / "broken").sums, without.sums)
