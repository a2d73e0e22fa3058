"""Noisy class means of features: what they cost, what follows from them alone, and what no certificate hides."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from privimage.data.facts import SensitiveFacts
from privimage.data.table import read_images, read_is_public
from privimage.errors import BudgetExceeded, ConfigError, DataError, Uncharged
from privimage.payloads import FeatureMeans, Selection, SpaceAbout, Synthesis
from privimage.pipeline.plans import run_plan
from privimage.pipeline.table import stage_of, stages_of
from privimage.privacy.accounting import epsilon_of, epsilon_of_plan
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.entry import Entry
from privimage.release.datasheet import front_matter
from privimage.release.export import SUMS, sums
from privimage.release.formats import export_images
from privimage.release.verify import read_release, verify_release
from privimage.running.plan import plan_run
from privimage.running.runner import run_all, run_stage
from privimage.stages import feature_means
from privimage.store.artifacts import Artifact, list_artifacts
from privimage.store.files import Store
from tests.pipeline_fixtures import Place
from tests.release.example import hide

IMAGES = ("selection.strategy=images", "selection.images_per_class=30")
ALONE = (*IMAGES, "generator.finetune.num_steps=0")


def artifacts(place: Place) -> dict[str, Artifact]:
    return {artifact.ref.stage: artifact for artifact in list_artifacts(place.store)}


def reserved(place: Place) -> dict[str, Entry]:
    return {entry.body["stage"]: entry for entry in place.ledger.entries() if entry.kind == "reserve"}


@pytest.fixture(scope="module")
def tuned(granted: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """With fine-tuning after it; do not change."""
    place = granted.copy_to(tmp_path_factory.mktemp("tuned") / "store")
    run_all(place.run(*IMAGES))
    return place


@pytest.fixture(scope="module")
def alone(granted: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Nothing else is learned of the sensitive images; do not change."""
    place = granted.copy_to(tmp_path_factory.mktemp("alone") / "store")
    run_all(place.run(*ALONE))
    return place


def test_with_fine_tuning_both_are_fixed_together_and_cost_epsilon(tuned: Place) -> None:
    entries = reserved(tuned)
    assert list(entries) == ["feature_means", "finetune"]
    assert entries["feature_means"].body["plan"] == entries["finetune"].body["plan"]
    events = [entry.event for entry in entries.values()]
    assert 0.99 < epsilon_of(events, 1e-4) <= 1.0
    assert epsilon_of(events[:1], 1e-4) == pytest.approx(0.5, abs=0.01)


def test_without_they_are_all_that_is_charged_and_get_all_of_epsilon(alone: Place) -> None:
    (entry,) = reserved(alone).values()
    assert entry.body["stage"] == "feature_means"
    assert 0.99 < epsilon_of([entry.event], 1e-4) <= 1.0
    assert "finetune" not in artifacts(alone)
    assert alone.ledger.spent().epsilon <= 1.0


def test_the_noise_that_ran_is_the_noise_that_was_charged(alone: Place) -> None:
    (entry,) = reserved(alone).values()
    released = FeatureMeans.read(artifacts(alone)["feature_means"])
    assert released.noise_multiplier == entry.event.noise_multiplier == released.noise_stddev
    assert released.is_guaranteed


def test_the_release_verifies_and_says_what_was_done(alone: Place, tuned: Place) -> None:
    for place, trained in ((alone, False), (tuned, True)):
        config = place.run(*(IMAGES if trained else ALONE)).config
        checks = verify_release(read_release(Store.open(str(place.release))), place.store, config)
        assert {check.outcome for check in checks} == {"passed"}, checks
        stated = json.loads((place.release / "certificate.json").read_text())
        assert stated.get("fine_tuned", True) is trained
        card = (place.release / "README.md").read_text()
        assert "means of the features that a public network sees" in card
        assert ("it sees no sensitive image" in card) is not trained
        assert (
            "(Poisson sampling)" in stated["assumptions"][-1]
            if trained
            else "nothing was sampled" in stated["assumptions"][-1]
        )


@pytest.mark.parametrize("what", ["alone", "tuned"])
def test_a_certificate_that_hides_them_does_not_verify(
    what: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    place: Place = request.getfixturevalue(what)

    def failed(name: str, change: Callable[[dict[str, Any]], object]) -> set[str]:
        folder = Path(shutil.copytree(place.release, tmp_path / name))
        stated = json.loads((folder / "certificate.json").read_text())
        change(stated)
        (folder / "certificate.json").write_text(json.dumps(stated, indent=1, sort_keys=True))
        files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != SUMS}
        (folder / SUMS).write_bytes(sums(files))
        checks = verify_release(read_release(Store.open(str(folder))), place.store)
        return {check.step for check in checks if check.outcome == "failed"}

    if what == "alone":
        assert "epsilon" in failed("tuned", lambda stated: stated.update(fine_tuned=True))

        def nothing(stated: dict[str, Any]) -> None:
            stated.update(mechanisms=[], selection="none", fine_tuned=False, epsilon_computed=0.0)

        assert {"epsilon", "certificate"} & failed("nothing", nothing)
        return
    assert {"epsilon", "ledger"} <= failed("half", lambda stated: hide(stated, "feature_means"))

    def whole(stated: dict[str, Any]) -> None:
        hide(stated, "feature_means")
        stated["selection"] = "none"

    assert "ledger" in failed("whole", whole)

    def untuned(stated: dict[str, Any]) -> None:
        hide(stated, "finetune")
        stated["fine_tuned"] = False

    assert "ledger" in failed("untuned", untuned)


def test_every_selected_image_has_probabilities_and_the_class_that_is_likeliest(alone: Place) -> None:
    table = pq.read_table(artifacts(alone)["select"].local("selected.parquet"))
    rows = np.array(table["probabilities"].to_pylist())
    assert np.allclose(rows.sum(1), 1, atol=1e-5)
    assert np.array_equal(rows.argmax(1), table["class"].to_numpy())
    told = Selection.read(artifacts(alone)["select"]).classes
    assert sum(row.images.likeliest for row in told if row.images) == 620
    assert sum(row.images.expected for row in told if row.images) == pytest.approx(620, abs=0.2)
    counts = np.bincount(table["class"].to_numpy(), minlength=len(told))
    assert all(count == min(30, row.images.likeliest) for count, row in zip(counts, told, strict=True) if row.images)


def test_released_images_have_probabilities_beside_their_class(alone: Place) -> None:
    table = pq.read_table(alone.release / "synthetic.parquet")
    rows = np.array(table["probabilities"].to_pylist())
    assert len(rows) == 40 and np.allclose(rows.sum(1), 1, atol=1e-5)
    counts = np.bincount(table["label"].to_numpy())
    assert counts.max() - counts.min() <= 1


def test_the_space_has_the_dimensions_that_were_summed(alone: Place) -> None:
    made = artifacts(alone)
    dimensions = SpaceAbout.read(made["space"]).dimensions
    means = load_file(made["feature_means"].local(FeatureMeans.MEANS))["means"]
    assert means.shape == (len(FeatureMeans.read(made["feature_means"]).class_names), dimensions)


def test_reproducible_noise_leaves_no_guarantee(granted_copy: Place) -> None:
    run_all(granted_copy.run(*ALONE, insecure=InsecureRandomForTests(0)))
    assert FeatureMeans.read(artifacts(granted_copy)["feature_means"]).guarantee == "none"
    assert json.loads((granted_copy.release / "certificate.json").read_text())["guarantee"] == "none"


@pytest.mark.parametrize("settings", [ALONE, IMAGES])
def test_what_was_interrupted_is_not_charged_twice_because_nothing_could_make_up_for_it(
    granted_copy: Place, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    def killed(*given: object, **named: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(feature_means, "noisy_class_sums", killed)
        run_all(granted_copy.run(*settings), "feature_means")
    with pytest.raises(BudgetExceeded, match=r"interrupted after it was charged.*--draw feature_means=2"):
        run_all(granted_copy.run(*settings), "feature_means")
    assert granted_copy.kinds == ["grant", "reserve feature_means"]
    run_all(granted_copy.run(*settings, draws={"feature_means": 2}))
    assert granted_copy.ledger.spent().epsilon <= 2.0
    checks = verify_release(read_release(Store.open(str(granted_copy.release))), granted_copy.store)
    assert {check.outcome for check in checks} == {"passed"}


def test_the_plan_says_what_each_would_cost(granted: Place, alone: Place) -> None:
    costs = {row.stage: row.epsilon for row in plan_run(granted.run(*ALONE)).stages}
    assert costs["feature_means"] == pytest.approx(1.0, abs=0.01)
    costs = {row.stage: row.epsilon for row in plan_run(granted.run(*IMAGES)).stages}
    assert costs["feature_means"] == pytest.approx(0.5, abs=0.01)
    assert costs["finetune"] == pytest.approx(0.5, abs=0.01)
    assert all(row.epsilon == 0 for row in plan_run(alone.run(*ALONE)).stages)


def test_other_images_of_a_class_are_selected_without_another_charge(alone: Place, tmp_path: Path) -> None:
    place = alone.copy_to(tmp_path / "store")
    before = place.kinds
    made = run_all(place.run(*ALONE, "selection.images_per_class=20"))
    assert made["feature_means"].reused and not made["select"].reused
    assert place.kinds == before


def test_nothing_learned_is_refused(granted: Place) -> None:
    for strategy in ("semantic", "random", "none"):
        with pytest.raises(ConfigError, match=r"num_steps is 0, so nothing would be learned"):
            granted.run(f"selection.strategy={strategy}", "generator.finetune.num_steps=0")
    names = [stage.name for stage in stages_of(granted.run(*ALONE).config)]
    assert "query" not in names and "finetune" not in names


def test_noise_that_hides_everything_is_refused_before_the_charge(granted_copy: Place) -> None:
    run = granted_copy.run(*ALONE, "privacy.epsilon=0.02")
    with pytest.raises(DataError, match="hides all that they tell"):
        run_all(run)
    assert granted_copy.kinds == ["grant"]


def test_every_format_that_can_hold_probabilities_has_them_and_the_datasheet_says_so(
    alone: Place, tmp_path: Path
) -> None:
    released = read_release(Store.open(str(alone.release)))
    rows = pq.read_table(alone.release / "synthetic.parquet")["probabilities"].to_pylist()
    for layout in ("folder", "webdataset", "parquet"):
        export_images(released, layout, tmp_path / layout)
    assert list(json.loads((tmp_path / "folder" / "probabilities.json").read_text()).values()) == rows
    with tarfile.open(tmp_path / "webdataset" / "synthetic-000000.tar") as tar:
        held = [json.loads(tar.extractfile(name).read()) for name in tar.getnames() if name.endswith(".json")]  # type: ignore[union-attr]
    assert [each["probabilities"] for each in held] == rows
    card = (alone.release / "README.md").read_text()
    head = front_matter(card)
    assert {"name": "probabilities", "sequence": "float32"} in head["dataset_info"]["features"]
    assert "those of all classes" in card and "Of 160 candidates" in card


def test_classifiers_learn_from_probabilities_or_from_labels(alone: Place, tmp_path: Path) -> None:
    place = alone.copy_to(tmp_path / "store")
    made = run_all(place.run(*ALONE, "evaluate.learn_from=labels"), "downstream")
    assert made["synthesize"].reused and not made["downstream"].reused
    both = [artifact.ref.digest for artifact in list_artifacts(place.store) if artifact.ref.stage == "downstream"]
    assert len(both) == 2 and both[0] != both[1]


@pytest.mark.parametrize("settings", [ALONE, IMAGES])
def test_all_that_the_run_pays_costs_its_epsilon_whether_it_fine_tunes_or_not(
    granted: Place, settings: tuple[str, ...]
) -> None:
    facts = SensitiveFacts(
        num_train=500,
        num_validation=400,
        num_test=100,
        class_names=("a", "b", "c"),
        resolution=8,
        channels=1,
        identity="0" * 64,
    )
    run = granted.run(*settings, "sensitive.validation_fraction=0.4", "privacy.validation_error=0.02")
    plan = run_plan(run.config, "0" * 64, facts, 62)
    assert len(plan.intends) == (2 if settings == ALONE else 3)
    assert 0.99 < epsilon_of_plan(plan.intends, [], plan.delta) <= 1.0


@pytest.mark.parametrize("what", ["blended", "unchanged"])
def test_public_images_are_candidates_only_on_request_and_are_counted(alone: Place, tmp_path: Path, what: str) -> None:
    place = alone.copy_to(tmp_path / "store")
    run_all(place.run(*ALONE, f"synthesize.from_public={what}", "synthesize.candidates=1"))
    assert place.kinds == alone.kinds, "nothing more was paid for"
    # The release of before is there, too.
    before = {each.name for each in alone.folder.glob("releases/*")}
    (release,) = (each for each in place.folder.glob("releases/*") if each.name not in before)
    checks = verify_release(read_release(Store.open(str(release))), place.store)
    assert {check.outcome for check in checks} == {"passed"}
    (told,) = (
        about
        for each in list_artifacts(place.store)
        if each.ref.stage == "synthesize" and (about := Synthesis.read(each)).num_candidates != 160
    )
    images, _ = read_images([release / "synthetic.parquet"])
    public, _ = read_images(artifacts(place)["public"].files("images-"))
    known = {image.tobytes() for image in public}
    same = np.array([image.tobytes() in known for image in images])
    marked = read_is_public([release / "synthetic.parquet"])
    card = (release / "README.md").read_text()
    if what == "unchanged":
        assert told.num_public == marked.sum() > 0 and np.array_equal(same, marked)
        assert f"of which {told.num_public} are images of the public set, unchanged" in card
    else:
        assert told.num_mixed is not None and told.num_mixed > 0
        assert not marked.any() and not same.any()
        assert f"{told.num_mixed} of them are two selected public images each" in card
    with pytest.raises(ConfigError, match="no feature means choose images"):
        place.run("selection.strategy=none", f"synthesize.from_public={what}")


def test_no_release_goes_back_to_means_that_it_does_not_account_for(alone: Place, tmp_path: Path) -> None:
    place = alone.copy_to(tmp_path / "store")
    run = place.run(*ALONE)
    first = run_all(run)
    other = run_all(place.run(*ALONE, draws={"feature_means": 2}), "feature_means")["feature_means"]
    assert other.ref != first["feature_means"].ref
    inputs = {name: first[name].ref for name in stage_of("release", run.config).inputs}
    with pytest.raises(Uncharged, match="goes back to feature_means .* accounts for another feature_means"):
        run_stage("release", run, {**inputs, "feature_means": other.ref})
