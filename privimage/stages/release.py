"""Stage `release`: what may leave. Only post-processing of charged results and public figures go in."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from privimage.data.table import read_images
from privimage.errors import Uncharged
from privimage.pipeline import Outcome, StageContext
from privimage.privacy.crosscheck import prv_interval
from privimage.release.certificate import build_certificate, interval_in_words
from privimage.release.datasheet import VERIFY, SyntheticFacts, render_datasheet
from privimage.release.figures import Figure
from privimage.release.pictures import sample_grid, thumbnail_strip
from privimage.release.report import ChosenCategory, ChosenClass, ReportData, StageCost, render_report
from privimage.stages.audit import audit_figures
from privimage.store.artifacts import Artifact

__all__ = ["run"]

GRID_IMAGES = 12
EXAMPLES = 6


def run(context: StageContext) -> Outcome:
    """Writes synthetic.parquet, samples.png, README.md, report.html and certificate.json."""
    if context.ledger is None or context.facts is None:
        raise Uncharged("A release needs the ledger of its images.")
    inputs, facts, ledger = context.inputs, context.facts, context.ledger
    class_names = facts.class_names
    files = inputs["synthesize"].files("images-")
    images, labels = read_images(files)
    grid = sample_grid(images, labels, class_names, per_class=GRID_IMAGES)
    (context.folder / "samples.png").write_bytes(grid)
    table = pa.concat_tables([pq.read_table(file) for file in files])
    pq.write_table(table, context.folder / "synthetic.parquet")
    private_artifacts = {"query": inputs["query"], "finetune": inputs["finetune"]}
    denoiser = inputs["finetune"].read_json("denoiser.json")
    guarantees = [inputs["query"].read_json("query.json")["guarantee"], denoiser["guarantee"]]

    def certified(files: dict[str, bytes]) -> dict[str, Any]:
        return build_certificate(context.config, facts, ledger, private_artifacts, guarantees, files, prv_interval)

    written = {name: (context.folder / name).read_bytes() for name in ("samples.png", "synthetic.parquet")}
    so_far = certified(written)
    synthetic = SyntheticFacts(
        class_names=class_names,
        images_per_class=np.bincount(labels, minlength=len(class_names)).tolist(),
        channels=images.shape[1],
        resolution=images.shape[2],
        parquet_bytes=len(written["synthetic.parquet"]),
        arrow_bytes=table.nbytes,
    )
    config = context.config
    told = {
        "README.md": render_datasheet(so_far, synthetic, description=config.description, licence=config.license),
        "report.html": render_report(_report(context, so_far, grid)),
    }
    for name, text in told.items():
        written[name] = text.encode()
        (context.folder / name).write_bytes(written[name])
    certificate = certified(written)
    (context.folder / "certificate.json").write_text(json.dumps(certificate, indent=1, sort_keys=True))
    return Outcome(
        metrics={"epsilon": certificate["epsilon"], "delta": certificate["delta"], "num_images": len(images)}
    )


def _report(context: StageContext, certificate: dict[str, Any], grid: bytes) -> ReportData:
    inputs, config = context.inputs, context.config
    classifier = inputs["classifier"].read_json("classifier.json")
    pretrained = inputs["pretrain"].read_json("denoiser.json")
    selected = inputs["select"].manifest.metrics
    num_public = inputs["public"].manifest.metrics["num_images"]
    noise = inputs["query"].read_json("query.json")["noise_stddev"]
    figures = [
        Figure(
            name="Accuracy of the semantic classifier",
            value=f"{classifier['validation_accuracy']:.1%}",
            note=f"on held-out public images of {len(classifier['class_names'])} categories",
            kind="public",
        ),
        Figure(
            name="Selected public images",
            value=f"{selected['num_images']:,}",
            note=f"of {num_public:,}, in {selected['num_categories']} categories",
            kind="public",
        ),
        Figure(
            name="Noise of the semantic query",
            value=f"{noise:.3g} votes",
            note="standard deviation per category",
            kind="charged",
            paid_by=inputs["query"].manifest.reservations,
        ),
        Figure(
            name="Parameters of the generator",
            value=f"{pretrained['num_parameters']:,}",
            note=f"{config.image.resolution} x {config.image.resolution} pixels",
            kind="public",
        ),
        *(audit_figures(inputs["audit"]) if "audit" in inputs else []),
    ]
    return ReportData(
        title=config.name,
        description=config.description,
        internal=False,
        epsilon=certificate["epsilon"],
        delta=certificate["delta"],
        relation=certificate["relation_in_words"],
        num_private_images=certificate["num_training_images"],
        guarantee=certificate["guarantee"],
        samples_png=grid,
        class_names=tuple(context.facts.class_names) if context.facts else (),
        chosen=_chosen(inputs["select"], inputs["public"]),
        curves={
            "Semantic classifier: loss by optimizer step (public images)": {"loss": classifier["loss_curve"]},
            "Generator, pre-training: loss by optimizer step (public images)": {
                "loss": _smooth(pretrained["loss_curve"])
            },
        },
        figures=figures,
        mechanisms=[
            (mechanism["stage"], mechanism["in_words"], f"{mechanism['epsilon_alone']:.4g} alone")
            for mechanism in certificate["mechanisms"]
        ],
        costs=[
            StageCost(stage=name, seconds=float(str(artifact.manifest.provenance["seconds"])), what=_about(name))
            for name, artifact in inputs.items()
            if not artifact.manifest.reservations  # how long a private stage took depends on how many images it drew
        ],
        ledger_entries=[
            (f"{entry['sequence']:06d}", entry["kind"], f"{entry['id']} · sha256 {entry['sha256'][:16]}…")
            for entry in certificate["ledger"]["entries"]
        ],
        provenance={
            "made": str(inputs["finetune"].manifest.written),
            "data set (blinded name)": certificate["ledger"]["dataset"],
            "configuration": certificate["config_sha256"],
            "computed epsilon": f"{certificate['epsilon_computed']:.6g} ({certificate['accountant']})",
            "independent check": interval_in_words(certificate["epsilon_certified_interval"]),
            "spent on this data set in all": "epsilon {epsilon:.4g}, delta {delta:g}, added up".format(
                **certificate["ledger"]["spent_in_all"]
            ),
            "granted for this data set in all": "epsilon {epsilon:.4g}, delta {delta:g}".format(
                **certificate["ledger"]["granted_in_all"]
            ),
            **{name: str(value) for name, value in certificate["packages"].items()},
        },
        verify_command=VERIFY,
        paid=[mechanism["ledger_entry"]["id"] for mechanism in certificate["mechanisms"]],
    )


def _chosen(select: Artifact, public: Artifact) -> list[ChosenClass]:
    """The chosen categories with example images, which are public."""
    rows = pq.read_table(select.local("selected.parquet"), columns=["id", "label"])
    ids, categories = rows["id"].to_numpy(), rows["label"].to_numpy()
    examples: dict[int, bytes] = {}
    for category in np.unique(categories):
        few = ids[categories == category][:EXAMPLES]
        examples[int(category)] = thumbnail_strip(read_images(public.files("images-"), few)[0])
    return [
        ChosenClass(
            class_name=row["class"],
            categories=[
                ChosenCategory(name=c["name"], noisy_votes=c["noisy_votes"], example_png=examples.get(c["number"]))
                for c in row["categories"]
            ],
        )
        for row in select.read_json("selection.json")
    ]


def _smooth(curve: list[list[float]]) -> list[tuple[int, float]]:
    """A running mean over ten points: single losses of a diffusion model are noisy."""
    values = np.array([value for _, value in curve])
    return [(int(step), float(values[max(0, at - 9) : at + 1].mean())) for at, (step, _) in enumerate(curve)]


def _about(stage: str) -> str:
    from privimage.pipeline import stage_named

    return stage_named(stage).about
