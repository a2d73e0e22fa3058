"""What the runs of a suite are worth: one row a run, read from the artifacts; one table and two plots of all.

The rows hold figures of `evaluate`, for which no budget was paid: they belong below `private/`, unless the sensitive
sets are public (`running.write_results`, `running.hand_out`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean, stdev
from typing import Any, Literal

from matplotlib.figure import Figure

from benchmarks.harness.suite import Cell, Suite
from privimage.payloads import Synthesis
from privimage.pipeline.table import stages_of
from privimage.release.certificate import Certificate
from privimage.release.export import release_name
from privimage.running.plan import look_up
from privimage.running.runs import Run
from privimage.store.artifacts import Artifact

__all__ = ["OWN", "Row", "empty_row", "plots", "row_of", "table"]

MEASURES = ("FID", "KID")
OWN = ("query", "space", "feature_means", "class_means", "select", "pretrain", "warmup", "finetune", "synthesize")
"""Stages whose time is a method's own; the others are the same for all methods."""

Status = Literal["done", "not run", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run. `accuracy` and `fidelity` (extractor -> measure -> value) compare with sensitive test images.

    `public_share`: of the released images, those that are public ones, unchanged; None where there can be none.
    """

    dataset: str
    method: str
    epsilon: float
    seed: int
    status: Status
    why: str = ""
    accuracy: float | None = None
    classifiers: Mapping[str, float] | None = None
    fidelity: Mapping[str, Mapping[str, float]] | None = None
    seconds: Mapping[str, float] | None = None
    epsilon_spent: float | None = None
    num_parameters: int | None = None
    public_share: float | None = None
    release: str | None = None

    @property
    def own_seconds(self) -> float:
        return sum((self.seconds or {}).get(stage, 0.0) for stage in OWN)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def empty_row(cell: Cell, status: Status, why: str = "") -> Row:
    """The row of a run without figures."""
    return Row(dataset=cell.dataset, method=cell.method, epsilon=cell.epsilon, seed=cell.seed, status=status, why=why)


def row_of(cell: Cell, run: Run, status: Status = "not run", why: str = "") -> Row:
    """The row of a run: its figures if all of it is there, else `status` and why."""
    row = empty_row(cell, status, why)
    found, _ = look_up(run)
    there = {name: artifact for name, artifact in found.items() if artifact}
    if len(there) < len(stages_of(run.config)):
        return row
    metrics = there["evaluate"].read_json("metrics.json")
    return replace(
        row,
        status="done",
        why="",
        accuracy=metrics["accuracy_on_private_test"],
        classifiers={name: each["synthetic"]["accuracy"] for name, each in metrics["utility"]["classifiers"].items()},
        fidelity={
            extractor: {name: each["overall"][name]["value"] for name in MEASURES if name in each["overall"]}
            for extractor, each in metrics["fidelity"].items()
        },
        seconds={name: float(str(artifact.manifest.provenance["seconds"])) for name, artifact in there.items()},
        epsilon_spent=Certificate.read(there["release"]).epsilon_computed,
        num_parameters=int(str(there["pretrain"].manifest.metrics["num_parameters"])),
        public_share=_public_share(there["synthesize"], run.config.synthesize.num_images),
        release=release_name(run.config.name, there["release"]),
    )


def _public_share(synthesize: Artifact, num_images: int) -> float | None:
    number = Synthesis.read(synthesize).num_public
    return None if number is None else number / num_images


def table(suite: Suite, rows: Sequence[Row], notice: str, link: Callable[[Row], str]) -> str:
    """All runs as Markdown: a line for each data set, method and epsilon; mean and standard deviation over seeds.

    Args:
        link: where the certificate of a run that is done lies, as seen from the table.
    """
    extractors = sorted({extractor for row in rows for extractor in row.fidelity or {}})
    head = ["data set", "epsilon", "method", "runs", "accuracy"]
    head += [f"{name} ({extractor})" for extractor in extractors for name in MEASURES]
    some_public = any(row.public_share is not None for row in rows)
    head += ["public images"] * some_public + ["minutes", "epsilon spent", "certificates"]
    lines = [f"# {suite.name}", "", f"**{notice}**", "", *([suite.description, ""] if suite.description else [])]
    lines += [_line(head), _line(["---"] * len(head))]
    for group in _groups(rows):
        first, done = group[0], [row for row in group if row.status == "done"]
        cells = [first.dataset, f"{first.epsilon:g}", first.method, f"{len(done)} of {len(group)}"]
        cells.append(_spread([row.accuracy for row in done], 100, "%"))
        cells += [
            _spread([(row.fidelity or {}).get(extractor, {}).get(name) for row in done])
            for extractor in extractors
            for name in MEASURES
        ]
        if some_public:
            cells.append(_spread([row.public_share for row in done], 100, "%"))
        cells.append(f"{mean(row.own_seconds for row in done) / 60:.1f}" if done else "–")
        cells.append(f"{max(row.epsilon_spent or 0 for row in done):.4g}" if done else "–")
        cells.append(", ".join(f"[{row.seed}]({link(row)})" for row in done) or "–")
        lines.append(_line(cells))
    lines += [
        "",
        "± is the standard deviation over seeds. Accuracy: of the classifier that was chosen by synthetic images, ",
    ]
    lines[-1] += "on test images. "
    lines[-1] += f"Minutes: of {', '.join(OWN)}, mean of the runs; one that was interrupted shows too little. "
    if some_public:
        lines[-1] += "Public images: share of the released ones that are public ones, unchanged. "
    lines[-1] += "`privimage verify CERTIFICATE` checks a certificate."
    missing = [row for row in rows if row.status != "done"]
    if missing:
        lines += ["", "Not in the figures:", ""]
        lines += [f"- {row.dataset}, {row.method}, epsilon {row.epsilon:g}, seed {row.seed}: {row.status}"
                  f"{f' ({row.why})' if row.why else ''}" for row in missing]  # fmt: skip
    return "\n".join(lines) + "\n"


def plots(rows: Sequence[Row]) -> dict[str, bytes]:
    """Accuracy by epsilon, and by the time of a method's own stages, as PNG by file name; none without a run."""
    done = [row for row in rows if row.status == "done"]
    if not done:
        return {}
    return {
        "quality-by-epsilon.png": _plot(done, "epsilon", lambda row: row.epsilon),
        "quality-by-compute.png": _plot(done, "seconds of training and sampling", lambda row: row.own_seconds),
    }


def _plot(rows: Sequence[Row], what: str, x_of: Callable[[Row], float]) -> bytes:
    """A panel for each data set; a point for each method and epsilon, with deviations over seeds."""
    by_epsilon, epsilons = what == "epsilon", sorted({row.epsilon for row in rows})
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    figure = Figure(figsize=(4.5 * len(datasets), 3.6), layout="constrained")
    for number, dataset in enumerate(datasets):
        axes = figure.add_subplot(1, len(datasets), number + 1)
        for color, method in enumerate(methods):
            own = [group for group in _groups(rows) if (group[0].dataset, group[0].method) == (dataset, method)]
            if not own:
                continue
            own.sort(key=lambda group: group[0].epsilon)
            heights = [[100 * (row.accuracy or 0) for row in group] for group in own]
            axes.errorbar(
                [mean(map(x_of, group)) for group in own],
                [mean(height) for height in heights],
                yerr=[stdev(height) if len(height) > 1 else 0 for height in heights],
                marker="o",
                linestyle="solid" if by_epsilon else "none",
                capsize=3,
                color=f"C{color}",
                label=method,
            )
        axes.set(title=dataset, xlabel=what, ylabel="accuracy on test images, %" if number == 0 else "")
        if by_epsilon:
            axes.set_xscale("log")
            axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
            axes.minorticks_off()
        else:
            # From 0 on, so that equal times look equal.
            axes.set_xlim(0, 1.05 * max(map(x_of, rows)))
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(methods))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Runs that differ in the seed alone, in the order of data set, epsilon and method."""
    groups: dict[tuple[str, float, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.dataset, row.epsilon, row.method), []).append(row)
    order = list(dict.fromkeys(row.dataset for row in rows))
    return [groups[at] for at in sorted(groups, key=lambda at: (order.index(at[0]), at[1]))]


def _spread(values: Sequence[float | None], factor: float = 1, unit: str = "") -> str:
    """Mean and standard deviation of those that there are."""
    found = [factor * value for value in values if value is not None]
    if not found:
        return "–"
    digits = ".1f" if unit else ".3g"
    spread = f" ± {stdev(found):{digits}}" if len(found) > 1 else ""
    return f"{mean(found):{digits}}{spread}{f' {unit}' if unit else ''}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
