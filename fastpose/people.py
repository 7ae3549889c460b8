# SPDX-License-Identifier: Apache-2.0
"""The persons that were found in a picture, and what can be done with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastpose.data.images import read_image
from fastpose.data.opened import as_picture
from fastpose.data.reading import AS_STORED, Reading
from fastpose.engine.drawing import LEAST_SCORE, draw_poses
from fastpose.metrics import rescore
from fastpose.skeletons import Skeleton


@dataclass(frozen=True, eq=False)
class People:
    """The P persons of a picture, with K joints each. All tensors are on the CPU.

    Attributes:
        keypoints: float32 [P, K, 2], (x, y) in pixels of the picture, pixel centres at integers.
        scores: float32 [P, K], what the network says of each joint: the value at the heatmap's maximum, or SimCC's.
        boxes: float32 [P, 4], x, y, width and height in which each person was looked for, pixels.
        box_scores: float32 [P], how sure the detector was; 1 without one.
        names: the K joints' names.
        skeleton: the joints, with limbs and mirror pairs.
        image: the picture's file; its number among the images if it has none.
        size: (height, width) of the picture in pixels.
        ids: int64 [P], the same number for the same person in other frames; None if persons were not followed.
        error: why the picture could not be read, if bad ones are skipped; it has no persons then.
    """

    keypoints: Tensor
    scores: Tensor
    boxes: Tensor
    box_scores: Tensor
    skeleton: Skeleton
    image: Path | int
    size: tuple[int, int]
    ids: Tensor | None = None
    error: str | None = None
    pixels: NDArray[np.uint8] | None = None
    reading: Reading = AS_STORED

    @property
    def names(self) -> tuple[str, ...]:
        return self.skeleton.joints

    def __len__(self) -> int:
        return len(self.keypoints)

    def __repr__(self) -> str:
        height, width = self.size
        found = self.error or f"{len(self)} persons with {self.skeleton.num_joints} joints each"
        return f"People({self.image}, {width} x {height} px: {found})"

    def without_pixels(self) -> People:
        """The same without the picture itself, of which `draw` then needs the file, or is to be passed it."""
        return replace(self, pixels=None)

    @property
    def person_scores(self) -> NDArray[np.float64]:
        """float64 [P], a number for each person: its box's score times the mean of its joints' scores above 0.2, see
        `fastpose.metrics.rescore`."""
        return rescore(self.box_scores.double().numpy(), self.scores.numpy())

    def draw(
        self,
        picture: NDArray[np.uint8] | Tensor | None = None,
        *,
        least_score: float = LEAST_SCORE,
        truth: NDArray[np.floating] | Tensor | None = None,
    ) -> NDArray[np.uint8]:
        """The picture with the persons in it, uint8 RGB [H, W, 3] of its own size: right sides blue, left ones pink.

        The lower a joint's score, the more of the picture is seen through it, and joints that were not found are not
        drawn: those below `least_score`, and of score 0 or less. Persons with ids are labelled with them.

        Args:
            picture: uint8 RGB [H, W, 3] to draw over; None: the picture that was looked at, whose file is read again;
                one that was passed as an array is that array, as it is by now.
            least_score: of a joint that is drawn.
            truth: annotated poses [N, K, 2], drawn in yellow below the others; NaN: not annotated.

        Raises:
            ValueError: an argument has another shape or type; or there is no picture any more: it came from an
                iterator, of which a list keeps none.
            BadImageError: the file cannot be read any more.
        """
        if picture is None:
            picture = self.pixels
            if picture is None and isinstance(self.image, Path):
                picture = read_image(self.image, reading=self.reading)
            if picture is None:
                raise ValueError(
                    f"picture: image {self.image} came from an iterator and is not kept: pass it, or use "
                    "Predictor.stream, whose results have theirs"
                )
        if truth is not None and (np.ndim(_as_array(truth)) != 3 or _as_array(truth).shape[1:] != (len(self.names), 2)):
            shape = list(np.shape(_as_array(truth)))
            raise ValueError(f"truth: expected [N, {len(self.names)}, 2], (x, y) of each joint in pixels, got {shape}")
        return draw_poses(
            as_picture(picture, "picture"),
            self.keypoints.numpy(),
            self.skeleton,
            scores=self.scores.numpy(),
            least_score=least_score,
            truth=None if truth is None else _as_array(truth),
            labels=[] if self.ids is None else [str(one) for one in self.ids.tolist()],
        )

    def to_numpy(self) -> dict[str, NDArray[Any]]:
        """keypoints, scores, boxes, box_scores and, where there are any, ids, as NumPy arrays by name."""
        tensors = {name: getattr(self, name) for name in ("keypoints", "scores", "boxes", "box_scores", "ids")}
        return {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}

    def to_coco(self, image_id: int | str | None = None, category_id: int = 1) -> list[dict[str, Any]]:
        """The persons in COCO's results format: image_id, category_id, bbox, keypoints (x, y, score of each) and score,
        with track_id where there are ids.

        Args:
            image_id: of the picture; None: the number in its file's name, if that is a number alone as COCO's are
                (000000000139.jpg), else the name; of a picture without a file its number.
            category_id: of the persons.
        """
        if image_id is None:
            image_id = image_id_of(self.image)
        triples = torch.cat([self.keypoints, self.scores[..., None]], dim=2).flatten(1).tolist()
        found = []
        for number, (triple, box, score) in enumerate(
            zip(triples, self.boxes.tolist(), self.person_scores.tolist(), strict=True)
        ):
            entry = {"image_id": image_id, "category_id": category_id, "bbox": box, "keypoints": triple, "score": score}
            found.append(entry if self.ids is None else entry | {"track_id": int(self.ids[number])})
        return found


def image_id_of(image: Path | int) -> int | str:
    """COCO's id of a picture: the number that its name is; else the name."""
    if isinstance(image, int):
        return image
    return int(image.stem) if image.stem.isdecimal() and len(image.stem) < 19 else image.name


def _as_array(values: Any) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
