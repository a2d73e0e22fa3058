"""Who asks about single images gets no answer but from the data steward's own commands.

Each attack is one that worked: it told whether a candidate is among the sensitive images, or put them into public artifacts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from privimage.data.facts import sensitive_facts
from privimage.errors import PrivacyRefused
from privimage.running.declared import check_declared
from privimage.running.granting import declare
from privimage.running.runner import run_all
from privimage.store.artifacts import open_ref
from tests.pipeline_fixtures import GRANT, NAME_ON_FILES, SETTINGS, Answer, Place, png, write_images

Command = Callable[..., Answer]
BUDGET = [part for name, value in GRANT.items() for part in (f"--{name}", str(value))]


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A public set that shares no image with the sensitive ones: 9 categories."""
    random = np.random.default_rng(99)
    for name in "abcdefghi":
        (tmp_path / "public" / name).mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
            (tmp_path / "public" / name / f"{number}.png").write_bytes(png(pixels))
    return tmp_path / "public"


def place_of(tmp_path: Path, portraits: Path, public: Path, **sensitive: object) -> Place:
    settings = {
        **SETTINGS,
        "sensitive": {"train": {"kind": "folder", "path": str(portraits)}, "test_fraction": 0.2, **sensitive},
        "public": {"source": {"kind": "folder", "path": str(public)}},
        "selection": {"categories_per_class": 1},
        "classifier": {**SETTINGS["classifier"], "batch_size": 16},
    }
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(settings))
    return Place(config=config, folder=tmp_path / "store")


def a_sensitive_file(portraits: Path) -> Path:
    return portraits / "anna" / f"{NAME_ON_FILES}_7.png"


def outside(place: Place) -> dict[str, bytes]:
    """Everything in the store that whoever writes configurations may read."""
    files = (file for file in place.folder.rglob("*") if file.is_file())
    shown = {str(file.relative_to(place.folder)): file.read_bytes() for file in files}
    return {name: data for name, data in shown.items() if not name.startswith("private/")}


# --------------------------------------------------------------------------------------------- form of admission


@pytest.mark.parametrize(
    "change", ["sensitive.test_fraction=0.21", "sensitive.validation_fraction=0.1", "test source"], ids=str
)
def test_a_run_of_another_form_of_admission_than_was_granted_is_refused_by_public_numbers_alone(
    privimage: Command, granted_copy: Place, portraits: Path, tmp_path: Path, change: str
) -> None:
    complaints = []
    for candidate in (a_sensitive_file(portraits), None):
        if change == "test source":
            guess = shutil.rmtree(tmp_path / "guess", ignore_errors=True) or write_images(
                tmp_path / "guess", per_class=3
            )
            if candidate is None:
                for file in guess.rglob("*.png"):
                    file.write_bytes(
                        png(np.random.default_rng(abs(hash(file))).integers(0, 256, (8, 8), dtype=np.uint8))
                    )
            override = f"sensitive.test={json.dumps({'kind': 'folder', 'path': str(guess)})}"
        else:
            override = change
        answer = privimage("run", *granted_copy.options(override), "--until", "query")
        assert answer.code == 3 and granted_copy.kinds == ["grant"]
        complaints.append(answer.complaint)
    assert complaints[0] == complaints[1]
    assert "split in another way, or held out elsewhere, and that is fixed: it says test_fraction 0.2" in complaints[0]


def test_a_second_grant_of_another_form_is_refused(privimage: Command, granted_copy: Place) -> None:
    answer = privimage("ledger", "grant", *granted_copy.options("sensitive.test_fraction=0.3"), *BUDGET)
    assert answer.code == 3 and "this configuration says test_fraction 0.3" in answer.complaint
    assert privimage("ledger", "grant", *granted_copy.options(), *BUDGET).code == 0


def test_a_test_source_with_a_training_image_is_refused_at_the_grant_and_which_is_private(
    privimage: Command, portraits: Path, public: Path, tmp_path: Path
) -> None:
    held_out = write_images(tmp_path / "held-out", per_class=3)  # the first images of each class again
    place = place_of(tmp_path, portraits, public, test={"kind": "folder", "path": str(held_out)})
    assert privimage("run", *place.options(), "--until", "admit").code == 0, "no answer to whoever only runs it"
    refused = privimage("ledger", "grant", *place.options(), *BUDGET)
    assert refused.code == 2 and "not fit for a grant" in refused.complaint and NAME_ON_FILES not in refused.err
    (told,) = (place.folder / "private" / "problems").iterdir()
    assert f"test: anna/{NAME_ON_FILES}_0.png: the same image is in sensitive.train" in told.read_text()
    assert not list(place.folder.glob("ledger/**/entries"))


def test_a_class_without_test_images_is_told_at_the_grant(privimage: Command, public: Path, tmp_path: Path) -> None:
    few = write_images(tmp_path / "few", per_class=30)
    for file in sorted((few / "carla").iterdir())[1:]:
        file.unlink()
    place = place_of(tmp_path, few, public)
    assert privimage("run", *place.options(), "--until", "admit").code == 0
    refused = privimage("ledger", "grant", *place.options(), *BUDGET)
    assert refused.code == 2 and "a class has no image in one of the splits" in refused.complaint


@pytest.mark.parametrize("same", [True, False])
def test_who_knows_all_images_but_one_cannot_try_out_guesses_of_that_one(
    privimage: Command, granted_copy: Place, portraits: Path, tmp_path: Path, same: bool
) -> None:
    """An attack that worked: the blinded name of a set of one's own was that of the granted set if they were equal."""
    guess = Path(shutil.copytree(portraits, tmp_path / "guess", copy_function=shutil.copyfile))
    if not same:
        (guess / "anna" / a_sensitive_file(portraits).name).write_bytes(png(np.zeros((8, 8), dtype=np.uint8)))
    before = outside(granted_copy)
    for command in (["run"], ["run", "--until", "admit"], ["plan"]):
        answer = privimage(*command, *granted_copy.options(f"sensitive.train.path={guess}"))
        if command != ["plan"]:
            assert answer.code == 3 and "is another source than was granted for" in answer.complaint
        assert granted_copy.ledger.dataset_id not in answer.out + answer.err
    assert outside(granted_copy) == before


def test_the_owner_may_move_the_images_and_says_so_once(
    privimage: Command, granted_copy: Place, portraits: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(portraits, tmp_path / "moved", copy_function=shutil.copyfile))
    options = granted_copy.options(f"sensitive.train.path={moved}")
    assert privimage("run", *options, "--until", "query").code == 3
    assert privimage("ledger", "grant", *options, *BUDGET).code == 0
    assert privimage("run", *options, "--until", "query").code == 0
    assert granted_copy.kinds == ["grant", "reserve query", "settle"]


# ---------------------------------------------------------------------------------------------------- public sets


def test_the_sensitive_set_itself_does_not_become_a_public_artifact(
    privimage: Command, granted_copy: Place, portraits: Path, tmp_path: Path
) -> None:
    before = outside(granted_copy)
    for copy in (portraits, Path(shutil.copytree(portraits, tmp_path / "copy"))):
        source = f"public.source={json.dumps({'kind': 'folder', 'path': str(copy)})}"
        for command in (["run", "--until", "public"], ["run"], ["ledger", "declare"], ["ledger", "grant", *BUDGET]):
            answer = privimage(*command, *granted_copy.options(source, "selection.categories_per_class=1"))
            assert answer.code in (2, 3), command
    assert outside(granted_copy) == before


def test_whether_one_public_image_is_sensitive_is_told_to_the_steward_only(
    privimage: Command, granted_copy: Place, portraits: Path, public: Path
) -> None:
    source = f"public.source={json.dumps({'kind': 'folder', 'path': str(public)})}"
    options = granted_copy.options(source, "selection.categories_per_class=1")
    apart = privimage("run", *options)
    shutil.copy(a_sensitive_file(portraits), public / "a" / "0.png")
    member = privimage("run", *options)
    assert (apart.code, apart.complaint) == (member.code, member.complaint) and apart.code == 3
    assert "no data steward declared this public set" in member.complaint
    asked = privimage("ledger", "declare", *options)
    assert asked.code == 2 and "The public set holds sensitive images" in asked.complaint
    (told,) = (granted_copy.folder / "private" / "problems").iterdir()
    assert told.read_text() == "public image 0 (row of the public table, sorted by category)\n"


def test_a_declared_public_set_is_used(privimage: Command, granted_copy: Place, public: Path) -> None:
    source = f"public.source={json.dumps({'kind': 'folder', 'path': str(public)})}"
    options = granted_copy.options(source, "selection.categories_per_class=1", "classifier.batch_size=16")
    assert privimage("ledger", "declare", *options).code == 0
    assert privimage("run", *options, "--until", "query").code == 0
    assert granted_copy.kinds == ["grant", "reserve query", "settle"]


def test_a_set_that_was_admitted_as_public_before_is_found_at_the_grant(
    privimage: Command, portraits: Path, public: Path, tmp_path: Path
) -> None:
    shutil.copy(a_sensitive_file(portraits), public / "c" / "5.png")
    place = place_of(tmp_path, portraits, public)
    assert privimage("run", *place.options(), "--until", "index").code == 0
    refused = privimage("ledger", "grant", *place.options(), *BUDGET)
    assert refused.code == 2 and "take it out of the store" in refused.complaint
    assert not list(place.folder.glob("ledger/**/entries")), "nothing was granted"


def test_no_charge_for_a_generator_of_a_public_set_that_was_never_declared(granted_copy: Place) -> None:
    """Also where stages are run by themselves, from references: the charge looks at what they were made of."""
    place = granted_copy
    for file in place.folder.glob("ledger/*/public/*.json"):
        file.unlink()
    with pytest.raises(PrivacyRefused, match="was not declared for these sensitive images"):
        run_all(place.run(), "query")
    assert place.kinds == ["grant"]
    declare(place.run())
    run_all(place.run(), "query")


def test_a_declaration_that_was_damaged_is_refused(granted_copy: Place) -> None:
    run = granted_copy.run()
    refs = {name: result.ref for name, result in run_all(run, "admit").items()}
    admit = open_ref(run.store, refs["admit"])
    (form,) = granted_copy.folder.glob("ledger/*/admission.json")
    form.write_text("{")
    with pytest.raises(PrivacyRefused, match="cannot be read"):
        check_declared(run.store, run.config.sensitive, sensitive_facts(admit), admit, [])
