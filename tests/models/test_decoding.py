# SPDX-License-Identifier: Apache-2.0
"""A network and what makes joints of its heatmaps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastpose
from fastpose.device import ComputeOptions
from fastpose.models.decoding import DecodeOptions, Decoder
from fastpose.option import OptionError
from fastpose.skeletons import Skeleton

THREE = Skeleton("three", ("a", "b", "c"), mirror_pairs=((0, 2),), limbs=())
MATRIX = torch.tensor([[[3.0, 0.5, 7.0], [-0.5, 3.0, 1.0]]]).repeat(2, 1, 1)


class Colours(nn.Module):
    """The colours of every fourth pixel as heatmaps; keeps the images, and whether they came under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append((images, torch.is_autocast_enabled("cpu")))
        return images[:, :, ::4, ::4]


def images() -> Tensor:
    return torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("flip_test", [False, True])
@pytest.mark.parametrize("refine", ["none", "quarter", "dark"])
def test_joints_are_those_of_the_op_with_these_options(udp, flip_test, refine):
    model, options = Colours(), DecodeOptions(refine=refine, flip_test=flip_test, blur_kernel=5)
    points, scores = Decoder(model, THREE, options, ComputeOptions(), udp=udp)(images(), MATRIX)
    maps, mirrored = (pixels[:, :, ::4, ::4] for pixels in (images(), images().flip(-1)))
    expected = fastpose.decode_heatmaps(
        maps,
        heatmap_to_image=MATRIX,
        refine=refine,
        blur_kernel=5,
        flipped=mirrored if flip_test else None,
        flip_pairs=((0, 2),) if flip_test else None,
        flip_shift=flip_test and not udp,
    )
    assert torch.equal(points, expected[0])
    assert torch.equal(scores, expected[1])
    assert len(model.calls) == 1 + flip_test


@pytest.mark.parametrize("amp", ["off", "bfloat16"])
def test_the_network_runs_in_the_precision_that_the_options_say(amp):
    model = Colours()
    points, scores = Decoder(model, THREE, DecodeOptions(), ComputeOptions(amp=amp))(images(), MATRIX)
    assert [under for _, under in model.calls] == [amp == "bfloat16"] * 2
    assert points.dtype == scores.dtype == torch.float32


@pytest.mark.parametrize(
    ("flip_test", "flip_shift", "udp", "expected"),
    [
        (True, "auto", False, True),
        (True, "auto", True, False),
        (True, "on", True, True),
        (True, "off", False, False),
        (False, "on", False, False),
    ],
)
def test_the_mirror_image_s_maps_are_shifted_unless_udp_has_them_in_place(flip_test, flip_shift, udp, expected):
    assert DecodeOptions(flip_test=flip_test, flip_shift=flip_shift).shifts(udp) is expected


@pytest.mark.parametrize("side", [0, 4, 257])
def test_a_blur_kernel_is_odd_and_at_most_255(side):
    with pytest.raises(OptionError, match=f"blur_kernel: expected an odd number of pixels from 1 to 255, got {side}"):
        DecodeOptions(blur_kernel=side)
