# SPDX-License-Identifier: Apache-2.0
"""PCK of twelve joints, without neck and head, in the two measures that other work uses.

    python -m studies.lspet.score ANNOTATIONS.json keypoints_results.json

Errors are relative to the longer side of the box of all labelled joints, of the twelve alone, and to the torso, from
the left shoulder to the right hip, of persons with both. The second file is that of fastpose evaluate.
"""

import json
import sys
from pathlib import Path

import numpy as np

JOINTS = 12


def main(annotations: str, results: str) -> None:
    truth = json.loads(Path(annotations).read_text())
    names = truth["categories"][0]["keypoints"]
    persons = {annotation["image_id"]: annotation["keypoints"] for annotation in truth["annotations"]}
    found = json.loads(Path(results).read_text())
    labels = np.array([persons[result["image_id"]] for result in found], float).reshape(len(found), -1, 3)
    points = np.array([result["keypoints"] for result in found], float).reshape(len(found), -1, 3)[..., :2]
    labelled = labels[..., 2] > 0
    errors = np.linalg.norm(points - labels[..., :2], axis=2)[:, :JOINTS]

    def longer_side(joints: int) -> np.ndarray:
        at = np.where(labelled[:, :joints, None], labels[:, :joints, :2], np.nan)
        return (np.nanmax(at, axis=1) - np.nanmin(at, axis=1)).max(axis=1)

    shoulder, hip = names.index("left_shoulder"), names.index("right_hip")
    torso = np.linalg.norm(labels[:, shoulder, :2] - labels[:, hip, :2], axis=1)
    both = labelled[:, shoulder] & labelled[:, hip]
    units = {
        "box of all joints": longer_side(labels.shape[1]),
        "box of the twelve": longer_side(JOINTS),
        "torso": np.where(both, torso, np.nan),
    }
    for name, unit in units.items():
        counted = labelled[:, :JOINTS] & np.isfinite(unit)[:, None]
        right = [(errors <= threshold * unit[:, None])[counted].mean() for threshold in (0.2, 0.1, 0.05)]
        print(f"{name}: {counted.sum()} joints, PCK at 0.2, 0.1, 0.05: {', '.join(f'{100 * r:.1f}' for r in right)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
