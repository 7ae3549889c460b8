# SPDX-License-Identifier: Apache-2.0
"""The PCKh that a perfect network would reach: annotations encoded as heatmaps and decoded again.

    python -m bench.representation_ceiling ANNOT/valid.json ANNOT/gt_valid.mat

What is missing to 100 is the loss of the representation: rounding to heatmap pixels, and joints outside the crop.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import fastpose
from fastpose.data.annotation_rows import mpii_box
from fastpose.data.mpii import read_ground_truth
from fastpose.metrics import pckh
from fastpose.ops.decode_heatmaps import REFINEMENTS
from fastpose.ops.render_heatmaps import ENCODINGS


class Row(NamedTuple):
    encoding: str
    refine: str
    udp: bool
    scores: dict[str, float]


def decoded(
    keypoints: torch.Tensor,
    visible: torch.Tensor,
    heatmap_to_image: torch.Tensor,
    size: tuple[int, int],
    *,
    sigma: float,
    encoding: str,
    refine: str,
) -> NDArray[np.float32]:
    """Image points [N, K, 2] to heatmaps of `size` and back."""
    on_map = fastpose.transform_points(keypoints, heatmap_to_image, inverse=True)
    heatmaps, _ = fastpose.render_heatmaps(on_map, visible, size, sigma=sigma, encoding=encoding)
    return fastpose.decode_heatmaps(heatmaps, refine=refine, heatmap_to_image=heatmap_to_image)[0].numpy()


def ceilings(
    annotations: Path, ground_truth: Path, *, size: tuple[int, int] = (64, 64), sigma: float = 1.0
) -> Iterator[Row]:
    """One row per encoding and refinement, over all persons of a community-format annotation file."""
    truth = read_ground_truth(ground_truth)
    boxes = [mpii_box(np.array(record["center"]), record["scale"]) for record in json.loads(annotations.read_text())]
    center = torch.tensor(np.array([box[0] for box in boxes]), dtype=torch.float32)
    scale = torch.tensor([box[1] for box in boxes], dtype=torch.float32)
    keypoints, visible = torch.from_numpy(truth.keypoints), torch.from_numpy(truth.visible).float()
    for encoding in ENCODINGS:
        matrix = fastpose.crop_to_image_matrix(center, scale, 0.0, size, udp=encoding == "udp")
        for refine in REFINEMENTS:
            points = decoded(keypoints, visible, matrix, size, sigma=sigma, encoding=encoding, refine=refine)
            scores = pckh(points, truth.keypoints, truth.visible, truth.head_size)
            yield Row(encoding, refine, encoding == "udp", scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="valid.json of the community format")
    parser.add_argument("ground_truth", type=Path, help="gt_valid.mat with its head boxes")
    parser.add_argument("--size", type=int, default=64, help="side of the heatmap, pixels (default: 64)")
    parser.add_argument("--sigma", type=float, default=1.0, help="of the Gaussian, heatmap pixels (default: 1)")
    arguments = parser.parse_args()
    print(f"heatmaps {arguments.size} x {arguments.size}, sigma {arguments.sigma}")
    print(f"{'encoding':10}{'refine':10}{'PCKh@0.5':>10}{'@0.1':>8}{'@0.11':>8}")
    size = (arguments.size, arguments.size)
    for row in ceilings(arguments.annotations, arguments.ground_truth, size=size, sigma=arguments.sigma):
        s = row.scores
        print(f"{row.encoding:10}{row.refine:10}{s['Mean']:10.2f}{s['Mean@0.1']:8.2f}{s['Mean@0.11']:8.2f}")


if __name__ == "__main__":
    main()
