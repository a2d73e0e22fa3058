"""The public stages in the pipeline: what is selected is what is trained on, and what does not belong is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from privimage.errors import DataError
from privimage.running.runner import run_all, run_stage
from privimage.semantics.index import INDEX_FILE
from privimage.store.artifacts import Artifact, list_artifacts, publish
from tests.pipeline_fixtures import Place


def artifacts(place: Place) -> dict[str, Artifact]:
    return {artifact.ref.stage: artifact for artifact in list_artifacts(place.store)}


def test_the_selection_holds_all_images_of_the_chosen_categories(pretrained: Place) -> None:
    made = artifacts(pretrained)
    selected = pq.read_table(made["select"].local("selected.parquet"))
    chosen = json.loads(made["select"].read_bytes("selection.json"))["classes"]
    class_of = {entry["number"]: number for number, row in enumerate(chosen) for entry in row["categories"]}
    (file,) = made["public"].files("images-")
    labels = pq.read_table(file)["label"].to_numpy()
    expected = np.flatnonzero(np.isin(labels, list(class_of)))
    assert selected.column_names == ["id", "label", "shard", "row", "class"]
    np.testing.assert_array_equal(selected["id"].to_numpy(), expected)
    np.testing.assert_array_equal(selected["label"].to_numpy(), labels[expected])
    assert selected["class"].to_pylist() == [class_of[label] for label in labels[expected]]
    assert (
        pq.read_schema(made["select"].local("selected.parquet")).metadata[b"image_table"]
        == json.dumps({"digest": made["public"].ref.digest, "num_images": len(labels)}).encode()
    )


def test_a_selection_from_another_image_table_is_not_trained_on(pretrained_copy: Place) -> None:
    select = artifacts(pretrained_copy)["select"]
    run = pretrained_copy.run("public.source.images_per_category=11")
    public = run_all(replace(run, as_steward=True), "public")["public"]
    with pytest.raises(
        DataError, match=r"The selection was made of image table \w{12} with 620 images, expected \w{12}"
    ):
        run_stage("pretrain", run, {"public": public.ref, "select": select.ref})


@pytest.mark.parametrize("fault", ["rows", "table"])
def test_an_index_that_does_not_fit_its_image_table_is_not_selected_from(
    pretrained_copy: Place, tmp_path: Path, fault: str
) -> None:
    made = artifacts(pretrained_copy)
    index = made["index"]
    rows = pq.read_table(index.local(INDEX_FILE))
    (tmp_path / "wrong").mkdir()
    pq.write_table(rows.slice(0, 600) if fault == "rows" else rows, tmp_path / "wrong" / INDEX_FILE)
    inputs = {name: made[name].ref for name in ("public", "classifier")}
    wrong = publish(
        pretrained_copy.store,
        stage="index",
        version=index.manifest.version,
        key="0" * len(index.ref.key),
        draw=0,
        sealed=False,
        folder=tmp_path / "wrong",
        config={},
        inputs=inputs if fault == "rows" else {**inputs, "public": made["classifier"].ref},
        metrics={},
        reservations=[],
        provenance={},
    )
    expected = "with 620 images, expected .* with 600" if fault == "rows" else "with 620 images, expected .* with 620"
    with pytest.raises(DataError, match=f"The index was made of image table .* {expected}: remove it and run stage"):
        run_stage("select", pretrained_copy.run(), {"query": made["query"].ref, "index": wrong.ref})
