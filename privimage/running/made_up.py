"""What the stages before a release would have made, out of public facts alone: for a rehearsal, and for nothing else.

Payloads have the files and fields that `release` reads. Their pictures are plain, their votes are the noise of the query: no
image, public or sensitive, is looked at. Charges are real ones, in a ledger that lies in the rehearsal's own store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from privimage.config.classifier import ClassifierConfig
from privimage.config.images import ImageConfig
from privimage.config.run import RunConfig
from privimage.data.facts import SensitiveFacts, TableFacts
from privimage.data.table import TableWriter
from privimage.errors import Uncharged
from privimage.generators.sampling.class_sizes import standard_error
from privimage.payloads import (
    GUARANTEE,
    AuditFound,
    ClassifierAbout,
    ClassMeanImages,
    FeatureMeans,
    GeneratorAbout,
    Guarantee,
    Payload,
    Query,
    SelectedCategory,
    SelectedClass,
    Selection,
    Synthesis,
    Validation,
)
from privimage.pipeline.plans import AHEAD, ahead_plan, finetune_plan, planned_finetune, run_plan, validation_plan
from privimage.pipeline.preflight import (
    LEAST_OF_A_CLASS,
    planned_class_means,
    planned_feature_means,
    planned_query,
)
from privimage.pipeline.stage import Mechanism, Stage
from privimage.privacy.budget import Plan
from privimage.privacy.ledger import Ledger, Reservation
from privimage.privacy.mechanisms import ClassSums
from privimage.semantics.classifier import new_classifier
from privimage.store.artifacts import JSON, Artifact, publish
from privimage.store.files import Store
from privimage.store.weights import save_weights

__all__ = ["made_up_inputs"]

CURVE = ((1, 1.0), (2, 0.5))
"""Of training that did not take place."""


def made_up_inputs(
    stage: Stage, config: RunConfig, facts: SensitiveFacts, public: TableFacts, store: Store, folder: Path
) -> tuple[dict[str, Artifact], Ledger]:
    """The inputs of `stage` as a run of this configuration would have them, and the ledger that they were charged to.

    Args:
        store: an empty store of the rehearsal's own.
        folder: where files may be written.

    Raises:
        PrivacyRefused: what the run intends does not fit together: a later charge would be refused after an earlier one.
    """
    return _MadeUp(config, facts, public, store, folder).inputs(stage)


class _MadeUp:
    def __init__(
        self, config: RunConfig, facts: SensitiveFacts, public: TableFacts, store: Store, folder: Path
    ) -> None:
        self._config, self._facts, self._public = config, facts, public
        self._store, self._folder = store, folder
        self._image = ImageConfig(resolution=facts.resolution, channels=1 if facts.channels == 1 else 3)
        self._random = np.random.default_rng(0)
        self._ledger = Ledger(store, "rehearsal")
        privacy = config.privacy
        self._ledger.grant(epsilon=privacy.epsilon, delta=privacy.delta, num_images=facts.num_train, name=config.name)
        self._made: dict[str, Artifact] = {}

    def inputs(self, stage: Stage) -> tuple[dict[str, Artifact], Ledger]:
        makers: dict[str, Callable[[], Artifact]] = {
            "public": self._public_images,
            "classifier": self._classifier,
            "query": self._query,
            "feature_means": self._feature_means,
            "class_means": self._class_means,
            "select": self._select,
            "pretrain": lambda: self._generator("pretrain"),
            "warmup": lambda: self._generator("warmup"),
            "finetune": self._finetune,
            "audit": self._audit,
            "synthesize": self._synthesize,
            "validate": self._validate,
        }
        names = [name for name in makers if name in stage.inputs]
        for name in names:
            self._made[name] = makers[name]()
        return {name: self._made[name] for name in names}, self._ledger

    def _publish(
        self,
        stage: str,
        payload: Payload | None,
        *,
        paid: Reservation | None = None,
        metrics: Mapping[str, JSON] | None = None,
    ) -> Artifact:
        """The payload beside those files that lie in the stage's folder already."""
        place = self._place(stage)
        if payload is not None:
            payload.write(place)
        artifact = publish(
            self._store,
            stage=stage,
            version=1,
            key=hashlib.sha256(stage.encode()).hexdigest(),
            draw=1,
            sealed=False,
            folder=place,
            config={},
            inputs={},
            metrics=metrics or {},
            reservations=(paid.id,) if paid else (),
            provenance={
                "seconds": 1.0,
                "packages": {package: version(package) for package in ("torch", "dp-accounting", "opendp")},
            },
        )
        if paid:
            self._ledger.settle(paid, artifact=artifact.ref.digest)
        return artifact

    def _place(self, stage: str) -> Path:
        place = self._folder / stage
        place.mkdir(exist_ok=True)
        return place

    def _reserve(self, stage: str, plan: Plan, mechanism: Mechanism, num_images: int) -> Reservation:
        return self._ledger.reserve(
            stage=stage,
            key=f"rehearsal-{stage}",
            event=mechanism.event,
            plan=plan,
            num_images=num_images,
            run=self._config.name,
        )

    def _paid_ahead(self) -> list[str]:
        return [paid for name in AHEAD if name in self._made for paid in self._made[name].manifest.reservations]

    def _table(self, place: Path, class_names: tuple[str, ...], per_class: int) -> None:
        shape = (self._image.channels, self._image.resolution, self._image.resolution)
        with TableWriter(place, "images", class_names, self._image) as table:
            for label in range(len(class_names)):
                for number in range(per_class):
                    # Of one shade each: noise would take minutes to compress where there are a thousand classes.
                    table.add(np.full(shape, (label + 100 * number) % 256, dtype=np.uint8), label)

    def _public_images(self) -> Artifact:
        names = self._public.class_names
        self._table(self._place("public"), names, 1)
        return self._publish(
            "public", None, metrics={"num_images": self._public.num_images, "num_categories": len(names)}
        )

    def _classifier(self) -> Artifact:
        """A small classifier, whatever backbone there will be: the report is the same but for a line."""
        settings = ClassifierConfig(base_channels=4, blocks=(1,))
        names = self._public.class_names
        network = new_classifier(settings, channels=self._facts.channels, num_categories=len(names))
        save_weights(network.state_dict(), self._place("classifier") / "classifier.safetensors")
        about = ClassifierAbout(
            config=settings.model_dump(mode="json"),
            channels=self._facts.channels,
            resolution=self._facts.resolution,
            class_names=names,
            validation_accuracy=0.5,
            loss_curve=CURVE,
            accuracy_curve=CURVE,
        )
        return self._publish("classifier", about)

    def _query(self) -> Artifact:
        classes, categories = self._facts.class_names, self._public.class_names
        plan = run_plan(self._config, "rehearsal-query", self._facts, len(categories))
        mechanism = planned_query(self._config, self._facts, len(categories))
        if mechanism is None:
            raise Uncharged("This run asks no query.")
        votes = self._random.normal(0, mechanism.noise_stddev, (len(classes), len(categories)))
        about = Query(
            guarantee=GUARANTEE,
            num_votes=mechanism.num_votes,
            noise_multiplier=mechanism.noise_multiplier,
            noise_stddev=mechanism.noise_stddev,
            class_names=classes,
            category_names=categories,
            noisy_histogram=votes.tolist(),
        )
        paid = self._reserve("query", plan, mechanism, self._facts.num_train)
        return self._publish("query", about, paid=paid)

    def _ahead_plan(self, stage: str, mechanism: ClassSums) -> Plan:
        num_categories, key = len(self._public.class_names), f"rehearsal-{stage}"
        return ahead_plan(
            stage, mechanism, self._config, key, self._paid_ahead(), self._facts, self._ledger, num_categories
        )

    def _feature_means(self) -> Artifact:
        mechanism = planned_feature_means(self._config, self._facts, len(self._public.class_names))
        if mechanism is None:
            raise Uncharged("This run releases no feature means.")
        plan, names = self._ahead_plan("feature_means", mechanism), self._facts.class_names
        about = FeatureMeans(
            guarantee=GUARANTEE,
            noise_multiplier=mechanism.noise_multiplier,
            noise_stddev=mechanism.noise_stddev,
            class_names=names,
            dimensions=1,
            class_sizes=(1.0,) * len(names),
            noise_in_means=(mechanism.noise_stddev,) * len(names),
            temperature=1.0,
        )
        paid = self._reserve("feature_means", plan, mechanism, self._facts.num_train)
        return self._publish("feature_means", about, paid=paid)

    def _class_means(self) -> Artifact:
        mechanism = planned_class_means(self._config, self._facts)
        if mechanism is None:
            raise Uncharged("This run has no class mean images.")
        plan = self._ahead_plan("class_means", mechanism)
        names = self._facts.class_names
        about = ClassMeanImages(
            guarantee=GUARANTEE,
            noise_multiplier=mechanism.noise_multiplier,
            noise_stddev=mechanism.noise_stddev,
            max_norm=1.0,
            class_names=names,
            class_sizes=(1.0,) * len(names),
            class_sizes_are="made up",
            noise_in_means=(mechanism.noise_stddev,) * len(names),
        )
        paid = self._reserve("class_means", plan, mechanism, self._facts.num_train)
        return self._publish("class_means", about, paid=paid)

    def _select(self) -> Artifact:
        """What the strategy chooses where no category has more votes than another."""
        classes, names = self._facts.class_names, self._public.class_names
        picks = self._config.selection.picks(np.ones((len(classes), len(names))), len(classes), len(names))
        own = [[at % len(classes)] for at in range(len(classes))] if picks is None else picks
        about = Selection(
            classes=tuple(
                SelectedClass(
                    name=name,
                    categories=tuple(SelectedCategory(number=at, name=names[at], noisy_votes=1.0) for at in row),
                )
                for name, row in zip(classes, own, strict=True)
            )
        )
        pairs = [(category, number) for number, row in enumerate(own) for category in row]
        columns = {"id": [at for at, _ in pairs], "label": [at for at, _ in pairs], "class": [at for _, at in pairs]}
        pq.write_table(pa.table(columns), self._place("select") / "selected.parquet")
        metrics: dict[str, JSON] = {"num_images": self._public.num_images, "num_categories": len(pairs)}
        return self._publish("select", about, metrics=metrics)

    def _generator(
        self, stage: str, *, paid: Reservation | None = None, guarantee: Guarantee | None = None
    ) -> Artifact:
        about = GeneratorAbout(
            kind=self._config.generator.kind,
            network={},
            channels=self._image.channels,
            resolution=self._facts.resolution,
            class_names=self._facts.class_names,
            num_parameters=1,
            loss_curve=CURVE,
            guarantee=guarantee,
        )
        (self._place(stage) / GeneratorAbout.WEIGHTS).write_bytes(b"none")
        return self._publish(stage, about, paid=paid)

    def _finetune(self) -> Artifact:
        key, paid_ahead = "rehearsal-finetune", self._paid_ahead()
        plan, mechanism = (
            finetune_plan(self._config, key, paid_ahead, self._facts, self._ledger)
            if paid_ahead
            else (run_plan(self._config, key, self._facts, 1), planned_finetune(self._config, self._facts, 1))
        )
        paid = self._reserve("finetune", plan, mechanism, self._facts.num_train)
        return self._generator("finetune", paid=paid, guarantee=GUARANTEE)

    def _audit(self) -> Artifact:
        about = AuditFound(
            claimed=0.0, delta=0.0, canaries=0, mechanism={"num_steps": 1}, bounds=(), alarm=False, verdict="made up"
        )
        return self._publish("audit", about)

    def _synthesize(self) -> Artifact:
        config, from_public = self._config, self._config.public_images
        self._table(self._place("synthesize"), self._facts.class_names, LEAST_OF_A_CLASS)
        asked, noise = planned_query(config, self._facts, len(self._public.class_names)), None
        if asked and config.synthesize.class_sizes == "query":
            noise = standard_error(asked.noise_stddev, asked.num_categories, asked.num_votes)
        about = Synthesis(
            guarantee=GUARANTEE,
            class_names=self._facts.class_names,
            num_public=1 if from_public == "unchanged" else None,
            num_mixed=1 if from_public == "mixed" else None,
            drawn_rejected=None if from_public == "none" else True,
            class_size_stddev=noise,
        )
        return self._publish("synthesize", about)

    def _validate(self) -> Artifact:
        last = self._made.get("finetune") or self._made["feature_means"]
        paid_last = last.manifest.reservations
        plan, mechanism = validation_plan(self._config, "rehearsal-validate", paid_last, self._facts, self._ledger)
        names = self._config.evaluate.classifiers
        about = Validation(
            guarantee=GUARANTEE,
            noise_multiplier=mechanism.noise_multiplier,
            noise_stddev=mechanism.noise_stddev / mechanism.num_images / mechanism.votes_each,
            num_images=mechanism.num_images,
            noisy_accuracies=dict.fromkeys(names, 0.5),
            chosen=names[0],
        )
        paid = self._reserve("validate", plan, mechanism, self._facts.num_validation)
        return self._publish("validate", about, paid=paid)
