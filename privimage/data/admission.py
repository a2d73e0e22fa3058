"""The only way in: a source becomes canonical tables, and what cannot be used is refused, never dropped silently."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar, cast

import numpy as np
from PIL import Image

from privimage.config import ImageConfig, SensitiveConfig, SourceConfig
from privimage.data.decode import Decoded, decode
from privimage.data.depth import STATE_BITS, unclear_range
from privimage.data.facts import Identity, SensitiveFacts, TableFacts
from privimage.data.private_decoder import PrivateDecoder
from privimage.data.problems import REPAIR, Problem, UnusableImage
from privimage.data.sources import Source, SourceImage, open_source
from privimage.data.splits import Split, split_of
from privimage.data.table import TableWriter, encode_png
from privimage.errors import DataError

__all__ = [
    "FACTS_FILE",
    "SensitiveDataProblem",
    "SensitiveFacts",
    "Track",
    "admit_public",
    "admit_sensitive",
    "no_progress",
]

FACTS_FILE = "facts.json"
_UNUSABLE = "Some sensitive images or labels cannot be used as they are; which ones is private, for their owner to see."
_OVERLAP = "An image is in both sensitive.train and sensitive.test: remove it from one, test images must be held out."
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
class _Admitted:
    png: bytes
    digest: bytes
    label: int
    path: str
    used_bits: int | None


@dataclass(frozen=True, kw_only=True)
class _Refused:
    path: str
    reason: str
    cure: str

    def told(self, source: str) -> Problem:
        """Its line of the private list."""
        return Problem(f"{source}: {self.path}: {self.reason}", self.cure)


def admit_public(source: SourceConfig, image: ImageConfig, folder: Path, progress: Track = no_progress) -> TableFacts:
    """Write the table `images-*.parquet`, sorted by label and else in the source's order, and `facts.json`.

    Originals are decoded once, one after another; the canonical PNGs wait in a temporary file for their turn.

    Raises:
        DataError: the source cannot be read, a category has no images, or some images cannot be used; the number of
            these and the first five are named.
    """
    public = open_source(source)
    identity = Identity()
    refused: list[_Refused] = []
    labels: list[int] = []
    ends: list[int] = []
    paths: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        spool = cast(BinaryIO, file)
        for item in progress(_prepared(public, partial(decode, config=image)), "public images", len(public)):
            if isinstance(item, _Refused):
                refused.append(item)
                continue
            identity.add(item.digest, item.label)
            labels.append(item.label)
            paths.append(item.path)
            ends.append((ends[-1] if ends else 0) + spool.write(item.png))
        _refuse_public(public, refused, labels)
        with TableWriter(folder, "images", public.class_names, image) as table:
            for index in np.argsort(np.array(labels), kind="stable"):
                start = ends[index - 1] if index else 0
                spool.seek(start)
                table.add_png(spool.read(ends[index] - start), labels[index], paths[index])
    facts = TableFacts(
        num_images=len(labels),
        class_names=public.class_names,
        resolution=image.resolution,
        channels=image.channels,
        identity=identity.hexdigest(),
    )
    (folder / FACTS_FILE).write_text(facts.to_json())
    return facts


def admit_sensitive(
    config: SensitiveConfig, image: ImageConfig, folder: Path, progress: Track = no_progress
) -> SensitiveFacts:
    """Write `train-*`, `test-*` and, where their fraction is above 0, `validation-*.parquet`, and `facts.json`.

    Each image's split depends on its own pixels only (see `splits`). The tables hold no file names: these are
    private, and nothing needs them. With `config.test`, that source is the test split and `test_fraction` is ignored.

    Raises:
        DataError: a source is missing, has fewer than two classes or no images, or the two name different classes.
        SensitiveDataProblem: some images or labels cannot be used, a class has no image in one of the splits, or an
            image is in both sources. The message says no more than this; `details` lists everything.
    """
    train = open_source(config.train)
    test = None if config.test is None else open_source(config.test)
    if test is not None and test.class_names != train.class_names:
        raise DataError("sensitive.test has other classes than sensitive.train: both must name the same, in one order.")
    test_fraction = config.test_fraction if test is None else 0.0
    splits: tuple[Split, ...] = ("train", "validation", "test") if config.validation_fraction else ("train", "test")
    identity, digests = Identity(), set[bytes]()
    per_class: dict[Split, Counter[int]] = {name: Counter() for name in splits}
    problems: list[str] = []
    overlap: list[str] = []
    with ExitStack() as stack:
        # Pillow's warnings say what it found in a file, and would go to the log.
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        decoder = stack.enter_context(PrivateDecoder(image, folder))
        tables = {name: stack.enter_context(TableWriter(folder, name, train.class_names, image)) for name in splits}

        def add(item: _Admitted, split: Split) -> None:
            tables[split].add_png(item.png, item.label)
            per_class[split][item.label] += 1

        for item in progress(_prepared_privately(train, decoder), "sensitive images", len(train)):
            if isinstance(item, _Refused):
                problems.append(item.told("train"))
                continue
            add(item, split_of(item.digest, test_fraction, config.validation_fraction))
            identity.add(item.digest, item.label)
            digests.add(item.digest)
        if test is not None:
            for item in progress(_prepared_privately(test, decoder), "sensitive test images", len(test)):
                if isinstance(item, _Refused):
                    problems.append(item.told("test"))
                    continue
                add(item, "test")
                if item.digest in digests:
                    overlap.append(f"test: {item.path}: the same image is in sensitive.train")
        problems += _empty_classes(train.class_names, per_class)
        if problems or overlap:
            raise SensitiveDataProblem(_UNUSABLE if problems else _OVERLAP, problems + overlap)
    facts = SensitiveFacts(
        num_train=tables["train"].num_images,
        num_validation=tables["validation"].num_images if "validation" in tables else 0,
        num_test=tables["test"].num_images,
        class_names=train.class_names,
        resolution=image.resolution,
        channels=image.channels,
        identity=identity.hexdigest(),
    )
    (folder / FACTS_FILE).write_text(facts.to_json())
    return facts


def _prepared(source: Source, decoder: _Decoder) -> Iterator[_Admitted | _Refused]:
    """Every image of the source, in its order, canonical or with the reason why not; at the end one against them all."""
    prepare = partial(_prepare, num_classes=len(source.class_names), decoder=decoder)
    used_bits: list[int] = []
    for item in _each(source, prepare):
        yield item
        if isinstance(item, _Admitted) and item.used_bits is not None:
            used_bits.append(item.used_bits)
    if unclear := unclear_range(used_bits):
        yield _Refused(path="all of them", reason=unclear, cure=STATE_BITS)


def _each(source: Source, prepare: Callable[[SourceImage], _Admitted | _Refused]) -> Iterator[_Admitted | _Refused]:
    if not source.remote_files:
        # Threads would only get into each other's way: decoding small images hardly leaves the interpreter.
        yield from map(prepare, source)
        return
    items = iter(source)
    with ThreadPoolExecutor(_FETCHES) as pool:
        while chunk := list(islice(items, _FETCH_AHEAD)):
            yield from pool.map(prepare, chunk)


def _prepared_privately(source: Source, decoder: _Decoder) -> Iterator[_Admitted | _Refused]:
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


def _prepare(item: SourceImage, num_classes: int, decoder: _Decoder) -> _Admitted | _Refused:
    if not 0 <= item.label < num_classes:
        reason = f"label {item.label} is missing or outside 0..{num_classes - 1}"
        return _Refused(path=item.path, reason=reason, cure=_LABEL)
    try:
        found = decoder(item.read(), bits=item.bits)
    except DataError as error:
        cure = error.cure if isinstance(error, UnusableImage) else REPAIR
        return _Refused(path=item.path, reason=str(error), cure=cure)
    return _Admitted(
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


def _empty_classes(class_names: Sequence[str], per_class: dict[Split, Counter[int]]) -> list[str]:
    """Every class that has no image at all, or none in one of the splits."""
    total = sum(per_class.values(), Counter[int]())
    return [
        f"class {name}: no image in the {split} split" if total[label] else f"class {name}: no image"
        for label, name in enumerate(class_names)
        for split, count in per_class.items()
        if not count[label] and (total[label] or split == "train")
    ]
