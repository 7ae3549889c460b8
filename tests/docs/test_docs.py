# SPDX-License-Identifier: Apache-2.0
"""What docs/other_loops.md shows runs as it stands there, and gives what it says."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import torch

import fastpose
from fastpose.data.mpii import read_mpii
from fastpose.skeletons import MPII
from tests.helpers import upstream
from tests.helpers.tiny_mpii import write_tiny_mpii

TEXT = (Path(__file__).parents[2] / "docs" / "other_loops.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
NAMED = {found[1]: block for block in BLOCKS if (found := re.match(r"# (\w+)\.py\n", block))}


def load(name: str, folder: Path) -> ModuleType:
    """The code of the block that begins with the comment `# NAME.py`, as a module."""
    path = folder / f"{name}.py"
    path.write_text(NAMED[name], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 16, 4, stride=4)


class Oracle(torch.nn.Module):
    """Says what the joints' heatmaps are, whatever the crops."""

    def __init__(self, on_map: np.ndarray, size: tuple[int, int]) -> None:
        super().__init__()
        points = torch.from_numpy(on_map.astype(np.float32))
        self.maps = fastpose.render_heatmaps(points, torch.ones(points.shape[:2]), size, sigma=2.0)[0]

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return self.maps


def through(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def test_the_plain_loop_trains_and_finds_the_joints(tmp_path):
    loop = load("plain_loop", tmp_path)
    persons = read_mpii(write_tiny_mpii(tmp_path / "mpii", persons=3) / "annot/train.json", tmp_path / "mpii/images")
    rows = [
        (persons.image_paths[persons.image_index[n]], persons.center[n], persons.scale[n, 0], *both)
        for n, both in enumerate(zip(persons.keypoints, persons.visible, strict=True))
    ]
    net = small_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = [loop.train_one_epoch(net, optimizer, rows, "cpu", 3, workers=0) for _ in range(6)]
    assert losses[-1] < losses[0]
    matrices = [
        upstream.image_to_crop(center, scale, 0, 64, 64)
        for center, scale in zip(persons.center, persons.scale, strict=True)
    ]
    on_map = np.stack([through(m, points) for m, points in zip(matrices, persons.keypoints, strict=True)])
    found, scores = loop.find_joints(Oracle(on_map, (64, 64)), rows, "cpu", workers=0)
    pixel = 200 * persons.scale[0, 0] / 64
    assert np.abs(found.numpy() - persons.keypoints).max() <= 0.76 * pixel  # half a map pixel, and the quarter
    assert scores.shape == (3, 16)
    assert (scores == 1).all()


def joints_dataset(root: Path) -> SimpleNamespace:
    """What the snippet uses of SimpleBaselines' MPIIDataset."""
    db = []
    for row in json.loads((root / "annot/train.json").read_text()):
        scale = np.array([row["scale"]] * 2)
        joints, visible = np.zeros((2, 16, 3))
        # Between pixels, so that no joint lies in the middle of two map pixels, where rounding would decide.
        joints[:, :2] = np.array(row["joints"]) - 0.7
        visible[:, :2] = np.array(row["joints_vis"])[:, None]
        center = np.array(row["center"]) - 1
        center[1] += 15 * scale[1]
        db.append(
            {
                "image": str(root / "images" / row["image"]),
                "center": center,
                "scale": scale * 1.25,
                "joints_3d": joints,
                "joints_3d_vis": visible,
            }
        )
    sizes = {"image_size": np.array([64, 96]), "heatmap_size": np.array([16, 24])}
    return SimpleNamespace(
        db=db, sigma=2, flip_pairs=MPII.mirror_pairs, scale_factor=0.25, rotation_factor=30, flip=True, **sizes
    )


def test_simple_baselines_crops_targets_and_predictions_are_theirs(tmp_path):
    loop = load("fastpose_batches", tmp_path)
    dataset = joints_dataset(write_tiny_mpii(tmp_path / "mpii", persons=4))
    batch = loop.collate([loop.Records(dataset)[n] for n in range(4)])
    crops, joints, visible, _ = loop.prepare(batch, dataset, "cpu", training=False)
    mean, std = np.array(fastpose.IMAGENET_MEAN), np.array(fastpose.IMAGENET_STD)
    targets, weights = [], []
    for n, record in enumerate(dataset.db):
        matrix = upstream.image_to_crop(record["center"], record["scale"], 0, 64, 96)
        crop = cv2.warpAffine(cv2.imread(record["image"]), matrix, (64, 96), flags=cv2.INTER_LINEAR)
        levels = (crops[n].permute(1, 2, 0).numpy() * std + mean) * 255
        # OpenCV rounds to whole grey levels, and places taps on a grid of 1/32 pixel in its older versions.
        assert np.abs(levels - crop).mean() < 0.5
        points = through(matrix, record["joints_3d"][:, :2]) / 4
        np.testing.assert_allclose(joints[n], points, atol=1e-3)
        made = upstream.target(points, record["joints_3d_vis"][:, 0], 16, 24, 2)
        targets.append(made[0])
        weights.append(made[1])
    target, weight = fastpose.render_heatmaps(joints, visible, (24, 16), sigma=2.0)
    np.testing.assert_allclose(target, targets, atol=1e-6)
    np.testing.assert_array_equal(weight, weights)

    net = small_net()
    all_preds = loop.validate(dataset, net, "cpu", batch_size=3, workers=1)
    with torch.no_grad():
        maps, mirrored = net(crops).numpy(), net(crops.flip(3)).numpy()
    maps = (maps + upstream.un_mirror(mirrored, MPII.mirror_pairs, True)) * 0.5
    points, scores = upstream.quarter_offset(maps)
    for n, record in enumerate(dataset.db):
        back = cv2.invertAffineTransform(upstream.image_to_crop(record["center"], record["scale"], 0, 16, 24))
        np.testing.assert_allclose(all_preds[n, :, :2], through(back, points[n]), atol=1e-2)
    np.testing.assert_allclose(all_preds[..., 2], scores, atol=1e-5)

    before = [parameter.detach().clone() for parameter in net.parameters()]
    loop.train(dataset, net, torch.optim.Adam(net.parameters(), lr=1e-3), "cpu", workers=0)
    assert all((now != then).any() and now.isfinite().all() for now, then in zip(net.parameters(), before, strict=True))


def test_simple_baselines_augmentation_is_drawn_as_theirs(tmp_path):
    loop = load("fastpose_batches", tmp_path)
    dataset = joints_dataset(write_tiny_mpii(tmp_path / "mpii", persons=1))
    images, *columns = loop.collate([loop.Records(dataset)[0]])
    many = [column.expand(1000, *column.shape[1:]).contiguous() for column in columns]
    torch.manual_seed(0)
    _, joints, visible, map_to_image = loop.prepare((images, *many), dataset, "cpu", training=True)
    mirrored = torch.linalg.det(map_to_image[:, :, :2]) < 0
    assert 400 < int(mirrored.sum()) < 600
    points, seen = fastpose.swap_pairs(
        fastpose.transform_points(joints, map_to_image), visible, mirrored, MPII.mirror_pairs
    )
    torch.testing.assert_close(points, many[2], atol=1e-2, rtol=0)
    torch.testing.assert_close(seen, many[3])
    # The matrix is rotation times scale: its second column is (-sin, cos), mirroring negates the first row.
    x, y = map_to_image[:, 0, 1] * torch.where(mirrored, -1, 1), map_to_image[:, 1, 1]
    angle, scale = torch.rad2deg(torch.atan2(-x, y)), torch.hypot(x, y) * 16 / (200 * many[1][0, 0])
    assert 0.74 < float(scale.min()) < float(scale.max()) < 1.26
    assert 300 < int((angle.abs() < 1e-3).sum()) < 500
    assert 45 < float(angle.abs().max()) < 60.01
