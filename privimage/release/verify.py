"""Verification of a release, step by step, in plain words; anybody can run it, the ledger makes it stronger.

Each step says what it found out, for a data steward who reads no code. Epsilon is computed anew from the listed
mechanisms, by two accountants that share no code. The files' and the ledger's digests are compared, not believed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from privimage import __version__
from privimage.config.run import RunConfig
from privimage.errors import DataError, PrivimageError, StoreError
from privimage.methods.registry import GENERATORS, SELECTIONS
from privimage.payloads import GUARANTEE
from privimage.privacy.accounting import epsilon_of, epsilon_of_plan
from privimage.privacy.events import event_in_words
from privimage.privacy.mechanisms import RELATION, RELATION_IN_WORDS
from privimage.release.certificate import (
    SCHEMA,
    UNIT,
    Certificate,
    Groups,
    Mechanism,
    certified_interval,
    groups_of,
    images_in_words,
    in_words,
    interval_in_words,
)
from privimage.release.certify import config_digest
from privimage.release.check import SAME_EPSILON, Check, checked
from privimage.release.code import code_digest
from privimage.release.datasheet import front_matter, privacy_statement
from privimage.release.export import SUMS, sums
from privimage.release.signature import SIGNATURE
from privimage.release.store_checks import check_ledger, check_store
from privimage.reports.figures import INTERNAL
from privimage.store.files import Store, check_name

__all__ = ["check_files", "read_release", "verify_certificate", "verify_release"]

_SAME_BOUND = 2e-3
REQUIRED = ("README.md", "certificate.json", "report.html", "samples.png", "synthetic.parquet")


def read_release(release: Store) -> dict[str, bytes]:
    """All files of a release folder, opened as a store of its own."""
    names = release.list("")
    if SUMS not in names:
        raise StoreError(f"{release.url} is no release: it has no {SUMS}.")
    return {name: release.read(name) if _is_readable(name) else b"" for name in names}


def _is_readable(name: str) -> bool:
    """No release holds a file whose name a store refuses; one that was put there shows up as unlisted."""
    try:
        check_name(name)
    except ValueError:
        return False
    return True


def verify_release(files: Mapping[str, bytes], ledgers: Store | None, config: RunConfig | None = None) -> list[Check]:
    """Check a release's files against each other, its epsilon against its mechanisms, and all against the store.

    Args:
        files: content of every file in the release folder, SHA256SUMS included.
        ledgers: the store that made it, with the ledger; what it does not know is then no release. None: not at hand.
        config: the configuration that the release is said to be of; None, and that is not looked at.
    """
    checks = [_check_files(files)]
    try:
        certificate = Certificate.parse(files["certificate.json"])
        checks += [
            _check_listed(files, certificate),
            *_check_certificate(certificate, _digests(files), ledgers, config),  # before what a broken file could end
            _check_datasheet(files, certificate),
            _check_nothing_private(files),
        ]
    except (AttributeError, KeyError, TypeError, ValueError, pa.ArrowException, PrivimageError) as error:
        checks.append(_unusable(error))
    return checks


def verify_certificate(data: bytes, ledgers: Store | None, config: RunConfig | None = None) -> list[Check]:
    """What `verify_release` says of a certificate without its release; no file is known to be one that it was made for."""
    checks = [
        Check(step="files", outcome="skipped", why="a certificate alone was given, and no file that it was made for")
    ]
    try:
        checks += _check_certificate(Certificate.parse(data), _digests({"certificate.json": data}), ledgers, config)
        checks.append(_check_nothing_private({"the certificate": data}))
    except (AttributeError, KeyError, TypeError, ValueError, PrivimageError) as error:
        checks.append(_unusable(error))
    return checks


def _unusable(error: Exception) -> Check:
    why = str(error) if isinstance(error, DataError) else f"certificate.json cannot be used: {error!r}"
    return Check(step="certificate", outcome="failed", why=why)


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of what a release's artifact holds; sums and signature were added afterwards."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name not in (SUMS, SIGNATURE)}


def _check_certificate(
    certificate: Certificate, digests: Mapping[str, str], ledgers: Store | None, config: RunConfig | None
) -> list[Check]:
    return [
        _check_promise(certificate),
        _check_epsilon(certificate),
        _check_second_accountant(certificate),
        check_ledger(certificate, ledgers),
        check_store(certificate, digests, ledgers),
        _check_code(certificate),
        *([_check_config(certificate, config)] if config else []),
    ]


def check_files(files: Mapping[str, bytes]) -> list[Check]:
    """Only that the files are those that were written, and those that the certificate was made for."""
    first = _check_files(files)
    if first.outcome == "failed":
        return [first]
    try:
        return [first, _check_listed(files, Certificate.parse(files["certificate.json"]))]
    except (KeyError, PrivimageError) as error:
        return [_unusable(error)]


def _check_files(files: Mapping[str, bytes]) -> Check:
    others = {name: data for name, data in files.items() if name not in (SUMS, SIGNATURE)}
    good = f"nothing was changed, lost or added since the release was written ({len(others)} files, by {SUMS})"
    if files.get(SUMS) == sums(others) and all(name in others for name in REQUIRED):
        return Check(step="files", outcome="passed", why=good)
    lines = files.get(SUMS, b"").decode(errors="replace").splitlines()
    stated = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    wrong = [name for name in others if stated.get(name) != hashlib.sha256(others[name]).hexdigest()]
    missing = [name for name in {*stated, *REQUIRED} if name not in others]
    why = f"changed or unlisted: {', '.join(wrong) or 'none'}; missing: {', '.join(sorted(missing)) or 'none'}"
    return Check(step="files", outcome="failed", why=why if wrong or missing else f"{SUMS} itself was changed")


def _check_listed(files: Mapping[str, bytes], certificate: Certificate) -> Check:
    listed = certificate.files
    wrong = [name for name, digest in listed.items() if hashlib.sha256(files.get(name, b"")).hexdigest() != digest]
    return checked(
        "certified files",
        not wrong and set(listed) == set(files) - {SUMS, SIGNATURE, "certificate.json"},
        "the certificate was made for exactly these files, not for another release",
        f"the certificate was made for other files: {', '.join(wrong) or 'the lists differ'}",
    )


def _check_promise(certificate: Certificate) -> Check:
    expected = {
        "format": SCHEMA,
        "guarantee": GUARANTEE,
        "relation": RELATION.name,
        "relation_in_words": RELATION_IN_WORDS,
        "unit": UNIT,
    }
    stated = certificate.model_dump(include=set(expected))
    other = [f"{name} is {stated[name]!r}" for name in expected if stated[name] != expected[name]]
    protected = certificate.num_protected
    if not 0 < certificate.delta < 1 / protected:
        other.append(f"delta {certificate.delta} is not below 1 / {protected} images")
    return checked(
        "promise",
        not other,
        f"differential privacy for {UNIT} of {images_in_words(certificate)}, under {RELATION.name}: what is released "
        "would be about as likely without any one of them; epsilon and delta say how nearly so",
        f"no promise that this version can vouch for: {'; '.join(other)}",
    )


def _check_epsilon(certificate: Certificate) -> Check:
    groups = groups_of(certificate.mechanisms, certificate.plan.builds_on)
    found = _epsilon(groups, certificate.delta)
    stages = {mechanism.stage for mechanism in certificate.mechanisms}
    known = certificate.selection in SELECTIONS.names and certificate.generator in GENERATORS.names
    whole = (
        known
        and bool(stages)
        and stages == _stages_of(certificate)
        and len(groups.own) + len(groups.builds_on) == len(certificate.mechanisms)
    )
    whole = whole and all(
        GENERATORS.named(certificate.generator).is_charged_as(mechanism.dp_event)
        for mechanism in certificate.mechanisms
        if mechanism.stage == "finetune"
    )
    same = math.isclose(found, certificate.epsilon_computed, rel_tol=SAME_EPSILON) and all(
        _says_what_it_is(mechanism, certificate.delta) for mechanism in certificate.mechanisms
    )
    return checked(
        "epsilon",
        whole and same and found <= certificate.epsilon * (1 + 1e-9),
        f"computed anew from the {len(certificate.mechanisms)} mechanisms that are listed, privacy costs epsilon "
        f"{found:.6g} at delta {certificate.delta:g}, within the stated {certificate.epsilon:g}",
        f"{len(certificate.mechanisms)} mechanisms of {', '.join(sorted(stages))} cost epsilon {found:.6g}; stated is "
        f"{certificate.epsilon:g}, and {certificate.epsilon_computed:.6g} as computed, or a mechanism is told in "
        f"other words or at another cost than its own, or is none of a generator of kind {certificate.generator}",
    )


def _stages_of(certificate: Certificate) -> set[str]:
    """The stages that such a run charges, by what the certificate says of it."""
    selection = SELECTIONS.named(certificate.selection)
    charged = {
        "query": selection.asks_the_query,
        "feature_means": selection.asks_feature_means,
        "class_means": certificate.class_mean_images,
        "finetune": certificate.fine_tuned,
        "validate": certificate.num_validation_images is not None,
    }
    return {stage for stage, is_charged in charged.items() if is_charged}


def _says_what_it_is(mechanism: Mechanism, delta: float) -> bool:
    """Whether a mechanism's line for people fits its event."""
    event = mechanism.dp_event
    alone = math.isclose(epsilon_of([event], delta), mechanism.epsilon_alone, rel_tol=SAME_EPSILON)
    return alone and mechanism.in_words == event_in_words(event)


def _epsilon(groups: Groups, delta: float) -> float:
    return epsilon_of_plan(groups.own, groups.builds_on, delta, lost=groups.lost, lost_before=groups.lost_before)


def _check_second_accountant(certificate: Certificate) -> Check:
    step = "second accountant"
    try:
        # Here, because it loads torch, which the other steps do without.
        from privimage.privacy.crosscheck import prv_interval
    except ImportError as error:
        why = f"the independent accountant (Opacus) cannot be loaded here ({error}): epsilon rests on the first one"
        return Check(step=step, outcome="skipped", why=why)
    groups = groups_of(certificate.mechanisms, certificate.plan.builds_on)
    stated = certificate.epsilon_certified_interval
    interval = certified_interval(groups, certificate.delta, prv_interval)
    if interval.lower is None and stated.lower is None:
        why = f"epsilon rests on the first accountant alone. {interval.absent_because}"
        return Check(step=step, outcome="skipped", why=why)
    same = _is_near(stated.lower, interval.lower) and _is_near(stated.upper, interval.upper)
    found = _epsilon(groups, certificate.delta)
    computed = f"computed anew, the bounds on epsilon of an independent accountant are {interval_in_words(interval)}"
    return checked(
        step,
        same and interval.holds(found, _SAME_BOUND),
        f"{computed}: {found:.6g} is no understatement",
        f"{computed}; the certificate states {interval_in_words(stated)}, and the first accountant finds {found:.6g}",
    )


def _is_near(stated: float | None, found: float | None) -> bool:
    if stated is None or found is None:
        return stated is found
    return abs(stated - found) <= _SAME_BOUND * found


def _check_code(certificate: Certificate) -> Check:
    """Told, never failed: a later version may well check what an earlier one made."""
    code, here = certificate.code, code_digest()
    made = f"the certificate was written by privimage {code.privimage} (code sha256 {code.sha256[:16]}…)"
    same = "the code that checks it now" if code.sha256 == here else f"checked by {__version__} ({here[:16]}…)"
    others = sorted(stage for stage, digest in code.stages.items() if digest != code.sha256)
    apart = f"; other code ran {', '.join(others)}" if others else ""
    return Check(step="code", outcome="passed", why=f"{made}, {same}{apart}")


def _check_config(certificate: Certificate, config: RunConfig) -> Check:
    return checked(
        "configuration",
        certificate.config_sha256 == config_digest(config),
        "the configuration that was given is, setting by setting, the one that the certificate names",
        f"the configuration that was given has another digest ({config_digest(config)[:16]}…) than the certificate names "
        f"({certificate.config_sha256[:16]}…)",
    )


def _check_nothing_private(files: Mapping[str, bytes]) -> Check:
    signs = (b"private/artifacts", b"private/checkpoints", INTERNAL.encode())
    named = [name for name, data in files.items() if any(sign in data for sign in signs)]
    return checked(
        "private side",
        not named,
        "no file points into the private side of the store, where the images are, or is an internal report",
        f"{', '.join(named)} refers to the private side, or is an internal report",
    )


def _check_datasheet(files: Mapping[str, bytes], certificate: Certificate) -> Check:
    """Its front matter, and the sentence of the promise; other words are covered by the certificate's digest alone."""
    step, card = "datasheet", files.get("README.md", b"").decode(errors="replace")
    try:
        head = front_matter(card)
    except ValueError as error:
        return Check(step=step, outcome="failed", why=f"README.md is no datasheet: {error}")
    stated = head.get("differential_privacy")
    images = pq.read_metadata(pa.BufferReader(files["synthetic.parquet"])).num_rows
    counted = [split["num_examples"] for split in head["dataset_info"]["splits"]]
    return checked(
        step,
        stated == privacy_statement(certificate) and in_words(certificate) in card and counted == [images],
        f"README.md states the certificate's guarantee, and the number of images that there are ({images:,})",
        f"README.md states {stated} and {counted} images; the certificate and the images say otherwise",
    )
