# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from fastpose.data.augmentation import Augmentation


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_draws_are_uniform_over_the_paper_s_ranges():
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
    first, again, other = (Augmentation().draw(8, generator(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.rotation, other.rotation)


def test_what_is_switched_off_does_not_happen():
    draws = Augmentation(rotation=0, scale=(1, 1), flip=0).draw(100, generator(0))
    assert (draws.rotation == 0).all()
    assert (draws.scale == 1).all()
    assert not draws.flip.any()
    assert Augmentation(flip=1).draw(100, generator(0)).flip.all()


def test_an_empty_batch_draws_nothing():
    assert [tuple(values.shape) for values in Augmentation().draw(0, generator(0))] == [(0,), (0,), (0,)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rotation", -1),
        ("rotation", float("nan")),
        ("scale", (1.25, 0.75)),
        ("scale", (0, 1)),
        ("scale", (1, float("nan"))),
        ("flip", 1.5),
        ("flip", -0.1),
    ],
)
def test_impossible_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        Augmentation(**{name: value})
