# SPDX-License-Identifier: Apache-2.0
"""Random rotation, scale, mirroring, half-body boxes and colours, drawn for a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastpose.data.persons import Persons

HALF_BODY_JOINTS = 8  # a person with more visible joints than this may be cropped to half of the body (HRNet)
HALF_BODY_PADDING = 1.5  # its box, in extents of the half's joints (HRNet)


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training crop. Never translation: the centre says whose joints are wanted (paper, 3).

    Attributes:
        rotation: largest turn in degrees, drawn uniformly from [-rotation, rotation] (paper: 30).
        scale: smallest and largest factor on the box, drawn uniformly (paper: 0.75 to 1.25).
        flip: probability of mirroring, 0 to 1 (our addition: 0.5).
        half_body: probability of taking the box of the upper or the lower body, 0 to 1 (see `body_boxes`; HRNet: 0.3
            on COCO). Upper and lower are equally likely; upstream's `randn() < 0.5` draws upper in 69 of 100 cases.
        brightness, contrast, saturation: largest relative change, 0 to 1: factors are drawn uniformly from
            [1 - change, 1 + change] (see `fastpose.jitter_color`).
    """

    rotation: float = 30.0
    scale: tuple[float, float] = (0.75, 1.25)
    flip: float = 0.5
    half_body: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.rotation <= 180.0:
            raise ValueError(f"rotation: expected degrees between 0 and 180, got {self.rotation}")
        low, high = self.scale
        if not 0.0 < low <= high < float("inf"):
            raise ValueError(f"scale: expected 0 < smallest <= largest, got {self.scale}")
        for name in ("flip", "half_body"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: expected a probability between 0 and 1, got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: expected a relative change between 0 and 1, got {getattr(self, name)}")

    @property
    def jitters_color(self) -> bool:
        """Whether colours are drawn at all."""
        return max(self.brightness, self.contrast, self.saturation) > 0.0

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Draws `count` augmentations on the generator's device, always in the same order: rotation, scale, flip; then,
        where half_body is on, whether and which half; then, where any colour changes, brightness, contrast, saturation.

        So what is switched on changes nothing that is drawn before it.
        """
        device = generator.device
        rotation, scale, flip = torch.rand(3, count, generator=generator, device=device).unbind()
        low, high = self.scale
        body = torch.zeros(count, dtype=torch.int64, device=device)
        if self.half_body > 0.0:
            half, upper = torch.rand(2, count, generator=generator, device=device).unbind()
            body = (half < self.half_body).long() * (1 + (upper < 0.5).long())
        color = None
        if self.jitters_color:
            brightness, contrast, saturation = (
                2.0 * torch.rand(3, count, generator=generator, device=device) - 1.0
            ).unbind()
            color = (
                1.0 + self.brightness * brightness,
                1.0 + self.contrast * contrast,
                1.0 + self.saturation * saturation,
            )
        return Draws((2.0 * rotation - 1.0) * self.rotation, low + (high - low) * scale, flip < self.flip, body, color)


class Draws(NamedTuple):
    """One row per sample.

    Attributes:
        rotation: float32 [B], degrees.
        scale: float32 [B], factor on the box.
        flip: bool [B].
        body: int64 [B], which box of `body_boxes`: 0 the person's, 1 the lower body's, 2 the upper body's.
        color: factors of brightness, contrast and saturation, float32 [B] each; None: colours stay as they are.
    """

    rotation: Tensor
    scale: Tensor
    flip: Tensor
    body: Tensor
    color: tuple[Tensor, Tensor, Tensor] | None = None


def body_boxes(persons: Persons, size: tuple[int, int], *, half_body: bool) -> NDArray[np.float32]:
    """The boxes that a person may be cropped to: its own, and with `half_body` those of its lower and its upper body.

    A half-body box is HRNet's (`half_body_transform`): centred on the mean of the half's visible joints, 1.5 times
    their extent, then wider or higher for the crop's aspect ratio. A half of two visible joints or fewer gives way to
    the other. The person's own box stands in for both where 8 joints or fewer are visible, and for one whose joints are
    all in one place.

    Args:
        persons: N persons. A joint of the skeleton that is not in `upper_body` is of the lower body.
        size: (h, w) of the crops in pixels. A box's height follows from its width and this.
        half_body: whether the half-body boxes are wanted.

    Returns:
        [N, 1, 4], with half_body [N, 3, 4] (own, lower, upper): centre (x, y) in image pixels, scale (w, h); scale
        times 200 px is the box.

    Raises:
        ValueError: half-body boxes of a skeleton whose `upper_body` is empty, or that has 8 joints or fewer.
    """
    aspect = size[1] / size[0]
    own = np.concatenate([persons.center, persons.scale[:, :1], persons.scale[:, :1] / aspect], axis=1)[:, None]
    if not half_body:
        return own.astype(np.float32)
    skeleton = persons.skeleton
    if not skeleton.upper_body:
        raise ValueError(f"half_body: skeleton {skeleton.name!r} does not say which joints are its upper_body")
    if skeleton.num_joints <= HALF_BODY_JOINTS:
        raise ValueError(
            f"half_body: it is for persons with more than {HALF_BODY_JOINTS} visible joints, and skeleton "
            f"{skeleton.name!r} has {skeleton.num_joints}"
        )
    is_upper = np.isin(np.arange(skeleton.num_joints), skeleton.upper_body)
    seen = persons.visible > 0
    halves = seen[:, None] & np.stack([~is_upper, is_upper])  # [N, 2, K]
    halves = np.where(halves.sum(axis=2, keepdims=True) > 2, halves, halves[:, ::-1])[..., None]
    points = persons.keypoints[:, None].astype(np.float64)
    low, high = np.where(halves, points, np.inf).min(axis=2), np.where(halves, points, -np.inf).max(axis=2)
    usable = (seen.sum(axis=1) > HALF_BODY_JOINTS)[:, None] & (high > low).any(axis=2)  # [N, 2]
    with np.errstate(invalid="ignore"):  # halves without joints, which are not usable
        center = (halves * points).sum(axis=2) / halves.sum(axis=2)
        extent = high - low
    width = np.maximum(extent[..., 0], extent[..., 1] * aspect) * HALF_BODY_PADDING / 200
    half = np.concatenate([center, width[..., None], width[..., None] / aspect], axis=2)
    return np.concatenate([own, np.where(usable[..., None], half, own)], axis=1).astype(np.float32)
