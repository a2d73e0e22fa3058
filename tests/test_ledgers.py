"""Which ledger a data set is charged to: settled once, shared where it was declared, never exchanged for a fresh one."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from privimage.data.facts import SensitiveFacts, sensitive_facts
from privimage.errors import BudgetExceeded, LedgerBroken, PrivacyRefused
from privimage.running.ledgers import bind_ledger, ledger_of
from privimage.running.runner import run_all
from privimage.store.artifacts import open_ref
from privimage.store.files import Store
from tests.pipeline_fixtures import NAME_ON_FILES, SETTINGS, Answer, Place, png

Command = Callable[..., Answer]


@pytest.fixture
def memory() -> Store:
    return Store.open(f"memory://{secrets.token_hex(6)}")


def facts(identity: str) -> SensitiveFacts:
    return SensitiveFacts(
        identity=identity,
        num_train=100,
        num_validation=0,
        num_test=20,
        class_names=("a", "b"),
        resolution=8,
        channels=1,
    )


def test_a_data_set_has_a_ledger_of_its_own_unless_it_says_otherwise(memory: Store) -> None:
    one, other = ledger_of(memory, facts("one"), None), ledger_of(memory, facts("other"), None)
    assert one.dataset_id != other.dataset_id
    assert ledger_of(memory, facts("one"), None).dataset_id == one.dataset_id
    assert memory.list("ledger") == []


def test_sets_that_name_the_same_ledger_share_it(memory: Store) -> None:
    one, other = (bind_ledger(memory, facts(name), "hospital-a") for name in ("one", "other"))
    assert one.dataset_id == other.dataset_id
    assert bind_ledger(memory, facts("third"), "hospital-b").dataset_id != one.dataset_id
    one.grant(epsilon=3, delta=1e-4, num_images=100, name="one")
    assert other.grant_entry == one.grant_entry
    assert other.grant(epsilon=3, delta=1e-4, num_images=700, name="other") == one.grant_entry


@pytest.mark.parametrize(
    ("first", "then", "why"),
    [
        (None, "hospital-a", "a ledger of its own already, .*remove sensitive.shared_ledger"),
        ("hospital-a", None, "state the sensitive.shared_ledger that was stated first"),
        ("hospital-a", "hospital-b", "state the sensitive.shared_ledger that was stated first"),
    ],
)
def test_a_set_that_was_charged_somewhere_is_charged_nowhere_else(
    memory: Store, first: str | None, then: str | None, why: str
) -> None:
    bind_ledger(memory, facts("one"), first)
    before = memory.list("")
    for ask in (ledger_of, bind_ledger):
        with pytest.raises(PrivacyRefused, match=why):
            ask(memory, facts("one"), then)
    assert memory.list("") == before
    bind_ledger(memory, facts("one"), first)


def test_the_names_tell_neither_the_images_nor_the_shared_ledger(memory: Store) -> None:
    bind_ledger(memory, facts("identity-of-one"), "hospital-a")
    for name in memory.list("ledger"):
        assert b"hospital" not in name.encode() + memory.read(name)
        assert b"identity-of-one" not in name.encode() + memory.read(name)


def test_a_damaged_answer_is_refused(memory: Store) -> None:
    bind_ledger(memory, facts("one"), None)
    (name,) = memory.list("ledger")
    memory.delete(name)
    memory.create(name, b"{}")
    with pytest.raises(LedgerBroken, match="charged-to.json cannot be read"):
        ledger_of(memory, facts("one"), None)


def config_of(folder: Path, name: str, seed: int) -> Path:
    """The smallest run on images of its own, charged to a ledger that it shares."""
    random = np.random.default_rng(seed)
    for label in ("anna", "berta", "carla"):
        (folder / name / label).mkdir(parents=True)
        for number in range(60):
            pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
            (folder / name / label / f"{NAME_ON_FILES}_{number}.png").write_bytes(png(pixels))
    sensitive = {
        **SETTINGS["sensitive"],
        "train": {"kind": "folder", "path": str(folder / name)},
        "shared_ledger": "clinic",
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**SETTINGS, "name": name, "sensitive": sensitive}))
    return file


def test_two_runs_on_two_sets_of_the_same_people_spend_one_budget(privimage: Command, tmp_path: Path) -> None:
    one, other = (
        Place(config=config_of(tmp_path, name, seed), folder=tmp_path / "store")
        for seed, name in enumerate(["one", "other"])
    )
    assert privimage("ledger", "grant", *one.options(), "--epsilon", "1.2", "--delta", "1e-4").code == 0
    run_all(one.run(), "query")
    assert len(ledger_of(one.store, _facts(one), "clinic").spent().plans) == 1
    # Each set has to be looked at; the budget is the one that was granted.
    with pytest.raises(PrivacyRefused, match="another source than was granted for"):
        run_all(other.run(), "query")
    assert privimage("ledger", "grant", *other.options(), "--epsilon", "1.2", "--delta", "1e-4").code == 0
    with pytest.raises(BudgetExceeded, match="has the whole grant"):
        run_all(other.run(), "query")
    assert privimage("ledger", "show", *one.options()).code == 0
    shown = privimage("ledger", "show", "--store", one.folder)
    assert shown.out.count("Granted: epsilon 1.2") == 1


def _facts(place: Place) -> SensitiveFacts:
    run = place.run()
    return sensitive_facts(open_ref(run.store, run_all(run, "admit")["admit"].ref))
