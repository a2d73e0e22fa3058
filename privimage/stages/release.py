"""Stage `release`: what may leave. Only post-processing of charged results and public figures go in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from privimage.data.table import read_images, read_is_public
from privimage.errors import Uncharged
from privimage.machine.device import choose_device
from privimage.payloads import CHARGED, GeneratorAbout, Synthesis, finished, guarantee_said
from privimage.pipeline.charges import check_lineage
from privimage.pipeline.stage import Outcome, StageContext
from privimage.pipeline.table import stage_named
from privimage.privacy.crosscheck import prv_interval
from privimage.release.certificate import Certificate, interval_in_words
from privimage.release.certify import build_certificate
from privimage.release.datasheet import VERIFY, SyntheticFacts, render_datasheet
from privimage.release.section import accounting
from privimage.reports import contents
from privimage.reports.pictures import sample_grid
from privimage.reports.report import ReportData, render_report
from privimage.reports.sections import GRID_IMAGES, Told, classifier_extractor, tell
from privimage.stages.audit import audit_figures
from privimage.store.artifacts import Artifact

__all__ = ["run"]


def run(context: StageContext) -> Outcome:
    """Writes synthetic.parquet, samples.png, README.md, report.html and certificate.json."""
    if context.ledger is None or context.facts is None:
        raise Uncharged("A release needs the ledger of its images.")
    inputs, facts, ledger = context.inputs, context.facts, context.ledger
    class_names = facts.class_names
    files = inputs["synthesize"].files("images-")
    images, labels = read_images(files)
    rows, row_names = contents.by_origin(labels, class_names, read_is_public(files))
    grid = sample_grid(images, rows, row_names, per_class=GRID_IMAGES)
    (context.folder / "samples.png").write_bytes(grid)
    table = pa.concat_tables([pq.read_table(file) for file in files])
    pq.write_table(table, context.folder / "synthetic.parquet")
    private_artifacts = {name: inputs[name] for name in CHARGED if name in inputs}
    guarantees = [guarantee_said(name, artifact) for name, artifact in private_artifacts.items()]

    def certified(files: dict[str, bytes]) -> Certificate:
        return build_certificate(context.config, facts, ledger, private_artifacts, guarantees, files, prv_interval)

    written = {name: (context.folder / name).read_bytes() for name in ("samples.png", "synthetic.parquet")}
    so_far = certified(written)
    # Fine-tuning looked at what it started from; without it, nothing has yet. Images are chosen by what was released, too.
    check_lineage(inputs["synthesize"], list(private_artifacts.values()))
    about = Synthesis.read(inputs["synthesize"])
    synthetic = SyntheticFacts(
        class_names=class_names,
        images_per_class=np.bincount(labels, minlength=len(class_names)).tolist(),
        channels=images.shape[1],
        resolution=images.shape[2],
        parquet_bytes=len(written["synthetic.parquet"]),
        arrow_bytes=table.nbytes,
        num_public=about.num_public,
        num_mixed=about.num_mixed,
        rejects=GeneratorAbout.read(finished(inputs)).rejects,
        drawn_rejected=about.drawn_rejected,
        class_size_stddev=about.class_size_stddev,
        has_probabilities="probabilities" in table.column_names,
        num_candidates=about.num_candidates,
    )
    config = context.config
    extractor = classifier_extractor(inputs, config.performance, choose_device(config.performance.device))
    told = tell(inputs, images, labels, extractor, extractor(images))
    texts = {
        "README.md": render_datasheet(so_far, synthetic, description=config.description, licence=config.license),
        "report.html": render_report(_report(context, so_far, told)),
    }
    for name, text in texts.items():
        written[name] = text.encode()
        (context.folder / name).write_bytes(written[name])
    certificate = certified(written)
    (context.folder / "certificate.json").write_bytes(certificate.to_bytes())
    return Outcome(metrics={"epsilon": certificate.epsilon, "delta": certificate.delta, "num_images": len(images)})


def _report(context: StageContext, certificate: Certificate, told: Told) -> ReportData:
    """Headline and sections; each names by which right it is shown, and `render_report` refuses internal ones."""
    names = context.facts.class_names if context.facts else ()
    return ReportData(
        title=context.config.name,
        description=context.config.description,
        internal=False,
        epsilon=certificate.epsilon,
        delta=certificate.delta,
        relation=certificate.relation_in_words,
        num_private_images=certificate.num_training_images,
        num_classes=len(names),
        guarantee=certificate.guarantee,
        headline=told.headline,
        sections=[
            *told.sections,
            *([contents.figures(audit_figures(context.inputs["audit"]), "Audit")] if "audit" in context.inputs else []),
            contents.costs(_costs(context.inputs, certificate)),
            accounting(certificate),
            contents.provenance(_provenance(context.inputs, certificate)),
            contents.verification(VERIFY),
        ],
        paid=[mechanism.ledger_entry.id for mechanism in certificate.mechanisms],
    )


def _costs(inputs: Mapping[str, Artifact], certificate: Certificate) -> list[contents.StageCost]:
    """Of a private stage no time: how long it took depends on how many images it drew."""
    alone = {mechanism.stage: mechanism.epsilon_alone for mechanism in certificate.mechanisms}
    return [
        contents.StageCost(
            stage=name,
            what=stage_named(name).about,
            epsilon=alone.get(name),
            seconds=None if artifact.manifest.reservations else float(str(artifact.manifest.provenance["seconds"])),
        )
        for name, artifact in inputs.items()
    ]


def _provenance(inputs: Mapping[str, Artifact], certificate: Certificate) -> dict[str, str]:
    ledger = certificate.ledger
    return {
        "made": str(finished(inputs).manifest.written),
        "data set (blinded name)": ledger.dataset,
        "configuration": certificate.config_sha256,
        "computed epsilon": f"{certificate.epsilon_computed:.6g} ({certificate.accountant})",
        "independent check": interval_in_words(certificate.epsilon_certified_interval),
        "spent on this data set in all": f"epsilon {ledger.spent_in_all.epsilon:.4g}, delta {ledger.spent_in_all.delta:g}, added up",
        "granted for this data set in all": f"epsilon {ledger.granted_in_all.epsilon:.4g}, delta {ledger.granted_in_all.delta:g}",
        "code": f"privimage {certificate.code.privimage}, sha256 {certificate.code.sha256}",
        **certificate.packages,
    }
