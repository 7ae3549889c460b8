# SPDX-License-Identifier: Apache-2.0
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fastpose.data.persons import Persons
from tests.helpers.persons import persons_of


def three_persons(**changes) -> Persons:
    """Three persons on two of three images, with extras of one and of two dimensions."""
    usual = {
        "image_paths": (Path("/data/a.jpg"), Path("/data/b.jpg"), Path("/data/c.jpg")),
        "image_index": [2, 0, 2],
        "extras": {"head_size": np.float32([3, 4, 5]), "outline": np.arange(12.0).reshape(3, 2, 2)},
    }
    return persons_of(np.arange(96).reshape(3, 16, 2), **usual | changes)


@pytest.mark.parametrize("rows", [[2, 0], [1], [0, 0, 1], []])
def test_selected_persons_keep_their_extras_and_the_images_they_are_on(rows):
    persons = three_persons()
    chosen = persons.select(rows)
    assert list(chosen.extras) == list(persons.extras)
    for name, array in persons.extras.items():
        np.testing.assert_array_equal(chosen.extras[name], array[rows])
        assert chosen.extras[name].dtype == array.dtype
    np.testing.assert_array_equal(chosen.keypoints, persons.keypoints[rows])
    expected = [persons.image_paths[image] for image in persons.image_index[rows]]
    assert [chosen.image_paths[image] for image in chosen.image_index] == expected
    assert set(chosen.image_paths) == set(expected)


def test_a_mask_selects_persons_and_the_truth_stays():
    persons = three_persons(truth={"category": 1})
    chosen = persons.select(np.array([True, False, True]))
    assert chosen.extras["head_size"].tolist() == [3, 5]
    assert chosen.truth is persons.truth


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"head_size": np.ones(2)}, "head_size must have one entry for each of the 3 persons, got 2"),
        ({"head_size": np.array([1, np.nan, 1])}, "head_size must be finite, it is not for person 1"),
        ({"outline": np.float32([[0, 0], [0, 0], [0, np.inf]])}, "outline must be finite, it is not for person 2"),
    ],
)
def test_extras_that_are_not_one_finite_entry_per_person_are_refused_by_name(extras, message):
    with pytest.raises(ValueError, match=message):
        three_persons(extras=extras)


def test_the_fingerprint_is_that_of_the_packs_of_version_0_1():
    assert three_persons().fingerprint() == "3 persons, checksum 65d61b53"


def test_the_fingerprint_tells_annotations_from_others_but_not_where_they_are_stored():
    persons = three_persons()
    moved = tuple(Path("/elsewhere") / path.name for path in persons.image_paths)
    for same in (
        dataclasses.replace(persons, image_paths=moved),
        dataclasses.replace(persons, extras={}),  # which the score's own fingerprint covers
        dataclasses.replace(persons, source_row=persons.source_row + 1),
    ):
        assert same.fingerprint() == persons.fingerprint()
    others = [
        dataclasses.replace(persons, **{name: getattr(persons, name) * np.float32(0.5)})
        for name in ("center", "scale", "keypoints")
    ]
    others += [
        dataclasses.replace(persons, visible=1 - persons.visible),
        dataclasses.replace(persons, image_index=persons.image_index[::-1].copy() // 2),
        dataclasses.replace(persons, image_paths=(Path("/data/z.jpg"), *persons.image_paths[1:])),
        persons.select([0, 1]),
    ]
    prints = {persons.fingerprint(), *(other.fingerprint() for other in others)}
    assert len(prints) == 1 + len(others)
