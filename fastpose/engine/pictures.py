# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run: curves.png, predictions.png (the paper's figure 3) and heatmaps.png (its figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

import fastpose
from fastpose.data.packed import open_images
from fastpose.data.persons import Persons
from fastpose.skeletons import Skeleton

PREDICTION = "#1f6fff"
GROUND_TRUTH = "#ffd21f"


def draw_curves(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Loss, validation score and learning rate over the epochs of a run (the lines of its metrics.jsonl)."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, score, rate = figure.subplots(1, 3)
    epochs = [line["epoch"] for line in lines]
    marker = "." if len(lines) <= 40 else ""
    coco = any(line.get("coco") for line in lines)
    evaluated = [line for line in lines if line.get("coco" if coco else "pckh")]
    names = {"AP": "AP", "AP50": "AP50"} if coco else {"Mean": "PCKh@0.5", "Mean@0.1": "PCKh@0.1"}
    loss.plot(epochs, [line["loss"] for line in lines], color=PREDICTION, marker=marker)
    loss.set(title="training loss", xlabel="epoch", yscale="log")
    for (name, label), color in zip(names.items(), (PREDICTION, "#8a8f98"), strict=True):
        values = [line["coco" if coco else "pckh"][name] for line in evaluated]
        score.plot([line["epoch"] for line in evaluated], values, color=color, marker=".", label=label)
        if values:
            score.annotate(
                f"{values[-1]:.1f}",
                (evaluated[-1]["epoch"], values[-1]),
                (-4, 6),
                textcoords="offset points",
                ha="right",
            )
    boxes = f"\nboxes: {evaluated[-1]['coco']['box_source']}" if coco else ""
    score.set(title=f"validation {'AP' if coco else 'PCKh'}", xlabel=f"epoch{boxes}", ylim=(0, 105), ylabel="%")
    score.legend(loc="best", frameon=False)
    rate.step(epochs, [line["lr"] for line in lines], color=PREDICTION, where="mid", marker=marker)
    rate.set(title="learning rate", xlabel="epoch", yscale="log")
    for axes in (loss, score, rate):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=110)


def draw_predictions(path: Path, persons: Persons, predictions: np.ndarray, *, most: int = 12, side: int = 320) -> None:
    """Predictions in blue and annotations in yellow for `most` persons, evenly spread over the data.

    Args:
        path: the PNG to write.
        persons: N persons.
        predictions: [N, K, 2] in image pixels; persons with NaN are left out.
        most: at most this many persons.
        side: the longer side of a person's picture in pixels.
    """
    rows = np.flatnonzero(np.isfinite(predictions).all(axis=(1, 2)))
    rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]
    columns = len(rows) if len(rows) <= 6 else 4
    height = -(-len(rows) // columns)
    # The boxes of a data set have one aspect ratio.
    wide, high = (persons.scale[rows[0]] / persons.scale[rows[0]].max()).tolist()
    size = (round(side * high), round(side * wide))
    figure = Figure(figsize=(2.6 * wide * columns, 2.6 * high * height + 0.4))
    top = 1 - 0.4 / (2.6 * high * height + 0.4)
    grid = figure.add_gridspec(
        height, columns, left=0.005, right=0.995, bottom=0.005, top=top, wspace=0.03, hspace=0.03
    )
    for number, row in enumerate(rows):
        axes = figure.add_subplot(grid[number // columns, number % columns])
        crop_to_image = box_matrix(persons, row, size)
        axes.imshow(crop_person(persons, row, crop_to_image, size))
        truth, predicted = (
            fastpose.transform_points(torch.from_numpy(points[row : row + 1]), crop_to_image, inverse=True)[0].numpy()
            for points in (persons.keypoints, predictions)
        )
        draw_skeleton(axes, truth, persons.visible[row] > 0.5, persons.skeleton, GROUND_TRUTH, width=3.0)
        draw_skeleton(axes, predicted, np.ones(len(predicted), bool), persons.skeleton, PREDICTION, width=1.8)
        _frame(axes, *size)
    legend = [
        Line2D([], [], color=color, marker="o", label=label)
        for color, label in ((PREDICTION, "prediction"), (GROUND_TRUTH, "ground truth"))
    ]
    figure.legend(handles=legend, loc="upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


def draw_heatmaps(
    path: Path,
    persons: Persons,
    row: int,
    heatmaps: np.ndarray,
    joints: np.ndarray,
    scores: np.ndarray,
    udp: bool = False,
) -> None:
    """One person: the final pose on the left, every joint's heatmap over the picture on the right.

    Args:
        path: the PNG to write.
        persons: the data.
        row: which of the persons.
        heatmaps: float32 [K, h, w], the network's output for that person's box.
        joints: float32 [K, 2], the decoded joints in image pixels.
        scores: float32 [K].
        udp: whether the heatmaps span the box from first to last pixel centre, see crop_to_image_matrix.
    """
    stride = 8  # picture pixels per heatmap pixel: twice the network's input
    height, width = stride * heatmaps.shape[1], stride * heatmaps.shape[2]
    crop_to_image = box_matrix(persons, row, (height, width))
    picture = crop_person(persons, row, crop_to_image, (height, width))
    points = fastpose.transform_points(torch.from_numpy(joints[None]), crop_to_image, inverse=True)[0].numpy()
    columns, lines = 4, -(-len(heatmaps) // 4)
    figure = Figure(figsize=(1.9 * (columns + lines) * width / height, 2.0 * lines))
    # Placed by hand: a layout engine takes seconds over seventeen axes.
    grid = figure.add_gridspec(
        lines, lines + columns, left=0.01, right=0.99, bottom=0.01, top=0.96, wspace=0.06, hspace=0.14
    )
    axes = figure.add_subplot(grid[:, :lines])
    axes.imshow(picture)
    draw_skeleton(axes, points, np.ones(len(points), bool), persons.skeleton, PREDICTION, width=2.5)
    _frame(axes, height, width)
    axes.set_title("final pose")
    # Heatmap pixel i is centred on picture pixel stride * i; with udp the last one is where the box ends.
    step_x, step_y = width / (heatmaps.shape[2] - udp), height / (heatmaps.shape[1] - udp)
    extent = (-step_x / 2, width + (udp - 0.5) * step_x, height + (udp - 0.5) * step_y, -step_y / 2)
    grey = picture.mean(axis=2) / 255.0
    for number, (heatmap, name, score) in enumerate(zip(heatmaps, persons.skeleton.joints, scores, strict=True)):
        axes = figure.add_subplot(grid[number // columns, lines + number % columns])
        shown = np.clip(heatmap / max(float(heatmap.max()), 1e-6), 0, 1)
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1.4)
        axes.imshow(
            shown, cmap="inferno", alpha=0.25 + 0.65 * shown, extent=extent, interpolation="bilinear", vmin=0, vmax=1
        )
        _frame(axes, height, width)
        axes.set_title(f"{name.replace('_', ' ')}  {score:.2f}", fontsize=9)
    figure.savefig(path, dpi=110)


def draw_pose(path: Path, picture: np.ndarray, poses: np.ndarray, skeleton: Skeleton) -> None:
    """A picture, uint8 [H, W, 3], with predicted poses, [N, K, 2] in its pixels."""
    height, width = picture.shape[:2]
    figure = Figure(figsize=(8, max(8 * height / width, 1)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture)
    for joints in poses:
        draw_skeleton(axes, joints, np.ones(len(joints), bool), skeleton, PREDICTION, width=3.0)
    _frame(axes, height, width)
    figure.savefig(path, dpi=110)


def draw_skeleton(
    axes: Axes, points: np.ndarray, shown: np.ndarray, skeleton: Skeleton, color: str, *, width: float
) -> None:
    """Draws limbs and joints, [K, 2] in pixels of the axes, of those joints that are `shown` (bool [K])."""
    for a, b in skeleton.limbs:
        if shown[a] and shown[b]:
            axes.plot(*points[[a, b]].T, color=color, linewidth=width, solid_capstyle="round", alpha=0.85)
    x, y = points[shown].T
    axes.scatter(x, y, s=(2.6 * width) ** 2 / 2, color=color, edgecolors="black", linewidths=0.5, zorder=3)


def box_matrix(persons: Persons, row: int, size: tuple[int, int]) -> Tensor:
    """The person's box as a crop of (h, w) `size`: float32 [1, 2, 3], crop to image."""
    center, scale = (torch.from_numpy(array[row : row + 1]) for array in (persons.center, persons.scale))
    return fastpose.crop_to_image_matrix(center, scale, torch.zeros(1), size)


def crop_person(persons: Persons, row: int, crop_to_image: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The person's box as uint8 [h, w, 3]."""
    path = persons.image_paths[persons.image_index[row]]
    pixels = open_images([path], threads=1).load(torch.zeros(1, dtype=torch.int64), torch.device("cpu"))
    if pixels.errors:
        raise pixels.errors[0]
    if pixels.frame is not None:
        origin = torch.cat([torch.zeros(2, 2), pixels.frame[0, 1:, None]], dim=1)
        crop_to_image = (crop_to_image - origin) / pixels.frame[0, 0]
    crop = fastpose.affine_crop(pixels.images, crop_to_image, size)[0]
    return crop.permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def _frame(axes: Axes, height: int, width: int) -> None:
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.axis("off")
