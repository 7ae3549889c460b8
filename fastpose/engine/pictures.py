# SPDX-License-Identifier: Apache-2.0
"""Pictures, from arrays. Of a run: curves, predictions (the paper's figure 3) and heatmaps (its figure 4); of a data
set: a sheet of what a network is fed, see `sheet.py`."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastpose.files import write_bytes
from fastpose.skeletons import Skeleton
from fastpose.skeletons.sides import side_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

PREDICTION = "#1f6fff"
GROUND_TRUTH = "#ffd21f"
OTHER = "#8a8f98"
LEFT, RIGHT, MIDDLE = "#ff3d9a", "#2f9bff", "#fae63c"  # joints by the person's own side
MAPS = 32  # heatmaps in one picture: with a whole body's 308 joints it would have 290 million pixels


class Person(NamedTuple):
    """A person in a picture of its own: uint8 [h, w, 3], and joints [K, 2] in its pixels."""

    picture: np.ndarray
    predicted: np.ndarray
    truth: np.ndarray
    annotated: np.ndarray  # bool [K]


def draw_curves(
    path: Path, lines: Sequence[dict[str, Any]], score_name: str, curves: Mapping[str, str], label: str, note: str
) -> None:
    """Loss, validation score and learning rate over the epochs of a run.

    Args:
        path: the PNG to write.
        lines: those of metrics.jsonl.
        score_name: the key of the scores in them.
        curves: the values to show, and their names: one or two.
        label: the title of the score.
        note: what to write below it; empty: nothing.
    """
    figure = new_figure((12, 3.6), layout="constrained")
    loss, score, rate = figure.subplots(1, 3)
    epochs = [line["epoch"] for line in lines]
    marker = "o" if len(lines) <= 10 else "." if len(lines) <= 40 else ""
    evaluated = [line for line in lines if line.get(score_name)]
    losses, rates = ([line[name] for line in lines] for name in ("loss", "lr"))
    loss.plot(epochs, losses, color=PREDICTION, marker=marker)
    loss.set(title="training loss", xlabel="epoch", yscale=_scale_of(losses))
    for (name, curve), color in zip(curves.items(), (PREDICTION, OTHER), strict=False):
        values = [line[score_name][name] for line in evaluated]
        score.plot(
            [line["epoch"] for line in evaluated],
            values,
            color=color,
            marker="o" if len(values) <= 10 else ".",
            label=curve,
        )
        if values:
            score.annotate(
                f"{values[-1]:.1f}",
                (evaluated[-1]["epoch"], values[-1]),
                (0, 8) if len(values) == 1 else (-4, 6),
                textcoords="offset points",
                ha="center" if len(values) == 1 else "right",
            )
    below = f"\n{note}" if note else ""
    score.set(title=f"validation {label.partition('@')[0]}", xlabel=f"epoch{below}", ylim=(0, 105), ylabel="%")
    score.legend(loc="best", frameon=False)
    rate.step(epochs, rates, color=PREDICTION, where="mid", marker=marker)
    rate.set(title="learning rate", xlabel="epoch", yscale=_scale_of(rates))
    if rate.get_yscale() == "linear":
        rate.set_ylim(0, 1.1 * max(rates, default=1.0) or 1.0)
    for axes in (loss, score, rate):
        if epochs:  # the same of all three: a score may begin later than the loss
            axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    _save(figure, path)


def _scale_of(values: Sequence[float]) -> str:
    """A logarithmic axis has few labels between its powers of ten, if any: it is for values that are far apart."""
    known = [value for value in values if value > 0]
    return "log" if known and max(known) >= 10 * min(known) else "linear"


def draw_predictions(path: Path, people: Sequence[Person], skeleton: Skeleton) -> None:
    """Predictions in blue and annotations in yellow; each person's picture has the middle of a place of one size."""
    columns = len(people) if len(people) <= 6 else 4
    rows = -(-len(people) // columns)
    h, w = np.max([person.picture.shape[:2] for person in people], axis=0)
    wide, high = w / max(h, w), h / max(h, w)
    figure = new_figure((2.6 * wide * columns, 2.6 * high * rows + 0.4))
    top = 1 - 0.4 / (2.6 * high * rows + 0.4)
    grid = figure.add_gridspec(rows, columns, left=0.005, right=0.995, bottom=0.005, top=top, wspace=0.03, hspace=0.03)
    for number, person in enumerate(people):
        axes = figure.add_subplot(grid[number // columns, number % columns])
        axes.imshow(person.picture)
        draw_skeleton(axes, person.truth, person.annotated, skeleton, GROUND_TRUTH, width=3.0)
        draw_skeleton(axes, person.predicted, np.ones(len(person.predicted), bool), skeleton, PREDICTION, width=1.8)
        frame(axes, *person.picture.shape[:2])
    kinds = (("prediction", PREDICTION), ("ground truth", GROUND_TRUTH))
    legend = [legend_entry(label, color, marker="o") for label, color in kinds]
    figure.legend(handles=legend, loc="upper center", ncols=2, frameon=False)
    _save(figure, path)


def draw_heatmaps(
    path: Path,
    picture: np.ndarray,
    heatmaps: np.ndarray,
    points: np.ndarray,
    scores: np.ndarray,
    skeleton: Skeleton,
    *,
    udp: bool = False,
) -> None:
    """One person: the final pose on the left, every joint's heatmap over the picture on the right, or of more than MAPS
    joints those of as many, evenly spread over them.

    Args:
        path: the PNG to write.
        picture: uint8 [h, w, 3], the person's box.
        heatmaps: float32 [K, h / s, w / s], the network's output for that box.
        points: float32 [K, 2], the decoded joints in pixels of the picture.
        scores: float32 [K].
        skeleton: the joints.
        udp: whether the heatmaps span the box from first to last pixel centre, see crop_to_image_matrix.
    """
    height, width = picture.shape[:2]
    drawn = np.linspace(0, len(heatmaps) - 1, min(len(heatmaps), MAPS)).round().astype(int)
    columns, lines = 4, -(-len(drawn) // 4)
    figure = new_figure((1.9 * (columns + lines) * width / height, 2.0 * lines))
    # Placed by hand: a layout engine takes seconds over seventeen axes.
    grid = figure.add_gridspec(
        lines, lines + columns, left=0.01, right=0.99, bottom=0.01, top=0.96, wspace=0.06, hspace=0.14
    )
    axes = figure.add_subplot(grid[:, :lines])
    axes.imshow(picture)
    draw_skeleton(axes, points, np.ones(len(points), bool), skeleton, PREDICTION, width=2.5)
    frame(axes, height, width)
    axes.set_title("final pose")
    for number, joint in enumerate(drawn):
        heatmap, name, score = heatmaps[joint], skeleton.joints[joint], scores[joint]
        axes = figure.add_subplot(grid[number // columns, lines + number % columns])
        draw_map(axes, picture, heatmap, udp=udp)
        # A name is a stranger's, and with two dollar signs it would be a formula.
        axes.set_title(f"{name.replace('_', ' ')}  {score:.2f}", fontsize=9, parse_math=False)
    _save(figure, path)


def draw_skeleton(
    axes: Axes, points: np.ndarray, shown: np.ndarray, skeleton: Skeleton, color: str | Sequence[str], *, width: float
) -> None:
    """Draws limbs and joints, [K, 2] in pixels of the axes, of those joints that are `shown` (bool [K]).

    `color`: of all of them, or one for each joint. A limb between two colours has that of the joint which is no
    `MIDDLE`, and between two sides `MIDDLE`.
    """
    colors = [color] * len(points) if isinstance(color, str) else color
    for a, b in skeleton.limbs:
        if shown[a] and shown[b]:
            sides = {colors[a], colors[b]} - {MIDDLE}
            of_limb = sides.pop() if len(sides) == 1 else MIDDLE
            axes.plot(*points[[a, b]].T, color=of_limb, linewidth=width, solid_capstyle="round", alpha=0.85)
    x, y = points[shown].T
    drawn = [color for color, is_shown in zip(colors, shown, strict=True) if is_shown]
    axes.scatter(x, y, s=(2.6 * width) ** 2 / 2, color=drawn, edgecolors="black", linewidths=0.5, zorder=3)


def side_colors(skeleton: Skeleton) -> list[str]:
    """A colour for each joint: LEFT, RIGHT or, if it is in no mirror pair, MIDDLE.

    A pair is (right, left), but a file may have them the other way round: where one joint is called left, it is.
    """
    colors = [MIDDLE] * skeleton.num_joints
    for pair in skeleton.mirror_pairs:
        right, left = pair[::-1] if _called_left(skeleton, pair) == [True, False] else pair
        colors[right], colors[left] = RIGHT, LEFT
    return colors


def has_sides(skeleton: Skeleton) -> bool:
    """Whether names say of every mirror pair which joint is the left one."""
    return all(sum(_called_left(skeleton, pair)) == 1 for pair in skeleton.mirror_pairs)


def _called_left(skeleton: Skeleton, pair: tuple[int, int]) -> list[bool]:
    return [side_of(skeleton.joints[joint]) == "left" for joint in pair]


def draw_map(axes: Axes, picture: np.ndarray, heatmap: np.ndarray, *, udp: bool) -> None:
    """A heatmap, [h / s, w / s], over its picture, uint8 [h, w, 3], in grey. `udp`: see draw_heatmaps."""
    height, width = picture.shape[:2]
    # Heatmap pixel i is centred on picture pixel step * i; with udp the last one is where the box ends.
    step_x, step_y = width / (heatmap.shape[1] - udp), height / (heatmap.shape[0] - udp)
    extent = (-step_x / 2, width + (udp - 0.5) * step_x, height + (udp - 0.5) * step_y, -step_y / 2)
    shown = np.clip(heatmap / max(float(heatmap.max()), 1e-6), 0, 1)
    axes.imshow(picture.mean(axis=2) / 255.0, cmap="gray", vmin=0, vmax=1.4)
    axes.imshow(
        shown, cmap="inferno", alpha=0.25 + 0.65 * shown, extent=extent, interpolation="bilinear", vmin=0, vmax=1
    )
    frame(axes, height, width)


def new_figure(inches: tuple[float, float], **options: Any) -> Figure:
    """An empty figure of that width and height, with matplotlib's options."""
    # Imported here: it takes 0.4 s, and most commands draw nothing before their end.
    from matplotlib.figure import Figure

    return Figure(figsize=inches, **options)


def legend_entry(label: str, color: str, **options: Any) -> Line2D:
    """A line that stands for `label` in a legend, with matplotlib's options."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, label=label, **options)


def encoded(figure: Figure, kind: str, *, dpi: int = 110) -> bytes:
    """The figure as a file of that kind, "png" or "jpg"."""
    picture = io.BytesIO()
    quality = {"quality": 88} if kind == "jpg" else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # in whatever script names are
        figure.savefig(picture, dpi=dpi, format=kind, pil_kwargs=quality)
    return picture.getvalue()


def frame(axes: Axes, height: int, width: int) -> None:
    """Limits the axes to a picture of that size."""
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.axis("off")


def _save(figure: Figure, path: Path) -> None:
    write_bytes(path, encoded(figure, path.suffix.removeprefix(".")))
