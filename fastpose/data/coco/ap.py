# SPDX-License-Identifier: Apache-2.0
"""COCO's score: average precision (AP) and recall (AR) of poses, by pycocotools, and the results that it takes."""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from fastpose.data.coco.oks import oks_nms
from fastpose.data.persons import Persons
from fastpose.skeletons import Skeleton

NAMES = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")  # the order of COCOeval.stats
MAX_DETECTIONS = 20  # poses of an image that count, COCO's own
BOX_AREA = 0.53  # a person's area, in areas of the box, where the file does not say (mmpose)
UNKNOWN_SIGMA = 0.05  # of each joint of a skeleton without sigmas; COCO's are 0.025 to 0.107
SEEN_JOINT = 0.2  # a joint's score from which on it counts for its person's (SimpleBaselines)


Key = int | str | float  # an id of a record; only ever compared with others


class _Always(TypedDict):
    box_source: str
    category: Key
    image_ids: list[Any]
    annotations: list[dict[str, Any]]


class CocoTruth(_Always, total=False):
    """What COCO's evaluation compares predictions with, and where the boxes that they were made in came from.

    box_source: "annotations", or the name of the detector's file: printed beside every AP.
    category: id of the persons' category; of the first one if there are several.
    image_ids: the images that are evaluated, those without persons included, by the file's ids.
    annotations: all annotations of persons on these images, as COCO has them, except segmentations. Crowds and persons
        whom nobody is asked to find are among them, these with num_keypoints 0: what is predicted there counts neither
        as right nor as wrong.
    image_numbers: what the persons' `image_id` has for each of image_ids; absent if it is the same.
    categories: the ids of several categories. AP is then the mean over them.
    no_area: how many persons to find have no area in the file, and got 0.53 of their box; absent if none.
    no_box: how many of them have no box in the file, and got one around their joints; absent if none.
    crowd_index: how crowded each of image_ids is, see `crowd_ap`; CrowdPose alone has it.
    """

    image_numbers: list[int]
    categories: list[Key]
    no_area: int
    no_box: int
    crowd_index: list[float]


def of_joints(truth: CocoTruth, scored: np.ndarray) -> CocoTruth:
    """The same truth without the joints that a score leaves out, bool [K]: as if nobody had annotated them. Who has no
    other joint is nobody to find."""
    annotations = []
    for one in truth["annotations"]:
        triples = np.array(one["keypoints"], object).reshape(-1, 3)  # numbers of any size stay what they are
        triples[~scored] = 0
        left = sum(v > 0 for v in triples[:, 2])
        annotations.append(
            one
            | {
                "keypoints": triples.ravel().tolist(),
                "num_keypoints": one["num_keypoints"] if one["iscrowd"] else min(one["num_keypoints"], left),
            }
        )
    changed = truth.copy()
    changed["annotations"] = annotations
    return changed


def own_ids(persons: Persons, truth: Mapping[str, Any] | None) -> list[dict[str, Key]]:
    """The image_id and category_id of each person, as the annotation file has them; no category_id without truth."""
    truth = truth or {}
    images = persons.extras["image_id"].tolist()
    if "image_numbers" in truth:
        own = dict(zip(truth["image_numbers"], truth["image_ids"], strict=True))
        images = [own[image] for image in images]
    if "categories" in truth:
        kinds = [truth["categories"][kind] for kind in persons.extras["category"]]
    else:
        kinds = [truth["category"]] * len(persons) if "category" in truth else []
    if not kinds:
        return [{"image_id": image} for image in images]
    return [{"image_id": image, "category_id": kind} for image, kind in zip(images, kinds, strict=True)]


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
    persons: Persons,
    category: Key,
    predictions: np.ndarray,
    scores: np.ndarray,
    truth: CocoTruth | None = None,
) -> list[dict[str, Any]]:
    """Predictions in COCO's results format, one object per pose: image_id, category_id, keypoints (x, y, score), score.

    Poses get the score of `rescore`; per image and category, those that are nearly the same as a better one are left
    out (`oks_nms` at 0.9, by the area of the crop as upstream and by the joints that are scored).

    Args:
        persons: N persons with the extras image_id and box_score, see `read_coco`.
        category: id of the persons' category.
        predictions: [N, K, 2] px.
        scores: [N, K]; persons with a score that is not finite are left out.
        truth: has the file's own ids, if `image_id` are not these or there are several categories.
    """
    # A joint that the network lacks is at the same place in all poses of a box: it would make them alike.
    scored = np.ones(persons.skeleton.num_joints, bool) if persons.scored is None else persons.scored
    sigmas = np.array(sigmas_of(persons.skeleton))[scored]
    ids = own_ids(persons, truth or {"category": category})
    group = np.stack([persons.extras["image_id"], persons.extras.get("category", np.zeros(len(persons), np.int64))])
    pose_scores = rescore(persons.extras["box_score"], scores)
    area = np.prod(persons.scale.astype(np.float64) * 200, axis=1)
    rows = np.flatnonzero(np.isfinite(scores).all(axis=1))
    rows = rows[np.lexsort(group[::-1, rows])]
    results = []
    for together in np.split(rows, np.flatnonzero(np.diff(group[:, rows]).any(axis=0)) + 1):
        poses = predictions[together][:, scored]
        for row in together[oks_nms(poses, pose_scores[together], area[together], sigmas)]:
            results.append(
                {
                    **ids[row],
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
    without_images: Collection[Key] = (),
    max_detections: int = MAX_DETECTIONS,
    areas: Sequence[float] | None = None,
) -> dict[str, float]:
    """COCO's AP and AR for poses, in percent, by pycocotools.

    It sees images, annotations and categories numbered from 1, in their order: what ids are does not matter to it or,
    as 0, matters in the wrong way (pycocotools takes a match with annotation 0 for none).

    Args:
        truth: the annotations, see `read_coco`.
        results: at least one pose in COCO's results format, see `keypoint_results`.
        sigmas: [K], see `sigmas_of`.
        without_images: ids of images to leave out.
        max_detections: how many poses of an image count, those with the highest scores.
        areas: of each pose, square px, by which poses of nobody count in APM, APL, ARM and ARL; None: that of the box
            around its joints.

    Returns:
        AP, AP50, AP75, APM, APL, AR, AR50, AR75, ARM, ARL; NaN if nobody (of that size) is annotated.

    Raises:
        ValueError: pycocotools is not installed; results are empty, or one is of an image or category that is not
            evaluated.
    """
    require_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    without = set(without_images)
    images = {image: number for number, image in enumerate(truth["image_ids"], 1) if image not in without}
    kinds = {kind: number for number, kind in enumerate(truth.get("categories") or [truth["category"]], 1)}
    if not results or not all(result["image_id"] in images for result in results):
        raise ValueError(f"results: expected at least one pose, and all on the {len(images)} images of the annotations")
    if other := [result["category_id"] for result in results if result["category_id"] not in kinds]:
        raise ValueError(f"results: expected poses of category {', '.join(map(str, kinds))}, got one of {other[0]}")

    def numbered(record: Mapping[str, Any]) -> dict[str, Any]:  # a copy, too: pycocotools adds to its records
        return {**record, "image_id": images[record["image_id"]], "category_id": kinds[record["category_id"]]}

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress and a table
        annotated = COCO()
        known = [numbered(one) for one in truth["annotations"] if one["image_id"] in images]
        annotated.dataset = {
            "images": [{"id": number} for number in images.values()],
            "categories": [{"id": number} for number in kinds.values()],
            "annotations": [one | {"id": number} for number, one in enumerate(known, 1)],
        }
        annotated.createIndex()
        poses = [numbered(one) for one in results]
        found = annotated.loadRes(poses)  # gives each of them an area
        for pose, area in zip(poses, areas or (), strict=areas is not None):
            pose["area"] = area
        evaluation = COCOeval(annotated, found, "keypoints")
        parameters = evaluation.params
        parameters.kpt_oks_sigmas = np.array(sigmas, np.float64)
        parameters.maxDets = [max_detections]
        parameters.areaRng = [[low, high if high < 1e10 else math.inf] for low, high in parameters.areaRng]
        evaluation.evaluate()
        evaluation.accumulate()
        parameters.maxDets = [MAX_DETECTIONS]  # by which it finds the only column there is
        evaluation.summarize()
    # -1 says that there was nothing to find.
    return {
        name: math.nan if value < 0 else 100 * float(value) for name, value in zip(NAMES, evaluation.stats, strict=True)
    }


def to_find(truth: CocoTruth) -> list[dict[str, Any]]:
    """The annotations that count if they are missed."""
    return [one for one in truth["annotations"] if one["num_keypoints"] and not one["iscrowd"]]


class Ceiling(NamedTuple):
    """What AP and AR cannot exceed, in percent, and how many persons of one category the fullest image has."""

    ap: float
    ar: float
    image: Key
    persons: int


def ceiling(truth: CocoTruth, max_detections: int) -> Ceiling | None:
    """The highest scores possible if images have more persons than poses that count; None if none has."""
    persons = Counter((one["category_id"], one["image_id"]) for one in to_find(truth))
    if max(persons.values(), default=0) <= max_detections:
        return None
    recalls = []
    for kind in {category for category, _ in persons}:
        counts = [count for (category, _), count in persons.items() if category == kind]
        recalls.append(sum(min(count, max_detections) for count in counts) / sum(counts))
    precision = [(np.linspace(0, 1, 101) <= recall).mean() for recall in recalls]  # at the recalls that COCO averages
    (_, fullest), most = persons.most_common(1)[0]
    return Ceiling(100 * float(np.mean(precision)), 100 * float(np.mean(recalls)), fullest, most)


def sigmas_of(skeleton: Skeleton) -> tuple[float, ...]:
    """The sigmas of the skeleton's joints, or, where it has none, `UNKNOWN_SIGMA` for each."""
    return skeleton.sigmas or (UNKNOWN_SIGMA,) * skeleton.num_joints


def require_pycocotools() -> None:
    """Raises ValueError with the command that installs it if pycocotools is missing."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"COCO's AP is computed by pycocotools, which cannot be imported ({error}): pip install pycocotools"
        ) from error
