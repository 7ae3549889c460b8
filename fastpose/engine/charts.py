# SPDX-License-Identifier: Apache-2.0
"""Charts as SVG inside a page of HTML, without a script: their colours are the page's, light or dark.

Lines differ in colour, dashes and marks, so that no chart needs its colours to be understood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

WIDTH, HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 14, 46
MOST_MARKED = 16  # points of a line that have marks: more of them would hide its dashes
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 2 1 2 1 2")
STYLE = """
.chart { width: 100%; max-width: 30em; height: auto; display: block; }
.chart text { font: 12px system-ui, sans-serif; fill: CanvasText; }
.chart .grid { stroke: var(--grid); stroke-width: 1; }
.chart .axis { stroke: var(--quiet); stroke-width: 1; }
.chart .ideal { stroke: var(--quiet); stroke-width: 1.5; stroke-dasharray: 3 4; fill: none; }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.chart .mark { stroke-width: 1.5; }
""" + "".join(
    f".s{n} {{ stroke: var(--s{n}); {f'stroke-dasharray: {dash};' if dash else ''} }} "
    f".m{n} {{ stroke: var(--s{n}); fill: {'var(--s' + str(n) + ')' if n % 2 == 0 else 'Canvas'}; }}\n"
    for n, dash in enumerate(DASHES)
)
# Of six lines, each with enough contrast on white and on black.
LIGHT = ("#0b5bd3", "#b3340a", "#1c7a3d", "#8a2aa8", "#8a6300", "#0a7f86")
DARK = ("#6aa8ff", "#ff9a70", "#6fd08c", "#d993ee", "#e6bd55", "#5cd3da")


class Series(NamedTuple):
    """A line: its name, and its points; those that are not finite are left out."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]


def line_chart(
    key: str,
    title: str,
    description: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    whole: bool = False,
    limits: tuple[float, float] | None = None,
    ideal: bool = False,
) -> str:
    """A chart of lines; empty if none of them has a point.

    Args:
        key: for ids, another one for each chart of a page.
        title, description: what it is, and what it shows, for readers who do not see it.
        series: the lines, at most six differ in how they are drawn.
        x_label, y_label: of the axes.
        log: y is logarithmic if its values are positive and at least ten times apart.
        whole: x has whole numbers alone.
        limits: of y, beyond which its axis does not go.
        ideal: draw the line on which y is x; both axes then have 0 to 1 at least.
    """
    lines = [_finite(one) for one in series]
    points = [point for line in lines for part in line for point in part]
    if not points:
        return ""
    xs, ys = ([point[axis] for point in points] + [0.0, 1.0] * ideal for axis in (0, 1))
    log = log and min(ys) > 0 and max(ys) >= 10 * min(ys)
    x_ticks = ticks(min(xs), max(xs), whole=whole)
    y_ticks = decades(min(ys), max(ys)) if log else ticks(min(ys), max(ys), limits=limits)
    x_low, x_high = min(x_ticks[0], min(xs)), max(x_ticks[-1], max(xs))
    y_low, y_high = (math.log10(y) if log else y for y in (min(y_ticks[0], *ys), max(y_ticks[-1], *ys)))

    def across(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        share = ((math.log10(y) if log else y) - y_low) / (y_high - y_low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    bottom, drawn = HEIGHT - _BOTTOM, []
    for y, label in zip(y_ticks, labels(y_ticks), strict=True):
        drawn.append(f'<path class="grid" d="M{_LEFT} {down(y):.1f}H{WIDTH - _RIGHT}"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{label}</text>')
    for x, label in zip(x_ticks, labels(x_ticks), strict=True):
        drawn.append(f'<path class="axis" d="M{across(x):.1f} {bottom}v4"/>')
        drawn.append(f'<text x="{across(x):.1f}" y="{bottom + 17}" text-anchor="middle">{label}</text>')
    drawn.append(f'<path class="axis" d="M{_LEFT} {bottom}H{WIDTH - _RIGHT}"/>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    drawn.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    turned = f'transform="translate(13 {(_TOP + bottom) / 2:.0f}) rotate(-90)"'
    drawn.append(f'<text {turned} text-anchor="middle">{escape(y_label)}</text>')
    if ideal:
        low, high = max(x_low, y_low), min(x_high, y_high)
        ends = f"M{across(low):.1f} {down(low):.1f}L{across(high):.1f} {down(high):.1f}"
        drawn.append(f'<path class="ideal" d="{ends}"/>')
    for number, line in enumerate(lines):
        kind = number % len(DASHES)
        for part in line:
            places = [(across(x), down(y)) for x, y in part]
            if len(places) > 1:
                path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
                drawn.append(f'<path class="line s{kind}" d="{path}"/>')
        placed = [(across(x), down(y)) for part in line for x, y in part]
        drawn += [mark(kind, x, y) for x, y in placed[:: -(-len(placed) // MOST_MARKED) or 1]]
    body = "\n".join(drawn)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{key}-title {key}-text">\n'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-text">{escape(description)}</desc>\n'
        f"{body}\n</svg>"
    )


def said(series: Sequence[Series], x_name: str) -> str:
    """The lines of a chart in words: where each begins and ends, and what is between."""
    said = []
    for one in series:
        points = [(x, y) for x, y in zip(one.xs, one.ys, strict=True) if y is not None and math.isfinite(y)]
        if not points:
            continue
        (first, begin), (last, end) = points[0], points[-1]
        values = [y for _, y in points]
        text = f"from {begin:.4g} at {x_name} {first:g} to {end:.4g} at {x_name} {last:g}"
        text += f", between {min(values):.4g} and {max(values):.4g}" if len(points) > 2 else ""
        said.append(f"{one.name}: {text}" if one.name else text)
    return "; ".join(said)


def mark(kind: int, x: float, y: float) -> str:
    """The mark of a line's points: circle, square, diamond or triangle, filled or not."""
    shape = (
        f'<circle class="mark m{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>',
        f'<path class="mark m{kind}" d="M{x - 3:.1f} {y - 3:.1f}h6v6h-6z"/>',
        f'<path class="mark m{kind}" d="M{x:.1f} {y - 4:.1f}l4 4l-4 4l-4 -4z"/>',
        f'<path class="mark m{kind}" d="M{x:.1f} {y - 4:.1f}l4 7h-8z"/>',
    )
    return shape[kind % len(shape)]


def legend(names: Sequence[str]) -> str:
    """What the lines of charts are, in the order of their series; nothing for one."""
    if len(names) < 2:
        return ""
    items = []
    for number, name in enumerate(names):
        kind = number % len(DASHES)
        line = f'<path class="line s{kind}" d="M1 8H39"/>{mark(kind, 20, 8)}'
        swatch = f'<svg class="swatch" viewBox="0 0 40 16" width="40" height="16" aria-hidden="true">{line}</svg>'
        items.append(f"<li>{swatch} {escape(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _finite(one: Series) -> list[list[tuple[float, float]]]:
    """The points of a line, in parts between those that are not finite."""
    parts: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(one.xs, one.ys, strict=True):
        if y is not None and math.isfinite(x) and math.isfinite(y):
            parts[-1].append((float(x), float(y)))
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def ticks(
    low: float, high: float, *, whole: bool = False, limits: tuple[float, float] | None = None, count: int = 5
) -> list[float]:
    """About `count` round numbers around low to high, at least two."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-12):  # one value, which is to stand in the middle
        wide = 1.0 if whole or limits else abs(low) / 2 or 1.0
        low, high = low - wide, high + wide
    raw = (high - low) / count
    ten = 10.0 ** math.floor(math.log10(raw))
    step = next(ten * factor for factor in (1, 2, 5, 10) if ten * factor >= raw * 0.999)
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    found = [number * step for number in range(first, last + 1)]
    if limits:
        found = [number for number in found if limits[0] - 1e-9 <= number <= limits[1] + 1e-9]
    return found if len(found) > 1 else [low, high]


def decades(low: float, high: float) -> list[float]:
    """Round numbers around low to high for a logarithmic axis: tens, and between them 2 and 5 if they are few."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    within = (1, 2, 5) if last - first <= 3 else (1,)
    found = [factor * 10.0**ten for ten in range(first, last + 1) for factor in within]
    begin = max(index for index, number in enumerate(found) if number <= low * (1 + 1e-9))
    end = next(index for index, number in enumerate(found) if number >= high * (1 - 1e-9))
    return found[begin : end + 1]


def labels(numbers: Sequence[float]) -> list[str]:
    """Rising numbers for an axis, with as many digits as it takes to tell them apart."""
    step = min(b - a for a, b in pairwise(numbers))
    digits = next((n for n in range(3, 15) if all(abs(float(f"{x:.{n}g}") - x) < step / 20 for x in numbers)), 15)
    return [short(number, digits) for number in numbers]


def short(number: float, digits: int = 3) -> str:
    """A number for an axis: 0.00025 is 2.5e−4, 100000 is 1e5."""
    if abs(number) <= 1e-12:
        return "0"
    ten = math.floor(math.log10(abs(number)) + 1e-9)
    text = f"{float(f'{number:.{digits}g}'):.15g}" if -3 <= ten < 5 else f"{number / 10.0**ten:.{digits}g}e{ten}"
    return text.replace("-", "−")
