"""Pictures as bytes and text: grids of images as PNG, curves and bars as SVG.

Pure functions without global state; the same input gives the same bytes. SVG text takes the colour of the page around
it, so that it reads on light and on dark. Nothing here knows where an image comes from, nor whether it may be shown.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from privimage.errors import DataError

__all__ = ["bar_svg", "columns_that_fit", "curve_svg", "heat_svg", "sample_grid", "thumbnail_strip", "too_many_strips"]

CELL = 64
GAP = 3
BACKGROUND = (236, 236, 233)
INK = (58, 58, 56)
MAX_LABEL_WIDTH = 160
MAX_GRID_BYTES = 2_000_000
MAX_STRIPS_BYTES = 700_000

# Mid-tones, of at least 3:1 against white and against near-black.
COLOURS = ("#2f7fb5", "#c66a1f", "#3f9166", "#a15fb0", "#8a7a2e", "#c24f62")
# Matplotlib has no `currentColor`: text is drawn in a colour that nothing else has, and renamed afterwards.
TEXT = "#010203"
GRID = "#8a8a8a"
MOST_NAMED = 20

Images = np.ndarray | Tensor


def sample_grid(
    images: Images,
    labels: Sequence[int] | Images,
    class_names: Sequence[str],
    per_class: int = 10,
    scale: int | None = None,
) -> bytes:
    """PNG with one row a class, its name at the left, of the first `per_class` images of each class.

    A class with fewer images leaves its last cells empty. Columns are left out while the PNG exceeds 2 MB.

    Args:
        images: uint8, shape (images, 1 or 3, height, width).
        labels: class numbers, shape (images,).
        scale: integer enlargement, without smoothing; None = up to 64 pixels a cell. Without it, images of 128 pixels
            and more are reduced by a whole factor.

    Raises:
        DataError: images or labels have another form, or a label has no class name.
    """
    pixels = _pixels(images)
    numbers = np.asarray(labels)
    if numbers.shape != (len(pixels),) or not np.isin(numbers, range(len(class_names))).all():
        raise DataError(
            f"A sample grid needs one label in 0..{len(class_names) - 1} for each of {len(pixels)} images, found "
            f"{numbers.size} labels, or labels beyond that: check the class names."
        )
    rows = [_scaled(pixels[numbers == number][:per_class], scale) for number in range(len(class_names))]
    columns = max(len(row) for row in rows)
    png = _grid(rows, class_names, columns)
    while len(png) > MAX_GRID_BYTES and columns > 1:
        columns = max(1, min(columns - 1, columns * MAX_GRID_BYTES // len(png)))
        png = _grid(rows, class_names, columns)
    return png


def thumbnail_strip(images: Images) -> bytes:
    """PNG of a few images side by side, each up to 64 pixels, with nothing between them.

    Args:
        images: uint8, shape (images, 1 or 3, height, width).

    Raises:
        DataError: images have another form.
    """
    cells = _scaled(_pixels(images), None)
    row = _row(cells, len(cells))
    alpha = _row(np.full_like(cells[..., :1], 255), len(cells), (0, 0, 0))[..., :1]
    return _png(np.concatenate([row, alpha], axis=2), optimize=False)


def columns_that_fit(rows: int, images: Images, most: int) -> int:
    """How many of these images a strip may have, at least 1, so that `rows` strips together have some 0.7 MB as PNG.

    That is so for images that do not compress at all; others take less.
    """
    return max(1, min(most, MAX_STRIPS_BYTES // (rows * _strip_bytes(images))))


def too_many_strips(rows: int, images: Images) -> bool:
    """Whether so many strips are too large even with one image each: a report has to do without some of them."""
    return rows * _strip_bytes(images) > MAX_STRIPS_BYTES


def _strip_bytes(images: Images) -> int:
    """Of one image in a strip, at most."""
    channels, height, width = images.shape[1:]
    shrink = max(1, max(height, width) // CELL)
    return int(channels * height * width // shrink**2)


def curve_svg(series: Mapping[str, Sequence[tuple[int, float]]], xlabel: str, ylabel: str, title: str) -> str:
    """Lines through (step, value) points as an <svg> element; names of several series stand in a legend."""
    figure, axes = _axes(title, height=2.7)
    for number, (name, points) in enumerate(series.items()):
        steps, values = [point[0] for point in points], [point[1] for point in points]
        marker = "o" if len(points) == 1 else ""
        axes.plot(steps, values, color=COLOURS[number % len(COLOURS)], linewidth=1.6, marker=marker, label=_plain(name))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel(_plain(xlabel), color=TEXT)
    axes.set_ylabel(_plain(ylabel), color=TEXT)
    axes.grid(axis="y", color=GRID, alpha=0.25, linewidth=0.8)
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor=TEXT, fontsize=9)
    return _svg(figure, title)


def bar_svg(
    names: Sequence[str],
    values: Sequence[float],
    title: str,
    *,
    chosen: Collection[int] | None = None,
    deviation: float = 0.0,
    form: str = "{:,.0f}",
    heading: bool = True,
) -> str:
    """One horizontal bar a name, first at the top, with its value, as an <svg> element.

    Args:
        chosen: numbers of the bars that are marked, by a full colour and a tick before the name; None = all alike.
        deviation: standard deviation of every value, drawn as a whisker to both sides; 0 = none.
        form: how a value is written.
        heading: whether the title is drawn, and not only said to those who cannot see the bars.
    """
    figure, axes = _axes(title if heading else "", height=0.3 + 0.4 * heading + 0.26 * len(names))
    marked = range(len(names)) if chosen is None else chosen
    colours = [COLOURS[0] if number in marked else GRID for number in range(len(names))]
    bars = axes.barh(range(len(names)), values, color=colours, height=0.7, xerr=deviation or None, ecolor=TEXT)
    axes.bar_label(bars, labels=[form.format(value) for value in values], padding=4, color=TEXT, fontsize=9)
    ticks = [f"✓ {_short(name)}" if chosen and number in chosen else _short(name) for number, name in enumerate(names)]
    axes.set_yticks(range(len(names)), ticks)
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.02)
    axes.axvline(0, color=GRID, linewidth=0.8)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    return _svg(figure, title)


def heat_svg(
    counts: Sequence[Sequence[int]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    title: str,
    xlabel: str = "",
    ylabel: str = "",
) -> str:
    """Counts as a heat map, shaded by their share of the row, as an <svg> element.

    The shade is a colour of varying opacity, so that it reads on light and on dark. Up to 20 rows and columns, each
    cell has its count in it, and each row and column its name.
    """
    table = np.asarray(counts, dtype=float)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    shades = np.zeros((*table.shape, 4))
    shades[..., :3], shades[..., 3] = to_rgb(COLOURS[0]), 0.65 * shares
    figure, axes = _axes("", height=1.2 + min(4.6, 0.36 * len(table)))
    axes.imshow(shades, aspect="auto", interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.set_xlabel(_plain(xlabel), color=TEXT, fontsize=9)
    axes.set_ylabel(_plain(ylabel), color=TEXT, fontsize=9)
    if max(table.shape) <= MOST_NAMED:
        long = max(map(len, column_names)) > 4
        axes.set_xticks(
            range(len(column_names)), map(_short, column_names), rotation=60 * long, ha="right" if long else "center"
        )
        axes.set_yticks(range(len(row_names)), map(_short, row_names))
        for (row, column), count in np.ndenumerate(table):
            if count:
                axes.text(column, row, f"{count:,.0f}", ha="center", va="center", color=TEXT, fontsize=8)
    return _svg(figure, title)


def _pixels(images: Images) -> np.ndarray:
    """The images as an array with the channels last."""
    array = images.cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3) or not len(array):
        raise DataError(
            "A picture needs at least one uint8 image of shape (images, 1 or 3, height, width), found "
            f"{array.dtype} of shape {array.shape}."
        )
    return array.transpose(0, 2, 3, 1)


def _scaled(cells: np.ndarray, scale: int | None) -> np.ndarray:
    """The cells enlarged without smoothing, or reduced by averaging whole blocks."""
    size = max(cells.shape[1:3])
    factor = scale or max(1, CELL // size)
    shrink = 1 if scale else max(1, size // CELL)
    if shrink > 1:
        height, width = cells.shape[1] // shrink, cells.shape[2] // shrink
        blocks = cells[:, : height * shrink, : width * shrink].reshape(len(cells), height, shrink, width, shrink, -1)
        cells = blocks.mean(axis=(2, 4)).round().astype(np.uint8)
    return cells.repeat(factor, axis=1).repeat(factor, axis=2)


def _row(cells: np.ndarray, columns: int, background: tuple[int, int, int] = BACKGROUND) -> np.ndarray:
    """Cells side by side on the background, RGB."""
    _, height, width, _ = cells.shape
    row = np.full((height, columns * (width + GAP) - GAP, 3), background, dtype=np.uint8)
    for number, cell in enumerate(cells[:columns]):
        row[:, number * (width + GAP) : number * (width + GAP) + width] = cell
    return row


def _grid(rows: Sequence[np.ndarray], class_names: Sequence[str], columns: int) -> bytes:
    """The rows below each other, with the names."""
    height = rows[0].shape[1]
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size=min(14, height))
    names = [_fitting(name, font) for name in class_names]
    left = int(max(font.getlength(name) for name in names)) + 16
    size = (len(rows) * (height + GAP) + GAP, columns * (rows[0].shape[2] + GAP), 3)
    pictures = np.full(size, BACKGROUND, dtype=np.uint8)
    for number, cells in enumerate(rows):
        top = GAP + number * (height + GAP)
        pictures[top : top + height, :-GAP] = _row(cells, columns)
    image = Image.new("RGB", (left + pictures.shape[1], len(pictures)), BACKGROUND)
    image.paste(Image.fromarray(pictures), (left, 0))
    draw = ImageDraw.Draw(image)
    for number, name in enumerate(names):
        draw.text((left - 8, GAP + number * (height + GAP) + height // 2), name, fill=INK, font=font, anchor="rm")
    return _png(np.asarray(image))


def _fitting(name: str, font: ImageFont.FreeTypeFont) -> str:
    """The name on one line, cut where it is too wide."""
    line = " ".join(name.split())
    if font.getlength(line) <= MAX_LABEL_WIDTH:
        return line
    while line and font.getlength(line + "…") > MAX_LABEL_WIDTH:
        line = line[:-1]
    return line.rstrip() + "…"


def _png(pixels: np.ndarray, *, optimize: bool = True) -> bytes:
    """The array as PNG; without `optimize` a little larger, and several times as fast."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=optimize)
    return buffer.getvalue()


def _axes(title: str, height: float) -> tuple[Figure, Axes]:
    """A figure of 5.4 inches with one quiet coordinate system."""
    figure = Figure(figsize=(5.4, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_plain(title), color=TEXT, fontsize=11, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(color=GRID, labelcolor=TEXT, length=0, labelsize=9)
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    return figure, axes


def _svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element for a page: no prolog, no date, no ids but those that are referred to."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "privimage"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :].replace(TEXT, "currentColor")
    text = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", text)
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def _short(name: str) -> str:
    """A class name that leaves room for a chart."""
    line = " ".join(name.split())
    return _plain(line if len(line) <= 18 else line[:17].rstrip() + "…")


def _plain(text: str) -> str:
    """The text with dollar signs kept from matplotlib, which would read formulas between them."""
    return text.replace("$", r"\$")
