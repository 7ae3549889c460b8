# SPDX-License-Identifier: Apache-2.0
"""The PCKh that a perfect network would reach: annotations encoded as heatmaps and decoded again.

    python -m bench.representation_ceiling ANNOT/valid.json ANNOT/gt_valid.mat

What is missing to 100 is the loss of the representation: rounding to heatmap pixels, and joints outside the crop. Boxes
are the annotated ones, upright; under the encoding `udp` matrices are UDP's, too. `error` is the median distance of a
decoded joint from its annotation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import fastpose
from fastpose.data.boxes import mpii_box
from fastpose.data.mpii import read_ground_truth
from fastpose.metrics import pckh
from fastpose.ops.decode_heatmaps import REFINEMENTS
from fastpose.ops.render_heatmaps import ENCODINGS

SOFT_ARGMAX = "soft_argmax"  # stands beside the refinements, in place of the maximum
PERSONS = 256  # rendered and decoded at once: 67 MB of 64 x 64 maps


class Row(NamedTuple):
    encoding: str
    refine: str
    udp: bool
    scores: dict[str, float]
    error: float  # heatmap pixels


def ceilings(
    annotations: Path,
    ground_truth: Path,
    *,
    size: tuple[int, int] = (64, 64),
    sigma: float = 1.0,
    blur_kernel: int = 11,
    beta: float = 30.0,
    noise: float = 0.0,
) -> Iterator[Row]:
    """One row per encoding and refinement, over all persons of a community-format annotation file."""
    truth = read_ground_truth(ground_truth)
    boxes = [mpii_box(np.array(record["center"]), record["scale"]) for record in json.loads(annotations.read_text())]
    center = torch.tensor(np.array([box[0] for box in boxes]), dtype=torch.float32)
    scale = torch.tensor([box[1] for box in boxes], dtype=torch.float32)
    keypoints, visible = torch.from_numpy(truth.keypoints), torch.from_numpy(truth.visible).float()
    generator = torch.Generator().manual_seed(0)
    for encoding in ENCODINGS:
        matrix = fastpose.crop_to_image_matrix(center, scale, 0.0, size, udp=encoding == "udp")
        decoded: dict[str, list[Tensor]] = {refine: [] for refine in (*REFINEMENTS, SOFT_ARGMAX)}
        for some in torch.arange(len(center)).split(PERSONS):
            on_map = fastpose.transform_points(keypoints[some], matrix[some], inverse=True)
            maps, _ = fastpose.render_heatmaps(on_map, visible[some], size, sigma=sigma, encoding=encoding)
            if noise:
                maps += noise * torch.randn(maps.shape, generator=generator)
            for refine in REFINEMENTS:
                points, _ = fastpose.decode_heatmaps(
                    maps, refine=refine, heatmap_to_image=matrix[some], blur_kernel=blur_kernel
                )
                decoded[refine].append(points)
            decoded[SOFT_ARGMAX].append(fastpose.soft_argmax(maps, beta=beta, heatmap_to_image=matrix[some])[0])
        for refine, parts in decoded.items():
            points = torch.cat(parts)
            scores = pckh(points.numpy(), truth.keypoints, truth.visible, truth.head_size)
            distance = (points - keypoints).norm(dim=2) / matrix[:, :, 0].norm(dim=1, keepdim=True)
            yield Row(encoding, refine, encoding == "udp", scores, float(distance[visible > 0.5].median()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="valid.json of the community format")
    parser.add_argument("ground_truth", type=Path, help="gt_valid.mat with its head boxes")
    parser.add_argument("--size", type=int, default=64, help="side of the heatmap, pixels (default: 64)")
    parser.add_argument("--sigma", type=float, default=1.0, help="of the Gaussian, heatmap pixels (default: 1)")
    parser.add_argument("--blur_kernel", type=int, default=11, help="of dark and dark_udp, pixels (default: 11)")
    parser.add_argument("--beta", type=float, default=30.0, help="of soft_argmax (default: 30)")
    parser.add_argument("--noise", type=float, default=0.0, help="deviation of noise added to the maps (default: 0)")
    arguments = parser.parse_args()
    size, sigma, blur_kernel, beta = arguments.size, arguments.sigma, arguments.blur_kernel, arguments.beta
    print(f"heatmaps {size} x {size}, sigma {sigma}, blur_kernel {blur_kernel}, beta {beta}, noise {arguments.noise}")
    print(f"{'encoding':10}{'refine':13}{'PCKh@0.5':>10}{'@0.1':>8}{'@0.11':>8}{'error, map px':>15}")
    for row in ceilings(
        arguments.annotations,
        arguments.ground_truth,
        size=(size, size),
        sigma=sigma,
        blur_kernel=blur_kernel,
        beta=beta,
        noise=arguments.noise,
    ):
        s = row.scores
        print(
            f"{row.encoding:10}{row.refine:13}{s['Mean']:10.2f}{s['Mean@0.1']:8.2f}{s['Mean@0.11']:8.2f}{row.error:15.4f}"
        )


if __name__ == "__main__":
    main()
