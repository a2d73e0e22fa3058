"""The sections that reports have in common, from what the stages hold. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from privimage.reports.blocks import Card, Cards, Code, Figures, Picture, Pictures, Plot, Section, Table
from privimage.reports.figures import Figure, Kind
from privimage.reports.page import Noted
from privimage.reports.pictures import bar_svg, columns_that_fit, curve_svg, heat_svg, thumbnail_strip, too_many_strips

__all__ = [
    "StageCost",
    "by_origin",
    "confusion",
    "costs",
    "curves",
    "figures",
    "nearest_pairs",
    "provenance",
    "real_beside_synthetic",
    "samples",
    "semantic_query",
    "verification",
]

Labelled = tuple[np.ndarray, np.ndarray]
MOST_BARS = 8
MOST_PLOTS = 40


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What a stage did, what it took of epsilon, if anything, and how many seconds; None = not to be told."""

    stage: str
    what: str
    epsilon: float | None
    seconds: float | None


def by_origin(
    labels: np.ndarray, class_names: Sequence[str], is_public: np.ndarray
) -> tuple[np.ndarray, Sequence[str]]:
    """Row numbers, (images,), and row names of a grid that keeps public images apart: two rows a class, if there are any."""
    if not is_public.any():
        return labels, class_names
    return 2 * labels + is_public, [row for name in class_names for row in (name, f"{name}, public")]


def samples(synthetic: Labelled, class_names: Sequence[str], per_class: int, *, is_public: np.ndarray) -> Section:
    """The first synthetic images of each class, and, if there are any, public ones below them; fewer where there are many rows.

    Args:
        synthetic: uint8 images, shape (images, 1 or 3, height, width), and class numbers, shape (images,).
        is_public: which of them are public ones, unchanged, bool (images,).
    """
    images, labels = synthetic
    numbers, names = by_origin(labels, class_names, is_public)
    columns = columns_that_fit(len(names), images, per_class)
    rows = [_strip((images, numbers), number, name, columns, "released", name) for number, name in enumerate(names)]
    some = is_public.any()
    return Section(
        title="Released images" if some else "Synthetic images",
        kind="public",
        intro=f"{is_public.sum():,} of all images are public ones, unchanged: those in rows that say so; the others are generated."
        if some
        else "One row for each class; every image is generated.",
        blocks=[Pictures(pictures=rows, optional=too_many_strips(len(names), images))],
    )


def real_beside_synthetic(synthetic: Labelled, real: Labelled, class_names: Sequence[str], per_class: int) -> Section:
    """The first held-out images of each class, and the first synthetic ones below them; fewer where there are many."""
    columns = columns_that_fit(2 * len(class_names), synthetic[0], per_class)
    many = too_many_strips(2 * len(class_names), synthetic[0])
    sides = {"real": real, "synthetic": synthetic}
    cards = [
        Card(
            title=f"Class {name}",
            blocks=[
                Pictures(
                    pictures=[_strip(side, number, name, columns, what, what) for what, side in sides.items()],
                    optional=many,
                )
            ],
        )
        for number, name in enumerate(class_names)
    ]
    return Section(
        title="Real images beside synthetic ones",
        kind="internal",
        intro="Real: sensitive images of the test split, on which nothing was trained.",
        blocks=[Cards(cards=cards)],
    )


def semantic_query(
    *,
    class_names: Sequence[str],
    category_names: Sequence[str],
    votes: np.ndarray,
    noise_stddev: float,
    chosen: Sequence[Sequence[int]],
    examples: Mapping[int, bytes],
    paid_by: tuple[str, ...],
) -> Section:
    """The query made visible: the noisy histogram of each class, its chosen categories marked, with public examples.

    Args:
        votes: noisy, shape (classes, categories).
        chosen: numbers of the chosen categories of each class, best first.
        examples: PNG of public images, by number of the category.
    """
    cards = []
    for number, (name, row, picks) in enumerate(zip(class_names, votes, chosen, strict=True)):
        pictures = [
            Picture(
                png=examples.get(category),
                alt=f"Public examples of {category_names[category]}",
                caption=f"{category_names[category]}: {row[category]:,.0f} noisy votes",
            )
            for category in picks
        ]
        plots = [_votes_plot(name, category_names, row, picks, noise_stddev)] if number < MOST_PLOTS else []
        cards.append(Card(title=f"Class {name}", blocks=[*plots, Pictures(pictures=pictures, optional=True)]))
    few = f" Bars are drawn for the first {MOST_PLOTS} classes." if len(cards) > MOST_PLOTS else ""
    return Section(
        title="Public categories that each class chose",
        kind="charged",
        paid_by=paid_by,
        intro="What the sensitive images of each class look like to the public classifier: the categories with most noisy "
        "votes. Those with a tick were chosen, no category for two classes: the public part of the training is on their "
        f"images. Whiskers: standard deviation of the noise, {noise_stddev:.3g} votes. The examples are public images.{few}",
        blocks=[Cards(cards=cards)],
    )


def _votes_plot(
    name: str, category_names: Sequence[str], votes: np.ndarray, picks: Sequence[int], noise_stddev: float
) -> Plot:
    """The largest noisy counts of a class, the chosen ones among them in any case."""
    order = np.argsort(-votes, kind="stable")
    largest = [int(category) for category in order[:MOST_BARS]]
    shown = largest + [category for category in picks if category not in largest]
    svg = bar_svg(
        [category_names[category] for category in shown],
        [float(votes[category]) for category in shown],
        f"Noisy votes of class {name}, {len(shown)} of {len(votes)} categories",
        chosen=[place for place, category in enumerate(shown) if category in picks],
        deviation=noise_stddev,
        heading=False,
    )
    return Plot(svg=svg, optional=True)


def figures(results: Sequence[Figure], title: str = "Figures") -> Section:
    """Results in a table; the section is of the strictest of their kinds."""
    kinds: dict[Kind, str] = {
        "public": "Public: computed without sensitive images, or from the release itself.",
        "charged": "Charged: paid for in the ledger.",
        "internal": "Internal: computed from sensitive images, paid by nothing.",
    }
    used = [kind for kind in kinds if kind in {figure.kind for figure in results}] or ["public"]
    paid = dict.fromkeys(paid for figure in results for paid in figure.paid_by)
    return Section(
        title=title,
        kind=used[-1],
        paid_by=tuple(paid) if used[-1] == "charged" else (),
        intro=" ".join(kinds[kind] for kind in used),
        blocks=[Figures(figures=results)],
    )


def curves(charts: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> Section:
    """Training curves of public training.

    Args:
        charts: a chart's title, which also says what its steps count, to its series of (step, value) points.
    """
    cards = [Card(title="", blocks=[Plot(svg=curve_svg(series, "", "", title))]) for title, series in charts.items()]
    return Section(
        title="Training curves",
        kind="public",
        intro="Of the training on public images. The private training has none to show: its loss is sensitive.",
        blocks=[Cards(cards=cards)],
    )


def confusion(counts: Sequence[Sequence[int]], class_names: Sequence[str], title: str = "Confusion matrix") -> Section:
    """Test images by true class (row) and predicted class (column), as a heat map; the figures are in it."""
    table = np.asarray(counts)
    shares = np.diagonal(table) / np.maximum(table.sum(axis=1), 1)
    plots = [heat_svg(counts, class_names, class_names, title, "predicted class", "true class")]
    if len(class_names) <= MOST_PLOTS:
        plots.append(bar_svg(class_names, shares.tolist(), "Recognised test images of each class", form="{:.0%}"))
    return Section(
        title=title,
        kind="internal",
        intro="Test images by true class (row) and by what the classifier trained on synthetic images says (column). "
        "The shade is the share of the row.",
        blocks=[Cards(cards=[Card(title="", blocks=[Plot(svg=svg)]) for svg in plots])],
    )


def nearest_pairs(pairs_png: bytes) -> Section:
    """Synthetic images beside the training images that they resemble most."""
    alt = "Pairs of a synthetic image and the training image nearest to it."
    return Section(
        title="Nearest pairs",
        kind="internal",
        intro="At the left synthetic images, at the right the sensitive training images nearest to them, nearest pair first.",
        blocks=[Pictures(pictures=[Picture(png=pairs_png, alt=alt, caption="")])],
    )


def costs(stages: Sequence[StageCost]) -> Section:
    """Where time and epsilon went."""
    rows = [
        (
            Noted(text=cost.stage, note=cost.what),
            "not shown" if cost.seconds is None else _duration(cost.seconds),
            "–" if cost.epsilon is None else f"{cost.epsilon:.4g} alone",
        )
        for cost in stages
    ]
    total = sum(cost.seconds for cost in stages if cost.seconds is not None)
    return Section(
        title="Time and cost",
        kind="public",
        intro="How long a private stage took depends on how many images it drew, so it is not shown.",
        blocks=[
            Table(
                head=("Stage", "Time", "Epsilon"),
                rows=rows,
                numbers=(1, 2),
                foot=("Public stages together", _duration(total), "") if rows else None,
            )
        ],
    )


def provenance(items: Mapping[str, str]) -> Section:
    """What it was made of and by."""
    return Section(title="Provenance", kind="public", blocks=[Table(head=("Item", "Value"), rows=list(items.items()))])


def verification(command: str) -> Section:
    """How a reader checks all this."""
    return Section(
        title="How to verify",
        kind="public",
        intro="This command checks every file of the release against its manifest, computes epsilon again, and compares "
        "with the ledger where it is at hand.",
        blocks=[Code(text=command)],
    )


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds, as coarse as is useful."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _strip(side: Labelled, number: int, name: str, per_class: int, what: str, caption: str) -> Picture:
    """The first images of a class; without a picture where it has none."""
    images, labels = side
    few = images[labels == number][:per_class]
    if not len(few):
        return Picture(png=None, alt="", caption=f"{caption}: none")
    return Picture(png=thumbnail_strip(few), alt=f"{len(few)} {what} images of class {name}", caption=caption)
