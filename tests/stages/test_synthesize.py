"""Stage `synthesize`: classes in turn or by the votes, the same files for every device count and batch size, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from privimage.data.table import read_images
from privimage.errors import ConfigError
from privimage.generators.sampling import batches as shards
from privimage.generators.sampling.class_sizes import labels_of, shares_by_votes
from privimage.pipeline.table import stage_of
from privimage.running.runner import run_all
from privimage.store.artifacts import open_ref
from tests.pipeline_fixtures import Place


def synthetic_files(place: Place, draw: int, *settings: str) -> list[Path]:
    """Another draw of the stage: of the same weights, so the same images."""
    run = place.run(*settings, draws={"synthesize": draw})
    return open_ref(run.store, run_all(run, "synthesize")["synthesize"].ref).files("images-")


def test_device_count_and_batch_size_change_no_byte_of_the_table(finished_copy: Place) -> None:
    (before,) = synthetic_files(finished_copy, 1)
    settings = ("performance.num_devices=2", "performance.physical_batch_size=9")
    (after,) = synthetic_files(finished_copy, 2, *settings)
    assert after != before and after.read_bytes() == before.read_bytes()
    images, labels = read_images([after])
    assert images.shape == (40, 1, 8, 8) and len(np.unique(images, axis=0)) == 40
    assert labels.tolist() == [number % 3 for number in range(40)]
    (other,) = synthetic_files(finished_copy, 1, "synthesize.seed=5")
    assert not (read_images([other])[0] == images).all(axis=(1, 2, 3)).any()


SIZED = ("synthesize.class_sizes=query", "synthesize.num_images=300")


def test_classes_have_sizes_by_the_votes_for_free_whatever_the_parts_are(
    finished_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = finished_copy.kinds
    (whole,) = synthetic_files(finished_copy, 1, *SIZED)
    query = json.loads(finished_copy.payload("query", "query.json").read_text())
    shares = shares_by_votes(query["noisy_histogram"], query["num_votes"])
    images, labels = read_images([whole])
    assert labels.tolist() == labels_of(torch.arange(300), 3, shares).tolist()
    assert len(np.unique(images, axis=0)) == 300
    monkeypatch.setattr("privimage.stages.synthesize.PART_IMAGES", 70)
    parts = read_images(synthetic_files(finished_copy, 2, *SIZED))
    assert np.array_equal(parts[0], images) and np.array_equal(parts[1], labels)
    assert finished_copy.kinds == before


def test_a_run_that_does_not_ask_for_sizes_by_the_votes_does_not_read_them(finished_copy: Place) -> None:
    stage = stage_of("synthesize", finished_copy.run().config)
    assert stage.inputs == ("finetune",)
    sized = finished_copy.run(*SIZED).config
    asking = stage_of("synthesize", sized)
    assert asking.inputs == ("query", "finetune") and asking.fields(sized)["synthesize"]["class_sizes"] == "query"


def test_sizes_that_no_query_tells_and_too_few_images_are_refused_before_anything_runs(finished_copy: Place) -> None:
    with pytest.raises(ConfigError, match="no query is asked: set it to equal, or the strategy to semantic"):
        finished_copy.run("synthesize.class_sizes=query", "selection.strategy=random")
    before = len(list(finished_copy.folder.glob("artifacts/*/*/manifest.json")))
    with pytest.raises(ConfigError, match=r"num_images is 299, for 3 classes .* raise it to 300 or more"):
        run_all(finished_copy.run("synthesize.class_sizes=query", "synthesize.num_images=299"))
    assert len(list(finished_copy.folder.glob("artifacts/*/*/manifest.json"))) == before


def test_what_fails_on_the_way_leaves_no_artifact_and_the_same_command_makes_it(
    finished_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = shards.synthesize_images, 0

    def failing(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("out of memory")
        return real(*arguments)  # type: ignore[arg-type]

    settings = ("synthesize.seed=5", "performance.physical_batch_size=10")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(shards, "synthesize_images", failing)
        synthetic_files(finished_copy, 1, *settings)
    assert len(list(finished_copy.folder.glob("artifacts/synthesize/*/manifest.json"))) == 1
    assert len(synthetic_files(finished_copy, 1, *settings)) == 1


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (("generator.sampling.num_steps=1",), "num_steps"),
        (("generator.sampling.num_steps=2000",), "num_steps"),
        (
            ("generator.sampling.sigma_min=2", "generator.sampling.sigma_max=2"),
            r"sigma_min \(2.0\) must be below sigma_max \(2.0\)",
        ),
        (("generator.sampling.sigma_min=0",), "sigma_min"),
        (("generator.sampling.rho=0",), "rho"),
        (("generator.sampling.guidance=-1",), "guidance"),
        (("generator.sampling.guidance=21",), "guidance"),
    ],
)
def test_settings_that_cannot_be_sampled_with_are_refused_before_anything_runs(
    finished_copy: Place, settings: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        finished_copy.run(*settings)
