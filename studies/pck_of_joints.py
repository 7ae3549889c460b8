# SPDX-License-Identifier: Apache-2.0
"""PCK of some joints, by the box around each person's joints and by its torso.

Compares networks that know different joints, or were scored by others. Every joint of every person weighs the same.

fastpose evaluate --checkpoint RUN --score pck --out RESULTS
python -m studies.pck_of_joints RESULTS/keypoints_results.json annotations/valid.json --without neck head_top
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

THRESHOLDS = (0.2, 0.1, 0.05)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a Markdown table; returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.pck_of_joints", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("predictions", type=Path, help="what fastpose evaluate --score pck writes")
    parser.add_argument("annotations", type=Path, help="the file that it was scored on")
    parser.add_argument("--without", nargs="*", default=[], help="joints that are left out")
    options = parser.parse_args(argv)
    contents = json.loads(options.annotations.read_text(encoding="utf-8"))
    names = contents["categories"][0]["keypoints"]
    results = json.loads(options.predictions.read_text(encoding="utf-8"))
    truth = np.array([contents["annotations"][one["annotation_row"]]["keypoints"] for one in results], np.float64)
    truth = truth.reshape(len(results), len(names), 3)
    points = np.array([one["keypoints"] for one in results], np.float64).reshape(truth.shape)[..., :2]
    seen = truth[..., 2] > 0
    at = np.where(seen[..., None], truth[..., :2], np.nan)
    ends = at[:, names.index("left_shoulder")] - at[:, names.index("right_hip")]
    sizes = {
        "the longer side of the joints' box": (np.nanmax(at, axis=1) - np.nanmin(at, axis=1)).max(axis=1),
        "the torso, left shoulder to right hip": np.nan_to_num(np.hypot(*ends.T)),
    }
    kept = [joint for joint, name in enumerate(names) if name not in options.without]
    print("| errors in units of | joints | " + " | ".join(f"PCK@{threshold:g}" for threshold in THRESHOLDS) + " |")
    print("|---|" + "---|" * (1 + len(THRESHOLDS)))
    for what, size in sizes.items():
        counted = seen[:, kept] & (size > 0)[:, None]
        relative = np.linalg.norm(points - truth[..., :2], axis=2)[:, kept][counted]
        relative /= np.broadcast_to(size[:, None], counted.shape)[counted]
        shares = " | ".join(f"{(relative < threshold).mean():.1%}" for threshold in THRESHOLDS)
        print(f"| {what} | {counted.sum():,} | {shares} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
