"""What a stage is, and what it is given.

A stage is a function of (configuration, input artifacts, randomness) that writes one artifact's payload into a folder.
Keys, caching, charging, checkpoints and publishing are done once, for all stages, by `running.runner`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from privimage.config.run import RunConfig
from privimage.data.facts import SensitiveFacts
from privimage.data.splits import Split
from privimage.errors import Uncharged
from privimage.machine.interrupts import StopRequest
from privimage.machine.progress import Progress
from privimage.privacy.budget import Plan
from privimage.privacy.entropy import Random
from privimage.privacy.ledger import Ledger
from privimage.privacy.mechanisms import ClassSumRounds, ClassSums, DPSGDMechanism, HistogramQuery, ValidationCount
from privimage.store.artifacts import JSON, Artifact
from privimage.store.files import Store

__all__ = ["Charge", "Mechanism", "Outcome", "Paid", "PartContext", "PrivateImages", "Stage", "StageContext"]

Mechanism = HistogramQuery | ClassSums | ClassSumRounds | DPSGDMechanism | ValidationCount


class PrivateImages(Protocol):
    """The only door to sensitive images: refuses whatever was not charged for."""

    def __call__(self, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """uint8 NCHW images and int64 labels of one split."""
        ...


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What a private stage asks of the ledger: the very mechanism it will run, and the plan it belongs to."""

    mechanism: Mechanism
    plan: Plan
    num_images: int
    restart_allowance: int = 0
    checkpoint_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Paid:
    """A charge that the ledger holds, and the randomness to run its mechanism with.

    Attributes:
        reservations: ids of all entries that pay for the artifact; the last is the live one.
        from_step: no step before this one may be run: an interrupted attempt saved a checkpoint there.
        record_step: to be called after each saved checkpoint; raises Uncharged if another attempt took over.
        pause: to be called after that by an attempt that stops, with the step; it then lost nothing.
    """

    mechanism: Mechanism
    random: Random
    reservations: tuple[str, ...]
    from_step: int
    record_step: Callable[[int], None]
    pause: Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What a running stage is given.

    Attributes:
        inputs: the input artifacts, sealed ones excepted.
        facts: public facts of the sensitive images (sizes of the splits, class names), if the stage has them as input.
        folder: where to write the payload.
        ledger: of the sensitive images, under the same condition.
        paid: for private stages, what was charged.
        private_images: opens sensitive images, if the stage may.
        make_parts: for stages that are made in parts: given the range of each, has them made, on other machines maybe,
            and returns their files, which lie in `folder`.
        write_private: puts a text where only the private side reads, and returns its place.
        stop: whether the run was asked to stop; long loops answer.
    """

    config: RunConfig
    key: str
    inputs: Mapping[str, Artifact]
    facts: SensitiveFacts | None
    folder: Path
    store: Store
    progress: Progress
    ledger: Ledger | None
    paid: Paid | None
    private_images: PrivateImages
    make_parts: Callable[[Sequence[range]], Sequence[Path]]
    write_private: Callable[[str, str], str]
    stop: StopRequest


@dataclass(frozen=True, kw_only=True)
class PartContext:
    """What is given to a stage that makes one part of its payload (`privimage.running.jobs`).

    Attributes:
        items: what the part is made of, as the stage has cut itself.
        file: where to write it, as Parquet.
    """

    config: RunConfig
    inputs: Mapping[str, Artifact]
    items: range
    file: Path
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage reports beside its files; public figures only, unless its artifact is sealed."""

    metrics: Mapping[str, JSON]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One box of the picture.

    Attributes:
        version: raised by hand when results change; part of the key.
        fields: the settings that can change the result, as JSON; part of the key.
        charge: for stages that release something computed from sensitive images: what it costs. It sees public facts
            only and is called before any image is opened.
        sealed: the artifact holds private values and lives below `private/`; no stage gets it as input.
        opens: the splits that it may see without a charge. Only a sealed stage, which releases nothing, may see any.
        part_of: whether a run of this configuration has this stage.
        reads: for stages that do not read all of `inputs` in each run that has them: those that they read in this one.
        make_part: makes one part of the payload, for public stages that other machines may help with.
        admits: which images it lets in from outside. In a store that a grant was made in, a data steward has to have declared
            them (`privimage.running.declared`).
        rehearse: tries out, without sensitive images and before the charge, what could fail after it.
        finish: called after the artifact was published, or found; doing it again changes nothing.
    """

    name: str
    version: int
    about: str
    inputs: tuple[str, ...]
    fields: Callable[[RunConfig], dict[str, Any]]
    run: Callable[[StageContext], Outcome]
    make_part: Callable[[PartContext], object] | None = None
    charge: Callable[[RunConfig, str, Mapping[str, Artifact], SensitiveFacts, Ledger], Charge] | None = None
    rehearse: Callable[[RunConfig, Mapping[str, Artifact]], object] | None = None
    sealed: bool = False
    finish: Callable[[RunConfig, Store, Artifact], object] | None = None
    opens: tuple[Split, ...] = ()
    part_of: Callable[[RunConfig], bool] = lambda config: True
    reads: Callable[[RunConfig], tuple[str, ...]] | None = None
    admits: Literal["public", "sensitive"] | None = None

    def __post_init__(self) -> None:
        if self.opens and not self.sealed:
            raise Uncharged(f"Stage {self.name} is not sealed: it may see no sensitive image without a charge.")
