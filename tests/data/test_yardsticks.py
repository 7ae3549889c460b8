# SPDX-License-Identifier: Apache-2.0
"""What each score measures errors by, for a run's page: the same as the score itself."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpose.data.coco.similar import half_errors
from fastpose.data.dataset import DataOptions
from fastpose.data.datasets import open_dataset
from fastpose.data.mixture.score import MixtureScorer
from fastpose.data.mpii.score import PckhScorer
from fastpose.data.persons import Part, Persons, Sets
from fastpose.skeletons import COCO, Skeleton
from tests.helpers.persons import persons_of
from tests.helpers.tiny_coco import write_tiny_coco


def coco_persons(root: Path, **options: Any) -> tuple[Persons, Any]:
    """The validation persons of a tiny data set in COCO's format, and their score."""
    if not root.exists():
        write_tiny_coco(root)
    annotations = {f"{split}_annotations": f"annotations/{split}.json" for split in ("train", "valid")}
    data = DataOptions(data_root=str(root), dataset="coco", images="images", **annotations, **options)
    dataset = open_dataset(data, (64, 48))
    persons = dataset.read("valid")
    return persons, dataset.scorer(persons)


def test_pckh_s_is_half_of_the_head_size() -> None:
    persons = persons_of(np.zeros((2, 16, 2)), extras={"head_size": np.array([10.0, 30.0], np.float32)})
    by = PckhScorer(persons, persons.extras["head_size"]).yardstick()
    assert by.right.tolist() == [[5.0] * 16, [15.0] * 16]
    assert by.half.tolist() == by.right.tolist()
    assert (by.threshold, "PCKh@0.5" in by.rule) == (0.5, True)
    unknown = PckhScorer(persons, None).yardstick()
    assert not unknown.right.any()


def test_ap_s_is_coco_s_similarity_by_the_annotated_areas(tmp_path: Path) -> None:
    persons, scorer = coco_persons(tmp_path / "coco")
    by = scorer.yardstick()
    contents = json.loads((tmp_path / "coco/annotations/valid.json").read_text())
    areas = [contents["annotations"][row]["area"] for row in persons.source_row]
    expected = 2 * np.array(COCO.sigmas) * np.sqrt(2 * math.log(2) * np.array(areas))[:, None]
    np.testing.assert_allclose(by.half, expected)
    assert by.right is by.half
    assert by.threshold == 0
    assert "annotations' areas" in by.similarity


def test_without_annotations_in_the_persons_order_the_area_is_a_share_of_the_box(tmp_path: Path) -> None:
    persons, _ = coco_persons(tmp_path / "coco")
    some = persons.select([0])
    half, source = half_errors(some, COCO.sigmas)
    w, h = some.scale[0].astype(float) * 200 / 1.25
    np.testing.assert_allclose(half[0], 2 * np.array(COCO.sigmas) * math.sqrt(2 * math.log(2) * 0.53 * w * h))
    assert "0.53 of the box" in source


def test_a_skeleton_without_sigmas_has_ap_s_own(tmp_path: Path) -> None:
    persons, _ = coco_persons(tmp_path / "coco")
    bare = dataclasses.replace(persons, skeleton=dataclasses.replace(COCO, sigmas=()))
    half, source = half_errors(bare, (0.05,) * 17)
    assert np.ptp(half, axis=1).max() == 0
    assert "sigmas of 0.05 for all joints" in source


def test_pck_s_is_a_share_of_the_box_and_causes_go_by_sigmas(tmp_path: Path) -> None:
    _, by_ap = coco_persons(tmp_path / "coco")
    persons, scorer = coco_persons(tmp_path / "coco", score="pck", pck_threshold=0.1)
    by = scorer.yardstick()
    np.testing.assert_allclose(by.right, np.tile(0.1 * persons.extras["box_side"][:, None], (1, 17)), rtol=1e-6)
    np.testing.assert_allclose(by.half, by_ap.yardstick().half)
    assert by.threshold == 0.1
    bare = dataclasses.replace(persons, skeleton=dataclasses.replace(COCO, sigmas=()))
    stand_in = type(scorer)(bare, scorer.data).yardstick()
    assert stand_in.half.tolist() == stand_in.right.tolist()
    assert "not known" in stand_in.similarity


def test_a_mixture_s_is_that_of_each_set_for_its_own_joints() -> None:
    """Two sets of MPII's joints, of which the network has three; the second set lacks the last one."""
    three = Skeleton("three", ("a", "b", "c"), (), ())
    heads = [np.array([10.0, 20.0], np.float32), np.array([40.0], np.float32)]
    owns = [persons_of(np.zeros((len(head), 16, 2)), extras={"head_size": head}) for head in heads]
    joints = [np.array([3, 4, 5]), np.array([9, 1, -1])]
    parts = tuple(Part(name, 1.0, j, own, {}) for name, j, own in zip("xy", joints, owns, strict=True))
    sets = Sets(np.array([0, 1, 0]), parts)
    scorers = [PckhScorer(own, head) for own, head in zip(owns, heads, strict=True)]
    by = MixtureScorer(sets, scorers).yardstick()
    assert by.right.tolist() == [[5, 5, 5], [20, 20, 0], [10, 10, 10]]
    assert by.half.tolist() == by.right.tolist()
    assert by.right.shape == (3, three.num_joints)
    assert by.rule.startswith("x: an error of")
    assert by.threshold == 1


@pytest.mark.parametrize("score", ["auto", "pck"])
def test_a_detector_s_boxes_have_a_measure_though_nothing_is_annotated(tmp_path: Path, score: str) -> None:
    write_tiny_coco(tmp_path / "coco")
    image = json.loads((tmp_path / "coco/annotations/valid.json").read_text())["images"][0]["id"]
    boxes = [{"image_id": image, "category_id": 1, "bbox": [10, 10, 30, 40], "score": 0.9}]
    (tmp_path / "coco/boxes.json").write_text(json.dumps(boxes))
    found, scorer = coco_persons(tmp_path / "coco", score=score, detections="boxes.json")
    by = scorer.yardstick()
    assert by.half.shape == (1, 17)
    assert np.isfinite(by.half).all()
    assert not found.compared.any()
