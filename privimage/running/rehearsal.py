"""The way to the release, gone once before anything is charged: on made-up images of the same public facts.

What a later stage would refuse is refused here, while it costs nothing: a class name that cannot be written, a plan whose last
charge does not fit, a disk that is too small, fonts or weights that are not there, a release that would not verify.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from privimage.config.run import RunConfig
from privimage.data.facts import SensitiveFacts, TableFacts
from privimage.data.splits import Split
from privimage.errors import DataError, PrivacyRefused, StoreError, Uncharged
from privimage.evaluation.classifiers import new_classifier
from privimage.evaluation.features import inception_extractor
from privimage.generators.diffusion.canaries import audited_mechanism
from privimage.machine.interrupts import StopRequest
from privimage.machine.progress import Silent
from privimage.pipeline.plans import planned_finetune
from privimage.pipeline.stage import StageContext
from privimage.pipeline.table import stage_of
from privimage.privacy.mechanisms import DPSGDMechanism
from privimage.release.export import export_release
from privimage.release.formats import FORMATS, export_images
from privimage.release.verify import read_release, verify_release
from privimage.running.made_up import made_up_inputs
from privimage.store.artifacts import publish
from privimage.store.files import Store
from privimage.store.scratch import scratch_folder

__all__ = ["check_room", "rehearse_release"]

COPIES = 4
"""Of the synthetic images, while the release is written: two artifacts, the release folder, and a payload in the making."""
REST = 16 * 2**20
"""Bytes of report, pictures and all else."""

# Ways that were gone well by this process.
_gone: set[tuple[str, SensitiveFacts, TableFacts]] = set()


def rehearse_release(config: RunConfig, facts: SensitiveFacts, public: TableFacts, store: Store) -> None:
    """Go the way to the release of a run on images with these facts; nothing of it is kept.

    A way that was gone well is not gone again by this process; room on the disk is looked at each time.

    Raises:
        DataError: a class name, or weights that the configuration names, cannot be used.
        PrivacyRefused: a charge would be refused after an earlier one, or the release would not verify.
        StoreError: there is too little room for it.
    """
    check_room(config, facts, store)
    way = (config.model_dump_json(), facts, public)
    if way in _gone:
        return
    _check_names((*facts.class_names, *public.class_names))
    _check_evaluation(config, facts, len(public.class_names))
    with scratch_folder(store) as folder:
        _release(config, facts, public, folder)
    _gone.add(way)


def check_room(config: RunConfig, facts: SensitiveFacts, store: Store) -> None:
    """Raise StoreError unless the synthetic images fit on the disk: at their largest, as noise, in as many copies as are made."""
    place = store.local_path("private")
    where = Path(tempfile.gettempdir()) if place is None else place.parent
    free = shutil.disk_usage(where).free
    image = facts.channels * facts.resolution**2 + 200
    needed = COPIES * config.synthesize.num_images * image + REST
    if needed > free:
        raise StoreError(
            f"The {config.synthesize.num_images:,} images of the release may need {needed / 1e9:.3g} GB in {where}, where "
            f"{free / 1e9:.3g} GB are free: free some space, or lower synthesize.num_images. Nothing was charged."
        )


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"The name of class {name!a} is no text that can be written (UTF-8): rename its folder. Nothing was charged."
            ) from None


def _check_evaluation(config: RunConfig, facts: SensitiveFacts, num_categories: int) -> None:
    """What stages beside the release would refuse."""
    shape = (facts.channels, facts.resolution, facts.resolution)
    for name in config.evaluate.classifiers:
        new_classifier(name, shape, len(facts.class_names), seed=0)(torch.zeros(2, *shape))
    if config.evaluate.inception_weights is not None:
        inception_extractor(config.evaluate.inception_weights, "cpu")
    if not config.audit.canaries:
        return
    mechanism = planned_finetune(config, facts, num_categories)
    if isinstance(mechanism, DPSGDMechanism):
        audited_mechanism(
            mechanism,
            canaries=config.audit.canaries,
            stand_ins=config.audit.stand_ins,
            steps=config.audit.num_steps or mechanism.num_steps,
        )


def _release(config: RunConfig, facts: SensitiveFacts, public: TableFacts, folder: Path) -> None:
    """Charge, write, publish, verify and export a release of made-up images."""
    stage, scratch = stage_of("release", config), Store.open(str(folder / "store"))
    (folder / "payloads").mkdir()
    (folder / "release").mkdir()
    inputs, ledger = made_up_inputs(stage, config, facts, public, scratch, folder / "payloads")
    context = StageContext(
        config=config,
        key="rehearsal",
        inputs=inputs,
        facts=facts,
        folder=folder / "release",
        store=scratch,
        progress=Silent(),
        ledger=ledger,
        paid=None,
        private_images=_closed,
        make_parts=_no_parts,
        write_private=lambda title, text: "nowhere",
        stop=StopRequest(),
    )
    outcome = stage.run(context)
    artifact = publish(
        scratch,
        stage=stage.name,
        version=stage.version,
        key="0" * 64,
        draw=1,
        sealed=False,
        folder=folder / "release",
        config=stage.fields(config),
        inputs={name: made.ref for name, made in inputs.items()},
        metrics=outcome.metrics,
        reservations=(),
        provenance={},
    )
    released = read_release(Store.open(str(folder / "store" / export_release(scratch, config.name, artifact))))
    for check in verify_release(released, scratch, config):
        if check.outcome == "failed":
            raise PrivacyRefused(
                f"A release of this run would not verify ({check.step}: {check.why}): report this. Nothing was charged."
            )
    for layout in FORMATS:
        export_images(released, layout, folder / "exported" / layout)


def _closed(split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    raise Uncharged(f"A rehearsal sees no {split} images.")


def _no_parts(ranges: Sequence[range]) -> Sequence[Path]:
    raise Uncharged("A rehearsal makes no parts.")
