"""What Prefect's pages show of a run: plan, chosen categories, pictures, certificate, lineage, links to the store.

Everything here is public: computed from public data, or released by a charged mechanism. Artifacts of one key are
versions of one page, such as the sample grid that improves from pre-training to the release.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from privimage.config.run import RunConfig
from privimage.payloads import ClassifierAbout, GeneratorAbout, Selection
from privimage.pipeline.table import STAGES
from privimage.release.certificate import Certificate, in_words, interval_in_words
from privimage.release.export import release_name
from privimage.running.plan import PlannedStage, RunPlan, grant_in_words
from privimage.store.artifacts import Artifact, ArtifactRef, open_ref
from privimage.store.files import Store
from tasks.pictures import curve_url, grid_url, picture_url

__all__ = ["plan_in_words", "show_made", "show_plan", "show_release"]


def show_plan(config: RunConfig, plan: RunPlan) -> None:
    """The plan as a table: stage, reused or run, epsilon."""
    rows = [
        {
            "stage": row.stage,
            "action": row.action,
            "of epsilon": _epsilon(row),
            "what": row.about,
            "made": row.written[:16].replace("T", " "),
            "key": row.key[:12] if row.key else "later",
        }
        for row in plan.stages
    ]
    create_table_artifact(key=f"plan-{config.name}", table=rows, description=plan_in_words(plan))


def plan_in_words(plan: RunPlan) -> str:
    """What a plan asks of the grant, in sentences."""
    reused = sum(row.action == "reused" for row in plan.stages)
    text = (
        f"{reused} of {len(plan.stages)} stages are reused. "
        f"The release states epsilon {plan.epsilon:g}, delta {plan.delta:g}."
    )
    return f"{text} {grant_in_words(plan)}"


def show_made(config: RunConfig, artifact: Artifact) -> None:
    """What is worth a look once a stage was made."""
    name, stage = config.name, artifact.ref.stage
    match stage:
        case "classifier" if ClassifierAbout.FILE in artifact.names:
            _show_curve(name, stage, "Semantic classifier", ClassifierAbout.read(artifact).loss_curve)
        case "select":
            _show_categories(name, Selection.read(artifact))
        case "pretrain":
            if not (curve := GeneratorAbout.read(artifact).loss_curve):
                return  # not trained: noise
            _show_curve(name, stage, "Generator, pre-training", curve)
            create_image_artifact(
                grid_url(artifact, config),
                key=f"samples-{name}",
                description="Generator after pre-training, on public images",
            )
        case "finetune":
            create_image_artifact(
                grid_url(artifact, config), key=f"samples-{name}", description="Generator after fine-tuning"
            )


def _show_curve(name: str, stage: str, title: str, points: Sequence[tuple[int, float]]) -> None:
    create_image_artifact(
        curve_url(points, f"{title}: loss by step"),
        key=f"loss-{name}-{stage}",
        description=f"{title}: loss by step, on public images",
    )


def _show_categories(name: str, selection: Selection) -> None:
    rows: list[dict[str, Any]] = [
        {
            "class": row.name,
            "public category": category.name,
            **({} if category.noisy_votes is None else {"noisy votes": round(category.noisy_votes, 1)}),
        }
        for row in selection.classes
        for category in row.categories
    ]
    if rows:
        voted = "the noisy query chose for each sensitive class; its votes were paid for."
        drawn = "were chosen for each sensitive class without a query."
        about = f"Public categories that {voted if 'noisy votes' in rows[0] else drawn}"
        create_table_artifact(key=f"categories-{name}", table=rows, description=about)


def show_release(config: RunConfig, store: Store, artifact: Artifact) -> None:
    """Its promise, its pictures, where it lies, and what it was made of."""
    name, certificate = config.name, Certificate.read(artifact)
    place = f"{store.url}/{release_name(name, artifact)}"
    create_markdown_artifact(
        key=f"certificate-{name}",
        markdown=_certificate(name, place, store.url, certificate),
        description="Privacy certificate",
    )
    create_image_artifact(
        picture_url(artifact.read_bytes("samples.png")), key=f"samples-{name}", description="Synthetic images, released"
    )
    create_markdown_artifact(key=f"report-{name}", markdown=_report(place), description="Report of the release")
    create_markdown_artifact(
        key=f"lineage-{name}", markdown=_lineage(store, artifact), description="What the release was made of"
    )


def _report(place: str) -> str:
    """No link: a browser that shows Prefect's pages reaches neither the store nor files."""
    return f"`{place}/report.html` is one file without network. To see it:\n\n```\nprivimage report {place} --open\n```"


def _certificate(name: str, place: str, store: str, certificate: Certificate) -> str:
    spent, granted = certificate.ledger.spent_in_all, certificate.ledger.granted_in_all
    facts = {
        "Release": f"`{place}`",
        "Epsilon as computed": f"{certificate.epsilon_computed:.6g} ({certificate.accountant})",
        "Second accountant": interval_in_words(certificate.epsilon_certified_interval),
        "Ledger": f"`{certificate.ledger.dataset}`, {len(certificate.ledger.entries)} entries",
        "Spent on these images in all": f"epsilon {spent.epsilon:.4g}, delta {spent.delta:g}, added up",
        "Granted in all": f"epsilon {granted.epsilon:g}, delta {granted.delta:g}",
    }
    mechanisms = [
        f"| {mechanism.stage} | {mechanism.in_words} | {mechanism.epsilon_alone:.4g} |"
        for mechanism in certificate.mechanisms
    ]
    return "\n\n".join(
        [
            f"# {name}",
            in_words(certificate),
            "\n".join(["| | |", "|---|---|", *(f"| {fact} | {value} |" for fact, value in facts.items())]),
            "\n".join(["| stage | mechanism | epsilon alone |", "|---|---|---|", *mechanisms]),
            "Assumptions:\n\n" + "\n".join(f"- {assumption}" for assumption in certificate.assumptions),
            f"Check it: `privimage verify {place} --store {store}`",
        ]
    )


def _lineage(store: Store, release: Artifact) -> str:
    """A mermaid diagram and a table of all artifacts that a release was made of."""
    found: dict[str, Artifact] = {}
    waiting = [release.ref]
    while waiting:
        ref = waiting.pop()
        if ref.stage not in found:
            found[ref.stage] = open_ref(store, ref)
            waiting += found[ref.stage].manifest.inputs.values()
    parts = [found[stage.name] for stage in STAGES if stage.name in found]
    arrows = [f"  {source.stage} --> {part.ref.stage}" for part in parts for source in part.manifest.inputs.values()]
    boxes = [f'  {part.ref.stage}["{part.ref.stage}<br/>{part.ref.key[:8]}"]{_class(part)}' for part in parts]
    styles = [
        "  classDef sealed fill:#555,color:#fff,stroke:#222",
        "  classDef paid fill:#c66a1f,color:#fff,stroke:#222",
    ]
    rows = [
        f"| {part.ref.stage} | {_kind(part)} | {part.manifest.written[:16].replace('T', ' ')} | {_place(part.ref)} |"
        for part in parts
    ]
    return "\n".join(
        [
            "```mermaid",
            "graph TB",
            *boxes,
            *arrows,
            *styles,
            "```",
            "",
            f"Orange: paid for with privacy budget. Grey: sealed, below `private/`. All of it is in `{store.url}`.",
            "",
            "| stage | kind | made (UTC) | in the store |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _kind(artifact: Artifact) -> str:
    if artifact.ref.sealed:
        return "sealed"
    return "paid" if artifact.manifest.reservations else "public"


def _class(artifact: Artifact) -> str:
    of = _kind(artifact)
    return "" if of == "public" else f":::{of}"


def _place(ref: ArtifactRef) -> str:
    return f"`{'private/' if ref.sealed else ''}artifacts/{ref.stage}/{ref.key[:12]}…`"


def _epsilon(row: PlannedStage) -> str:
    if row.epsilon is None:
        return "?"
    return f"{row.epsilon:.4g}" if row.epsilon else "-"
