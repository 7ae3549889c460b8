# SPDX-License-Identifier: Apache-2.0
"""heatmap_mse_loss gives what mmpose's losses give against a stored target."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmpose.codecs import MSRAHeatmap
from mmpose.models.losses import KeypointMSELoss, KeypointOHKMMSELoss

import fastpose


@pytest.mark.parametrize("hard_joints", [None, 1, 8, 17])
def test_the_loss_and_its_gradient_are_half_of_mmposes(hard_joints):
    """mmpose's hard loss weighs prediction and target each, and so squares its weights; its plain loss does not."""
    rng = np.random.default_rng(0)
    keypoints = rng.uniform([-20, -20], [210, 280], (4, 17, 2)).astype(np.float32)
    visible = rng.choice([0.0, 1.0], (4, 17), p=[0.2, 0.8]).astype(np.float32)
    codec = MSRAHeatmap(input_size=(192, 256), heatmap_size=(48, 64), sigma=2)
    encoded = [codec.encode(keypoints[n : n + 1], visible[n : n + 1]) for n in range(4)]
    target = torch.from_numpy(np.stack([one["heatmaps"] for one in encoded]))
    weights = torch.from_numpy(np.concatenate([one["keypoint_weights"] for one in encoded]))
    joint_weights = torch.from_numpy(rng.uniform(0.5, 1.5, 17).astype(np.float32))
    pred = target + torch.from_numpy(rng.normal(0, 0.2, target.shape).astype(np.float32))
    theirs, ours = (pred.clone().requires_grad_() for _ in range(2))
    plain, hard = KeypointMSELoss, KeypointOHKMMSELoss
    loss = plain(use_target_weight=True) if hard_joints is None else hard(use_target_weight=True, topk=hard_joints)
    expected = loss(theirs, target, weights * joint_weights)
    mine = fastpose.heatmap_mse_loss(
        ours,
        torch.from_numpy(keypoints) / 4,
        torch.from_numpy(visible),
        sigma=2,
        missing="ignore",
        joint_weights=joint_weights if hard_joints is None else joint_weights**2,
        hard_joints=hard_joints,
    )
    torch.testing.assert_close(2 * mine, expected, rtol=1e-5, atol=0)
    expected.backward()
    (2 * mine).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-9)
    assert 0 < (weights == 0).sum() < 30
