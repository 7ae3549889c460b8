# SPDX-License-Identifier: Apache-2.0
"""MPII's score for a run: PCKh of the validation persons, and their predictions as pred.mat."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from fastpose.data.dataset import STAND_IN, Yardstick, format_values
from fastpose.data.mpii.annotations import read_ground_truth
from fastpose.data.mpii.pckh import pckh
from fastpose.data.persons import Persons
from fastpose.files import replacing
from fastpose.option import OptionError


class PckhScorer:
    """PCKh, see `pckh`. The persons' `head_size`, float32 [N] in px, is 0.6 times the diagonal of the head box.

    Args:
        persons: N persons with MPII's joints.
        head_size: [N]; None: not known, and nothing is scored.
    """

    name, main, label, note = "pckh", "Mean", "PCKh@0.5", ""
    curves: Mapping[str, str] = {"Mean": "PCKh@0.5", "Mean@0.1": "PCKh@0.1"}
    notes: Mapping[str, str] = {}

    def __init__(self, persons: Persons, head_size: np.ndarray | None) -> None:
        self.persons, self.head_size = persons, head_size

    def needs(self, *, to_train: bool) -> None:
        if to_train and self.head_size is None:
            raise OptionError("head_boxes", "PCKh needs the head boxes of the validation persons (gt_valid.mat)")

    def score(self, predictions: np.ndarray, scores: np.ndarray, seen: np.ndarray) -> dict[str, float] | None:
        if self.head_size is None:
            return None
        persons = self.persons
        values = pckh(predictions[seen], persons.keypoints[seen], persons.compared[seen], self.head_size[seen])
        if math.isnan(values["Mean"]):
            raise ValueError("PCKh needs annotated joints, and the persons to evaluate have none")
        return values

    def table(self, values: Mapping[str, float] | None) -> str:
        return format_values(values) if values else "no head boxes, no PCKh: predictions only"

    def write(self, folder: Path, predictions: np.ndarray, scores: np.ndarray) -> Path:
        """Writes pred.mat: MPII's `preds`, float64 [N, 16, 2], 1-based, in the order of the annotations; NaN where the
        image could not be read.

        `rows` [N], 1-based as well, says which annotation each is for; it is 1 to N unless images were missing.
        """
        from scipy.io import savemat  # slow to import

        contents = {"preds": predictions.astype(np.float64) + 1.0, "rows": self.persons.source_row + 1}
        with replacing(folder / "pred.mat") as file:
            savemat(file, contents, do_compression=True)
        return folder / "pred.mat"

    def yardstick(self) -> Yardstick:
        persons = self.persons
        right = np.zeros(persons.visible.shape)
        if self.head_size is not None:
            right += 0.5 * self.head_size.astype(np.float64)[:, None]
        return Yardstick(right, "an error of at most 0.5 of the head size (PCKh@0.5)", 0.5, right, STAND_IN)

    def fingerprint(self) -> str:
        head_size = self.persons.extras.get("head_size")
        if head_size is None:
            return "no head sizes"
        return f"checksum of the head sizes {zlib.crc32(head_size.tobytes()):08x}"


def pckh_from_mat(
    predictions: np.ndarray, gt_valid_mat: str | PathLike[str], *, rows: Sequence[int] | np.ndarray | None = None
) -> dict[str, float]:
    """PCKh against the community's ``gt_valid.mat``; see `pckh`.

    Args:
        predictions: [N, 16, 2] px, 0-based, in image coordinates.
        gt_valid_mat: the file, with 1-based ``pos_gt_src``, ``jnt_missing`` and ``headboxes_src``.
        rows: N different rows of the file that the predictions are for, in their order; None: all of the file.

    Raises:
        AnnotationError: the file does not have what it should.
        ValueError: predictions or rows have another shape, are not finite or are out of range.
    """
    truth = read_ground_truth(gt_valid_mat)
    total = len(truth.head_size)
    picked = np.arange(total) if rows is None else np.asarray(rows)
    if picked.ndim != 1 or (picked.size and picked.dtype.kind not in "iu"):
        raise ValueError(f"rows must be a list of row numbers, got {picked.dtype} of shape {picked.shape}")
    picked = picked.astype(np.int64)
    if ((picked < 0) | (picked >= total)).any() or len(np.unique(picked)) != len(picked):
        raise ValueError(f"rows must be different numbers of 0 to {total - 1}, the rows of {gt_valid_mat}")
    if len(predictions) != len(picked):
        raise ValueError(
            f"predictions must hold one entry for each of the {len(picked)} "
            f"{'persons of ' + str(gt_valid_mat) if rows is None else 'rows'}, got {len(predictions)}"
        )
    return pckh(predictions, truth.keypoints[picked], truth.visible[picked], truth.head_size[picked])
