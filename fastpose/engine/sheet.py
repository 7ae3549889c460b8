# SPDX-License-Identifier: Apache-2.0
"""A sheet of what a network is fed: crops with joints and targets on them, as one picture or as parts of a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastpose.engine.pictures import (
    LEFT,
    MIDDLE,
    RIGHT,
    draw_map,
    draw_skeleton,
    encoded,
    frame,
    has_sides,
    legend_entry,
    new_figure,
    side_colors,
)
from fastpose.option import OptionError
from fastpose.skeletons import Skeleton

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 4000  # pixels of a sheet's sides
SMALLEST, LARGEST = 64, 320  # longer side of a crop on a sheet, pixels; it is magnified by whole numbers
WITH_NAMES = 640  # the same as LARGEST, where names are drawn
GAP, MARGIN = 4, 14  # pixels between the two pictures of a person, and around the persons
LINE, LINES = 15, 5  # height of a line of text in pixels, and lines below a person at most
LETTER = 7.0  # width of a letter in pixels, about
TARGET = "#f8850f"  # in the middle of what draw_map draws
DPI = 100
SMALL = 8.0  # points, for DPI


class Fed(NamedTuple):
    """A person as a network is fed it.

    Attributes:
        picture: uint8 [h, w, 3], the crop.
        points: float32 [K, 2], joints in pixels of the crop.
        annotated: bool [K].
        target: float32 [h / s, w / s], the largest of the joints' target heatmaps; None: there are none to draw.
        caption: lines of text, at most LINES.
    """

    picture: np.ndarray
    points: np.ndarray
    annotated: np.ndarray
    target: np.ndarray | None
    caption: tuple[str, ...]


class Layout(NamedTuple):
    """Where persons are on a sheet: so many in a row, each of one or two panels of (width, height) pixels."""

    columns: int
    panels: int
    width: int
    height: int

    @property
    def cell(self) -> int:
        """Width of a person, pixels."""
        return self.panels * self.width + (self.panels - 1) * GAP


def sheet_layout(
    count: int, size: tuple[int, int], *, panels: int, columns: int | None = None, names: bool = False
) -> Layout:
    """The layout of a sheet that is no longer or wider than MOST, with crops as large as that and LARGEST let them be.

    Args:
        count: persons, at least 1.
        size: (h, w) of the crops in pixels.
        panels: pictures of each person: 1, or 2 where there are heatmaps.
        columns: persons in a row; None: such that the sheet is about half as wide again as it is high.
        names: whether joints' names are drawn.

    Raises:
        OptionError: so many persons do not fit.
    """
    longer, most = max(size), WITH_NAMES if names else LARGEST
    largest = float(max(1, most // longer)) if longer <= most else most / longer
    text = LINES * LINE + MARGIN
    if columns is None:
        wide, high = panels * largest * size[1] + MARGIN, largest * size[0] + text
        columns = max(1, round(math.sqrt(1.5 * count * high / wide)))
    columns = min(columns, count)
    rows = -(-count // columns)
    across = ((MOST - MARGIN) / columns - MARGIN - (panels - 1) * GAP) / (panels * size[1])
    down = ((MOST - 2 * MARGIN - 5 * LINE) / rows - text) / size[0]
    scale = min(largest, across, down)
    if scale * longer < min(SMALLEST, longer):
        too_many = ("columns", columns) if across < down else ("count", count)
        raise OptionError(
            too_many[0],
            f"expected fewer persons {'in a row ' * (across < down)}for a sheet of {MOST} pixels, or a page, OUT.html, "
            f"got {too_many[1]}",
        )
    return Layout(columns, panels, max(1, int(scale * size[1])), max(1, int(scale * size[0])))


def draw_sheet(
    people: Sequence[Fed],
    skeleton: Skeleton,
    layout: Layout,
    heading: str,
    kind: str,
    *,
    names: bool = False,
    udp: bool = False,
) -> bytes:
    """All persons with their captions, a heading and a legend, as a file of that kind, "png" or "jpg".

    `names`: draw the joints' names; `udp`: whether heatmaps span crops from first to last pixel centre.
    """
    rows = -(-len(people) // layout.columns)
    lines = max(len(person.caption) for person in people)
    step_x, step_y = layout.cell + MARGIN, layout.height + lines * LINE + MARGIN
    width = max(layout.columns * step_x + MARGIN, 460)
    headings = wrap(heading, int((width - 2 * MARGIN) / (1.25 * LETTER)), max_lines=3, placeholder="…")
    top = MARGIN + (len(headings) + 2) * LINE
    height = top + rows * step_y + MARGIN // 2
    figure = new_figure(((width + 0.01) / DPI, (height + 0.01) / DPI), dpi=DPI)
    for line, text in enumerate(headings):
        _write(figure, text, MARGIN, MARGIN + line * LINE, math.inf, size=9.0, weight="bold")
    legend = [
        legend_entry(label, color, marker="o", markeredgecolor="black", markeredgewidth=0.5)
        for color, label in legend_of(skeleton)
    ]
    if layout.panels == 2:
        legend.append(legend_entry("targets", TARGET, linewidth=7.0, alpha=0.8))
    figure.legend(
        handles=legend,
        loc="upper left",
        bbox_to_anchor=((MARGIN - 5) / width, 1 - (MARGIN + len(headings) * LINE) / height),
        ncols=len(legend),
        frameon=False,
        fontsize=SMALL,
        borderaxespad=0.0,
    )
    for number, person in enumerate(people):
        left, up = MARGIN + number % layout.columns * step_x, top + number // layout.columns * step_y
        _draw_person(figure, person, skeleton, layout, left, up, names=names, udp=udp)
        for line, text in enumerate(person.caption):
            _write(figure, text, left, up + layout.height + 3 + line * LINE, layout.cell, size=SMALL)
    return encoded(figure, kind, dpi=DPI)


def draw_person(person: Fed, skeleton: Skeleton, layout: Layout, *, names: bool = False, udp: bool = False) -> bytes:
    """One person without its caption, as a PNG; see draw_sheet."""
    figure = new_figure(((layout.cell + 0.01) / DPI, (layout.height + 0.01) / DPI), dpi=DPI, facecolor="none")
    _draw_person(figure, person, skeleton, layout, 0, 0, names=names, udp=udp)
    return encoded(figure, "png", dpi=DPI)


def legend_of(skeleton: Skeleton) -> list[tuple[str, str]]:
    """The joints' colours that this skeleton has, and what they mean."""
    colors = side_colors(skeleton)
    if LEFT not in colors:
        return [(MIDDLE, "joints; the skeleton has no mirror_pairs")]
    left, right = ("the person's left", "the person's right") if has_sides(skeleton) else ("one side", "the other side")
    meant = ((LEFT, left), (RIGHT, right), (MIDDLE, "neither"))
    return [(color, text) for color, text in meant if color in colors]


def _draw_person(
    figure: Figure, person: Fed, skeleton: Skeleton, layout: Layout, left: int, up: int, *, names: bool, udp: bool
) -> None:
    """Draws a person's panels with their upper left corner at (left, up), pixels."""
    axes = _panel(figure, layout, left, up)
    axes.imshow(person.picture)
    line = (1.1 if skeleton.num_joints > 40 else 1.9) * min(1.0, max(layout.width, layout.height) / 200)
    draw_skeleton(axes, person.points, person.annotated, skeleton, side_colors(skeleton), width=line)
    height, width = person.picture.shape[:2]
    frame(axes, height, width)
    if names:
        _write_names(axes, person, skeleton, layout.width / width)
    if person.target is not None:
        draw_map(_panel(figure, layout, left + layout.width + GAP, up), person.picture, person.target, udp=udp)


def _write_names(axes: Axes, person: Fed, skeleton: Skeleton, scale: float) -> None:
    """Writes the names of the joints inside the crop beside them, on the side that looks away from the others, if there
    is room; those of one side below each other. `scale`: pixels of the sheet per pixel of the crop."""
    from matplotlib.patheffects import withStroke

    height, width = person.picture.shape[:2]
    inside = (person.points > -0.5) & (person.points < (width - 0.5, height - 0.5))
    joints = np.flatnonzero(person.annotated & inside.all(axis=1))
    size = 4.5 if len(joints) > 40 else 7.0
    line, letter = 1.25 * size * DPI / 72 / scale, 0.65 * size * DPI / 72 / scale  # in pixels of the crop
    middle = person.points[joints, 0].mean() if len(joints) else 0.0
    lowest = {"left": -line, "right": -line}
    for joint in joints[np.argsort(person.points[joints, 1], kind="stable")]:
        x, y = person.points[joint].tolist()
        room = letter * (len(skeleton.joints[joint]) + 2)
        on_left = room < x if x < middle else x + room > width
        side = "right" if on_left else "left"  # of the text, that is at the joint
        lowest[side] = y = max(y, lowest[side] + line)
        axes.text(
            x,
            y,
            f"  {skeleton.joints[joint]}  ",
            color="white",
            fontsize=size,
            ha=side,
            va="center",
            clip_on=True,
            parse_math=False,
            path_effects=[withStroke(linewidth=1.8, foreground="black")],
        )


def _panel(figure: Figure, layout: Layout, left: int, up: int) -> Axes:
    width, height = figure.get_size_inches() * DPI
    return figure.add_axes(
        (left / width, 1 - (up + layout.height) / height, layout.width / width, layout.height / height)
    )


def _write(figure: Figure, text: str, left: int, up: int, room: float, *, size: float, weight: str = "normal") -> None:
    """Writes a line of text, shortened in its middle to `room` pixels, with its upper left corner at (left, up)."""
    width, height = figure.get_size_inches() * DPI
    if len(text) * LETTER > room:
        most = max(3, int(room / LETTER))
        text = f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"
    figure.text(left / width, 1 - up / height, text, fontsize=size, weight=weight, va="top", parse_math=False)
