# SPDX-License-Identifier: Apache-2.0
"""Whole bodies: 133 and 308 joints on maps of 256 × 192, sigma 6, as Sapiens2 has them: 60.6 MB per sample of 308."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastpose
from fastpose import reference
from tests.helpers.ops import assert_decoded, random_points

SIZE, SIGMA = (256, 192), 6.0
UDP = {"sigma": SIGMA, "encoding": "udp"}


def persons(batch: int, joints: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Joints [B, K, 2] on the maps and around them, and which of them are annotated [B, K]."""
    points, visible = random_points(batch, joints, SIZE)
    return points.to(device), visible.to(device)


@pytest.mark.parametrize("joints", [133, 308])
def test_targets_are_those_of_the_reference(device: torch.device, joints: int) -> None:
    points, visible = persons(2, joints, device)
    maps, weights = fastpose.render_heatmaps(points, visible, SIZE, **UDP)
    expected, expected_weights = reference.render_heatmaps(points.cpu(), visible.cpu(), SIZE, **UDP)
    assert maps.nbytes == 2 * joints * 196_608
    torch.testing.assert_close(maps.cpu(), torch.from_numpy(expected), atol=1e-6, rtol=0.0)
    assert torch.equal(weights.cpu(), torch.from_numpy(expected_weights))


@pytest.mark.parametrize("joints", [133, 308])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_loss_and_gradient_are_those_of_a_stored_target(
    device: torch.device, joints: int, layout: torch.memory_format
) -> None:
    points, visible = persons(2, joints, device)
    target, weights = fastpose.render_heatmaps(points, visible, SIZE, **UDP)
    for dtype, rtol in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        pred = torch.randn(target.shape, generator=torch.Generator().manual_seed(joints)).mul(0.1).to(device, dtype)
        pred = pred.contiguous(memory_format=layout).requires_grad_()
        loss = fastpose.heatmap_mse_loss(pred, points, visible, missing="ignore", **UDP)
        difference = pred.detach().float() - target
        weighted = weights[..., None, None] * difference
        assert loss.item() == pytest.approx(0.5 * (weighted * difference).double().mean().item(), rel=1e-5)
        (gradient,) = torch.autograd.grad(loss * target.numel(), pred)
        assert gradient.stride() == pred.stride()
        torch.testing.assert_close(gradient.float(), weighted, atol=1e-6, rtol=rtol)


@pytest.mark.parametrize("joints", [133, 308])
@pytest.mark.parametrize("refine", ["quarter", "dark", "dark_udp"])
def test_points_are_those_of_the_reference_and_come_back(device: torch.device, joints: int, refine: str) -> None:
    points, visible = persons(2, joints, device)
    encoding = {"quarter": "msra", "dark": "unbiased", "dark_udp": "udp"}[refine]
    maps, weights = fastpose.render_heatmaps(points, visible, SIZE, sigma=SIGMA, encoding=encoding)
    decoded = fastpose.decode_heatmaps(maps, refine=refine)
    assert_decoded(decoded, maps, refine=refine)
    # Well inside the map DARK finds what was drawn; a pixel's centre and a quarter are as near as quarter comes.
    inside = (weights > 0.5) & (points > 3 * SIGMA).all(2)
    inside &= (points < torch.tensor(SIZE[::-1], device=device) - 3 * SIGMA).all(2)
    assert inside.sum() > joints / 2
    apart = (decoded[0] - points)[inside].abs().max().item()
    assert apart < (0.76 if refine == "quarter" else 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [8, 64])
def test_a_sample_of_a_large_batch_is_what_it_is_alone(device: torch.device, batch: int) -> None:
    """Offsets of 64 samples in bfloat16 go up to 1.9 billion bytes; what the last one gets shows one that wraps."""
    joints = 308
    points, visible = persons(batch, joints, device)
    shape = (batch, joints, *SIZE)
    pred = torch.empty(shape, dtype=torch.bfloat16, device=device).uniform_(-0.1, 1.0).requires_grad_()
    loss = fastpose.heatmap_mse_loss(pred, points, visible, **UDP)
    (gradient,) = torch.autograd.grad(loss * pred.numel(), pred)
    points_found, scores = fastpose.decode_heatmaps(pred.detach())
    losses = []
    for n in range(batch):
        one = pred.detach()[n : n + 1].requires_grad_()
        alone = fastpose.heatmap_mse_loss(one, points[n : n + 1], visible[n : n + 1], **UDP)
        losses.append(alone.item())
        if n in (0, batch // 2, batch - 1):
            (expected,) = torch.autograd.grad(alone * one.numel(), one)
            torch.testing.assert_close(gradient[n : n + 1], expected, atol=0.0, rtol=0.008)
            found, score = fastpose.decode_heatmaps(one.detach())
            assert torch.equal(found[0], points_found[n])
            assert torch.equal(score[0], scores[n])
    assert loss.item() == pytest.approx(sum(losses) / batch, rel=1e-5)
