# SPDX-License-Identifier: Apache-2.0
"""PCK as a run's score."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastpose.data.coco.ap import own_ids
from fastpose.data.coco.pck import auc, epe, nme, pck
from fastpose.data.coco.similar import half_errors
from fastpose.data.dataset import STAND_IN, DataOptions, Yardstick, format_values
from fastpose.data.persons import Persons
from fastpose.files import write_text
from fastpose.option import OptionError
from fastpose.skeletons import Skeleton

SHORTEST_TORSO = 1.0  # px; mmpose takes the predicted torso below it, which lets a network choose its own measure
_TORSO = (("leftshoulder", "lshoulder"), ("righthip", "rhip"))  # names of its ends, without case and separators
_JOINTS_PER_ROW = 6  # of the table for people


class PckScorer:
    """PCK for a run, with AUC, EPE and NME beside it, over the images that could be read. Any joints will do.

    Values: ``PCK`` and each joint's by its name, at ``pck_threshold`` (`pck`); ``AUC``, with ``pck_pixels`` as its size
    (`auc`); ``EPE``, in px; ``NME``. All but EPE are percentages. What PCK and NME divide errors by is ``pck_norm``;
    persons for whom that is not known (no shoulder or hip annotated, a torso below 1 px) count in AUC and EPE alone,
    and ``left_out`` in the notes says how many they are.

    Args:
        persons: N persons of `read_coco`, with its extra ``box_side`` if errors are divided by that.
        data: ``pck_norm``, ``pck_threshold`` and ``pck_pixels``; ``detections`` must be empty.
    """

    name, main = "pck", "PCK"

    def __init__(self, persons: Persons, data: DataOptions) -> None:
        self.persons, self.data = persons, data
        self.size = _sizes(persons, data)
        left_out = int(((self.size == 0) & persons.compared.any(axis=1)).sum())
        self.label = f"PCK@{data.pck_threshold:g}"
        self.curves: Mapping[str, str] = {"PCK": self.label, "AUC": "AUC"}
        notes: dict[str, Any] = {
            "norm": data.pck_norm,
            "threshold": data.pck_threshold,
            "pixels": data.pck_pixels,
            "left_out": left_out,
        }
        self.note = f"by {data.pck_pixels:g} px" if data.pck_norm == "pixels" else f"by {data.pck_norm}"
        if data.pck_norm == "box" and (no_box := (persons.truth or {}).get("no_box", 0)):
            notes["boxes_from_joints"] = no_box
            self.note += f", boxes of {no_box} of {len(persons)} persons around their joints"
        if left_out:
            self.note += f", {left_out} of {len(persons)} persons left out"
        self.notes: Mapping[str, Any] = notes

    def needs(self, *, to_train: bool) -> None:
        persons, norm = self.persons, self.data.pck_norm
        if self.data.detections:
            raise OptionError(
                "detections", "PCK compares each person with its own annotation, which a detector's boxes do not have"
            )
        if not persons.compared.any():
            if not to_train:
                return  # predictions only
            raise OptionError("valid_annotations", "PCK needs annotated joints to compare with, and there are none")
        if norm == "box" and "box_side" not in persons.extras:
            raise OptionError(
                "pck_norm",
                "box needs the sides of the annotated boxes, and these persons have none: make their pack again with "
                "--score pck, or take torso or pixels",
            )
        if norm == "torso" and _torso(persons.skeleton) is None:
            raise OptionError(
                "pck_norm",
                f"torso needs joints left_shoulder and right_hip (or l_shoulder, r_hip), and {persons.skeleton.name!r} "
                f"has {', '.join(persons.skeleton.joints)}: take box or pixels",
            )
        if not self.size.any():
            raise OptionError(
                "pck_norm", f"the {norm} is not known for any of the {len(persons)} persons: take another"
            )

    def score(self, predictions: np.ndarray, scores: np.ndarray, seen: np.ndarray) -> dict[str, float] | None:
        persons = self.persons
        if not persons.compared.any():
            return None
        rows = predictions[seen], persons.keypoints[seen], persons.compared[seen]
        mean, joints = pck(*rows, self.size[seen], self.data.pck_threshold)
        if math.isnan(mean):
            raise ValueError(
                f"PCK needs annotated joints and {self._norm()}, and none of the persons to evaluate has both"
            )
        return {
            "PCK": mean,
            **dict(zip(persons.skeleton.joints, joints.tolist(), strict=True)),
            "AUC": auc(*rows, self.data.pck_pixels),
            "EPE": epe(*rows),
            "NME": nme(*rows, self.size[seen]),
        }

    def table(self, values: Mapping[str, float] | None) -> str:
        if not values:
            return "no annotations, no PCK: predictions only"
        means = {self.label: "PCK", "AUC": "AUC", "EPE (px)": "EPE", "NME": "NME"}
        unknown = self.notes["left_out"]
        left_out = f", not known for {unknown} of {len(self.persons)} persons, who are left out" if unknown else ""
        made = self.notes.get("boxes_from_joints")
        of_joints = f", made of the joints for {made} of {len(self.persons)} persons" if made else ""
        explained = f"errors relative to {self._norm()}{of_joints}{left_out}"
        parts = [format_values({shown: values[name] for shown, name in means.items()}), explained]
        joints = self.persons.skeleton.joints
        for first in range(0, len(joints), _JOINTS_PER_ROW):
            parts.append(format_values({name: values[name] for name in joints[first : first + _JOINTS_PER_ROW]}))
        return "\n".join(parts)

    def write(self, folder: Path, predictions: np.ndarray, scores: np.ndarray) -> Path:
        """Writes keypoints_results.json: COCO's results format, one pose per person, in the order of the annotations.

        A pose's score is the mean of its joints'. None is suppressed, and `annotation_row`, from 0, says which of the
        file's annotations each is for; a person whose image could not be read is absent.
        """
        persons, ids = self.persons, own_ids(self.persons, self.persons.truth)
        results = []
        for row in np.flatnonzero(np.isfinite(scores).all(axis=1) & np.isfinite(predictions).all(axis=(1, 2))):
            results.append(
                {
                    **ids[row],
                    "keypoints": np.column_stack([predictions[row], scores[row]]).ravel().tolist(),
                    "score": float(scores[row].mean(dtype=np.float64)),
                    "annotation_row": int(persons.source_row[row]),
                }
            )
        path = folder / "keypoints_results.json"
        write_text(path, json.dumps(results, allow_nan=False))
        return path

    def yardstick(self) -> Yardstick:
        persons, data = self.persons, self.data
        right = np.zeros(persons.visible.shape) + data.pck_threshold * self.size[:, None]
        half, similarity = right, STAND_IN
        if persons.skeleton.sigmas:
            half, similarity = half_errors(persons, persons.skeleton.sigmas)
        rule = f"an error of less than {data.pck_threshold:g} of {self._norm()}"
        return Yardstick(right, rule, data.pck_threshold, half, similarity)

    def fingerprint(self) -> str:
        box_side = self.persons.extras.get("box_side")
        return "no box sides" if box_side is None else f"checksum of the box sides {zlib.crc32(box_side.tobytes()):08x}"

    def _norm(self) -> str:
        box, torso = "the longer side of the box", "the torso (left shoulder to right hip)"
        return {"box": box, "torso": torso, "pixels": f"{self.data.pck_pixels:g} px"}[self.data.pck_norm]


def _sizes(persons: Persons, data: DataOptions) -> np.ndarray:
    """What each person's errors are divided by, float64 [N] in px; 0 where that is not known."""
    unknown = np.zeros(len(persons))
    if data.pck_norm == "pixels":
        return unknown + data.pck_pixels
    if data.pck_norm == "box":
        return np.asarray(persons.extras.get("box_side", unknown), np.float64)
    if (ends := _torso(persons.skeleton)) is None:
        return unknown
    first, last = (persons.keypoints[:, joint].astype(np.float64) for joint in ends)
    length = np.hypot(*(first - last).T)
    return np.where(persons.visible[:, ends].all(axis=1) & (length >= SHORTEST_TORSO), length, 0)


def _torso(skeleton: Skeleton) -> list[int] | None:
    """The joints at both ends of the torso, left shoulder and right hip; None where the skeleton lacks one."""
    names = [re.sub(r"[\W_]", "", joint).lower() for joint in skeleton.joints]
    ends = [[joint for joint, name in enumerate(names) if name in end] for end in _TORSO]
    return [end[0] for end in ends] if all(ends) else None
