# SPDX-License-Identifier: Apache-2.0
"""simcc_loss and decode_simcc give what mmpose's codec, loss and flip test give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mmpose.codecs import SimCCLabel
from mmpose.models.losses import KLDiscretLoss
from mmpose.models.utils.tta import flip_vectors

import fastpose
from fastpose.skeletons import COCO

SIZE = (48, 64)  # w, h
BINS = (96, 128)


def codec(sigma: tuple[float, float], **options: Any) -> SimCCLabel:
    return SimCCLabel(SIZE, sigma=sigma, simcc_split_ratio=2.0, normalize=False, **options)


def vectors(seed: int, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """What a head gives that has learned something: a peak, and noise of either sign."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([0, 0], [47, 63], (batch, 17, 2)).astype(np.float32)
    labels = codec((4.9, 5.66)).encode(points)
    pair = (labels["keypoint_x_labels"], labels["keypoint_y_labels"])
    return tuple(torch.from_numpy(label + rng.normal(0, 0.05, label.shape).astype(np.float32)) for label in pair)


@pytest.mark.parametrize("label_softmax", [False, True])
@pytest.mark.parametrize(("beta", "label_beta"), [(10.0, 10.0), (1.0, 3.0)])
@pytest.mark.parametrize("sigma", [(4.9, 5.66), (2.0, 1.0)])
def test_the_loss_and_its_gradients_are_mmposes(label_softmax, beta, label_beta, sigma):
    rng = np.random.default_rng(3)
    keypoints = rng.uniform([-20, -20], [70, 90], (4, 17, 2)).astype(np.float32)
    keypoints[0] = np.round(keypoints[0] * 4) / 4  # bins and their halves
    # Just inside and just outside of what a label of 3 sigma touches, about whole bins.
    edges = np.array([(-3 * s - 1) / 2 for s in sigma])
    keypoints[1, :6] = [[edges[0] + n / 4, 20] for n in range(-3, 3)]
    keypoints[1, 6:12] = [[20, (128 + 3 * sigma[1]) / 2 + n / 4] for n in range(-3, 3)]
    visible = rng.choice([0.0, 0.3, 0.5, 1.0], (4, 17)).astype(np.float32)
    visible[1, :12] = 1.0
    weights = rng.uniform(0.5, 2.0, 17).astype(np.float32)
    encoded = codec(sigma).encode(keypoints, visible)
    target = tuple(torch.from_numpy(encoded[f"keypoint_{axis}_labels"]) for axis in "xy")
    loss = KLDiscretLoss(beta=beta, label_softmax=label_softmax, label_beta=label_beta)
    theirs, ours = ([pred.requires_grad_() for pred in vectors(4)] for _ in range(2))
    expected = loss(theirs, target, torch.from_numpy(encoded["keypoint_weights"] * weights)) / 4
    mine = fastpose.simcc_loss(
        *ours,
        torch.from_numpy(keypoints),
        torch.from_numpy(visible),
        sigma=sigma,
        beta=beta,
        label_beta=label_beta,
        label_softmax=label_softmax,
        joint_weights=torch.from_numpy(weights),
    )
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=0)
    assert 0 < (encoded["keypoint_weights"] == 0).sum() < 50
    expected.backward()
    mine.backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-8)


def test_keypoints_that_are_not_finite_are_nowhere_as_in_mmpose():
    keypoints = np.array([[[np.nan, 3], [3, np.inf], [-np.inf, 3], [20, 30]]], np.float32)
    visible = np.ones((1, 4), np.float32)
    with np.errstate(invalid="ignore"):
        encoded = codec((4.9, 5.66)).encode(keypoints, visible)
    assert encoded["keypoint_weights"].tolist() == [[0, 0, 0, 1]]
    pred_x, pred_y = (pred[:1, :4] for pred in vectors(5))
    target = tuple(torch.from_numpy(encoded[f"keypoint_{axis}_labels"]) for axis in "xy")
    loss = KLDiscretLoss(beta=10.0, label_softmax=True, label_beta=10.0)
    expected = loss((pred_x, pred_y), target, torch.from_numpy(encoded["keypoint_weights"]))
    mine = fastpose.simcc_loss(pred_x, pred_y, torch.from_numpy(keypoints), torch.from_numpy(visible))
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_points_and_scores_are_mmposes(dark, seed):
    pair = vectors(seed)
    found = fastpose.decode_simcc(*pair, refine="dark" if dark else "none")
    expected = codec((4.9, 5.66), use_dark=dark).decode(*(pred.numpy().copy() for pred in pair))
    # mmpose blurs and divides in float32: the longer the step, that is the nearer a maximum to an end, the less exact.
    steps = np.abs(np.asarray(found[0]) - np.asarray(fastpose.decode_simcc(*pair)[0]))
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=5e-3 if dark else 1e-5)
    np.testing.assert_allclose(found[0][steps < 0.5], expected[0][steps < 0.5], rtol=0, atol=1e-5)
    assert (steps < 0.5).mean() > 0.5
    np.testing.assert_array_equal(found[1], expected[1])
    assert (found[0] * 2 % 1 != 0).any() == dark


def test_ties_vectors_without_a_positive_value_and_ends_are_mmposes():
    generator = torch.Generator().manual_seed(0)
    pred_x, pred_y = (torch.randint(-2, 3, (6, 17, bins), generator=generator) / 4 for bins in (9, 11))
    pred_x[0, :8], pred_y[0, 4:12] = -pred_x[0, :8].abs() - 0.25, -pred_y[0, 4:12].abs()
    pred_x[1, 0, 0], pred_x[1, 1, -1], pred_y[1, 2, 0], pred_y[1, 3, -1] = 2, 2, 2, 2
    found = fastpose.decode_simcc(pred_x, pred_y)
    expected = codec((4.9, 5.66)).decode(pred_x.numpy().copy(), pred_y.numpy().copy())
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found[1], expected[1])
    assert (expected[0][0, :12] == -0.5).all()


def test_points_without_a_score_are_not_refined_as_in_mmpose():
    """Where all is 0 mmpose divides 0 by 0, and its point is NaN."""
    pred_x, pred_y = vectors(8)
    pred_x, zeros = -pred_x.abs() - 0.1, torch.zeros_like(pred_x)
    found = fastpose.decode_simcc(pred_x, pred_y, refine="dark")
    expected = codec((4.9, 5.66), use_dark=True).decode(pred_x.numpy().copy(), pred_y.numpy().copy())
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5)
    assert (found[0] == -0.5).all()
    with np.errstate(invalid="ignore"):
        expected = codec((4.9, 5.66), use_dark=True).decode(zeros.numpy(), torch.zeros_like(pred_y).numpy())
    assert np.isnan(expected[0]).all()
    assert (fastpose.decode_simcc(zeros, torch.zeros_like(pred_y), refine="dark")[0] == -0.5).all()


def test_the_mirror_test_is_mmposes():
    pair, mirrored = vectors(6), vectors(7)
    order = np.arange(17)
    for left, right in COCO.mirror_pairs:
        order[[left, right]] = right, left
    back = flip_vectors(*mirrored, flip_indices=order.tolist())
    expected = codec((4.9, 5.66)).decode(*(((a + b) * 0.5).numpy() for a, b in zip(pair, back, strict=True)))
    found = fastpose.decode_simcc(*pair, flipped_x=mirrored[0], flipped_y=mirrored[1], flip_pairs=COCO.mirror_pairs)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found[1], expected[1])
