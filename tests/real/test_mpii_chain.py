# SPDX-License-Identifier: Apache-2.0
"""All 2,958 MPII validation persons through annotation, matrix, augmentation, evaluation, and through the heatmaps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fastpose
from bench.representation_ceiling import ceilings
from fastpose.data.annotation_rows import mpii_box
from fastpose.data.mpii import read_ground_truth
from fastpose.metrics import pckh_from_mat
from fastpose.skeletons import MPII


@pytest.fixture(scope="module")
def boxes(real_data: Path) -> tuple[Tensor, Tensor]:
    records = json.loads((real_data / "mpii/annot/valid.json").read_text())
    rows = [mpii_box(np.array(record["center"]), record["scale"]) for record in records]
    center = torch.tensor(np.array([center for center, _ in rows]), dtype=torch.float32)
    return center, torch.tensor([scale for _, scale in rows], dtype=torch.float32)


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("augmented", [False, True])
def test_ground_truth_in_gives_pckh_100_and_comes_back(
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


def test_ceiling_of_each_encoding_and_refinement(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Encoded and decoded, the annotations lose what rounding and the crop's border cost, and no more.

    Bounds: a 64 x 64 map of a box 200 px per unit of scale rounds by up to half a map pixel, mostly well under half a
    head; of the 38,430 counted joints 0.14 % lie outside the crop. Only sub-pixel encodings let the quarter pixel help.
    """
    annot = real_data / "mpii/annot"
    table = {(row.encoding, row.refine): row.scores for row in ceilings(annot / "valid.json", annot / "gt_valid.mat")}
    with capsys.disabled():
        for (encoding, refine), scores in table.items():
            print(f"\n  ceiling {encoding:9} {refine:8} {scores['Mean']:7.2f} @0.1 {scores['Mean@0.1']:6.2f}", end="")
    assert len(table) == 6
    for scores in table.values():
        assert scores["Mean"] > 99.8
        assert scores["Mean@0.1"] > 97.0
    for encoding in ("unbiased", "udp"):
        assert table[encoding, "quarter"]["Mean@0.1"] > table[encoding, "none"]["Mean@0.1"] + 1.5
    # A symmetric stamp centred on a pixel has equal neighbours: there is nothing for the quarter pixel to go by.
    assert table["msra", "quarter"] == table["msra", "none"]
