# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest

from fastpose.data.boxes import PADDING, crop_boxes, inside, mpii_box

BOXES = np.array([[10.0, 20.0, 30.0, 80.0], [-5.0, 0.0, 90.0, 40.0]])


@pytest.mark.parametrize("padding", [1.0, 1.25, 1.6])
def test_a_box_grows_about_its_middle_to_the_aspect_ratio_and_by_the_padding(padding):
    center, scale = crop_boxes(BOXES, 0.75, padding)
    np.testing.assert_array_equal(center, [[25, 60], [40, 20]])
    # 30 < 80 * 0.75 = 60: the width grows; 90 > 30: the height grows, to 120.
    np.testing.assert_allclose(scale * 200, [[60 * padding, 80 * padding], [90 * padding, 120 * padding]])


def test_without_a_padding_a_box_grows_by_a_quarter():
    assert PADDING == 1.25
    for usual, named in zip(crop_boxes(BOXES, 1.0), crop_boxes(BOXES, 1.0, 1.25), strict=True):
        np.testing.assert_array_equal(usual, named)


def test_mpiis_box_moves_down_grows_and_becomes_0_based():
    center, scale = mpii_box(np.array([101.0, 201.0]), 2.0)
    np.testing.assert_array_equal(center, [100, 230])  # down by 15 * 2 px
    assert scale == 2.5
    center, scale = mpii_box(np.array([-1.0, 7.0]), 2.0)  # unknown: left alone
    np.testing.assert_array_equal(center, [-2, 6])
    assert scale == 2.0


@pytest.mark.parametrize(
    ("box", "part"),
    [
        ((10, 20, 30, 40), [10, 20, 30, 40]),
        ((-5, -6, 30, 40), [0, 0, 25, 34]),
        ((90, 70, 30, 40), [90, 70, 10, 10]),
        ((-5, -5, 200, 200), [0, 0, 100, 80]),
        ((200, 10, 30, 40), [200, 10, 0, 40]),
        ((-50, 10, 30, 40), [0, 10, 0, 40]),
    ],
)
def test_the_part_of_a_box_inside_an_image(box, part):
    assert inside(box, 100, 80) == part
