# SPDX-License-Identifier: Apache-2.0
"""COCO's score: average precision (AP) and recall (AR) of poses, by pycocotools, and the results that it takes."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from fastpose.data.coco.oks import oks_nms
from fastpose.data.persons import Persons
from fastpose.option import OptionError

NAMES = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")  # the order of COCOeval.stats
SEEN_JOINT = 0.2  # a joint's score from which on it counts for its person's (SimpleBaselines)


class CocoTruth(TypedDict):
    """What COCO's evaluation compares predictions with, and where the boxes that they were made in came from.

    box_source: "annotations", or the name of the detector's file: printed beside every AP.
    category: id of the persons' category.
    image_ids: the images that are evaluated, those without persons included.
    annotations: all annotations of persons on these images, as COCO has them, except segmentations. Crowds and persons
        without joints are among them: what is predicted there counts neither as right nor as wrong.
    """

    box_source: str
    category: int
    image_ids: list[int]
    annotations: list[dict[str, Any]]


def rescore(box_scores: np.ndarray, joint_scores: np.ndarray) -> np.ndarray:
    """A person's score: its box's times the mean of its joints' scores above 0.2, 0 where there are none.

    Args:
        box_scores: [N].
        joint_scores: [N, K].

    Returns:
        float64 [N].

    Source: SimpleBaselines' and HRNet's ``COCODataset.evaluate``.
    """
    joint_scores = np.asarray(joint_scores, np.float64)
    seen = joint_scores > SEEN_JOINT
    return box_scores * np.where(seen, joint_scores, 0).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)


def keypoint_results(
    persons: Persons, category: int, predictions: np.ndarray, scores: np.ndarray
) -> list[dict[str, Any]]:
    """Predictions in COCO's results format, one object per pose: image_id, category_id, keypoints (x, y, score), score.

    Poses get the score of `rescore`; per image, those that are nearly the same as a better one are left out
    (`oks_nms` at 0.9, by the area of the crop as upstream).

    Args:
        persons: N persons with the extras image_id and box_score, see `read_coco`.
        category: id of the persons' category.
        predictions: [N, K, 2] px.
        scores: [N, K]; persons with a score that is not finite are left out.

    Raises:
        OptionError: the skeleton has no sigmas.
    """
    sigmas = known_sigmas(persons)
    image_id = persons.extras["image_id"]
    pose_scores = rescore(persons.extras["box_score"], scores)
    area = np.prod(persons.scale.astype(np.float64) * 200, axis=1)
    rows = np.flatnonzero(np.isfinite(scores).all(axis=1))
    rows = rows[np.argsort(image_id[rows], kind="stable")]
    results = []
    for of_image in np.split(rows, np.flatnonzero(np.diff(image_id[rows])) + 1):
        for row in of_image[oks_nms(predictions[of_image], pose_scores[of_image], area[of_image], sigmas)]:
            results.append(
                {
                    "image_id": int(image_id[row]),
                    "category_id": category,
                    "keypoints": np.column_stack([predictions[row], scores[row]]).ravel().tolist(),
                    "score": float(pose_scores[row]),
                }
            )
    return results


def keypoint_ap(
    truth: CocoTruth,
    results: Sequence[Mapping[str, Any]],
    sigmas: Sequence[float],
    *,
    without_images: Collection[int] = (),
) -> dict[str, float]:
    """COCO's AP and AR for poses, in percent, by pycocotools.

    Args:
        truth: the annotations, see `read_coco`.
        results: at least one pose in COCO's results format, see `keypoint_results`.
        sigmas: [K], see `Skeleton.sigmas`.
        without_images: ids of images to leave out.

    Returns:
        AP, AP50, AP75, APM, APL, AR, AR50, AR75, ARM, ARL; NaN if nobody (of that size) is annotated.

    Raises:
        ValueError: pycocotools is not installed; results are empty, or one is of an image that is not evaluated.
    """
    require_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = set(truth["image_ids"]) - set(without_images)
    if not results or not {result["image_id"] for result in results} <= images:
        raise ValueError(f"results: expected at least one pose, and all on the {len(images)} images of the annotations")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress and a table
        annotated = COCO()
        annotated.dataset = {
            "images": [{"id": image} for image in sorted(images)],
            "categories": [{"id": truth["category"], "name": "person"}],
            # Copies: it adds to them.
            "annotations": [dict(one) for one in truth["annotations"] if one["image_id"] in images],
        }
        annotated.createIndex()
        evaluation = COCOeval(annotated, annotated.loadRes(copy.deepcopy(list(results))), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(sigmas, np.float64)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # -1 says that there was nothing to find.
    return {
        name: math.nan if value < 0 else 100 * float(value) for name, value in zip(NAMES, evaluation.stats, strict=True)
    }


def known_sigmas(persons: Persons) -> tuple[float, ...]:
    """The sigmas of the persons' joints; OptionError if the skeleton has none."""
    if not persons.skeleton.sigmas:
        raise OptionError(
            "skeleton",
            f"AP needs the sigmas of the joints, and {persons.skeleton.name!r} has none: add them to its file, or take "
            "--score pck",
        )
    return persons.skeleton.sigmas


def require_pycocotools() -> None:
    """Raises ValueError with the command that installs it if pycocotools is missing."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"COCO's AP is computed by pycocotools, which cannot be imported ({error}): pip install pycocotools"
        ) from error
