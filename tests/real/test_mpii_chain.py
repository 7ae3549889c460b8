# SPDX-License-Identifier: Apache-2.0
"""All 2,958 MPII validation persons through annotation, matrix, augmentation, evaluation, and through the heatmaps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastpose
from fastpose.data.boxes import mpii_box
from fastpose.data.mpii import pckh_from_mat, read_ground_truth
from fastpose.skeletons import MPII
from studies.representation_ceiling import ceilings


@pytest.fixture(scope="module")
def boxes(real_data: Path) -> tuple[Tensor, Tensor]:
    records = json.loads((real_data / "mpii/annot/valid.json").read_text())
    rows = [mpii_box(np.array(record["center"]), record["scale"]) for record in records]
    center = torch.tensor(np.array([center for center, _ in rows]), dtype=torch.float32)
    return center, torch.tensor([scale for _, scale in rows], dtype=torch.float32)


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("augmented", [False, True])
def test_ground_truth_through_the_matrices_and_back_gives_pckh_100(
    real_data: Path, boxes: tuple[Tensor, Tensor], device: torch.device, udp: bool, augmented: bool
) -> None:
    mat = real_data / "mpii/annot/gt_valid.mat"
    truth = read_ground_truth(mat)
    center, scale = (t.to(device) for t in boxes)
    count = len(center)
    generator = torch.Generator().manual_seed(0)
    rotation, flip = torch.zeros(count), torch.zeros(count, dtype=torch.bool)
    if augmented:
        rotation = torch.rand(count, generator=generator) * 60 - 30
        flip = torch.rand(count, generator=generator) < 0.5
        scale = scale * (0.75 + 0.5 * torch.rand(count, generator=generator).to(device))
    rotation, flip = rotation.to(device), flip.to(device)
    matrix = fastpose.crop_to_image_matrix(center, scale, rotation, (64, 64), flip=flip, udp=udp)

    keypoints, visible = (torch.from_numpy(a).to(device).float() for a in (truth.keypoints, truth.visible))
    on_map = fastpose.transform_points(keypoints, matrix, inverse=True)
    on_map, flags = fastpose.swap_pairs(on_map, visible, flip, MPII.mirror_pairs)
    back, flags = fastpose.swap_pairs(on_map, flags, flip, MPII.mirror_pairs)
    points = fastpose.transform_points(back, matrix)

    assert torch.equal(flags, visible)
    assert float((points - keypoints).norm(dim=2).max()) < 1e-3
    scores = pckh_from_mat(points.cpu().numpy(), mat)
    assert set(scores) == {
        *("Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle"),
        *("Mean", "Mean@0.1", "Mean@0.11"),
    }
    assert set(scores.values()) == {100.0}


@pytest.mark.parametrize("size", [(64, 64), (64, 48)])
def test_with_udp_ground_truth_survives_its_heatmaps(
    real_data: Path, boxes: tuple[Tensor, Tensor], device: torch.device, size: tuple[int, int]
) -> None:
    """Annotation, augmented matrix, udp heatmap, decoding, and back: off by no more than a quarter of a heatmap pixel
    in x and in y, which is all that the quarter offset leaves of half a pixel. The mirror image's heatmaps, as the crop
    with its columns in reverse gives them, lie on the picture's without a shift: with them the points are the same."""
    truth = read_ground_truth(real_data / "mpii/annot/gt_valid.mat")
    center, scale = (t.to(device) for t in boxes)
    count, (height, width) = len(center), size
    generator = torch.Generator().manual_seed(0)
    rotation = (torch.rand(count, generator=generator) * 60 - 30).to(device)
    flip = (torch.rand(count, generator=generator) < 0.5).to(device)
    scales = torch.stack([scale, scale * height / width], dim=1)
    matrix = fastpose.crop_to_image_matrix(center, scales, rotation, size, flip=flip, udp=True)
    keypoints, visible = (torch.from_numpy(a).to(device).float() for a in (truth.keypoints, truth.visible))
    on_map = fastpose.transform_points(keypoints, matrix, inverse=True)
    on_map, seen = fastpose.swap_pairs(on_map, visible, flip, MPII.mirror_pairs)
    mirrored = torch.stack([width - 1 - on_map[..., 0], on_map[..., 1]], dim=2)
    mirrored, mirrored_seen = fastpose.swap_pairs(mirrored, seen, torch.ones_like(flip), MPII.mirror_pairs)
    maps, other = (
        fastpose.render_heatmaps(points, flags, size, sigma=2.0, encoding="udp")[0]
        for points, flags in ((on_map, seen), (mirrored, mirrored_seen))
    )
    places = torch.tensor([width, height], device=device)
    # Where the quarter offset moves maxima at all, and where joints are in the crop.
    inside = (seen > 0.5) & (on_map > 1.6).all(dim=2) & (on_map < places - 2.6).all(dim=2)
    assert inside.sum() > 0.95 * seen.sum()
    with_mirror: dict[str, Any] = {"flipped": other, "flip_pairs": MPII.mirror_pairs}
    for options in ({}, with_mirror):
        points, _ = fastpose.decode_heatmaps(maps, **options)
        assert float((points - on_map).abs()[inside].max()) < 0.25 + 1e-3
        points, _ = fastpose.decode_heatmaps(maps, heatmap_to_image=matrix, **options)
        points, back_inside = fastpose.swap_pairs(points, inside.float(), flip, MPII.mirror_pairs)
        step = (200 * scales / (places - 1)).amax(dim=1)[:, None]  # image pixels to a heatmap pixel
        off = (points - keypoints).norm(dim=2) / step
        assert float(off[back_inside > 0.5].max()) < 0.25 * 2**0.5 + 2e-3


def test_ceiling_of_each_encoding_and_refinement(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Encoded and decoded, the annotations lose what rounding and the crop's border cost, and no more.

    Bounds: a 64 x 64 map of a box 200 px per unit of scale rounds by up to half a map pixel, mostly well under half a
    head; of the 38,430 counted joints 0.14 % lie outside the crop. Only sub-pixel encodings have something to refine.
    """
    annot = real_data / "mpii/annot"
    table = {(row.encoding, row.refine): row for row in ceilings(annot / "valid.json", annot / "gt_valid.mat")}
    with capsys.disabled():
        for (encoding, refine), row in table.items():
            mean, strict = row.scores["Mean"], row.scores["Mean@0.1"]
            print(f"\n  ceiling {encoding:9} {refine:12} {mean:7.2f} @0.1 {strict:6.2f} {row.error:8.4f} px", end="")
    assert len(table) == 3 * 5
    for (_, refine), row in table.items():
        # Joints beyond the crop leave low peaks at its border, or none; soft_argmax weighs the background against them.
        assert row.scores["Mean"] > (99.6 if refine == "soft_argmax" else 99.8)
        assert row.scores["Mean@0.1"] > 97.0
    for encoding in ("unbiased", "udp"):
        assert table[encoding, "quarter"].scores["Mean@0.1"] > table[encoding, "none"].scores["Mean@0.1"] + 1.5
        assert table[encoding, "quarter"].error < 0.21 < 0.39 < table[encoding, "none"].error
        for refine in ("dark", "dark_udp"):
            assert table[encoding, refine].scores["Mean@0.1"] > table[encoding, "quarter"].scores["Mean@0.1"] - 0.1
            assert table[encoding, refine].error < 0.001
    # A symmetric stamp centred on a pixel has equal neighbours: there is nothing for the quarter pixel to go by.
    assert table["msra", "quarter"][3:] == table["msra", "none"][3:]
