# SPDX-License-Identifier: Apache-2.0
"""From what a network returns to joints: the mirror test, the maximum and the place between pixels or bins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

import fastpose
from fastpose.device import ComputeOptions
from fastpose.models.simcc import SimccVectors
from fastpose.ops.decode_heatmaps import Refinement
from fastpose.option import OptionError, option, set_on_off
from fastpose.skeletons import Skeleton


@dataclass(frozen=True)
class DecodeOptions:
    """How heatmaps, or SimCC's vectors, become joints."""

    refine: Refinement = option(
        "quarter",
        "how a maximum is moved between pixels in evaluation: none, quarter (SimpleBaselines), dark, dark_udp; between "
        "bins of SimCC's vectors: none, unless dark is asked for",
    )
    blur_kernel: int = option(
        11,
        "side of the Gaussian that dark and dark_udp smooth heatmaps with, pixels, odd; of SimCC's vectors it follows "
        "from simcc_sigma",
    )
    flip_test: bool = option(
        True, "evaluate the picture and its mirror image and average their heatmaps or SimCC's vectors"
    )
    flip_shift: Literal["auto", "on", "off"] | bool = option(
        "auto", "shift the mirror image's heatmaps by a pixel before averaging; auto: on, off under udp"
    )

    def __post_init__(self) -> None:
        set_on_off(self, "flip_shift")
        if not 1 <= self.blur_kernel <= 255 or self.blur_kernel % 2 == 0:  # 255: what decode_heatmaps takes
            raise OptionError("blur_kernel", f"expected an odd number of pixels from 1 to 255, got {self.blur_kernel}")

    def shifts(self, udp: bool) -> bool:
        """Whether the mirror image's maps are shifted. Without udp a crop's middle lies between columns: these maps are
        3/4 of a pixel off, and a pixel is the nearest that a shift can be. With udp they lie where they should."""
        return self.flip_test and (self.flip_shift == "on" or (self.flip_shift == "auto" and not udp))

    def decode(
        self,
        heatmaps: Tensor,
        flipped: Tensor | None,
        heatmap_to_image: Tensor,
        skeleton: Skeleton,
        *,
        udp: bool,
    ) -> tuple[Tensor, Tensor]:
        """Joints of B heatmaps, see `fastpose.decode_heatmaps`. `models/exported.py` has the same in torch's operators.

        Args:
            heatmaps: [B, K, h, w].
            flipped: the same of the mirror images, for the mirror test; else None.
            heatmap_to_image: float32 [B, 2, 3].
            skeleton: the K joints.
            udp: whether heatmaps are measured from first to last pixel centre.
        """
        return fastpose.decode_heatmaps(
            heatmaps,
            refine=self.refine,
            blur_kernel=self.blur_kernel,
            heatmap_to_image=heatmap_to_image,
            flipped=flipped,
            flip_pairs=None if flipped is None else skeleton.mirror_pairs,
            flip_shift=self.shifts(udp),
        )

    def decode_vectors(
        self,
        vectors: Sequence[Tensor],
        flipped: Sequence[Tensor] | None,
        crop_to_image: Tensor,
        skeleton: Skeleton,
        simcc: SimccVectors,
    ) -> tuple[Tensor, Tensor]:
        """Joints of SimCC's vectors, see `fastpose.decode_simcc`. `models/exported.py` has the same in torch's
        operators.

        Args:
            vectors: in x [B, K, Wx] and in y [B, K, Wy].
            flipped: the same of the mirror images, for the mirror test; else None.
            crop_to_image: float32 [B, 2, 3].
            skeleton: the K joints.
            simcc: what the vectors' bins are.
        """
        pred_x, pred_y = vectors
        refine: Any = self.refine  # none or dark: `settle` sees to it
        flipped_x, flipped_y = flipped if flipped is not None else (None, None)
        return fastpose.decode_simcc(
            pred_x,
            pred_y,
            split_ratio=simcc.split_ratio,
            crop_to_image=crop_to_image,
            flipped_x=flipped_x,
            flipped_y=flipped_y,
            flip_pairs=None if flipped is None else skeleton.mirror_pairs,
            refine=refine,
            sigma=simcc.sigma,
        )


class Decoder:
    """Finds joints with a network, as its options say.

    Args:
        model: images [B, 3, H, W] to heatmaps [B, K, H/4, W/4], or to SimCC's vectors.
        skeleton: its joints.
        options: see `DecodeOptions`.
        compute: the precision of the network.
        udp: whether crops and heatmaps are measured from first to last pixel centre.
        simcc: what the vectors' bins are; None if the network returns heatmaps.
    """

    def __init__(
        self,
        model: nn.Module,
        skeleton: Skeleton,
        options: DecodeOptions,
        compute: ComputeOptions,
        *,
        udp: bool = False,
        simcc: SimccVectors | None = None,
    ) -> None:
        self.model, self.skeleton, self.options, self.compute, self.udp = model, skeleton, options, compute, udp
        self.simcc = simcc

    def __call__(self, images: Tensor, heatmap_to_image: Tensor) -> tuple[Tensor, Tensor]:
        """Joints of B crops: float32 [B, K, 2] in image pixels and scores float32 [B, K].

        Args:
            images: [B, 3, H, W].
            heatmap_to_image: float32 [B, 2, 3]; for SimCC's vectors `crop_to_image`, see `PoseLoader`.
        """
        with self.compute.autocast(images.device):
            outputs = self.model(images)
            flipped = self.model(images.flip(-1)) if self.options.flip_test else None
        if self.simcc is not None:
            return self.options.decode_vectors(outputs, flipped, heatmap_to_image, self.skeleton, self.simcc)
        return self.options.decode(outputs, flipped, heatmap_to_image, self.skeleton, udp=self.udp)
