"""Record and replay of stage `class_means`: one image moves the sums by what is accounted, and nothing else that is written.

As in `test_neighbours`, "no image" holds its place: a blank picture there, whose vector is dropped before it is summed.
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
from privimage.privacy.class_sums import PER_UNIT, Rows, class_sums
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import ClassSums
from privimage.semantics.class_means import Differences
from privimage.stages import class_means
from privimage.store.artifacts import list_artifacts
from tests.pipeline_fixtures import Place

CLASSES = 3
Images = NDArray[np.uint8]


@dataclass
class Recorded:
    """What the mechanism was given and gave, and what was written and told."""

    sums: NDArray[np.int64]
    noisy: NDArray[np.float64]
    payload: dict[str, bytes]
    metrics: dict[str, Any]


class WithoutOne:
    """Vectors of which one is zero."""

    def __init__(self, rows: Rows, number: int) -> None:
        self._rows, self._number = rows, number
        self.shape = rows.shape

    def __getitem__(self, rows: slice, /) -> NDArray[np.floating]:
        found = np.array(self._rows[rows])
        found[np.arange(*rows.indices(self.shape[0])) == self._number] = 0.0
        return found


def odd_images() -> tuple[Images, NDArray[np.int64]]:
    """Noise, black, white, two that are the same, and a class of one."""
    images = np.random.default_rng(0).integers(0, 256, (9, 1, 8, 8), dtype=np.uint8)
    images[1], images[2], images[3] = 0, 255, images[4]
    return images, np.array([0, 0, 1, 1, 1, 0, 1, 0, 2])


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
    run = place.run("generator.class_means.num_steps=1", "selection.strategy=none")
    public = {artifact.ref.stage: artifact for artifact in list_artifacts(place.store)}["public"]
    mechanism = ClassSums(num_images=len(images), num_classes=CLASSES, dimension=64, noise_multiplier=2.0)
    real = class_means.noisy_class_sums
    given: list[NDArray[np.int64]] = []
    gave: list[NDArray[np.float64]] = []

    def noisy(vectors: Rows, of: NDArray[np.int64], mechanism: ClassSums, **named: Any) -> NDArray[np.float64]:
        left = vectors if without is None else WithoutOne(vectors, without)
        given.append(class_sums(left, of, mechanism))
        gave.append(real(left, of, mechanism, **named))
        return gave[-1] if frozen is None else frozen

    context = StageContext(
        config=run.config,
        key="0" * 64,
        inputs={"public": public},
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
        patch.setattr(class_means, "noisy_class_sums", noisy)
        outcome = class_means.run(context)
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
    granted: Place, tmp_path: Path
) -> None:
    check(granted, tmp_path)


def mean_of_the_sensitive_images(patch: pytest.MonkeyPatch) -> None:
    """The reference is that of the images themselves: every vector changes with one image."""
    real = Differences.__getitem__

    def centred(self: Differences, rows: slice, /) -> NDArray[np.float64]:
        found = real(self, slice(None))
        return (found - found.mean(axis=0))[rows]

    patch.setattr(Differences, "__getitem__", centred)


def norm_of_the_sensitive_images(patch: pytest.MonkeyPatch) -> None:
    def bounded(self: Differences, rows: slice, /) -> NDArray[np.float64]:
        found = self.images.reshape(len(self.images), -1) / 127.5 - 1 - self.reference.ravel()
        scaled: NDArray[np.float64] = found / np.median(np.linalg.norm(found, axis=1))
        return scaled[rows]

    patch.setattr(Differences, "__getitem__", bounded)


def true_sizes_of_classes(patch: pytest.MonkeyPatch) -> None:
    real, open_images = class_means.class_sizes, StageContext

    def sizes(num_classes: int, num_images: int, votes: object, num_votes: int) -> NDArray[np.float64]:
        return real(num_classes, num_images, None, 1) + TRUE[0]

    def opened(**named: Any) -> StageContext:
        TRUE[0] = float(named["private_images"]("train")[0].mean()) / 1e6
        return open_images(**named)

    patch.setattr(class_means, "class_sizes", sizes)
    patch.setitem(globals(), "StageContext", opened)


TRUE = [0.0]


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        (mean_of_the_sensitive_images, "moves the sums by more than 1|moves the sum of another class"),
        (norm_of_the_sensitive_images, "moves the sums by more than 1|moves the sum of another class"),
        (true_sizes_of_classes, "payload differs by more"),
    ],
)
def test_class_mean_images_that_break_the_claim_are_noticed(
    plant: Callable[[pytest.MonkeyPatch], None],
    complaint: str,
    granted: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=complaint):
        check(granted, tmp_path)
