# SPDX-License-Identifier: Apache-2.0
"""heatmap_mse_loss: the reference, gradcheck, SimpleBaselines' loss, scaled half precision, strides, hard joints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastpose
from fastpose import reference
from tests.helpers import upstream
from tests.helpers.ops import random_points

ENCODINGS = ["msra", "unbiased", "udp"]


def batch_of(
    device: torch.device, size: tuple[int, int] = (13, 18), joints: int = 5, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    points, visible = random_points(3, joints, size, seed)
    pred = torch.randn(3, joints, *size, generator=torch.Generator().manual_seed(seed)) * 0.3
    return pred.to(device), points.to(device), visible.to(device)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("missing", ["zeros", "ignore"])
@pytest.mark.parametrize("weights", [None, (5,), (3, 5)])
def test_matches_reference(device: torch.device, encoding: str, missing: str, weights: tuple[int, ...] | None) -> None:
    pred, points, visible = batch_of(device)
    joint_weights = None if weights is None else torch.rand(*weights, generator=torch.Generator().manual_seed(3))
    options = {"sigma": 1.3, "encoding": encoding, "missing": missing}
    for dtype, tolerance in (
        (torch.float64, 1e-7),
        (torch.float32, 1e-6),
        (torch.float16, 1e-3),
        (torch.bfloat16, 1e-2),
    ):
        loss = fastpose.heatmap_mse_loss(
            pred.to(dtype),
            points,
            visible,
            joint_weights=None if weights is None else joint_weights.to(device),
            **options,
        )
        expected = reference.heatmap_mse_loss(
            pred.cpu(), points.cpu(), visible.cpu(), joint_weights=joint_weights, **options
        )
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert loss.item() == pytest.approx(expected, rel=tolerance)


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 20),
    width=st.integers(1, 40),
    encoding=st.sampled_from(ENCODINGS),
    missing=st.sampled_from(["zeros", "ignore"]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_is_the_mean_square_against_the_rendered_target(
    seed: int, height: int, width: int, encoding: str, missing: str, layout: torch.memory_format
) -> None:
    """Value and gradient against our own render + the same formula in plain torch."""
    pred, points, visible = batch_of(torch.device("cpu"), (height, width), 3, seed)
    target, weights = fastpose.render_heatmaps(points, visible, (height, width), encoding=encoding)
    weight = torch.ones_like(weights) if missing == "zeros" else weights
    plain, fused = pred.clone().requires_grad_(), pred.contiguous(memory_format=layout).requires_grad_()
    expected = 0.5 * (weight[:, :, None, None] * (plain - target) ** 2).mean()
    loss = fastpose.heatmap_mse_loss(fused, points, visible, encoding=encoding, missing=missing)
    torch.testing.assert_close(loss, expected)
    (3 * expected).backward()
    (3 * loss).backward()
    torch.testing.assert_close(fused.grad, plain.grad)


def test_gradcheck(device: torch.device) -> None:
    pred, points, visible = batch_of(device, (5, 6), 3)
    pred = pred.double().requires_grad_()
    weights = torch.tensor([0.5, 1.0, 2.0], device=device)
    for encoding in ENCODINGS:
        for missing in ("zeros", "ignore"):

            def loss(pred: Tensor, encoding: str = encoding, missing: str = missing) -> Tensor:
                return fastpose.heatmap_mse_loss(
                    pred, points, visible, encoding=encoding, missing=missing, joint_weights=weights
                )

            assert torch.autograd.gradcheck(loss, (pred,))


def test_by_hand(device: torch.device) -> None:
    """Zero prediction of 2 joints on 1 x 7, one peak in the middle, one without annotation.

    The squares of the target are exp(−d²), d = −3…3: 1 + 2 (e^−1 + e^−4 + e^−9). The loss is half their sum over 14.
    """
    pred = torch.zeros(1, 2, 1, 7, device=device)
    points = torch.tensor([[[3.0, 0.0], [3.0, 0.0]]], device=device)
    visible = torch.tensor([[1.0, 0.0]], device=device)
    squares = 1 + 2 * (np.exp(-1) + np.exp(-4) + np.exp(-9))
    loss = fastpose.heatmap_mse_loss(pred, points, visible)
    assert loss.item() == pytest.approx(0.5 * squares / 14, rel=1e-6)
    # A wrong map for the joint without annotation: taught zero by default, left alone with "ignore".
    pred[0, 1] = 1.0
    with_zeros = fastpose.heatmap_mse_loss(pred, points, visible)
    assert with_zeros.item() == pytest.approx(0.5 * (squares + 7) / 14, rel=1e-6)
    ignored = fastpose.heatmap_mse_loss(pred, points, visible, missing="ignore")
    assert ignored.item() == pytest.approx(0.5 * squares / 14, rel=1e-6)


def test_squared_weights_give_the_loss_of_simple_baselines(device: torch.device) -> None:
    pred, points, visible = batch_of(device, (16, 12), 4)
    visible = (visible > 0.5).float()
    joint_weights = torch.tensor([1.0, 1.2, 1.5, 1.0])
    targets, weights = zip(
        *(
            upstream.target(p.double().numpy(), v.numpy(), 12, 16, 2)
            for p, v in zip(points.cpu(), visible.cpu(), strict=True)
        ),
        strict=True,
    )
    expected = upstream.joints_mse(pred.cpu().numpy(), np.stack(targets), np.stack(weights) * joint_weights.numpy())
    loss = fastpose.heatmap_mse_loss(
        pred, points, visible, sigma=2, missing="ignore", joint_weights=(joint_weights**2).to(device)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_scaled_loss_keeps_gradients_that_half_precision_would_lose(device: torch.device, dtype: torch.dtype) -> None:
    """At training size it is ~1e-8, which float16 cannot hold; the scaler's 65536 goes in before rounding."""
    size = (64, 64)
    points, visible = random_points(8, 16, size)
    pred = (torch.rand(8, 16, *size, generator=torch.Generator().manual_seed(0)) * 0.02 + 0.01).to(device, dtype)
    points, visible = points.to(device), visible.to(device)
    fused, exact = pred.clone().requires_grad_(), pred.double().requires_grad_()
    (fastpose.heatmap_mse_loss(fused, points, visible) * 65536.0).backward()
    (fastpose.heatmap_mse_loss(exact, points, visible) * 65536.0).backward()
    assert int((fused.grad == 0).sum()) == 0
    tolerance = 2.0**-10 if dtype == torch.float16 else 2.0**-7
    torch.testing.assert_close(fused.grad.double(), exact.grad, rtol=tolerance, atol=6e-8)


def test_any_strides_and_their_gradients(device: torch.device) -> None:
    pred, points, visible = batch_of(device)
    expected = pred.clone().requires_grad_()
    loss = fastpose.heatmap_mse_loss(expected, points, visible)
    loss.backward()
    for strided in (
        pred.contiguous(memory_format=torch.channels_last),
        torch.zeros(3, 5, 18, 13, device=device).transpose(2, 3).copy_(pred),
        torch.zeros(6, 6, 14, 40, device=device)[::2, 1:, 1:, ::2][..., :18].copy_(pred),
    ):
        leaf = strided.detach().requires_grad_()
        out = fastpose.heatmap_mse_loss(leaf, points, visible)
        out.backward()
        torch.testing.assert_close(out, loss)
        torch.testing.assert_close(leaf.grad, expected.grad)
    one = pred[:1, :1, :1, :1].clone().requires_grad_()
    spread = one.expand(3, 5, 13, 18)
    fastpose.heatmap_mse_loss(spread, points, visible).backward()
    plain = pred[:1, :1, :1, :1].clone().requires_grad_()
    target, _ = fastpose.render_heatmaps(points, visible, (13, 18))
    (0.5 * ((plain.expand(3, 5, 13, 18) - target) ** 2).mean()).backward()
    torch.testing.assert_close(one.grad, plain.grad)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("joints", [1, 2, 3, 16, 17, 133])
def test_channels_last_gives_what_planar_maps_give_on_the_cpu(encoding: str, joints: int) -> None:
    """The gradient bit for bit, as it is of every element alone; the sums of the loss have another order."""
    for size, missing, weighted in (((5, 33), "zeros", True), ((3, 70), "ignore", True), ((7, 9), "ignore", False)):
        points, visible = random_points(3, joints, size)
        values = torch.randn(3, joints, *size, generator=torch.Generator().manual_seed(joints)) * 0.3
        weights = torch.rand(3, joints, generator=torch.Generator().manual_seed(1)) if weighted else None
        options = {"sigma": 1.5, "encoding": encoding, "missing": missing, "joint_weights": weights}
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            planar = values.to(dtype, copy=True).requires_grad_()
            last = values.to(dtype, copy=True, memory_format=torch.channels_last).requires_grad_()
            losses = [fastpose.heatmap_mse_loss(pred, points, visible, **options) for pred in (planar, last)]
            torch.testing.assert_close(losses[1], losses[0], rtol=2e-6, atol=0.0)
            for loss in losses:
                (loss * values.numel()).backward()
            assert last.grad.stride() == last.stride()
            assert torch.equal(last.grad, planar.grad)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_two_runs_and_any_number_of_threads_give_the_same_bits(layout: torch.memory_format) -> None:
    pred, points, visible = batch_of(torch.device("cpu"), (64, 64), 16)
    pred = pred.contiguous(memory_format=layout)
    threads = torch.get_num_threads()
    try:
        losses = []
        for count in (1, 2, 4, 4):
            torch.set_num_threads(count)
            losses.append(fastpose.heatmap_mse_loss(pred, points, visible).item())
        assert len(set(losses)) == 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.cuda
def test_two_runs_give_the_same_bits_on_cuda() -> None:
    pred, points, visible = batch_of(torch.device("cuda"), (64, 64), 16)
    losses = {fastpose.heatmap_mse_loss(pred, points, visible).item() for _ in range(20)}
    assert len(losses) == 1


@pytest.mark.cuda
def test_losses_on_many_streams_and_in_a_graph_do_not_interfere() -> None:
    """The kernel that adds up sums gets ready while another makes them; it has to see all of them, and no others."""
    batches = [batch_of(torch.device("cuda"), (64, 64), 16, seed) for seed in range(4)]
    expected = torch.stack([fastpose.heatmap_mse_loss(*batch) for batch in batches])
    torch.cuda.synchronize()
    losses = torch.zeros(50, 4, device="cuda")
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in batches]
    for row in losses:
        for i, (stream, batch) in enumerate(zip(streams, batches, strict=True)):
            with torch.cuda.stream(stream):
                row[i] = fastpose.heatmap_mse_loss(*batch)
    torch.cuda.synchronize()
    assert torch.equal(losses, expected.expand(50, 4))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.stack([fastpose.heatmap_mse_loss(*batch) for batch in batches])
    for _ in range(50):
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, expected)


def test_nan_in_the_prediction_is_nan_in_the_loss(device: torch.device) -> None:
    pred, points, visible = batch_of(device)
    pred[1, 2, 3, 4] = float("nan")
    assert torch.isnan(fastpose.heatmap_mse_loss(pred, points, visible))


# ---- the joints with the largest losses ------------------------------------------------------------------------------


def losses_of_joints(pred: Tensor, points: Tensor, visible: Tensor) -> Tensor:
    target, _ = fastpose.render_heatmaps(points, visible, (pred.size(2), pred.size(3)))
    return 0.5 * ((pred - target) ** 2).mean((2, 3))


@pytest.mark.parametrize("missing", ["zeros", "ignore"])
@pytest.mark.parametrize("weights", [None, (5,), (3, 5)])
@pytest.mark.parametrize("hard_joints", [1, 3, 5])
def test_hard_joints_match_reference(
    device: torch.device, missing: str, weights: tuple[int, ...] | None, hard_joints: int
) -> None:
    pred, points, visible = batch_of(device)
    joint_weights = None if weights is None else torch.rand(*weights, generator=torch.Generator().manual_seed(3))
    options = {"sigma": 1.3, "missing": missing, "hard_joints": hard_joints}
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-6), (torch.float16, 1e-6)):
        rounded = pred.to(dtype)
        expected = reference.heatmap_mse_loss(
            rounded.cpu(), points.cpu(), visible.cpu(), joint_weights=joint_weights, **options
        )
        for layout in (torch.contiguous_format, torch.channels_last):
            loss = fastpose.heatmap_mse_loss(
                rounded.contiguous(memory_format=layout),
                points,
                visible,
                joint_weights=None if weights is None else joint_weights.to(device),
                **options,
            )
            assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert loss.item() == pytest.approx(expected, rel=tolerance)


def test_joints_that_do_not_count_have_no_gradient_and_the_others_all_of_it(device: torch.device) -> None:
    pred, points, visible = batch_of(device)
    fused, plain = pred.clone().requires_grad_(), pred.clone().requires_grad_()
    fastpose.heatmap_mse_loss(fused, points, visible, hard_joints=2).backward()
    losses_of_joints(plain, points, visible).topk(2).values.mean().backward()
    torch.testing.assert_close(fused.grad, plain.grad)
    assert ((fused.grad != 0).flatten(2).any(2).sum(1) == 2).all()


def test_all_joints_as_hard_ones_give_the_loss_itself(device: torch.device) -> None:
    pred, points, visible = batch_of(device)
    results = []
    for hard_joints in (None, 5):
        leaf = pred.clone().requires_grad_()
        loss = fastpose.heatmap_mse_loss(leaf, points, visible, missing="ignore", hard_joints=hard_joints)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0])


def test_of_joints_with_equal_losses_the_first_count(device: torch.device) -> None:
    pred = torch.full((2, 40, 4, 8), 0.5)
    pred[0, [7, 30]] = 2.0
    nowhere, visible = torch.full((2, 40, 2), -100.0, device=device), torch.ones(2, 40, device=device)
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = pred.to(device, copy=True, memory_format=layout).requires_grad_()
        fastpose.heatmap_mse_loss(leaf, nowhere, visible, hard_joints=4).backward()
        counted = (leaf.grad != 0).flatten(2).any(2).cpu()
        assert counted[0].nonzero().flatten().tolist() == [0, 1, 7, 30]
        assert counted[1].nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_hard_joints_give_the_loss_of_hrnet(device: torch.device) -> None:
    pred, points, visible = batch_of(device, (16, 12), 4)
    visible = (visible > 0.5).float()
    joint_weights = torch.tensor([1.0, 1.2, 1.5, 1.0])
    targets, weights = zip(
        *(
            upstream.target(p.double().numpy(), v.numpy(), 12, 16, 2)
            for p, v in zip(points.cpu(), visible.cpu(), strict=True)
        ),
        strict=True,
    )
    for hard_joints in (1, 2, 4):
        expected = upstream.joints_ohkm_mse(
            pred.cpu().numpy(), np.stack(targets), np.stack(weights) * joint_weights.numpy(), hard_joints
        )
        loss = fastpose.heatmap_mse_loss(
            pred,
            points,
            visible,
            sigma=2,
            missing="ignore",
            joint_weights=(joint_weights**2).to(device),
            hard_joints=hard_joints,
        )
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_number_of_threads_changes_no_bit_of_the_hard_ones_on_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    pred = torch.randn(512, 133, 2, 2, generator=generator)
    points, visible = torch.rand(512, 133, 2, generator=generator) * 2, torch.ones(512, 133)
    before, losses = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            losses.append(fastpose.heatmap_mse_loss(pred, points, visible, hard_joints=100).item())
    finally:
        torch.set_num_threads(before)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("hard_joints", [1, 3])
def test_nan_in_any_joint_is_nan_in_the_loss_of_the_hard_ones(device: torch.device, hard_joints: int) -> None:
    pred, points, visible = batch_of(device)
    pred[1, 0] = float("inf")
    assert fastpose.heatmap_mse_loss(pred, points, visible, hard_joints=hard_joints).item() == float("inf")
    pred[1, 4, 3, 4] = float("nan")
    leaf = pred.requires_grad_()
    loss = fastpose.heatmap_mse_loss(leaf, points, visible, hard_joints=hard_joints)
    loss.backward()
    assert loss.isnan()
    assert leaf.grad[1, 4, 3, 4].isnan()
    assert np.isnan(
        reference.heatmap_mse_loss(leaf, points.cpu(), visible.cpu(), hard_joints=hard_joints)  # not the infinity
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_hard_joints_keep_gradients_that_half_precision_would_lose(device: torch.device, dtype: torch.dtype) -> None:
    size = (64, 64)
    points, visible = random_points(8, 16, size)
    pred = (torch.rand(8, 16, *size, generator=torch.Generator().manual_seed(0)) * 0.02 + 0.01).to(device, dtype)
    points, visible = points.to(device), visible.to(device)
    fused, exact = pred.clone().requires_grad_(), pred.double().requires_grad_()
    for leaf in (fused, exact):
        (fastpose.heatmap_mse_loss(leaf, points, visible, hard_joints=8) * 65536.0).backward()
    assert ((fused.grad != 0).flatten(2).all(2).sum(1) == 8).all()
    tolerance = 2.0**-10 if dtype == torch.float16 else 2.0**-7
    torch.testing.assert_close(fused.grad.double(), exact.grad, rtol=tolerance, atol=6e-8)


def test_hard_joints_of_an_empty_batch_add_nothing(device: torch.device) -> None:
    pred = torch.zeros(0, 3, 8, 8, device=device, requires_grad=True)
    points, visible = torch.zeros(0, 3, 2, device=device), torch.zeros(0, 3, device=device)
    loss = fastpose.heatmap_mse_loss(pred, points, visible, hard_joints=2)
    loss.backward()
    assert loss.item() == 0.0
    assert pred.grad.shape == pred.shape
    assert reference.heatmap_mse_loss(pred, points, visible, hard_joints=2) == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hard_joints": 0}, "hard_joints must be a whole number from 1 to the 3 joints of pred, got 0"),
        ({"hard_joints": 4}, "hard_joints must be a whole number from 1 to the 3 joints of pred, got 4"),
        ({"hard_joints": 1.5}, "hard_joints must be a whole number from 1 to the 3 joints of pred, got 1.5"),
        ({"hard_joints": "8"}, "hard_joints must be a whole number .* got '8'"),
        ({"pred": torch.zeros(2, 3, 4), "hard_joints": 1}, r"heatmap_mse_losses: pred must have shape \[B, K, h, w\]"),
        ({"pred": torch.zeros(2, 3, 4)}, r"pred must have shape \[B, K, h, w\]"),
        ({"pred": torch.zeros(2, 3, 8, 8, dtype=torch.int32)}, "pred must be Float"),
        ({"pred": torch.zeros(2, 3, 0, 8)}, "at least 1 x 1 pixels"),
        ({"keypoints": torch.zeros(2, 4, 2)}, r"keypoints must have shape \[B, K, 2\] = \[2, 3, 2\]"),
        ({"visible": torch.zeros(3, 2)}, r"visible must have shape \[B, K\]"),
        ({"joint_weights": torch.ones(4)}, r"joint_weights must have shape \[K\] or \[B, K\]"),
        ({"missing": "drop"}, "missing must be one of 'zeros', 'ignore', got 'drop'"),
        ({"encoding": "simcc"}, "encoding must be one of"),
        ({"sigma": -1.0}, "sigma must be a positive number"),
    ],
)
def test_errors_name_the_argument(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "pred": torch.zeros(2, 3, 8, 8),
        "keypoints": torch.zeros(2, 3, 2),
        "visible": torch.ones(2, 3),
    }
    arguments.update(change)
    with pytest.raises((RuntimeError, ValueError), match=message):
        fastpose.heatmap_mse_loss(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device: torch.device, requires_grad: bool) -> None:
    pred, points, visible = batch_of(device, (5, 6), 3)
    arguments = (pred.requires_grad_(requires_grad), points, visible, torch.ones(3, device=device), 1.0, 0, True)
    torch.library.opcheck(torch.ops.fastpose.heatmap_mse_loss.default, arguments)
    torch.library.opcheck(torch.ops.fastpose.heatmap_mse_losses.default, arguments)
    upstream = torch.ones((3, 3) if requires_grad else (), device=device)
    backward = (upstream, pred.detach(), points, visible, None, 1.0, 1, False)
    torch.library.opcheck(torch.ops.fastpose.heatmap_mse_loss_backward.default, backward)


@pytest.mark.parametrize("hard_joints", [None, 2])
def test_compiles_without_a_graph_break_forward_and_backward(device: torch.device, hard_joints: int | None) -> None:
    options = {"missing": "ignore", "hard_joints": hard_joints}

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(pred: Tensor, points: Tensor, visible: Tensor) -> Tensor:
        return fastpose.heatmap_mse_loss(pred * 2, points, visible, **options)

    pred, points, visible = batch_of(device)
    compiled, eager = pred.clone().requires_grad_(), pred.clone().requires_grad_()
    step(compiled, points, visible).backward()
    fastpose.heatmap_mse_loss(eager * 2, points, visible, **options).backward()
    torch.testing.assert_close(compiled.grad, eager.grad)


def test_under_autocast(device: torch.device) -> None:
    """The loss takes a bfloat16 prediction as it comes out of an autocast model; parameters get float32 gradients."""
    layer = torch.nn.Conv2d(3, 5, 1).to(device)
    _, points, visible = batch_of(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = fastpose.heatmap_mse_loss(layer(torch.ones(3, 3, 13, 18, device=device)), points, visible)
    loss.backward()
    assert loss.dtype == torch.float32
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.abs().sum() > 0


def test_a_vanishing_sigma_keeps_its_peak(device: torch.device) -> None:
    maps, _ = fastpose.render_heatmaps(
        torch.tensor([[[4.0, 4.0]]], device=device), torch.ones(1, 1, device=device), (8, 8), sigma=1e-20
    )
    assert maps.sum() == 1.0
    assert maps[0, 0, 4, 4] == 1.0


def test_an_empty_batch_adds_nothing_and_a_large_one_everything(device: torch.device) -> None:
    for shape in ((0, 3, 8, 8), (2, 0, 8, 8)):
        pred = torch.zeros(shape, device=device, requires_grad=True)
        points, visible = torch.zeros(*shape[:2], 2, device=device), torch.zeros(shape[:2], device=device)
        loss = fastpose.heatmap_mse_loss(pred, points, visible)
        loss.backward()
        assert loss.item() == 0.0
        assert pred.grad.shape == shape
    batch = 65_535 + 9
    pred = torch.full((batch, 1, 1, 2), 2.0, device=device, requires_grad=True)
    nowhere = torch.full((batch, 1, 2), -100.0, device=device)
    loss = fastpose.heatmap_mse_loss(pred, nowhere, torch.ones(batch, 1, device=device))
    loss.backward()
    assert loss.item() == 2.0  # 0.5 * 2^2 on every pixel
    torch.testing.assert_close(pred.grad, torch.full_like(pred, 2.0 / (2 * batch)))
