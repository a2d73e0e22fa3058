"""Reserve, then touch, then settle: how a private stage is paid for, and the only door to sensitive images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from privimage.data.splits import Split
from privimage.data.table import read_images
from privimage.errors import PrivimageError, Uncharged
from privimage.pipeline.stage import Charge, Paid, Stage
from privimage.privacy.entropy import Random
from privimage.privacy.ledger import Ledger, Reservation
from privimage.store.artifacts import Artifact

__all__ = ["Door", "Payment", "check_not_settled", "check_paid", "pay"]


@dataclass(frozen=True, kw_only=True)
class Payment:
    """What was reserved for one attempt of one private stage."""

    paid: Paid
    live: Reservation
    is_new: bool

    def give_back(self, reason: str) -> None:
        """Void a reservation made by this very attempt. Only for a caller under which no sensitive image was opened."""
        if self.is_new:
            # The error that led here matters more than one of giving back: what stays reserved stays charged.
            with suppress(PrivimageError):
                self.live.ledger.void(self.live, reason=reason)


def pay(
    stage: str,
    key: str,
    charge: Charge,
    ledger: Ledger,
    *,
    run_name: str,
    latest_checkpoint: Callable[[], int],
    random: Random,
) -> Payment:
    """Reserve the mechanism of `charge`, or take over the reservation that an interrupted attempt left.

    Args:
        latest_checkpoint: looks up the step of the latest checkpoint of this stage and key; 0 without one.

    Raises:
        PrivacyRefused: no grant, too small a grant, an artifact that was paid for and is gone, or a restart allowance
            that does not hold what would be repeated. Nothing was charged.
    """
    left_open = ledger.open_reservations(stage, key)
    from_step = 0
    if left_open and charge.checkpoint_steps:
        live = left_open[-1]
        repeated = _steps_to_repeat(live, charge, ledger, stage, latest_checkpoint)
        attempt = ledger.resume(live, repeated=repeated, guarantee=random.guarantee)
        # Read again: until the entry was written, the attempt before could still note a step.
        from_step = ledger.recorded_step(live) - repeated
        reservations = left_open
    else:
        check_not_settled(ledger, stage, key)
        # What runs in one go may have run already when it was killed: it is charged again, in the same plan.
        live = ledger.reserve(
            stage=stage,
            key=key,
            event=charge.mechanism.event,
            plan=charge.plan,
            num_images=charge.num_images,
            run=run_name,
            restart_allowance=charge.restart_allowance,
            checkpoint_steps=charge.checkpoint_steps,
            guarantee=random.guarantee,
        )
        attempt = 1
        # Read again: until `live` was written an earlier one could still be given back, and now none can.
        earlier = [paid for paid in ledger.open_reservations(stage, key) if paid.entry.sequence < live.entry.sequence]
        reservations = [*earlier, live]

    def record_step(step: int) -> None:
        ledger.record_step(live, step)
        ledger.check_attempt(live, attempt)

    paid = Paid(
        mechanism=charge.mechanism,
        random=random,
        reservations=tuple(reservation.id for reservation in reservations),
        from_step=from_step,
        record_step=record_step,
        pause=lambda step: ledger.pause(live, attempt=attempt, step=step),
    )
    return Payment(paid=paid, live=live, is_new=attempt == 1)


def _steps_to_repeat(
    live: Reservation, charge: Charge, ledger: Ledger, stage: str, latest_checkpoint: Callable[[], int]
) -> int:
    """How far the newest sound checkpoint lies before the last one that was noted: its steps are charged once more."""
    if live.event != charge.mechanism.event:
        raise Uncharged(
            f"Reservation {live.id} was made for another mechanism than stage {stage} would run now: a different version "
            f"of privimage made it. Use that version, or another draw (--draw {stage}=2)."
        )
    # In this order: a checkpoint is saved before its step is noted, and another process may be doing so now.
    recorded = ledger.recorded_step(live)
    return max(0, recorded - latest_checkpoint())


def check_not_settled(ledger: Ledger, stage: str, key: str) -> None:
    """Raise Uncharged if the ledger says that this artifact, which is not there, was published once."""
    settled = {entry for entry, state in ledger.states().items() if state == "settled"}
    for entry in ledger.reservations().values():
        if (entry.body["stage"], entry.body["key"]) == (stage, key) and entry.id in settled:
            raise Uncharged(
                f"Stage {stage} was paid for by entry {entry.id} and published, but its artifact is gone: restore it from "
                f"a backup, or ask for another draw (--draw {stage}=2), which is charged in full."
            )


def check_paid(artifact: Artifact, ledger: Ledger | None) -> None:
    """Raise Uncharged unless the ledger holds what paid for `artifact`; settle what a crash after publishing left open."""
    held = ledger.states() if ledger else {}
    ids = artifact.manifest.reservations
    unpaid = [entry for entry in ids if held.get(entry) not in ("open", "settled")]
    if ledger is None or not ids or unpaid:
        raise Uncharged(
            f"Artifact {artifact.ref.stage} {artifact.ref.key[:12]} was paid for by ledger entry "
            f"{unpaid[0] if unpaid else 'none'}, which the ledger of these images does not hold: it is not reused. "
            "Restore the ledger from a backup."
        )
    for reservation in ledger.open_reservations(artifact.ref.stage, artifact.ref.key):
        if reservation.id in ids:
            ledger.settle(reservation, artifact=artifact.ref.digest)


class Door:
    """Opens sensitive images: those that a sealed stage may see (`Stage.opens`), or under a live reservation all but test ones.

    A sealed stage releases nothing: its artifact lies below `private/`, and is no stage's input. `opened` tells whether
    the door ever opened.
    Images that are too many for memory lie in a file without a name in `spill`, which is as protected as the tables are.
    """

    def __init__(
        self, stage: Stage, sealed_inputs: list[Artifact], reservation: Reservation | None, *, spill: Path
    ) -> None:
        self._stage = stage
        self._sealed_inputs = sealed_inputs
        self._reservation = reservation
        self._spill = spill
        self.opened = False

    def __call__(self, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """uint8 NCHW images and int64 labels of one split.

        Raises:
            Uncharged: the stage may not see them, or its reservation is not live.
        """
        name = self._stage.name
        if not self._sealed_inputs:
            raise Uncharged(f"Stage {name} has no sensitive images.")
        if self._stage.sealed and split in self._stage.opens:
            pass
        elif split == "test":
            raise Uncharged(f"Stage {name} is not sealed: it may not see test images.")
        elif self._reservation is None:
            raise Uncharged(f"Stage {name} has no reservation: the {split} images stay closed.")
        else:
            self._reservation.check_live()
        self.opened = True
        return read_images(self._sealed_inputs[0].files(f"{split}-"), spill=self._spill)
