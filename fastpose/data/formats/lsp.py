# SPDX-License-Identifier: Apache-2.0
"""Leeds Sports Pose and its extension: joints.mat and a folder of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastpose.data.annotation_rows import AnnotationError
from fastpose.data.coco.records import Tally
from fastpose.data.dataset import DataOptions, Split
from fastpose.data.formats.found import Found, Person, as_contents, check_place
from fastpose.data.mat_file import read_mat
from fastpose.skeletons import find_skeleton

_JOINTS = 14
_MOST = 100_000  # persons; the extension has 10,000
_OWN_SPLIT = 2000  # persons of LSP: its first half is for training, the other for testing


def read_lsp(file: Path, split: Split, data: DataOptions) -> Found:
    """Reads `joints`, [3, 14, N] as LSP has it or [14, 3, N] as LSP Extended has it: x, y and a flag.

    The flags mean opposite things. LSP's is 1 where a joint is occluded: all joints are annotated. LSP Extended's is 1
    where a joint is visible; where it is 0, nobody has said where the joint is. Coordinates stay as they are.

    Pictures are im0001.jpg (LSP) or im00001.jpg (LSP Extended) and so on in `images` beside the file, or in the folder
    that option `images` names. LSP, which has 2,000, is split as its authors do.

    Raises:
        AnnotationError: the array has another shape, or a value that is none; names the picture and the joint.
    """
    array = np.asarray(read_mat(file, ["joints"])["joints"])
    extended = array.shape[:2] == (_JOINTS, 3)
    if array.dtype.kind not in "iufb" or array.ndim not in (2, 3) or not (extended or array.shape[:2] == (3, _JOINTS)):
        raise AnnotationError(
            f"{file}: joints must be numbers of shape (3, {_JOINTS}, N) or ({_JOINTS}, 3, N), "
            f"got {array.dtype} {array.shape}"
        )
    if array.size > _MOST * 3 * _JOINTS:
        raise AnnotationError(f"{file}: expected at most {_MOST:,} persons, got {array.shape[2]:,}")
    # MATLAB drops a last dimension of 1.
    values = array.reshape(*array.shape[:2], -1).astype(np.float64).transpose((2, 0, 1) if extended else (2, 1, 0))
    skeleton = find_skeleton("lsp")
    digits = 5 if extended else 4
    names = [f"im{row:0{digits}d}.jpg" for row in range(1, len(values) + 1)]
    own_split = len(values) == _OWN_SPLIT and not extended
    if own_split:
        half = slice(None, _OWN_SPLIT // 2) if split == "train" else slice(_OWN_SPLIT // 2, None)
        names, values = names[half], values[half]
    persons = []
    for name, joints in zip(names, values, strict=True):
        flags = joints[:, 2]
        for joint, (x, y, flag) in zip(skeleton.joints, joints.tolist(), strict=True):
            if flag not in (0, 1):
                raise AnnotationError(f"{file}, {name}, {joint}: the third number must be 0 or 1, got {flag:g}")
            if flag or not extended:
                check_place((x, y), f"{file}, {name}, {joint}")
        v = 2 * flags if extended else 2 - flags
        persons.append(Person(name, np.where(v[:, None] > 0, np.column_stack([joints[:, :2], v]), 0.0)))
    folder = data.images_path(split) if data.images or data.valid_images else file.parent / "images"
    contents = as_contents(names, persons, skeleton, folder, data.reading)
    records = [f"person {int(name[2:-4])}" for name in names]  # as MATLAB counts
    return Found(contents, skeleton, folder, Tally(), is_split=own_split, records=records)
