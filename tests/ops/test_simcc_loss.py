# SPDX-License-Identifier: Apache-2.0
"""simcc_loss: the reference, a value by hand, gradients, half precision, weights, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastpose
from fastpose import reference
from tests.helpers.ops import random_points

CPU = torch.device("cpu")


def batch_of(device: torch.device, bins: tuple[int, int] = (26, 36), joints: int = 5, seed: int = 0) -> list[Tensor]:
    """Vectors of crops at two bins per pixel; joints on, around and off the crop."""
    generator = torch.Generator().manual_seed(seed)
    preds = [torch.randn(3, joints, n, generator=generator) * 0.3 for n in bins]
    points, visible = random_points(3, joints, (bins[1] // 2, bins[0] // 2), seed)
    return [t.to(device) for t in (*preds, points, visible)]


@pytest.mark.parametrize("label_softmax", [False, True])
@pytest.mark.parametrize("weights", [None, (5,), (3, 5)])
def test_matches_reference(device: torch.device, label_softmax: bool, weights: tuple[int, ...] | None) -> None:
    pred_x, pred_y, points, visible = batch_of(device)
    joint_weights = None if weights is None else torch.rand(*weights, generator=torch.Generator().manual_seed(3))
    options: dict[str, Any] = {"sigma": (1.3, 2.0), "label_softmax": label_softmax, "beta": 4.0, "label_beta": 6.0}
    for dtype, tolerance in (
        (torch.float64, 1e-6),
        (torch.float32, 1e-5),
        (torch.float16, 2e-3),
        (torch.bfloat16, 2e-2),
    ):
        loss = fastpose.simcc_loss(
            pred_x.to(dtype),
            pred_y.to(dtype),
            points,
            visible,
            joint_weights=None if joint_weights is None else joint_weights.to(device),
            **options,
        )
        expected = reference.simcc_loss(
            pred_x.cpu(), pred_y.cpu(), points.cpu(), visible.cpu(), joint_weights=joint_weights, **options
        )
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert loss.item() == pytest.approx(expected, rel=tolerance)


@given(
    seed=st.integers(0, 10_000),
    bins=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    ratio=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    sigma=st.tuples(st.floats(0.1, 20.0), st.floats(0.1, 20.0)),
    label_softmax=st.booleans(),
)
def test_matches_reference_whatever_the_size(
    seed: int, bins: tuple[int, int], ratio: float, sigma: tuple[float, float], label_softmax: bool
) -> None:
    arguments = [t.double() if n < 2 else t for n, t in enumerate(batch_of(CPU, bins, 3, seed))]
    options: dict[str, Any] = {"split_ratio": ratio, "sigma": sigma, "label_softmax": label_softmax}
    expected = reference.simcc_loss(*arguments, **options)
    assert fastpose.simcc_loss(*arguments, **options).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_by_hand(device: torch.device) -> None:
    """A label of 1, e^-0.5, e^-2 at bins 0, 1, 2 (x = 0) and one bin in y, whose divergence is 0.

    Without the softmax its divergence from a uniform prediction is (Σ t log t + Σ t log 3) / 3.
    """
    zeros_x, zeros_y = torch.zeros(1, 1, 3, device=device), torch.zeros(1, 1, 1, device=device)
    points, visible = torch.zeros(1, 1, 2, device=device), torch.ones(1, 1, device=device)
    label = [1.0, math.exp(-0.5), math.exp(-2.0)]
    loss = fastpose.simcc_loss(zeros_x, zeros_y, points, visible, sigma=(1.0, 1.0), label_softmax=False)
    expected = sum(t * (math.log(t) + math.log(3.0)) for t in label) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    # The prediction is the label, so the softmax of beta times it is the distribution to learn.
    matching = torch.tensor([[label]], device=device)
    assert fastpose.simcc_loss(matching, zeros_y, points, visible, sigma=(1.0, 1.0)).item() == pytest.approx(
        0, abs=1e-6
    )


def test_rounds_half_to_even_as_numpy(device: torch.device) -> None:
    """x = 0.25 and 0.75 are bins 0.5 and 1.5 at a ratio of 2, and become bins 0 and 2."""
    pred_x, pred_y, _, _ = batch_of(device, joints=2)
    visible = torch.ones(3, 2, device=device)
    losses = []
    for xs in ((0.25, 0.75), (0.0, 1.0)):
        points = torch.tensor([[x, 4.0] for x in xs], device=device).expand(3, 2, 2)
        losses.append(fastpose.simcc_loss(pred_x, pred_y, points, visible))
    assert torch.equal(*losses)


def test_joints_off_the_crop_or_not_finite_weigh_nothing(device: torch.device) -> None:
    pred_x, pred_y, points, visible = batch_of(device, joints=6)
    points[:, 0, 0], points[:, 1, 1], points[:, 2, 0] = math.nan, math.inf, -math.inf
    points[:, 3, 0], points[:, 4, 1] = 13 + 7.5, -8.0  # 3 sigma are 14.7 bins in x, 16.98 in y
    points[:, 5] = 5.0
    visible[:] = 1.0
    loss = fastpose.simcc_loss(pred_x, pred_y, points, visible)
    last = fastpose.simcc_loss(pred_x[:, 5:], pred_y[:, 5:], points[:, 5:], visible[:, 5:])
    # y = -8 is bin -16, whose label reaches the crop.
    fifth = fastpose.simcc_loss(pred_x[:, 4:5], pred_y[:, 4:5], points[:, 4:5].nan_to_num(), visible[:, 4:5])
    torch.testing.assert_close(loss, (last + fifth) / 6)
    assert fastpose.simcc_loss(pred_x[:, :4], pred_y[:, :4], points[:, :4], visible[:, :4]).item() == 0.0


def test_gradcheck_in_both_predictions(device: torch.device) -> None:
    pred_x, pred_y, points, visible = batch_of(device, (6, 8), 3)
    preds = [pred.double().requires_grad_() for pred in (pred_x, pred_y)]
    weights = torch.tensor([0.5, 1.0, 2.0], device=device)
    for label_softmax in (False, True):

        def loss(x: Tensor, y: Tensor, label_softmax: bool = label_softmax) -> Tensor:
            return fastpose.simcc_loss(
                x, y, points, visible, sigma=(1.0, 1.5), beta=3.0, label_softmax=label_softmax, joint_weights=weights
            )

        assert torch.autograd.gradcheck(loss, preds)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_scaled_loss_keeps_gradients_that_half_precision_would_lose(device: torch.device, dtype: torch.dtype) -> None:
    pred_x, pred_y, points, _ = batch_of(device, (192, 256), 17)
    visible = torch.ones(3, 17, device=device)
    halves = [pred.to(dtype).requires_grad_() for pred in (pred_x, pred_y)]
    exact = [half.detach().double().requires_grad_() for half in halves]
    for preds in (halves, exact):
        (fastpose.simcc_loss(*preds, points, visible) * 65536.0).backward()
    for half, whole in zip(halves, exact, strict=True):
        torch.testing.assert_close(half.grad.double(), whole.grad, rtol=2.0**-7, atol=1e-4)


def test_any_strides(device: torch.device) -> None:
    pred_x, pred_y, points, visible = batch_of(device)
    dense = [pred_x.requires_grad_(), pred_y.requires_grad_()]
    strided = [pred_x.detach().mT.contiguous().mT, pred_y.detach().repeat(1, 1, 2)[..., :36]]
    losses = [
        fastpose.simcc_loss(*preds, points, visible) for preds in (dense, [pred.requires_grad_() for pred in strided])
    ]
    torch.testing.assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    for one, other in zip(strided, dense, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert strided[0].grad.stride() == strided[0].stride()


def test_a_gradient_in_one_prediction_alone_is_the_same(device: torch.device) -> None:
    pred_x, pred_y, points, visible = batch_of(device)
    both = [pred_x.clone().requires_grad_(), pred_y.clone().requires_grad_()]
    fastpose.simcc_loss(*both, points, visible).backward()
    alone = pred_y.clone().requires_grad_()
    fastpose.simcc_loss(pred_x, alone, points, visible).backward()
    assert torch.equal(alone.grad, both[1].grad)


@pytest.mark.parametrize("label_softmax", [False, True])
def test_long_vectors(device: torch.device, label_softmax: bool) -> None:
    """Labels end far within these vectors, or far without."""
    pred_x, pred_y, points, visible = batch_of(device, (5001, 6002))
    for sigma in ((0.3, 40.0), (900.0, 1e6)):
        options: dict[str, Any] = {"sigma": sigma, "label_softmax": label_softmax, "label_beta": 30.0}
        loss = fastpose.simcc_loss(pred_x, pred_y, points, visible, **options)
        expected = reference.simcc_loss(pred_x.cpu(), pred_y.cpu(), points.cpu(), visible.cpu(), **options)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    arguments = batch_of(CPU, (96, 128), 40)
    preds, threads = [pred.requires_grad_() for pred in arguments[:2]], torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            loss = fastpose.simcc_loss(*arguments)
            results.append((loss, *torch.autograd.grad(loss, preds)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_nan_in_a_prediction_is_nan_in_the_loss(device: torch.device) -> None:
    for axis in (0, 1):
        arguments = batch_of(device)
        arguments[axis][1, 2, 3] = math.nan
        assert torch.isnan(fastpose.simcc_loss(*arguments))


def test_an_empty_batch_adds_nothing(device: torch.device) -> None:
    for batch, joints in ((0, 3), (2, 0)):
        pred_x, pred_y = (torch.zeros(batch, joints, n, device=device, requires_grad=True) for n in (8, 6))
        points, visible = torch.zeros(batch, joints, 2, device=device), torch.zeros(batch, joints, device=device)
        loss = fastpose.simcc_loss(pred_x, pred_y, points, visible)
        loss.backward()
        assert loss.item() == 0.0
        assert pred_x.grad.shape == pred_x.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred_x": torch.zeros(2, 3, 4, 4)}, r"pred_x must have shape \[B, K, Wx\]"),
        ({"pred_x": torch.zeros(2, 3, 8, dtype=torch.int32)}, "pred_x must be Float"),
        ({"pred_x": torch.zeros(2, 3, 0)}, "pred_x must have 1 to 16777216 bins, got 0"),
        ({"pred_y": torch.zeros(2, 4, 6)}, r"pred_y must have shape \[B, K, Wy\] = \[2, 3, any\]"),
        ({"pred_y": torch.zeros(2, 3, 6, dtype=torch.float64)}, "pred_y must be Float, got Double"),
        ({"keypoints": torch.zeros(2, 4, 2)}, r"keypoints must have shape \[B, K, 2\] = \[2, 3, 2\]"),
        ({"visible": torch.zeros(3, 2)}, r"visible must have shape \[B, K\]"),
        ({"joint_weights": torch.ones(4)}, r"joint_weights must have shape \[K\] or \[B, K\]"),
        ({"sigma": 2.0}, r"sigma must be \(x, y\), two positive numbers of bins, got 2.0"),
        ({"sigma": (2.0, -1.0)}, "sigma must be a positive number, got -1.0"),
        ({"split_ratio": 0.0}, "split_ratio must be a positive number, got 0.0"),
        ({"beta": math.nan}, "beta must be a positive number, got nan"),
        ({"sigma": (1e-200, 2.0)}, "sigma must be from 1e-30 to 1e30, got 1e-200"),
        ({"beta": 1e39}, r"beta must be from 1e-30 to 1e30, got 1e\+39"),
        ({"label_beta": math.inf}, "label_beta must be a positive number, got inf"),
    ],
)
def test_errors_name_the_argument(change: dict[str, object], message: str) -> None:
    arguments: dict[str, Any] = {
        "pred_x": torch.zeros(2, 3, 8),
        "pred_y": torch.zeros(2, 3, 6),
        "keypoints": torch.zeros(2, 3, 2),
        "visible": torch.ones(2, 3),
    }
    with pytest.raises((RuntimeError, ValueError), match=message):
        fastpose.simcc_loss(**(arguments | change))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device: torch.device, requires_grad: bool) -> None:
    pred_x, pred_y, points, visible = batch_of(device, (6, 8), 3)
    preds = (pred_x.requires_grad_(requires_grad), pred_y.requires_grad_(requires_grad))
    rest = (points, visible, torch.ones(3, device=device), 2.0, 1.5, 1.0, 10.0, 10.0, True)
    torch.library.opcheck(torch.ops.fastpose.simcc_loss.default, (*preds, *rest))
    backward = (torch.ones((), device=device, requires_grad=requires_grad), *preds, *rest)
    torch.library.opcheck(torch.ops.fastpose.simcc_loss_backward.default, backward)


def test_compiles_without_a_graph_break_forward_and_backward(device: torch.device) -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(pred_x: Tensor, pred_y: Tensor, points: Tensor, visible: Tensor) -> Tensor:
        return fastpose.simcc_loss(pred_x * 2, pred_y, points, visible)

    arguments = batch_of(device)
    compiled, eager = (arguments[0].clone().requires_grad_() for _ in range(2))
    step(compiled, *arguments[1:]).backward()
    fastpose.simcc_loss(eager * 2, *arguments[1:]).backward()
    torch.testing.assert_close(compiled.grad, eager.grad)


@pytest.mark.native
@pytest.mark.parametrize("sigma", [17 / 3, 5.66667, 5.6666667])
def test_a_joint_three_sigma_outside_weighs_what_the_reference_says(sigma: float) -> None:
    pred = torch.rand(1, 1, 512, generator=torch.Generator().manual_seed(0))
    points, visible = torch.tensor([[[10.0, 264.5]]]), torch.ones(1, 1)
    expected = reference.simcc_loss(pred, pred, points, visible, sigma=(4.9, sigma))
    assert fastpose.simcc_loss(pred, pred, points, visible, sigma=(4.9, sigma)).item() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("value", [None, "a", 10**400, float("nan")])
def test_what_is_no_positive_number_is_refused_by_name(value) -> None:
    pred, points, visible = torch.rand(1, 1, 8), torch.zeros(1, 1, 2), torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"^beta must be a positive number, got "):
        fastpose.simcc_loss(pred, pred, points, visible, beta=value)
