"""Stages `classifier`, `index`, `query` and `select`."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import torch

from privimage.data.facts import TableFacts
from privimage.data.table import iterate_images, read_images
from privimage.device import choose_device
from privimage.errors import Uncharged
from privimage.pipeline import Outcome, PartContext, StageContext
from privimage.privacy.counts import add_noise
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.mechanisms import HistogramQuery
from privimage.semantics.classifier import num_training_steps, predict, train_classifier
from privimage.semantics.index import (
    INDEX_FILE,
    ROW_ENCODING,
    open_index,
    require_table,
    table_metadata,
    write_index,
    write_predictions,
)
from privimage.semantics.query import top_votes, vote_histogram
from privimage.semantics.selection import assign_categories, draw_categories, select_rows
from privimage.stages.models import open_classifier, save_weights
from privimage.store.artifacts import Artifact, open_ref

__all__ = ["make_index_part", "run_classifier", "run_index", "run_query", "run_select"]

INDEX_BATCH = 1024
QUERY_BATCH = 1024


def run_classifier(context: StageContext) -> Outcome:
    """Writes classifier.safetensors and classifier.json (settings, accuracy, curves)."""
    public = context.inputs["public"]
    facts = TableFacts.from_json(public.read_bytes("facts.json").decode())
    images, labels = read_images(public.files("images-"), spill=context.folder)
    config = context.config.classifier
    with context.progress.ticker("classifier", num_training_steps(len(images), config)) as tick:
        trained = train_classifier(
            torch.from_numpy(images),
            torch.from_numpy(labels),
            len(facts.class_names),
            config,
            device=choose_device(context.config.performance.device),
            on_step=tick,
        )
    save_weights(trained.model.state_dict(), context.folder / "classifier.safetensors")
    about = {
        "config": config.model_dump(mode="json"),
        "channels": facts.channels,
        "resolution": facts.resolution,
        "class_names": list(facts.class_names),
        "validation_accuracy": trained.validation_accuracy,
        "loss_curve": trained.loss_curve,
        "accuracy_curve": trained.accuracy_curve,
    }
    (context.folder / "classifier.json").write_text(json.dumps(about))
    return Outcome(metrics={"validation_accuracy": round(trained.validation_accuracy, 4)})


def run_index(context: StageContext) -> Outcome:
    """Writes index.parquet and predictions-*.parquet, a part for each file of the image table."""
    public = context.inputs["public"]
    facts = TableFacts.from_json(public.read_bytes("facts.json").decode())
    names = context.inputs["classifier"].read_json("classifier.json")["class_names"]
    parts = [range(number, number + 1) for number in range(len(_tables(public)))]
    predictions = [
        part.rename(context.folder / f"predictions-{number:05d}.parquet")
        for number, part in enumerate(context.make_parts(parts))
    ]
    write_index(
        context.folder,
        predictions,
        category_names=names,
        table_digest=public.ref.digest,
        num_images=facts.num_images,
    )
    return Outcome(metrics={"num_images": facts.num_images})


def make_index_part(context: PartContext) -> None:
    """What the classifier makes of one file of the image table."""
    public = context.inputs["public"]
    device = choose_device(context.config.performance.device)
    model, _ = open_classifier(context.inputs["classifier"], device)
    file = public.local(_tables(public)[context.items.start])
    batches = -(-pq.read_metadata(file).num_rows // INDEX_BATCH)
    tracked = context.progress.track(
        iterate_images([file], INDEX_BATCH), f"index, file {context.items.start} (batches)", batches
    )
    write_predictions(context.file, tracked, model, device)


def _tables(public: Artifact) -> list[str]:
    return [name for name in public.names if name.startswith("images-")]


def run_query(context: StageContext) -> Outcome:
    """Writes query.json: the noisy histogram and the mechanism that made it. The exact counts are never written."""
    if context.paid is None or not isinstance(context.paid.mechanism, HistogramQuery) or context.facts is None:
        raise Uncharged("The query was not charged.")
    mechanism, random = context.paid.mechanism, context.paid.random
    device = choose_device(context.config.performance.device)
    model, names = open_classifier(context.inputs["classifier"], device)
    private_images, private_labels = context.private_images("train")
    votes = np.concatenate(
        [
            top_votes(
                predict(model, torch.from_numpy(private_images[at : at + QUERY_BATCH]), device)[0], mechanism.num_votes
            )
            for at in context.progress.track(range(0, len(private_images), QUERY_BATCH), "query (batches)")
        ]
    )
    noisy = add_noise(
        vote_histogram(votes, private_labels, mechanism),
        mechanism,
        insecure_random=random if isinstance(random, InsecureRandomForTests) else None,
    )
    released = {
        "guarantee": "differential privacy" if random.guarantee else "none",
        "num_votes": mechanism.num_votes,
        "noise_multiplier": mechanism.noise_multiplier,
        "noise_stddev": mechanism.noise_stddev,
        "class_names": list(context.facts.class_names),
        "category_names": list(names),
        "noisy_histogram": noisy.tolist(),
    }
    (context.folder / "query.json").write_text(json.dumps(released))
    return Outcome(metrics={"noise_multiplier": mechanism.noise_multiplier, "noise_stddev": mechanism.noise_stddev})


def run_select(context: StageContext) -> Outcome:
    """Writes selected.parquet (the chosen rows of the index, with their class) and selection.json (categories).

    With strategy all the class of a row is its category, and selection.json gives the sensitive classes none.
    """
    config = context.config.selection
    artifact = context.inputs["index"]
    index = open_index(artifact.local(INDEX_FILE))
    table, num_images = artifact.manifest.inputs["public"], index.count_rows()
    require_table("The index", index.schema, digest=table.digest, num_images=num_images)
    categories = TableFacts.from_json(open_ref(context.store, table).read_bytes("facts.json").decode()).class_names
    votes, picks = None, None
    if config.asks_the_query:
        released = context.inputs["query"].read_json("query.json")
        votes, class_names = np.asarray(released["noisy_histogram"]), released["class_names"]
        picks = assign_categories(votes, config.categories_per_class)
    else:
        if context.facts is None:
            raise Uncharged("A selection without a query needs the class names of the admitted images.")
        class_names = context.facts.class_names
        if config.strategy == "random":
            picks = draw_categories(len(class_names), len(categories), config.categories_per_class, config.seed)
    share = config.max_fraction
    rows = select_rows(
        index,
        picks,
        num_categories=len(categories),
        max_rows=None if share is None else max(1, int(share * num_images)),
        seed=config.seed,
    ).replace_schema_metadata(table_metadata(table.digest, num_images))
    pq.write_table(rows, context.folder / "selected.parquet", **ROW_ENCODING)
    chosen = [
        {
            "class": name,
            "categories": [
                {
                    "number": c,
                    "name": categories[c],
                    **({} if votes is None else {"noisy_votes": float(votes[number, c])}),
                }
                for c in (picks[number] if picks else ())
            ],
        }
        for number, name in enumerate(class_names)
    ]
    (context.folder / "selection.json").write_text(json.dumps(chosen, indent=1))
    used = len(categories) if picks is None else sum(map(len, picks))
    return Outcome(metrics={"num_images": len(rows), "num_categories": used})
