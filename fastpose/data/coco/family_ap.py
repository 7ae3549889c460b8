# SPDX-License-Identifier: Apache-2.0
"""The AP of data sets that have one of their own: CrowdPose's by how crowded images are, COCO-WholeBody's by parts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np

from fastpose.data.coco.ap import MAX_DETECTIONS, NAMES, CocoTruth, Key, keypoint_ap, to_find

# From which crowd index on images are of medium difficulty, and hard. Those of crowdposetools, with which the published
# numbers were computed; its paper says 0.1 for the first.
MEDIUM, HARD = 0.2, 0.8

# The parts of a whole body and their numbers of joints, in the order of the joints.
PARTS = {"body": 17, "foot": 6, "face": 68, "lefthand": 21, "righthand": 21}


def crowd_ap(
    truth: CocoTruth,
    results: Sequence[Mapping[str, Any]],
    sigmas: Sequence[float],
    *,
    without_images: Collection[Key] = (),
    max_detections: int = MAX_DETECTIONS,
) -> dict[str, float]:
    """CrowdPose's AP and AR, in percent.

    Args:
        truth: with ``crowd_index``; areas are 0.53 of the box, see `CrowdPose`.
        results, sigmas, without_images, max_detections: see `keypoint_ap`.

    Returns:
        AP, AP50, AP75, AR, AR50, AR75, and APE, APM and APH: AP over the images with a crowd index below 0.2 (easy),
        from there to below 0.8 (medium), and from there on (hard). NaN if nobody (on such images) is annotated.

    Raises:
        ValueError: see `keypoint_ap`.

    Source: crowdposetools' ``COCOeval``.
    """
    over_all = keypoint_ap(truth, results, sigmas, without_images=without_images, max_detections=max_detections)
    values = {name: over_all[name] for name in ("AP", "AP50", "AP75", "AR", "AR50", "AR75")}
    index = dict(zip(truth["image_ids"], truth["crowd_index"], strict=True))
    for name, least, below in (("APE", -math.inf, MEDIUM), ("APM", MEDIUM, HARD), ("APH", HARD, math.inf)):
        others = {image for image, crowded in index.items() if not least <= crowded < below}.union(without_images)
        on_these = [result for result in results if result["image_id"] not in others]
        values[name] = _ap(truth, on_these, sigmas, others, max_detections)["AP"]
    return values


def wholebody_ap(
    truth: CocoTruth,
    results: Sequence[Mapping[str, Any]],
    sigmas: Sequence[float],
    *,
    without_images: Collection[Key] = (),
    max_detections: int = MAX_DETECTIONS,
) -> dict[str, float]:
    """COCO-WholeBody's AP and AR, in percent: of all 133 joints, and of each part by itself.

    A person counts for a part if it has an annotated joint of that, a pose if a joint of that has a score above 0. A
    pose's score is the same for all parts. Areas, also of parts, are the person's, and a pose's that of its body.

    Args:
        truth, results: with 133 joints, in the order of `PARTS`.
        sigmas: [133].
        without_images, max_detections: see `keypoint_ap`.

    Returns:
        What `keypoint_ap` does, for all joints; then AP_body, AR_body and the same for foot, face, lefthand and
        righthand. NaN if nobody has such joints.

    Raises:
        ValueError: see `keypoint_ap`.

    Source: xtcocotools' ``COCOeval`` with keypoints_wholebody, keypoints_body and so on.
    """
    if not results:
        raise ValueError("results: expected at least one pose, got none")
    body = [np.reshape(result["keypoints"], (-1, 3))[: PARTS["body"], :2] for result in results]
    seen = [any(score > 0 for score in result["keypoints"][2::3]) for result in results]
    whole = [result for result, joint in zip(results, seen, strict=True) if joint]
    areas = [float(np.prod(np.ptp(points, axis=0))) for points, joint in zip(body, seen, strict=True) if joint]
    values = _ap(truth, whole, sigmas, without_images, max_detections, areas)
    end = 0
    for name, count in PARTS.items():
        start, end = end, end + count
        of_part = [_of_part(one, start, end) for one in truth["annotations"]]
        for one in of_part:
            annotated = sum(v > 0 for v in one["keypoints"][2::3])
            one["num_keypoints"] = annotated if one["num_keypoints"] else 0  # who is left out is so in every part
        poses = [_of_part(result, start, end) for result in results]
        poses = [pose for pose in poses if any(score > 0 for score in pose["keypoints"][2::3])]
        truth_of_part = cast("CocoTruth", {**truth, "annotations": of_part})
        found = _ap(truth_of_part, poses, sigmas[start:end], without_images, max_detections)
        values |= {f"AP_{name}": found["AP"], f"AR_{name}": found["AR"]}
    return values


def wholebody_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result of 133 joints as COCO-WholeBody's files have it: a field for each part."""
    written, end = dict(result), 0
    for name, count in PARTS.items():
        start, end = end, end + 3 * count
        written["keypoints" if name == "body" else f"{name}_kpts"] = result["keypoints"][start:end]
    return written


def _of_part(record: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    return {**record, "keypoints": record["keypoints"][3 * start : 3 * end]}


def _ap(
    truth: CocoTruth,
    results: Sequence[Mapping[str, Any]],
    sigmas: Sequence[float],
    without_images: Collection[Key],
    max_detections: int,
    areas: Sequence[float] | None = None,
) -> dict[str, float]:
    """`keypoint_ap`, also of no poses at all."""
    if results:
        return keypoint_ap(
            truth, results, sigmas, without_images=without_images, max_detections=max_detections, areas=areas
        )
    anybody = any(one["image_id"] not in without_images for one in to_find(truth))
    return dict.fromkeys(NAMES, 0.0 if anybody else math.nan)
