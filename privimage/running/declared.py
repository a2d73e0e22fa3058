"""What the data steward declares with a grant, and nobody else can: the form of admission, and which sets are public.

Whoever writes configurations could otherwise ask about single images: with other fractions or another test source, or with
a public set that holds a guess. So such questions are answered to the steward alone, once, when the grant is made or another
public set is declared. Afterwards the answer to everybody else depends on what was declared, and on no sensitive image.

    ledger/<data set>/admission.json            how its images are split, and where test images are from
    ledger/<data set>/sources/<digest>.json     a `sensitive.train` that it was admitted from by the steward
    ledger/<data set>/public/<identity>.json    a public set that holds no sensitive image of this store
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from privimage.config.images import SensitiveConfig
from privimage.data.admission import FACTS_FILE, FINDINGS, MARKS
from privimage.data.facts import SensitiveFacts, TableFacts, public_facts
from privimage.data.marks import DIGESTS_FILE, MARKS_FILE, mark, read_digests
from privimage.data.splits import SPLIT_FORM
from privimage.errors import DataError, LedgerBroken, PrivacyRefused
from privimage.running.ledgers import place_of
from privimage.store.artifacts import Artifact, canonical_json, find, open_ref
from privimage.store.files import Store
from privimage.store.identity import key_for

__all__ = [
    "check_declared",
    "check_findings",
    "check_holds_nothing_sensitive",
    "check_may_be_admitted",
    "check_may_be_published",
    "check_public_artifacts",
    "declare_form",
    "declare_public",
    "form_of",
    "public_sets_of",
]


def form_of(config: SensitiveConfig) -> dict[str, Any]:
    """What of a configuration decides which images are trained on, and which are held out; the grant fixes it."""
    return {
        "form": SPLIT_FORM,
        "validation_fraction": config.validation_fraction,
        "test_fraction": config.test_fraction if config.test is None else None,
        "test": None if config.test is None else config.test.model_dump(mode="json"),
    }


def declare_form(store: Store, facts: SensitiveFacts, config: SensitiveConfig) -> None:
    """Fix the form of admission of a data set, and note where its images are; the same again is no error.

    Raises:
        PrivacyRefused: another one is fixed already.
    """
    store.create(_form_file(store, facts), canonical_json(form_of(config)))
    _check_form(store, facts, config)
    store.create(f"{place_of(store, facts)}/sources/{_name_of(config)}.json", b"{}")


def check_declared(
    store: Store, config: SensitiveConfig, facts: SensitiveFacts, admit: Artifact, public: Iterable[TableFacts]
) -> None:
    """Raise unless the steward declared this form of admission, and every public set of the run.

    Raises:
        PrivacyRefused: not so; the message names what was declared, and depends on nothing else.
        DataError: the set that was admitted now is not fit to be used.
    """
    _check_form(store, facts, config)
    declared = store.list(f"{place_of(store, facts)}/public")
    if any(_public_file(store, facts, other.identity) not in declared for other in public):
        raise PrivacyRefused(
            "The public set of this configuration was not declared for these sensitive images: the data steward has to look "
            "whether it holds any of them (privimage ledger declare CONFIG)."
        )
    check_findings(admit, None)


def _check_form(store: Store, facts: SensitiveFacts, config: SensitiveConfig) -> None:
    try:
        fixed = json.loads(store.read(_form_file(store, facts)))
    except FileNotFoundError:
        raise PrivacyRefused(
            "The data steward has not looked at these sensitive images yet: privimage ledger grant CONFIG --epsilon E --delta D."
        ) from None
    except ValueError as error:
        raise LedgerBroken(f"{_form_file(store, facts)} cannot be read: {error}; restore it from a backup.") from None
    if fixed != form_of(config):
        raise PrivacyRefused(
            "The grant was made for sensitive images that are split in another way, or held out elsewhere, and that is fixed: it "
            f"says {_in_words(fixed)}; this configuration says {_in_words(form_of(config))}. State the former."
        )


def _form_file(store: Store, facts: SensitiveFacts) -> str:
    return f"{place_of(store, facts)}/admission.json"


def _public_file(store: Store, facts: SensitiveFacts, identity: str) -> str:
    return f"{place_of(store, facts)}/public/{identity}.json"


def _in_words(form: Mapping[str, Any]) -> str:
    test = f"test images of {form['test']}" if form["test"] else f"test_fraction {form['test_fraction']:g}"
    return f"{test}, validation_fraction {form['validation_fraction']:g}"


def check_findings(admit: Artifact, write_private: Callable[[str, str], str] | None) -> None:
    """Raise DataError if something about an admitted set stands against a grant; the steward reads what, in private."""
    findings: list[str] = admit.read_json(FINDINGS)
    if findings:
        place = (
            write_private("admission", "\n".join(findings) + "\n")
            if write_private
            else "below private/, for the steward"
        )
        raise DataError(
            "The sensitive images are not fit for a grant: an image is in both sensitive.train and sensitive.test, or a class has "
            f"no image in one of the splits. Which, is private, and written {'to ' if write_private else ''}{place}."
        )


def check_may_be_published(store: Store, folder: Path) -> None:
    """Raise unless a public table in `folder` may become an artifact that everybody reads, when no steward looks at it.

    It may where the store holds no sensitive set, and where a steward declared it. To compare it with the sensitive images
    would answer whether one of them is among it.

    Raises:
        PrivacyRefused: the store holds sensitive images, and no steward declared this set.
    """
    if not _admitted_sets(store):
        return
    facts = TableFacts.from_json((folder / FACTS_FILE).read_text())
    if not any(name.endswith(f"/public/{facts.identity}.json") for name in store.list("ledger")):
        raise PrivacyRefused(
            "This store holds sensitive images, and no data steward declared this public set, which everybody could then read: "
            "they have to look whether it holds sensitive images (privimage ledger grant CONFIG ..., or ledger declare CONFIG)."
        )


def check_may_be_admitted(store: Store, config: SensitiveConfig) -> None:
    """Raise unless sensitive images may be admitted here, when no steward looks at it.

    They may in a store without a grant, and from where a steward admitted some. From anywhere else they would get the name of
    the granted set if they are the same images, and whoever knows all of them but one could try out guesses of that one.

    Raises:
        PrivacyRefused: a grant was made in this store, for images from elsewhere.
    """
    names = store.list("ledger")
    if any(name.endswith("/admission.json") for name in names) and not any(
        name.endswith(f"/sources/{_name_of(config)}.json") for name in names
    ):
        raise PrivacyRefused(
            "A grant was made in this store, and sensitive.train of this configuration is another source than was granted for: "
            "the data steward admits it (privimage ledger grant CONFIG --epsilon E --delta D, the same numbers if it is the same set)."
        )


def _name_of(config: SensitiveConfig) -> str:
    return hashlib.sha256(canonical_json(config.train.model_dump(mode="json"))).hexdigest()[:32]


def check_holds_nothing_sensitive(
    store: Store, digests: Sequence[bytes], write_private: Callable[[str, str], str]
) -> None:
    """Raise DataError if a public set holds an image of any sensitive set that this store has. For the steward's eyes.

    Args:
        digests: of the public images, as in `digests.parquet`.
        write_private: is given which rows of the public table they are.
    """
    key = key_for(store, MARKS)
    private_marks = {one for admit in _admitted_sets(store) for one in read_digests(admit.local(MARKS_FILE))}
    found = [row for row, one in enumerate(mark(digests, key)) if one in private_marks]
    if found:
        rows = "\n".join(f"public image {row} (row of the public table, sorted by category)" for row in found)
        place = write_private("public", f"{rows}\n")
        raise DataError(
            "The public set holds sensitive images, and nothing protects public ones: remove them from it. Which, is private, "
            f"and written to {place}. If it was admitted before, take it out of the store: privimage artifacts remove."
        )


def check_public_artifacts(store: Store, write_private: Callable[[str, str], str]) -> None:
    """Raise DataError if a public set that this store published, for whichever run, holds a sensitive image."""
    for public in _artifacts(store, "public", sealed=False):
        check_holds_nothing_sensitive(store, read_digests(public.local(DIGESTS_FILE)), write_private)


def declare_public(store: Store, private_facts: SensitiveFacts, public: Artifact) -> None:
    """Write down that the steward looked at a public set, after `check_public_artifacts`."""
    facts = public_facts(public)
    note = {"written": datetime.now(UTC).isoformat(timespec="seconds"), "images": facts.num_images}
    store.create(_public_file(store, private_facts, facts.identity), json.dumps(note).encode())


def public_sets_of(artifacts: Iterable[Artifact]) -> list[TableFacts]:
    """Facts of the public sets that artifacts are, or were made from."""
    found: dict[str, TableFacts] = {}
    to_look_at, seen = list(artifacts), set()
    while to_look_at:
        artifact = to_look_at.pop()
        if artifact.ref in seen:
            continue
        seen.add(artifact.ref)
        if artifact.ref.stage == "public":
            facts = public_facts(artifact)
            found[facts.identity] = facts
        to_look_at += [open_ref(artifact.store, ref) for ref in artifact.manifest.inputs.values() if not ref.sealed]
    return list(found.values())


def _admitted_sets(store: Store) -> list[Artifact]:
    return _artifacts(store, "admit", sealed=True)


def _artifacts(store: Store, stage: str, *, sealed: bool) -> list[Artifact]:
    names = store.list(f"{'private/' if sealed else ''}artifacts/{stage}")
    keys = sorted({name.split("/")[-2] for name in names if name.endswith("/manifest.json")})
    return [artifact for key in keys if (artifact := find(store, stage, key, sealed))]
