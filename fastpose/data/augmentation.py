# SPDX-License-Identifier: Apache-2.0
"""Random rotation, scale, shift, mirroring, half bodies, colours and erased boxes, drawn for a whole batch at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastpose.option import OptionError, option


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training crop. No translation by default: the centre says whose joints are wanted (paper 3).

    Rotation, scale, shift and changes of colour are drawn uniformly; factors from [1 - change, 1 + change], see
    `fastpose.jitter_color`. With `augmentation_draw` "truncnorm" rotation, scale and shift are drawn as by mmpose's
    RandomBBoxTransform: from a normal distribution about the middle of their range, whose standard deviation is half
    of the range, cut at its ends. Colours stay uniform. Mirroring is our addition to the paper. Half bodies: see
    `boxes.body_boxes` (HRNet: 0.3 on COCO); upper and lower are equally likely, where upstream's `randn() < 0.5` draws
    upper in 69 of 100 cases. Erased boxes are those of albumentations' CoarseDropout with one hole, see `erased_boxes`:
    black before the colour map, as beyond an image's edge; joints in them stay annotated, as in Sapiens2's recipe.
    """

    rotation: float = option(30.0, "largest rotation of the augmentation, degrees either way")
    scale_min: float = option(0.75, "smallest scaling of the person's box, factor")
    scale_max: float = option(1.25, "largest scaling of the person's box, factor")
    flip: float = option(0.5, "probability of mirroring a training sample, 0 to 1")
    half_body: float = option(
        0.0,
        "probability of cropping to the upper or the lower body, each as likely, of a person with more than 8 visible "
        "joints, 0 to 1",
    )
    brightness: float = option(0.0, "largest relative change of brightness in training, factor either way, 0 to 1")
    contrast: float = option(0.0, "largest relative change of contrast in training, factor either way, 0 to 1")
    saturation: float = option(0.0, "largest relative change of saturation in training, factor either way, 0 to 1")
    hue: float = option(0.0, "largest turn of hues in training, share of a full turn either way, 0 to 0.5")
    rotation_prob: float = option(1.0, "probability of turning a training sample, 0 to 1")
    scale_prob: float = option(1.0, "probability of scaling a training sample's box, 0 to 1")
    augmentation_draw: Literal["uniform", "truncnorm"] = option(
        "uniform",
        "how rotation, scale and shift are drawn from their ranges: uniformly, or as mmpose does, from a normal "
        "distribution about the middle, cut at one standard deviation",
    )
    shift: float = option(
        0.0, "largest shift of the person's box, share of its width in x and of its height in y, either way, 0 to 1"
    )
    shift_prob: float = option(0.3, "probability of shifting a training sample's box if there is a --shift, 0 to 1")
    erase: float = option(0.0, "probability of erasing a box of a training crop, its joints still annotated, 0 to 1")
    erase_min: float = option(0.2, "smallest width and height of an erased box, share of the crop's, 0 to 1")
    erase_max: float = option(0.4, "largest width and height of an erased box, share of the crop's, 0 to 1")

    def __post_init__(self) -> None:
        if not 0.0 <= self.rotation <= 180.0:
            raise OptionError("rotation", f"expected degrees between 0 and 180, got {self.rotation}")
        low, high = self.scale_min, self.scale_max
        if not 0.0 < low <= high < float("inf"):
            raise OptionError(
                "scale_min" if not 0.0 < low < float("inf") else "scale_max",
                f"expected 0 < scale_min <= scale_max, got {low} and {high}",
            )
        if not 0.0 <= self.shift <= 1.0:
            raise OptionError("shift", f"expected a share of the box between 0 and 1, got {self.shift}")
        low, high = self.erase_min, self.erase_max
        if not 0.0 <= low <= high <= 1.0:
            raise OptionError(
                "erase_min" if not 0.0 <= low <= 1.0 else "erase_max",
                f"expected 0 <= erase_min <= erase_max <= 1, got {low} and {high}",
            )
        for name in ("flip", "half_body", "rotation_prob", "scale_prob", "shift_prob", "erase"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise OptionError(name, f"expected a probability between 0 and 1, got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise OptionError(name, f"expected a relative change between 0 and 1, got {getattr(self, name)}")
        if not 0.0 <= self.hue <= 0.5:
            raise OptionError("hue", f"expected a share of a full turn between 0 and 0.5, got {self.hue}")
        if self.augmentation_draw not in ("uniform", "truncnorm"):
            raise OptionError("augmentation_draw", f"expected uniform or truncnorm, got {self.augmentation_draw!r}")

    @property
    def jitters_color(self) -> bool:
        """Whether colours are drawn at all."""
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0.0

    @property
    def scales(self) -> tuple[float, float]:
        """The smallest and the largest factor on a box: 1 is among them if some boxes keep their size."""
        if self.scale_prob == 1.0:
            return self.scale_min, self.scale_max
        return min(self.scale_min, 1.0), max(self.scale_max, 1.0)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Draws `count` augmentations on the generator's device, always in the same order: rotation, scale, flip; then,
        where half_body is on, whether and which half; then, where any colour changes, brightness, contrast, saturation;
        then, where it is on, hue; then, where their probability is below 1, whether to turn and whether to scale; then,
        where there is a shift, whether to shift, and how far in x and in y; then, where boxes are erased, whether to,
        how wide and high, and where in x and in y.

        So what is switched on changes nothing that is drawn before it.
        """
        device = generator.device
        rotation, scale, flip = torch.rand(3, count, generator=generator, device=device).unbind()
        low, high = self.scale_min, self.scale_max
        body = torch.zeros(count, dtype=torch.int64, device=device)
        if self.half_body > 0.0:
            half, upper = torch.rand(2, count, generator=generator, device=device).unbind()
            body = (half < self.half_body).long() * (1 + (upper < 0.5).long())
        color: tuple[Tensor, ...] | None = None
        if self.jitters_color:
            brightness, contrast, saturation = (
                2.0 * torch.rand(3, count, generator=generator, device=device) - 1.0
            ).unbind()
            color = (
                1.0 + self.brightness * brightness,
                1.0 + self.contrast * contrast,
                1.0 + self.saturation * saturation,
            )
            if self.hue > 0.0:
                color = (*color, self.hue * (2.0 * torch.rand(count, generator=generator, device=device) - 1.0))
        if self.augmentation_draw == "truncnorm":
            rotation, scale = cut_normal(rotation), cut_normal(scale)
        turn, factor = (2.0 * rotation - 1.0) * self.rotation, low + (high - low) * scale
        if self.rotation_prob < 1.0:
            turned = torch.rand(count, generator=generator, device=device) < self.rotation_prob
            turn = torch.where(turned, turn, 0.0)
        if self.scale_prob < 1.0:
            scaled = torch.rand(count, generator=generator, device=device) < self.scale_prob
            factor = torch.where(scaled, factor, 1.0)
        shift = None
        if self.shift > 0.0:
            shifted, *way = torch.rand(3, count, generator=generator, device=device).unbind()
            share = torch.stack(way, dim=1)
            if self.augmentation_draw == "truncnorm":
                share = cut_normal(share)
            shift = torch.where((shifted < self.shift_prob)[:, None], (2.0 * share - 1.0) * self.shift, 0.0)
        erase = None
        if self.erase > 0.0:
            erased, *rest = torch.rand(5, count, generator=generator, device=device).unbind()
            low, high = self.erase_min, self.erase_max
            sides = torch.where(erased < self.erase, low + (high - low) * torch.stack(rest[:2]), 0.0)
            erase = torch.stack([*sides, *rest[2:]], dim=1)
        return Draws(turn, factor, flip < self.flip, body, color, shift, erase)


def erased_boxes(erase: Tensor, size: tuple[int, int]) -> Tensor:
    """`Draws.erase` as boxes (x0, y0, x1, y1) in crops of size (h, w), float32 [B, 1, 4], for affine_crop.

    As albumentations draws them: of whole pixels, sides rounded down, everywhere inside the crop as likely.
    """
    whole = torch.empty_like(erase[:, :2])
    whole[:, 0], whole[:, 1] = size[1], size[0]
    share, place = erase.split(2, dim=1)
    sides = (share * whole).floor()
    corner = (place * (whole - sides + 1.0)).floor()
    return torch.cat([corner, corner + sides], dim=1)[:, None]


def cut_normal(uniform: Tensor) -> Tensor:
    """Numbers drawn uniformly from [0, 1) as numbers from a normal distribution about 1/2 whose standard deviation is
    1/2, cut at 0 and 1: its quantiles, so that each number still costs one draw."""
    deviations = math.sqrt(2.0) * torch.erfinv((2.0 * uniform - 1.0) * math.erf(math.sqrt(0.5)))
    return (0.5 + 0.5 * deviations).clamp(0.0, 1.0)  # rounding must not leave the range, which packs rely on


class Draws(NamedTuple):
    """One row per sample.

    Attributes:
        rotation: float32 [B], degrees.
        scale: float32 [B], factor on the box.
        flip: bool [B].
        body: int64 [B], which box of `body_boxes`: 0 the person's, 1 the lower body's, 2 the upper body's.
        color: what `fastpose.jitter_color` takes, float32 [B] each: factors of brightness, contrast and saturation, and
            turns of hue if that is on; None: colours stay as they are.
        shift: float32 [B, 2], of the box's centre in (x, y), as shares of the unscaled box's width and height; None:
            boxes stay where they are.
        erase: float32 [B, 4], width and height of the erased box as shares of the crop's, 0 where none is erased, and
            its place in (x, y), from 0, at the left and upper edge, to 1; None: nothing is erased.
    """

    rotation: Tensor
    scale: Tensor
    flip: Tensor
    body: Tensor
    color: tuple[Tensor, ...] | None = None
    shift: Tensor | None = None
    erase: Tensor | None = None

    def of(self, samples: Tensor | slice) -> Draws:
        """The draws of some of the samples, by their numbers in the batch."""
        color = self.color
        if color is not None:
            color = tuple(one[samples] for one in color)
        shift, erase = (None if one is None else one[samples] for one in (self.shift, self.erase))
        rotation, scale, flip, body = (one[samples] for one in (self.rotation, self.scale, self.flip, self.body))
        return Draws(rotation, scale, flip, body, color, shift, erase)
