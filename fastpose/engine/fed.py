# SPDX-License-Identifier: Apache-2.0
"""What a network is fed, from the loader's own batches: crops with their colours undone, joints and targets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastpose
from fastpose.data.loader import Batch, PoseLoader
from fastpose.engine.sheet import Fed
from fastpose.engine.step import TargetOptions


def fed(loader: PoseLoader, color: Tensor, targets: TargetOptions | None, count: int) -> Iterator[Fed]:
    """The first `count` persons of the loader's first epoch; fewer if it has no more that can be read.

    Args:
        loader: of the training, with its seed and batch size.
        color: the colour map [3, 4] of its crops.
        targets: what heatmaps the network is taught; None: it returns vectors, and there are no heatmaps.
        count: persons, at least 1.

    Raises:
        BadImageError, PackError: see PoseLoader.epoch.
    """
    with closing(loader.epoch()) as batches:
        for batch in batches:
            taken = min(count, len(batch.rows))
            pixels, points = pixels_of(batch.images[:taken], color), points_on_crop(batch, loader)
            for n in range(taken):
                target = None
                if targets is not None:
                    maps, _ = fastpose.render_heatmaps(  # of one person: a whole body's maps are 60 MB
                        batch.keypoints[n : n + 1],
                        batch.visible[n : n + 1],
                        loader.heatmap_size,
                        sigma=targets.sigma,
                        encoding=targets.encoding,
                    )
                    target = maps[0].amax(dim=0).cpu().numpy()
                annotated = batch.visible[n].cpu().numpy() > 0.5
                inside = (points[n] > -0.5) & (points[n] < np.array(loader.size[::-1]) - 0.5)
                caption = caption_of(batch, n, loader, int((annotated & inside.all(axis=1)).sum()))
                yield Fed(pixels[n], points[n], annotated, target, caption)
            count -= taken
            if count == 0:
                return


def pixels_of(crops: Tensor, color: Tensor) -> NDArray[np.uint8]:
    """The pixels, uint8 [B, h, w, 3], of crops [B, 3, h, w] that a colour map [3, 4] was applied to.

    Changes of colour by the augmentation stay: the network sees them, as far as they are between 0 and 255.
    """
    back = torch.linalg.inv(color[:, :3].double())
    values = torch.einsum("ij,bjhw->bhwi", back, crops.double().cpu() - color[:, 3, None, None].double())
    return np.asarray(values.round().clamp(0, 255).to(torch.uint8).numpy())


def points_on_crop(batch: Batch, loader: PoseLoader) -> NDArray[np.float32]:
    """The joints, float32 [B, K, 2], in pixels of the crops. With udp, heatmaps span them from first to last pixel."""
    (height, width), (high, wide), udp = loader.size, loader.heatmap_size, loader.udp
    step = torch.tensor([(width - udp) / (wide - udp), (height - udp) / (high - udp)])
    return np.asarray((batch.keypoints.cpu() * step).numpy())


def caption_of(batch: Batch, n: int, loader: PoseLoader, in_crop: int) -> tuple[str, ...]:
    """The image of person n of the batch, its record, its annotated joints, of which so many are in the crop, and, if
    it was augmented, what was drawn for it."""
    persons, annotated = loader.persons, int(batch.visible[n].sum())
    (origin,) = persons.origins([int(batch.rows[n])])
    joints = f"{annotated} of {persons.skeleton.num_joints} joints"
    if in_crop < annotated:
        joints += f", {in_crop} in the crop"
    lines: tuple[str, ...] = (printable(origin.image), printable(origin.set_and_record), joints)
    if loader.augmentation is None:
        return lines
    rotation, scale, mirrored, shift = drawn(batch, n, loader)
    turned = f"{rotation:+.0f}°" if abs(rotation) >= 0.5 else "0°"
    lines += (f"{turned}, ×{scale:.2f}{', mirrored' * mirrored}".replace("-", "−"),)
    if max(map(abs, shift)) >= 0.005:
        lines += (f"moved {shift[0]:+.2f}, {shift[1]:+.2f}".replace("-", "−"),)
    return lines


def drawn(batch: Batch, n: int, loader: PoseLoader) -> tuple[float, float, bool, tuple[float, float]]:
    """What the augmentation has done to the box of person n, from its matrix: rotation in degrees, scale as a factor,
    whether it is mirrored, and by which shares of its width and height it is moved. Half a body is a box that is
    smaller and moved."""
    matrix = batch.heatmap_to_image[n].cpu().double().numpy()
    (high, wide), udp, row = loader.heatmap_size, loader.udp, int(batch.rows[n])
    mirrored = bool(np.linalg.det(matrix[:, :2]) < 0)
    across = matrix[:, 0] * [-1 if mirrored else 1, 1]  # mirroring comes after the rotation, in x
    side = 200.0 * float(loader.persons.scale[row, 0])
    middle = matrix[:, :2] @ [(wide - udp) / 2, (high - udp) / 2] + matrix[:, 2]
    moved = (middle - loader.persons.center[row]) / [side, side * loader.size[0] / loader.size[1]]
    rotation = math.degrees(math.atan2(across[1], across[0]))
    return rotation, math.hypot(*across) * (wide - udp) / side, mirrored, (float(moved[0]), float(moved[1]))


def printable(text: str) -> str:
    """The text with a question mark for each character that cannot be printed, such as a line end in a file's name."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
