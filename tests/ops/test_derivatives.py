# SPDX-License-Identifier: Apache-2.0
"""Derivatives of the differentiable ops in every way that torch has, against the formula written out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fastpose

Function = Callable[[Tensor], Tensor]


class Case(NamedTuple):
    op: Function
    formula: Function  # of torch's own operations
    at: Tensor


def loss_case(device: torch.device) -> Case:
    generator = torch.Generator().manual_seed(0)
    pred = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64).to(device)
    points, visible = torch.rand(2, 3, 2, generator=generator).to(device) * 5, torch.ones(2, 3, device=device)
    weights = torch.tensor([1.0, 0.5, 3.0], device=device)
    target, _ = fastpose.render_heatmaps(points, visible, (4, 5), sigma=1.5, dtype=torch.float64)
    return Case(
        lambda maps: fastpose.heatmap_mse_loss(maps, points, visible, sigma=1.5, joint_weights=weights),
        lambda maps: 0.5 * (weights[:, None, None] * (maps - target) ** 2).mean(),
        pred,
    )


def hard_joints_case(device: torch.device) -> Case:
    every_joint = loss_case(device)
    points, visible = torch.full((2, 3, 2), 1.0, device=device), torch.ones(2, 3, device=device)
    weights = torch.tensor([1.0, 0.5, 3.0], device=device)
    target, _ = fastpose.render_heatmaps(points, visible, (4, 5), sigma=1.5, dtype=torch.float64)
    options = {"sigma": 1.5, "joint_weights": weights, "hard_joints": 2}
    return Case(
        lambda maps: fastpose.heatmap_mse_loss(maps, points, visible, **options),
        lambda maps: (0.5 * weights * ((maps - target) ** 2).mean((2, 3))).topk(2).values.mean(),
        every_joint.at,
    )


def points_case(device: torch.device) -> Case:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(2, 2, 3, generator=generator).to(device)
    points = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64).to(device)
    linear, shift = matrix[:, :, :2].double(), matrix[:, None, :, 2].double()
    return Case(lambda x: fastpose.transform_points(x, matrix), lambda x: x @ linear.transpose(1, 2) + shift, points)


def inverse_case(device: torch.device) -> Case:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(2, 2, 3, generator=generator).to(device)
    points = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64).to(device)
    linear, shift = matrix[:, :, :2].double().inverse(), matrix[:, None, :, 2].double()
    return Case(
        lambda x: fastpose.transform_points(x, matrix, inverse=True),
        lambda x: (x - shift) @ linear.transpose(1, 2),
        points,
    )


def soft_argmax_case(device: torch.device) -> Case:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(2, 2, 3, generator=generator).to(device)
    maps = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64).to(device)
    linear, shift = matrix[:, :, :2].double(), matrix[:, None, :, 2].double()
    places = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(4.0), indexing="xy"), -1)
    places = places.double().flatten(0, 1).to(device)
    return Case(
        lambda x: fastpose.soft_argmax(x, beta=2.0, heatmap_to_image=matrix)[0],
        lambda x: (2.0 * x).flatten(2).softmax(2) @ places @ linear.transpose(1, 2) + shift,
        maps,
    )


def simcc_case(device: torch.device) -> Case:
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.rand(2, 3, n, generator=generator, dtype=torch.float64).to(device) for n in (6, 5))
    points = torch.tensor([[[1.0, 1.0], [2.0, 1.5], [0.0, 2.0]]], device=device).expand(2, 3, 2)
    visible = torch.tensor([1.0, 0.0, 1.0], device=device).expand(2, 3)
    bins = torch.arange(6.0, dtype=torch.float64, device=device)
    labels = (2.0 * torch.exp(-((bins - 2 * points[..., :1]) ** 2) / (2 * 1.5**2))).softmax(2)
    # What is constant in the rows is taken from the op itself: tests/ops/test_simcc_loss.py is about its value.
    options = {"sigma": (1.5, 1.5), "beta": 3.0, "label_beta": 2.0}
    constant = fastpose.simcc_loss(torch.zeros_like(rows), columns, points, visible, **options)

    def of_rows(x: Tensor) -> Tensor:
        return (visible * (labels * (labels.log() - (3.0 * x).log_softmax(2))).mean(2)).mean()

    return Case(
        lambda x: fastpose.simcc_loss(x, columns, points, visible, **options),
        lambda x: of_rows(x) - of_rows(torch.zeros_like(rows)) + constant,
        rows,
    )


every_case = pytest.mark.parametrize(
    "case_of", [loss_case, hard_joints_case, points_case, inverse_case, soft_argmax_case, simcc_case]
)
MakeCase = Callable[[torch.device], Case]


def tangent(function: Function, at: Tensor, direction: Tensor) -> Tensor:
    with forward_ad.dual_level():
        out = forward_ad.unpack_dual(function(forward_ad.make_dual(at, direction))).tangent
        assert out is not None, "a derivative of 0 without a word"
        return out.clone()


def of_two(at: Tensor) -> Tensor:
    return torch.stack([at, 2.0 * at])


WAYS: dict[str, Callable[[Function, Tensor], object]] = {
    "forward mode": lambda f, x: tangent(f, x, x.cos()),
    "forward mode, with a gradient wanted": lambda f, x: tangent(f, x.clone().requires_grad_(), x.cos()),
    "jvp": lambda f, x: jvp(f, (x,), (x.cos(),)),
    "vjp": lambda f, x: vjp(f, x)[1](f(x).cos()),
    "grad": lambda f, x: grad(lambda y: f(y).sum())(x),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(lambda y: f(y).square().sum())(x),
    "jacrev of jacfwd": lambda f, x: jacrev(jacfwd(lambda y: f(y).square().sum()))(x),
    "vmap": lambda f, x: vmap(f)(of_two(x)),
    "vmap of grad": lambda f, x: vmap(grad(lambda y: f(y).sum()))(of_two(x)),
    "grad of vmap": lambda f, x: grad(lambda y: vmap(f)(y).sum())(of_two(x)),
    "many gradients at once": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True),
}


@every_case
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_a_derivative_is_right(device: torch.device, case_of: MakeCase, way: str) -> None:
    case = case_of(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that its vmap is slow
        torch.testing.assert_close(WAYS[way](case.op, case.at), WAYS[way](case.formula, case.at))


@every_case
def test_gradcheck_forwards_backwards_batched_and_twice(device: torch.device, case_of: MakeCase) -> None:
    case = case_of(device)
    at = case.at.requires_grad_()
    assert gradcheck(
        case.op,
        (at,),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        nondet_tol=1e-15,
    )
    assert gradgradcheck(lambda x: case.op(x).square(), (at,), check_fwd_over_rev=True, nondet_tol=1e-15)


@every_case
def test_a_gradient_that_is_differentiated_again_is_the_formula_s(device: torch.device, case_of: MakeCase) -> None:
    case = case_of(device)
    results = []
    for function in (case.op, case.formula):
        at = case.at.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(at).square().sum(), at, create_graph=True)
        results.append([first, *torch.autograd.grad(first.pow(3).sum(), at)])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_forward_mode_in_short_types_is_that_of_float64(device: torch.device, dtype: torch.dtype) -> None:
    case = loss_case(device)
    pred, direction = case.at.to(dtype), case.at.cos().to(dtype)
    got = tangent(case.op, pred, direction)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), tangent(case.op, pred.double(), direction.double()), rtol=1e-5, atol=1e-6)


def test_the_dispatcher_s_op_differentiates_in_every_argument(device: torch.device) -> None:
    """`fastpose.transform_points` takes its matrix as a constant; the op itself must not return a gradient of none."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64).to(device).requires_grad_()
    matrix = torch.randn(2, 2, 3, generator=generator).to(device).requires_grad_()
    out = torch.ops.fastpose.transform_points(points, matrix, False)
    grads = torch.autograd.grad(out.sum(), [points, matrix])
    linear = matrix[:, :, :2].double()
    expected = torch.autograd.grad(
        (points @ linear.transpose(1, 2) + matrix[:, None, :, 2].double()).sum(), [points, matrix]
    )
    torch.testing.assert_close(grads, expected)
