"""The only way in: a source becomes canonical tables, and what cannot be used is refused, never dropped silently."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from privimage.config.images import ImageConfig, SensitiveConfig
from privimage.config.sources import SourceConfig
from privimage.data.decode import Decoded, decode
from privimage.data.depth import STATE_BITS, unclear_range
from privimage.data.facts import FACTS_FILE, SensitiveFacts, TableFacts
from privimage.data.marks import DIGESTS_FILE, MARKS_FILE, mark, write_digests
from privimage.data.private_decoder import PrivateDecoder
from privimage.data.problems import REPAIR, Problem, UnusableImage
from privimage.data.sources import Source, SourceImage, open_source
from privimage.data.splits import Split, split_rows, split_sizes
from privimage.data.spool import Admitted, Spool
from privimage.data.table import TableWriter, encode_png
from privimage.errors import DataError

__all__ = [
    "FACTS_FILE",
    "FINDINGS",
    "MARKS",
    "SensitiveDataProblem",
    "SensitiveFacts",
    "Track",
    "admit_public",
    "admit_sensitive",
    "no_progress",
]

FINDINGS = "findings.json"
"""In the sealed artifact of a sensitive set: sentences, one for each reason not to grant anything for it; often none."""
MARKS = "marks of single images"
"""The purpose of the key of `marks.parquet`."""
_UNUSABLE = "Some sensitive images or labels cannot be used as they are; which ones is private, for their owner to see."
_LABEL = "Give each image a label, or remove those that have none."
_NAMED_IN_MESSAGE = 5
_FETCHES = 8
_FETCH_AHEAD = 64  # bounds memory: at most so many images are under way at once

T = TypeVar("T")


class _Decoder(Protocol):
    """`decode` for one canonical form, in whichever process."""

    def __call__(self, found: bytes | Image.Image, /, *, bits: int | None) -> Decoded: ...


class Track(Protocol):
    """Wraps an iterable to show how far it has come, as tqdm does."""

    def __call__(self, items: Iterable[T], description: str, total: int | None, /) -> Iterable[T]: ...


def no_progress(items: Iterable[T], description: str, total: int | None, /) -> Iterable[T]:
    """Show nothing."""
    return items


class SensitiveDataProblem(DataError):
    """Sensitive images cannot be used as they are.

    The message is the same whatever the images are. `details` is private: file names, classes and counts, to be
    written where only the owner of the data reads.
    """

    def __init__(self, message: str, details: Sequence[str]) -> None:
        super().__init__(message)
        self.details = list(details)


@dataclass(frozen=True, kw_only=True)
class _Refused:
    path: str
    reason: str
    cure: str

    def told(self, source: str) -> Problem:
        """Its line of the private list."""
        return Problem(f"{source}: {self.path}: {self.reason}", self.cure)


def admit_public(source: SourceConfig, image: ImageConfig, folder: Path, progress: Track = no_progress) -> TableFacts:
    """Write the table `images-*.parquet`, sorted by label and else in the source's order, `digests.parquet` with the
    `pixel_digest` of each row, and `facts.json`.

    Originals are decoded once, one after another; the canonical PNGs wait in a temporary file for their turn.

    Raises:
        DataError: the source cannot be read, a category has no images, or some images cannot be used; the number of
            these and the first five are named.
    """
    public = open_source(source)
    refused: list[_Refused] = []
    folder.mkdir(parents=True, exist_ok=True)
    with Spool.opened(folder) as spool:
        for item in progress(_prepared(public, partial(decode, config=image)), "public images", len(public)):
            if isinstance(item, _Refused):
                refused.append(item)
            else:
                spool.add(item)
        _refuse_public(public, refused, spool.labels)
        order = np.argsort(np.array(spool.labels), kind="stable")
        with TableWriter(folder, "images", public.class_names, image) as table:
            for row in order:
                table.add_png(spool.png(row), spool.labels[row], spool.paths[row])
        write_digests(folder / DIGESTS_FILE, [spool.digests[row] for row in order])
        identity = spool.identity()
    facts = TableFacts(
        num_images=len(order),
        class_names=public.class_names,
        resolution=image.resolution,
        channels=image.channels,
        identity=identity,
    )
    (folder / FACTS_FILE).write_text(facts.to_json())
    return facts


def admit_sensitive(
    config: SensitiveConfig,
    image: ImageConfig,
    folder: Path,
    key_for: Callable[[str], bytes],
    progress: Track = no_progress,
) -> SensitiveFacts:
    """Write `train-*`, `test-*` and, where their fraction is above 0, `validation-*.parquet`, and `facts.json`.

    The sizes of the splits follow from public numbers (see `splits`). With `config.test`, that source is the test split and
    `test_fraction` is ignored. No copy of a training or validation image stays in the test table; its public size counts it
    all the same. The tables hold no file names: these are private, and nothing needs them. `marks.parquet` has the mark of
    every image of both sources, `findings.json` what the data steward has to see before anything is granted (`FINDINGS`).
    Neither changes what is answered here: whether images agree, or a split lacks a class, is nobody else's to know.

    Args:
        key_for: a secret key of the store for a purpose.

    Raises:
        DataError: a source is missing, has fewer than two classes or no images, or the two name different classes.
        SensitiveDataProblem: some images or labels cannot be used. The message says no more; `details` lists everything.
    """
    train = open_source(config.train)
    test = None if config.test is None else open_source(config.test)
    if test is not None and test.class_names != train.class_names:
        raise DataError("sensitive.test has other classes than sensitive.train: both must name the same, in one order.")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # Pillow's warnings say what it found in a file, and would go to the log.
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        spool, held_out = (stack.enter_context(Spool.opened(folder)) for _ in range(2))
        decoder = stack.enter_context(PrivateDecoder(image, folder))
        problems = _spooled(
            progress(_prepared_privately(train, decoder), "sensitive images", len(train)), spool, "train"
        )
        if test is not None:
            items = progress(_prepared_privately(test, decoder), "sensitive test images", len(test))
            problems += _spooled(items, held_out, "test")
        problems += _empty_classes(train.class_names, spool.labels)
        if problems:
            raise SensitiveDataProblem(_UNUSABLE, problems)
        sizes = split_sizes(len(spool.labels), 0.0 if test else config.test_fraction, config.validation_fraction)
        rows = split_rows(spool.digests, spool.labels, sizes, key_for("order of the splits"))
        findings = _write_tables(folder, train.class_names, image, spool, rows, held_out if test else None)
        marks = mark([*spool.digests, *held_out.digests], key_for(MARKS))
        identity = spool.identity()
    write_digests(folder / MARKS_FILE, sorted(marks))
    (folder / FINDINGS).write_text(json.dumps(findings, indent=1))
    facts = SensitiveFacts(
        num_train=sizes["train"],
        num_validation=sizes["validation"],
        num_test=len(held_out.labels) if test else sizes["test"],
        class_names=train.class_names,
        resolution=image.resolution,
        channels=image.channels,
        identity=identity,
    )
    (folder / FACTS_FILE).write_text(facts.to_json())
    return facts


def _spooled(items: Iterable[Admitted | _Refused], into: Spool, name: str) -> list[str]:
    """Spool what can be used; what is wrong with the rest."""
    problems: list[str] = []
    for item in items:
        if isinstance(item, _Refused):
            problems.append(item.told(name))
        else:
            into.add(item)
    return problems


def _write_tables(
    folder: Path,
    class_names: Sequence[str],
    image: ImageConfig,
    spool: Spool,
    rows: Mapping[Split, NDArray[np.int64]],
    held_out: Spool | None,
) -> list[str]:
    """Write the table of each split; return what the data steward has to see."""
    findings = []
    seen = {spool.digests[row] for split in ("train", "validation") for row in rows[split]}
    for split in ("train", "validation", "test"):
        source, chosen = (spool, rows[split]) if split != "test" or held_out is None else (held_out, held_out.rows)
        if split == "validation" and not len(chosen):
            continue
        with TableWriter(folder, split, class_names, image) as table:
            present = set()
            for row in chosen:
                if split == "test" and source.digests[row] in seen:
                    if held_out is not None:
                        findings.append(f"test: {source.paths[row]}: the same image is in sensitive.train")
                    continue
                table.add_png(source.png(row), source.labels[row])
                present.add(source.labels[row])
        findings += [
            f"class {name}: no image in the {split} split"
            for label, name in enumerate(class_names)
            if label not in present
        ]
    return findings


def _prepared(source: Source, decoder: _Decoder) -> Iterator[Admitted | _Refused]:
    """Every image of the source, in its order, canonical or with the reason why not; at the end one against them all."""
    prepare = partial(_prepare, num_classes=len(source.class_names), decoder=decoder)
    used_bits: list[int] = []
    for item in _each(source, prepare):
        yield item
        if isinstance(item, Admitted) and item.used_bits is not None:
            used_bits.append(item.used_bits)
    if unclear := unclear_range(used_bits):
        yield _Refused(path="all of them", reason=unclear, cure=STATE_BITS)


def _each(source: Source, prepare: Callable[[SourceImage], Admitted | _Refused]) -> Iterator[Admitted | _Refused]:
    if not source.remote_files:
        # Threads would only get into each other's way: decoding small images hardly leaves the interpreter.
        yield from map(prepare, source)
        return
    items = iter(source)
    with ThreadPoolExecutor(_FETCHES) as pool:
        while chunk := list(islice(items, _FETCH_AHEAD)):
            yield from pool.map(prepare, chunk)


def _prepared_privately(source: Source, decoder: _Decoder) -> Iterator[Admitted | _Refused]:
    """As `_prepared`; where the source itself fails half-way, that too is told in private only."""
    items = _prepared(source, decoder)
    while True:
        try:
            item = next(items, None)
        except DataError as error:
            reason = str(error)
            break
        if item is None:
            return
        yield item
    # Raised out here, since `from None` would still carry the original error as `__context__`.
    raise SensitiveDataProblem(_UNUSABLE, [Problem(reason, REPAIR)])


def _prepare(item: SourceImage, num_classes: int, decoder: _Decoder) -> Admitted | _Refused:
    if not 0 <= item.label < num_classes:
        reason = f"label {item.label} is missing or outside 0..{num_classes - 1}"
        return _Refused(path=item.path, reason=reason, cure=_LABEL)
    try:
        found = decoder(item.read(), bits=item.bits)
    except DataError as error:
        cure = error.cure if isinstance(error, UnusableImage) else REPAIR
        return _Refused(path=item.path, reason=str(error), cure=cure)
    return Admitted(
        png=encode_png(found.pixels),
        digest=found.digest,
        label=item.label,
        path=item.path,
        used_bits=found.used_bits,
    )


def _refuse_public(source: Source, refused: list[_Refused], labels: list[int]) -> None:
    if refused:
        named = "; ".join(f"{item.path}: {item.reason}" for item in refused[:_NAMED_IN_MESSAGE])
        more = "" if len(refused) <= _NAMED_IN_MESSAGE else f"; and {len(refused) - _NAMED_IN_MESSAGE} more"
        raise DataError(
            f"{len(refused)} of {len(source)} public images cannot be used, repair or remove them: {named}{more}."
        )
    present = set(labels)
    empty = [name for label, name in enumerate(source.class_names) if label not in present]
    if empty:
        named = ", ".join(empty[:_NAMED_IN_MESSAGE])
        raise DataError(f"{len(empty)} public categories have no images, remove them or add some: {named}.")


def _empty_classes(class_names: Sequence[str], labels: Sequence[int]) -> list[str]:
    """Every class that has no image at all."""
    present = set(labels)
    return [f"class {name}: no image" for label, name in enumerate(class_names) if label not in present]
