# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from fastpose.data.augmentation import Augmentation, cut_normal, erased_boxes
from fastpose.data.boxes import body_boxes
from fastpose.option import OptionError
from fastpose.skeletons import COCO, MPII, Skeleton
from tests.helpers import upstream
from tests.helpers.persons import persons_of

EVERYTHING = Augmentation(half_body=0.3, brightness=0.4, contrast=0.2, saturation=1.0)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_draws_are_uniform_over_the_ranges_of_the_paper():
    draws = Augmentation().draw(20000, generator(0))
    assert draws.rotation.dtype == draws.scale.dtype == torch.float32
    assert draws.flip.dtype == torch.bool
    for values, low, high in ((draws.rotation, -30.0, 30.0), (draws.scale, 0.75, 1.25)):
        assert values.shape == (20000,)
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        # Every tenth of a uniform range holds a tenth of 20000 draws: 2000, standard deviation 42.
        tenths = torch.histc(values, 10, low, high)
        assert ((tenths - 2000).abs() < 250).all()
    assert abs(draws.flip.float().mean() - 0.5) < 0.02


def test_one_seed_gives_one_draw():
    first, again, other = (EVERYTHING.draw(8, generator(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first[:4], again[:4], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first.color, again.color, strict=True))
    assert not torch.equal(first.rotation, other.rotation)
    assert not torch.equal(first.color[0], other.color[0])


def test_what_is_switched_off_does_not_happen():
    draws = Augmentation(rotation=0, scale_min=1, scale_max=1, flip=0).draw(100, generator(0))
    assert (draws.rotation == 0).all()
    assert (draws.scale == 1).all()
    assert not draws.flip.any()
    assert not draws.body.any()
    assert draws.color is None
    assert Augmentation(flip=1).draw(100, generator(0)).flip.all()


def test_an_empty_batch_draws_nothing():
    draws = EVERYTHING.draw(0, generator(0))
    assert {tuple(values.shape) for values in (*draws[:4], *draws.color)} == {(0,)}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rotation", {"rotation": -1}),
        ("rotation", {"rotation": float("nan")}),
        ("scale_max", {"scale_min": 1.25, "scale_max": 0.75}),
        ("scale_min", {"scale_min": 0, "scale_max": 1}),
        ("scale_max", {"scale_min": 1, "scale_max": float("nan")}),
        ("scale_max", {"scale_max": float("inf")}),
        ("flip", {"flip": 1.5}),
        ("flip", {"flip": -0.1}),
        ("half_body", {"half_body": 1.1}),
        ("half_body", {"half_body": float("nan")}),
        ("rotation_prob", {"rotation_prob": 1.1}),
        ("rotation_prob", {"rotation_prob": float("nan")}),
        ("scale_prob", {"scale_prob": -0.5}),
        ("augmentation_draw", {"augmentation_draw": "normal"}),
        ("shift", {"shift": -0.1}),
        ("shift", {"shift": 1.5}),
        ("shift", {"shift": float("nan")}),
        ("shift_prob", {"shift": 0.1, "shift_prob": 1.5}),
        ("brightness", {"brightness": -0.1}),
        ("contrast", {"contrast": 1.5}),
        ("saturation", {"saturation": float("nan")}),
        ("hue", {"hue": 0.6}),
        ("hue", {"hue": float("nan")}),
        ("erase", {"erase": 1.5}),
        ("erase", {"erase": float("nan")}),
        ("erase_min", {"erase_min": -0.1}),
        ("erase_min", {"erase_min": float("nan")}),
        ("erase_max", {"erase_max": 1.5}),
        ("erase_max", {"erase_min": 0.5, "erase_max": 0.4}),
    ],
)
def test_impossible_values_are_refused_by_name(name, values):
    with pytest.raises(OptionError, match=f"^{name}: expected .*, got ") as error:
        Augmentation(**values)
    assert error.value.option == name


def test_the_order_of_draws_is_the_documented_one():
    draws = EVERYTHING.draw(5, generator(7))
    numbers = torch.rand(8, 5, generator=generator(7))
    assert torch.equal(draws.rotation, (2 * numbers[0] - 1) * 30)
    assert torch.equal(draws.scale, 0.75 + 0.5 * numbers[1])
    assert torch.equal(draws.flip, numbers[2] < 0.5)
    assert torch.equal(draws.body, torch.where(numbers[3] < 0.3, torch.where(numbers[4] < 0.5, 2, 1), 0))
    for factor, row, change in zip(draws.color, numbers[5:], (0.4, 0.2, 1.0), strict=True):
        assert torch.equal(factor, 1 + change * (2 * row - 1))


def test_what_is_switched_on_changes_nothing_that_is_drawn_before_it():
    plain, half, whole = (
        setting.draw(9, generator(1)) for setting in (Augmentation(), Augmentation(half_body=0.3), EVERYTHING)
    )
    for one, other in ((plain, half), (plain, whole)):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
    assert torch.equal(half.body, whole.body)


def test_the_defaults_draw_the_bits_that_they_always_drew():
    """Numbers that torch's generator has given since there was nothing but rotation, scale and mirroring."""
    draws = Augmentation().draw(4, generator(2026))
    torch.testing.assert_close(
        draws.rotation,
        torch.tensor([-20.851131439208984, -14.885080337524414, 13.860261917114258, -26.14405632019043]),
        rtol=0,
        atol=0,
    )
    torch.testing.assert_close(
        draws.scale,
        torch.tensor([0.7593406438827515, 0.9972633123397827, 1.1290749311447144, 0.7504459619522095]),
        rtol=0,
        atol=0,
    )
    assert draws.flip.tolist() == [False, True, False, True]
    assert draws.shift is None
    assert draws.erase is None
    named = Augmentation(rotation_prob=1.0, scale_prob=1.0, augmentation_draw="uniform")
    assert named == Augmentation()


@pytest.mark.parametrize("kind", ["uniform", "truncnorm"])
def test_samples_are_turned_and_scaled_as_often_as_asked(kind):
    setting = dataclasses.replace(EVERYTHING, augmentation_draw=kind)
    some = dataclasses.replace(setting, rotation_prob=0.6, scale_prob=0.3)
    whole, part = setting.draw(20000, generator(0)), some.draw(20000, generator(0))
    turned, scaled = part.rotation != 0, part.scale != 1
    # 12000 and 6000 of 20000: standard deviations 69 and 65.
    assert abs(turned.sum() - 12000) < 300
    assert abs(scaled.sum() - 6000) < 300
    assert abs((turned & scaled).sum() - 3600) < 250
    # Those that are turned or scaled are so as without the probability, and nothing else changes.
    assert torch.equal(part.rotation, torch.where(turned, whole.rotation, 0.0))
    assert torch.equal(part.scale, torch.where(scaled, whole.scale, 1.0))
    assert torch.equal(part.flip, whole.flip)
    assert torch.equal(part.body, whole.body)
    assert all(torch.equal(a, b) for a, b in zip(part.color, whole.color, strict=True))
    never = dataclasses.replace(setting, rotation_prob=0.0, scale_prob=0.0).draw(100, generator(0))
    assert (never.rotation == 0).all()
    assert (never.scale == 1).all()


def test_a_cut_normal_draw_is_scipys_truncnorm():
    setting = Augmentation(40.0, 0.5, 1.5, augmentation_draw="truncnorm")
    draws = setting.draw(20000, generator(0))
    assert draws.rotation.dtype == draws.scale.dtype == torch.float32
    for values, low, high in ((draws.rotation, -40.0, 40.0), (draws.scale, 0.5, 1.5)):
        middle, deviation = (low + high) / 2, (high - low) / 2
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        expected = stats.truncnorm(-1, 1, loc=middle, scale=deviation)
        # The mean of 20000 has a standard deviation of 0.0038 deviations.
        assert abs(values.mean() - middle) < 0.02 * deviation
        assert abs(values.std() - expected.std()) < 0.02 * deviation
        assert stats.kstest(values.double().numpy(), expected.cdf).statistic < 0.015
    assert torch.equal(draws.flip, Augmentation().draw(20000, generator(0)).flip)


def test_cut_normal_numbers_are_quantiles_within_their_range():
    uniform = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.9, 1 - 2**-24])
    numbers = cut_normal(uniform)
    expected = 0.5 + 0.5 * stats.truncnorm(-1, 1).ppf(uniform.double().numpy())
    np.testing.assert_allclose(numbers, expected, atol=1e-6)
    assert numbers.min() >= 0
    assert numbers.max() <= 1


@pytest.mark.parametrize(
    ("kind", "expected"), [("uniform", stats.uniform(-0.16, 0.32)), ("truncnorm", stats.truncnorm(-1, 1, scale=0.16))]
)
def test_boxes_are_shifted_as_often_and_as_far_as_asked(kind, expected):
    setting = dataclasses.replace(EVERYTHING, augmentation_draw=kind, rotation_prob=0.6, scale_prob=0.5)
    plain = setting.draw(20000, generator(0))
    draws = dataclasses.replace(setting, shift=0.16).draw(20000, generator(0))
    assert draws.shift.dtype == torch.float32
    assert draws.shift.shape == (20000, 2)
    shifted = (draws.shift != 0).all(dim=1)
    assert torch.equal(shifted, (draws.shift != 0).any(dim=1))
    assert abs(shifted.sum() - 6000) < 300  # 0.3 of them unless another share is asked for; standard deviation 65
    for way in draws.shift[shifted].double().T:
        assert -0.16001 < way.min() < -0.155
        assert 0.155 < way.max() < 0.16001
        assert abs(way.mean()) < 0.005
        assert stats.kstest(way.numpy(), expected.cdf).statistic < 0.025
    assert torch.corrcoef(draws.shift[shifted].T)[0, 1].abs() < 0.05
    # What is drawn before it stays as it is.
    assert all(torch.equal(a, b) for a, b in zip(plain[:4], draws[:4], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.color, draws.color, strict=True))
    for probability, count in ((0.0, 0), (1.0, 100)):
        always = dataclasses.replace(setting, shift=0.16, shift_prob=probability).draw(100, generator(0))
        assert (always.shift != 0).all(dim=1).sum() == count


def test_boxes_are_erased_as_often_as_asked_and_as_albumentations_draws_them():
    """CoarseDropout(num_holes_range=(1, 1), hole_height_range=(0.2, 0.4), hole_width_range=(0.2, 0.4)): a side is
    int(n * uniform(0.2, 0.4)), its first pixel one of the n - side + 1 that leave it inside, each as likely."""
    setting = dataclasses.replace(EVERYTHING, rotation_prob=0.6, scale_prob=0.5, shift=0.16)
    plain, draws = (dataclasses.replace(setting, erase=e).draw(20000, generator(0)) for e in (0.0, 0.3))
    # What is drawn before it stays as it is.
    assert all(torch.equal(a, b) for a, b in zip(plain[:4], draws[:4], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.color, draws.color, strict=True))
    assert torch.equal(plain.shift, draws.shift)
    height, width = 256, 192
    boxes = erased_boxes(draws.erase, (height, width))
    assert boxes.dtype == torch.float32
    assert boxes.shape == (20000, 1, 4)
    corner, end = boxes[:, 0].double().split(2, dim=1)
    erased = (end > corner).all(dim=1)
    assert torch.equal(erased, (end > corner).any(dim=1))
    assert abs(erased.sum() - 6000) < 300  # standard deviation 65
    corner, sides = corner[erased], (end - corner)[erased]
    for at, side, n in zip(corner.T, sides.T, (width, height), strict=True):
        assert torch.equal(at, at.floor())
        assert (side.min(), side.max()) == (int(0.2 * n), int(0.4 * n - 1e-3))
        assert at.min() == 0
        assert (at + side).max() == n
        # Whole numbers, spread over the ranges that they stand for, are uniform.
        spread = torch.rand(2, len(at), generator=generator(1), dtype=torch.float64)
        assert stats.kstest((side + spread[0]).numpy(), stats.uniform(0.2 * n, 0.2 * n).cdf).statistic < 0.025
        assert stats.kstest(((at + spread[1]) / (n - side + 1)).numpy(), stats.uniform.cdf).statistic < 0.025
    places = (corner + 0.5) / (torch.tensor([width, height]) - sides + 1)
    assert torch.corrcoef(torch.cat([sides, places], dim=1).T).sub(torch.eye(4)).abs().max() < 0.05
    always = dataclasses.replace(setting, erase=1.0, erase_min=1.0, erase_max=1.0).draw(100, generator(0))
    assert erased_boxes(always.erase, (9, 7)).unique(dim=0).tolist() == [[[0, 0, 7, 9]]]


def test_an_erased_box_by_hand():
    """A quarter of 9 px is 2 whole ones, which begin at one of 8 pixels; half of 6 px 3, at one of 4."""
    erase = torch.tensor([[0.25, 0.5, 0.0, 0.0], [0.25, 0.5, 1 - 2**-24, 1 - 2**-24], [0.25, 0.5, 0.5, 0.3]])
    assert erased_boxes(erase, (6, 9))[:, 0].tolist() == [[0, 0, 2, 3], [7, 3, 9, 6], [4, 1, 6, 4]]
    whole = Augmentation(erase=0.5).draw(9, generator(0))
    assert torch.equal(whole.of(slice(2, 5)).erase, whole.erase[2:5])


def test_boxes_that_keep_their_size_are_among_the_scales():
    assert Augmentation(scale_min=1.1, scale_max=1.4).scales == (1.1, 1.4)
    assert Augmentation(scale_min=1.1, scale_max=1.4, scale_prob=0.5).scales == (1.0, 1.4)
    assert Augmentation(scale_min=0.6, scale_max=0.8, scale_prob=0.5).scales == (0.6, 1.0)


def test_halves_are_drawn_as_often_as_asked_and_either_as_often():
    body = EVERYTHING.draw(20000, generator(0)).body
    counts = torch.bincount(body, minlength=3)
    # 6000 of 20000 are halves, 3000 each: standard deviations 65 and 51.
    assert abs(counts[1:].sum() - 6000) < 300
    assert abs(counts[1] - 3000) < 250
    assert set(Augmentation(half_body=1).draw(100, generator(0)).body.tolist()) == {1, 2}


def test_colours_are_drawn_uniformly_and_one_by_one():
    brightness, contrast, saturation = EVERYTHING.draw(20000, generator(0)).color
    for factors, change in ((brightness, 0.4), (contrast, 0.2), (saturation, 1.0)):
        assert factors.dtype == torch.float32
        assert 1 - change <= factors.min() < 1 - 0.99 * change
        assert 1 + 0.99 * change < factors.max() <= 1 + change
        assert abs(factors.mean() - 1) < 0.03 * change
    assert torch.corrcoef(torch.stack([brightness, contrast, saturation])).sub(torch.eye(3)).abs().max() < 0.03
    only_one = Augmentation(contrast=0.5).draw(4, generator(0)).color
    assert (only_one[0] == 1).all()
    assert (only_one[1] != 1).all()
    assert (only_one[2] == 1).all()


def test_hue_is_drawn_after_all_else_and_alone():
    plain, turned = (Augmentation(brightness=0.4, hue=hue).draw(20000, generator(3)) for hue in (0.0, 0.1))
    for one, other in zip((*plain[:4], *plain.color), (*turned[:4], *turned.color[:3]), strict=True):
        assert torch.equal(one, other)
    turns = turned.color[3]
    assert -0.1 <= turns.min() < -0.099
    assert 0.099 < turns.max() <= 0.1
    assert abs(turns.mean()) < 0.003
    assert torch.corrcoef(torch.stack([turns, *turned.color[:1]]))[0, 1].abs() < 0.03
    only = Augmentation(hue=0.5).draw(4, generator(0))
    assert all((factor == 1).all() for factor in only.color[:3])
    part = turned.of(slice(5, 9))
    assert torch.equal(part.color[3], turns[5:9])


def test_half_bodies_are_refused_where_no_person_has_enough_joints():
    few = Skeleton("few", tuple("abcdefgh"), (), (), upper_body=(0, 1, 2, 3))
    persons = persons_of(np.zeros((1, 8, 2)), np.ones((1, 8)), few)
    with pytest.raises(
        ValueError, match=r"half_body: it is for persons with more than 8 visible joints, .*'few' has 8"
    ):
        body_boxes(persons, (64, 64), half_body=True)


@pytest.mark.parametrize("skeleton", [MPII, COCO], ids=lambda skeleton: skeleton.name)
@pytest.mark.parametrize("size", [(256, 192), (64, 64), (64, 96)])
def test_half_body_boxes_are_those_of_upstream(skeleton, size):
    rng = np.random.default_rng(0)
    joints = skeleton.num_joints
    visible = rng.random((200, joints)) < rng.uniform(0.3, 1, (200, 1))
    # Persons cut off at the hips, and legs alone, for halves that give way.
    visible[:20, [k for k in range(joints) if k not in skeleton.upper_body][2:]] = False
    visible[20:40, skeleton.upper_body[2:]] = False
    persons = persons_of(rng.uniform(-50, 400, (200, joints, 2)), visible, skeleton)
    boxes = body_boxes(persons, size, half_body=True)
    assert boxes.dtype == np.float32
    assert boxes.shape == (200, 3, 4)
    own = [50, 60, 1.5, 1.5 * size[0] / size[1]]
    gave_way = 0
    for row in range(200):
        np.testing.assert_allclose(boxes[row, 0], own, rtol=1e-6)
        for half, want_upper in ((1, False), (2, True)):
            expected = own
            if visible[row].sum() > 8:
                center, scale = upstream.half_body(
                    persons.keypoints[row], visible[row], skeleton.upper_body, size[1] / size[0], want_upper
                )
                expected = [*center, *scale]
                gave_way += np.array_equal(boxes[row, 1], boxes[row, 2])
            np.testing.assert_allclose(boxes[row, half], expected, rtol=1e-5)
    assert gave_way > 10
    assert (visible.sum(axis=1) > 8).sum() > 80


def test_a_half_body_box_by_hand():
    # Upper joints 7 to 15 on a line from (10, 100) to (90, 180), the lower ones all at (50, 300).
    keypoints = np.full((1, 16, 2), (50.0, 300.0))
    keypoints[0, 7:, 0] = 10 + 10 * np.arange(9)
    keypoints[0, 7:, 1] = 100 + 10 * np.arange(9)
    own, lower, upper = body_boxes(persons_of(keypoints, np.ones((1, 16))), (128, 96), half_body=True)[0]
    # 80 px wide and high: at 3 to 4 no less than 80 px wide, 106.7 px high; half as much again: 120 and 160 px.
    np.testing.assert_allclose(upper, [50, 140, 0.6, 0.8], rtol=1e-6)
    # A box without extent is none.
    np.testing.assert_array_equal(lower, own)


def test_eight_visible_joints_are_too_few_for_a_half():
    keypoints = np.random.default_rng(0).uniform(0, 300, (2, 16, 2))
    visible = np.zeros((2, 16))
    visible[0, 4:12], visible[1, 4:13] = 1, 1
    few, enough = body_boxes(persons_of(keypoints, visible), (64, 64), half_body=True)
    assert (few[1:] == few[0]).all()
    assert (enough[1:] != enough[0]).any(axis=1).all()


def test_without_half_bodies_there_is_only_the_box_of_the_person_as_high_as_the_crop():
    persons = persons_of(np.zeros((2, 16, 2)), np.ones((2, 16)))
    np.testing.assert_array_equal(
        body_boxes(persons, (64, 32), half_body=False), np.float32([[[50, 60, 1.5, 3]], [[50, 60, 1.5, 3]]])
    )


def test_a_skeleton_without_an_upper_body_has_no_halves():
    skeleton = dataclasses.replace(MPII, name="mine", upper_body=())
    persons = persons_of(np.zeros((1, 16, 2)), np.ones((1, 16)), skeleton)
    with pytest.raises(ValueError, match="half_body: skeleton 'mine' does not say which joints are its upper_body"):
        body_boxes(persons, (64, 64), half_body=True)
    assert body_boxes(persons, (64, 64), half_body=False).shape == (1, 1, 4)
