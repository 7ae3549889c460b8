# SPDX-License-Identifier: Apache-2.0
"""SLEAP's labels, .slp and .pkg.slp, through the package sleap-io."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastpose.data.annotation_rows import AnnotationError, as_json
from fastpose.data.coco.records import Tally
from fastpose.data.dataset import DataOptions, Split
from fastpose.data.formats.found import Found, Person, as_contents, check_place, named_skeleton
from fastpose.option import OptionError


def read_sleap(file: Path, split: Split, data: DataOptions) -> Found:
    """Reads the instances that users have labelled: points that are visible; ``edges`` are the limbs and ``symmetries``
    the pairs, which must not contradict the names. What was predicted, and instances without a point, are left out.

    Where all videos are lists of pictures, those are the images, below the data root or the folder that option `images`
    names. Otherwise frames are pictures to be written (``frames``): of videos that are in the file, or below these
    folders.

    Raises:
        AnnotationError: the file has several skeletons, none, symmetries that names contradict, or videos that are
            elsewhere.
        OptionError: sleap-io is not installed.
    """
    try:
        import sleap_io
    except ImportError as error:
        raise OptionError(
            "dataset",
            f"sleap is read by the package sleap-io, which cannot be imported ({error}): pip install sleap-io",
        ) from None
    try:
        labels: Any = sleap_io.load_slp(str(file), open_videos=False)
    except Exception as error:  # of HDF5, JSON or sleap-io itself, which have no common class
        raise AnnotationError(f"{file}: is not a file of SLEAP: {' '.join(str(error).split())[:300]}") from error
    if len(labels.skeletons) != 1:
        raise AnnotationError(f"{file}: expected one skeleton, got {len(labels.skeletons)}")
    (own,) = labels.skeletons
    limbs = [(int(a), int(b)) for a, b in own.edge_inds]
    pairs = [(int(a), int(b)) for a, b in own.symmetry_inds]
    pairs_key = "symmetries" if pairs else ""
    skeleton = named_skeleton(
        "sleap", list(own.node_names), limbs, pairs, where=str(file), pairs_where=f"{file}: {pairs_key}"
    )
    folder = data.images_path(split)
    listed = all(map(_is_list, labels.videos))
    names = _names(labels, file, folder)
    frames: dict[str, Callable[[], np.ndarray]] = {}
    images: list[str] = []
    persons, dropped = [], Tally()
    for frame in labels.labeled_frames:
        video, place = labels.videos.index(frame.video), int(frame.frame_idx)
        where = f"video {video}, frame {place}"
        for _ in frame.predicted_instances:
            dropped.add("predicted instances", where)
        if not frame.user_instances:
            continue
        name = names(video, place)
        images.append(name)
        if not listed:
            frames[name] = _frame(labels.videos[video], place)
        for number, instance in enumerate(frame.user_instances):
            points = np.asarray(instance.numpy(), np.float64)[:, :2]
            annotated = ~(np.isnan(points[:, 0]) | np.isnan(points[:, 1]))
            for joint in np.flatnonzero(annotated):
                check_place(points[joint].tolist(), f"{file}, {where}, {skeleton.joints[joint]}")
            if annotated.any():
                joints = np.column_stack([np.where(annotated[:, None], points, 0), 2 * annotated])
                persons.append(Person(name, joints, record=f"{where}, instance {number}"))
            else:
                dropped.add("without a point", where)
    contents = as_contents(images, persons, skeleton, folder, data.reading)
    records = [person.record for person in persons]
    return Found(contents, skeleton, folder, dropped, frames=frames, records=records, pairs_key=pairs_key)


def _is_list(video: Any) -> bool:
    """Whether a video is a list of pictures."""
    return isinstance(video.filename, list)


def _names(labels: Any, file: Path, folder: Path) -> Callable[[int, int], str]:
    """The name of a frame: its picture's, or one that is made of the file's, the video and the frame."""
    if all(map(_is_list, labels.videos)):
        return lambda video, frame: str(labels.videos[video].filename[frame]).replace("\\", "/")
    for video in labels.videos:
        if _is_list(video):
            video.replace_filename([_place(path, file, folder) for path in video.filename], open=False)
        elif os.path.realpath(video.filename) != os.path.realpath(file):  # whose frames are in it
            video.replace_filename(_place(video.filename, file, folder), open=False)
    stem = file.name.split(".")[0]
    return lambda video, frame: f"{stem}-{video}-{frame:06d}.png"


def _place(path: object, file: Path, folder: Path) -> str:
    """Where a video is: as the file says, or what is called so in the folder, as projects are moved."""
    root, name = os.path.realpath(folder), str(path).replace("\\", "/")
    for place in (os.path.join(root, name), os.path.join(root, os.path.basename(name))):
        place = os.path.realpath(place)
        if os.path.commonpath([root, place]) == root and os.path.isfile(place):
            return place
    raise AnnotationError(f"{file}: video {as_json(str(path), 400)} is not in {root}: name its folder with images")


def _frame(video: Any, place: int) -> Callable[[], np.ndarray]:
    def picture() -> np.ndarray:
        video.open_backend = True  # only now: a file that is merely read must not open what it names
        return np.asarray(video[place])

    return picture
