# SPDX-License-Identifier: Apache-2.0
"""Whether annotations make sense: what every format allows and nobody means, such as joints far outside their image.

Each check keeps quiet on MPII, COCO and LSP extended; the thresholds are well beyond what these have.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fastpose.data.findings import Finding, cases_of
from fastpose.data.images import BadImageError, image_size
from fastpose.data.persons import Persons
from fastpose.skeletons import Skeleton
from fastpose.skeletons.sides import contradiction, missing_pairs, pairs_by_name, pairs_in_yaml, side_of

log = logging.getLogger(__name__)

SIZES_READ = 1000  # of how many images, evenly spread; all of COCO's would take as long as an epoch on a slow disk
_OUTSIDE = 0.1  # of the image's longer side; MPII has joints 31 px outside of 1280
_FAR = 2.0  # box sides from the middle of the box; MPII's farthest is 0.9
_HUGE_BOX = 0.03  # extent of the joints in box sides; 0.18 and more in MPII
_HUGE_IN_IMAGE = 10.0  # longer sides of the image that a box may have; MPII, COCO and LSP: up to 1.7
_BESIDE, _MANY_BESIDE = 0.6, 0.1  # box sides from its middle, of the joints; less than 0.01 of them in all of these
_SHIFTED, _MANY_SHIFTED = 0.08, 0.12  # of a box, of the persons; 0.006 of the persons in MPII, none in COCO
_FEW = 3  # persons; what fewer have in common is chance
_EYES, _LEAST_EYES = 0.3, 10  # COCO: the left eye is on the right of the picture in all persons with two visible eyes
_TRUNK, _LEAST_TRUNK = 0.4, 100  # shoulders and hips: 0.63 to 0.77, since most people are photographed from the front

_CALLED = {"train": "the training data", "valid": "the validation data"}


def check_sense(train: Persons, valid: Persons) -> None:
    """Looks at the annotations of a run as a whole, before it begins; see `report_doubts`.

    Raises:
        ValueError: nobody of one of the splits has an annotated joint, and there is nothing else to score by.
    """
    for split, persons in (("train", train), ("valid", valid)):
        alone = [part.persons for part in persons.sets.parts] if persons.sets else [persons]
        if not persons.visible.any() and all(own.truth is None for own in alone):
            raise ValueError(
                f"{_CALLED[split]}: expected annotated joints, none of the {len(persons):,} persons has one"
            )
    report_doubts({"train": train, "valid": valid})


def report_doubts(splits: Mapping[str, Persons]) -> None:
    """Warns of what is doubtful in one or both splits, "train" and "valid", with counts and an example, and in the
    skeleton, which they share."""
    for split, persons in splits.items():
        parts = {f", set {part.name}": part.persons for part in persons.sets.parts} if persons.sets else {"": persons}
        for of_set, own in parts.items():
            for doubt in doubts(own):
                log.warning("%s%s: %s", _CALLED[split], of_set, doubt)
    first = next(iter(splits.values()))
    for about_names in doubts_about_names(first.skeleton) + doubts_about_maps(first):
        log.warning("%s", about_names)
    if len(splits) > 1:
        for about_both in doubts_about_splits(splits["train"], splits["valid"]):
            log.warning("%s", about_both)


def doubts(persons: Persons, sizes: NDArray[np.float64] | None = None) -> list[Finding]:
    """What makes no sense in annotations, with how many and the first; empty if all is well.

    Persons without any joint are a doubt where others have some: a detector's boxes have none.

    Args:
        persons: N persons on M images.
        sizes: (width, height) of the images, [M, 2], NaN where it is not known; None: read from the headers of up to
            1,000 of them; a pack has none.
    """
    everyone = len(persons)
    annotated_rows = np.flatnonzero(persons.visible.any(axis=1))
    if not len(annotated_rows):
        return []
    size = (_sizes(persons) if sizes is None else sizes)[persons.image_index][annotated_rows]  # [N, 2]
    found = []
    if missing := everyone - len(annotated_rows):
        what = f"{missing:,} of {everyone:,} persons have no annotated joint"
        cases = cases_of(persons, np.flatnonzero(~persons.visible.any(axis=1)))
        found.append(Finding("person_without_joints", what, missing, everyone, cases))
    persons = persons.select(annotated_rows)
    seen = persons.visible > 0  # [N, J]
    points = persons.keypoints.astype(np.float64)
    low = np.where(seen[..., None], points, np.inf).min(axis=1)
    high = np.where(seen[..., None], points, -np.inf).max(axis=1)
    extent, side = (high - low).max(axis=1), 200.0 * persons.scale.max(axis=1).astype(np.float64)
    annotated, joints = seen.sum(axis=1), seen.shape[1]
    whole = annotated >= max(3, joints / 2)

    def note(code: str, wrong: NDArray[np.bool_], what: str, more: Callable[[int], str] = lambda row: "") -> None:
        """Adds `what`, if it is true of anybody: `wrong` is [N, J] of joints or [N] of persons."""
        if not wrong.any():
            return
        rows = np.flatnonzero(wrong.reshape(len(persons), -1).any(axis=1))
        row = int(rows[0])
        count, total, kind, place = int(np.count_nonzero(wrong)), len(persons), "persons", ""
        if wrong.ndim == 2:
            joint = int(np.argmax(wrong[row]))
            x, y = points[row, joint]
            total, kind, place = int(seen.sum()), "joints", f", {persons.skeleton.joints[joint]} at ({x:g}, {y:g})"
        text = f"{count:,} of {total:,} {kind} {what}"
        found.append(Finding(code, text, count, total, cases_of(persons, rows), place + more(row)))

    def box(row: int) -> str:
        (x, y), (w, h) = persons.center[row], 200.0 * persons.scale[row]
        return f", box of {w:g} x {h:g} px about ({x:g}, {y:g})"

    tiny = (annotated >= min(2, joints)) & (np.maximum(-low, high).max(axis=1) <= 2)
    note(
        "joints_in_corner",
        tiny,
        "have all joints within 2 px of the image's corner: are coordinates divided by its size?",
    )
    corner = seen & (points <= 0).all(axis=2) & ~tiny[:, None]
    note("joint_at_corner", corner, "are annotated at the image's corner (0, 0) or beyond: are these missing ones?")
    beyond = np.maximum(-points, points - (size[:, None] - 1)).max(axis=2)
    outside = seen & (beyond > _OUTSIDE * size.max(axis=1)[:, None])  # never of a size that is NaN
    note(
        "joint_far_outside_image",
        outside,
        "lie outside their image, by more than a tenth of it",
        lambda row: f", in {size[row, 0]:g} x {size[row, 1]:g} px",
    )
    distance = np.abs(points - persons.center[:, None]).max(axis=2) / side[:, None]
    far = seen & (distance > _FAR) & ~outside & ~tiny[:, None]
    note("joint_far_from_box", far, f"are more than {_FAR:g} box sides from the middle of their person's box", box)
    beside = seen & (distance > _BESIDE) & ~outside & ~tiny[:, None] & ~far
    if beside.sum() >= _MANY_BESIDE * seen.sum() and beside.any(axis=1).sum() >= _FEW:
        note("joints_beside_box", beside, "lie outside their person's box", box)
    together = (annotated >= 3) & (extent == 0) & ~tiny
    note("joints_at_one_place", together, "have all joints at one place")
    huge = (whole & (extent < _HUGE_BOX * side) & ~tiny & ~together) | (side > _HUGE_IN_IMAGE * size.max(axis=1))
    note("box_too_large", huge, "have boxes many times as large as their joints or their image", box)
    again, elsewhere = _repeated(persons)
    note("person_twice", again, "are there twice, with the same joints on the same image")
    note("person_on_other_image", elsewhere, "have the very joints of a person on another image")

    # Corners x1 y1 x2 y2 read as x y w h make boxes that reach too far to the right and down.
    good = whole & ~(tiny | together | huge | (corner | outside | far).any(axis=1))
    shift = (persons.center - (low + high) / 2) / side[:, None]
    shifted, opposite = (good & (sign * shift > _SHIFTED).all(axis=1) for sign in (1, -1))
    if shifted.sum() >= max(_FEW, _MANY_SHIFTED * good.sum(), 5 * opposite.sum()):
        note(
            "box_of_corners",
            shifted,
            "have boxes to the right of and below their joints: are they x1 y1 x2 y2, not x y w h?",
            box,
        )
    return found + [Finding("sides_exchanged_in_split", text) for text in _doubts_about_sides(persons)]


def _doubts_about_sides(persons: Persons) -> list[str]:
    """Left and right exchanged in all of the data. Of a single person nothing is certain, as it may show its back."""
    joints, seen = persons.skeleton.joints, persons.visible > 0
    for parts, share, least in ((("eye",), _EYES, _LEAST_EYES), (("shoulder", "hip"), _TRUNK, _LEAST_TRUNK)):
        usual = total = 0
        for right, left in pairs_by_name(joints):
            if not any(part in joints[left].lower() for part in parts):
                continue
            x = persons.keypoints[seen[:, left] & seen[:, right], :, 0]
            usual, total = usual + int((x[:, left] > x[:, right]).sum()), total + len(x)
        if total >= least and usual < share * total:
            return [
                f"of {total:,} pairs of {' and '.join(f'{part}s' for part in parts)} the left one is further right in "
                f"the picture in {usual / total:.0%}, as people have it who face the camera: are sides exchanged?"
            ]
    return []


def doubts_about_names(skeleton: Skeleton) -> list[str]:
    """Mirror pairs that the joints' names contradict, as a checkpoint or a pack may hold them, or that are missing."""
    joints, pairs = skeleton.joints, skeleton.mirror_pairs
    if wrong := contradiction(joints, pairs):
        return [f"skeleton {skeleton.name!r}: mirror_pairs: {wrong}"]
    if not (missing := missing_pairs(joints, pairs)):
        return []
    of = f" for {2 * len(missing)} of its joints with sides" if pairs else ""
    return [
        f"skeleton {skeleton.name!r} has no mirror_pairs{of}, so that left joints count as left in mirrored pictures: "
        "choose --flip 0 --flip_test false, or write into its file: mirror_pairs: "
        f"{pairs_in_yaml(joints, [*pairs, *missing])}"
    ]


def doubt_about_pairs(skeleton: Skeleton) -> str:
    """What to say of a skeleton that has no mirror pairs, and no names with sides either, where pictures are mirrored;
    empty if it has some."""
    if skeleton.mirror_pairs or pairs_by_name(skeleton.joints):
        return ""
    return (
        f"skeleton {skeleton.name!r} has no mirror_pairs, so that left joints count as left in mirrored pictures: name "
        "the pairs, or choose --flip 0 --flip_test false"
    )


def doubts_about_maps(persons: Persons) -> list[str]:
    """Joints of several data sets that are one by the list's joint maps, and left and right by their names."""
    found = []
    for part in persons.sets.parts if persons.sets else ():
        own = part.persons.skeleton.joints
        crossed = [
            f"{joint}: {own[place]}"
            for joint, place in zip(persons.skeleton.joints, part.joints.tolist(), strict=True)
            if place >= 0 and {side_of(joint), side_of(own[place])} == {"left", "right"}
        ]
        if crossed:
            found.append(
                f"set {part.name}: joints: left is right by the names, are sides exchanged? {', '.join(crossed)}"
            )
    return found


def doubts_about_splits(train: Persons, valid: Persons) -> list[Finding]:
    """Images and persons that are in both splits, and joints that only one of them has."""
    found = []
    shared = set(train.image_paths) & set(valid.image_paths)
    if shared:
        images = {n: row for row, n in reversed(list(enumerate(valid.image_index.tolist())))}  # the first row of each
        first = sorted(row for n, row in images.items() if valid.image_paths[n] in shared)
        what = (
            f"{len(shared):,} of {len(valid.image_paths):,} validation images are training images too, so that the "
            "score says little about others"
        )
        if len(shared) == len(valid.image_paths) == len(train.image_paths):
            what += ": name another file with valid_annotations"
        total = len(valid.image_paths)
        found.append(Finding("image_in_both_splits", what, len(shared), total, cases_of(valid, first)))
    known = {key for key in _keys(train) if key is not None}
    rows = [
        row
        for row, key in enumerate(_keys(valid))
        if key in known and valid.image_paths[valid.image_index[row]] not in shared
    ]
    if rows:
        what = f"{len(rows):,} of {len(valid):,} validation persons have the very joints of a training person"
        found.append(Finding("person_in_both_splits", what, len(rows), len(valid), cases_of(valid, rows)))
    if train.skeleton.joints == valid.skeleton.joints:
        untaught = (valid.visible > 0).any(axis=0) & ~(train.visible > 0).any(axis=0)
        if untaught.any():
            names = ", ".join(np.array(train.skeleton.joints)[untaught].tolist())
            what = f"annotated in the validation data and nowhere in the training data: {names}"
            found.append(Finding("joint_never_trained", what, int(untaught.sum()), train.skeleton.num_joints))
    return found


def _sizes(persons: Persons) -> NDArray[np.float64]:
    """(width, height) of the images, [M, 2]; NaN where it was not read or cannot be."""
    sizes = np.full((len(persons.image_paths), 2), np.nan)
    for image in range(0, len(sizes), -(-len(sizes) // SIZES_READ)):
        try:
            sizes[image] = image_size(persons.image_paths[image], persons.reading)[::-1]
        except BadImageError:  # an error when it is needed, or with --on_bad_image skip none
            continue
    return sizes


def _keys(persons: Persons) -> list[bytes | None]:
    """What distinguishes the joints of a person, None where fewer than three are annotated."""
    seen = persons.visible > 0
    points = np.where(seen[..., None], persons.keypoints, np.float32(np.nan))
    return [row.tobytes() if count >= 3 else None for row, count in zip(points, seen.sum(axis=1), strict=True)]


def _repeated(persons: Persons) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which persons have the joints of an earlier one, on its image and on another one, bool [N] each."""
    again, elsewhere = np.zeros(len(persons), bool), np.zeros(len(persons), bool)
    images: dict[bytes, set[int]] = {}
    for row, key in enumerate(_keys(persons)):
        if key is None:
            continue
        before, image = images.setdefault(key, set()), int(persons.image_index[row])
        again[row], elsewhere[row] = image in before, bool(before) and image not in before
        before.add(image)
    return again, elsewhere
