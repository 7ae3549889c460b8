# SPDX-License-Identifier: Apache-2.0
"""From pictures to joints in Python: `fastpose.Predictor`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastpose
from fastpose.data.boxes import PADDING, crop_boxes
from fastpose.data.opened import AHEAD, Opened, Opener, detected, label_of, listed
from fastpose.data.pixels.files import frame_of
from fastpose.data.pixels.source import DecodeThreads
from fastpose.device import available_cores, choose_device, making_device, to_device
from fastpose.engine.epoch import NotFiniteError
from fastpose.models.decoding import DecodeOptions
from fastpose.ops.image_batch import ImageBatch
from fastpose.option import OptionError, nearest
from fastpose.people import People
from fastpose.tracking import Tracker
from fastpose.trained import load_trained

# Without annotations to agree with, a photo is what viewers show.
OWN_DEFAULTS = {"flip_test": True, "exif": "upright", "device": "auto"}
INSTEAD = {**OWN_DEFAULTS, "on_bad_image": "error", "decoder": "cpu", "resident": False}
# On two cores RTMPose-s takes 100 persons/s so, and 68 in batches of 32 in the other layout, which training has.
ON_CPU = {"channels_last": "on", "eval_batch_size": 16}
OPTIONS = (
    *("model", "targets", "split_ratio", "simcc_sigma", "size", "dataset", "skeleton", "color_order", "udp"),
    *(name for name in DecodeOptions.__dataclass_fields__),
    *("exif", "sixteen_bits", "max_image_pixels", "reduced_decode", "decode_threads", "eval_batch_size"),
    *("amp", "channels_last", "device"),
)


class Predictor:
    """Finds the joints of persons in pictures: crops, network and decoding on the device, many persons at a time.

        people = fastpose.Predictor("best.pt")(images, boxes)

    Args:
        checkpoint: a checkpoint, a run's folder for its best.pt, another program's weights, as `fastpose evaluate`
            takes them, or an .onnx file: what `fastpose export` wrote, or a network alone that returns heatmaps or
            SimCC's vectors (with the package onnxruntime).
        device: cpu, cuda, cuda:1 and so on; auto: cuda if there is one.
        padding: how much larger than a person's box its crop is, factor; not used where the whole picture is the box.
        on_bad_image: "error" raises what is wrong with a file that cannot be read; "skip" gives it no persons and
            says why in `People.error`.
        trust_model: import and run the network that the file names (PACKAGE.MODULE:FACTORY).
        options: those of `fastpose predict`, by their names: size, skeleton, refine, flip_test, color_order, exif,
            eval_batch_size (persons at a time) and so on; by default as in training, with the mirror test, and on the
            CPU in batches of 16 with channels_last. A file of `fastpose export` has its decoding inside, with the
            mirror test or, as by default, without it.

    Attributes:
        skeleton: the joints that the network finds.
        trained: the network, in evaluation mode, with its settings.

    Raises:
        FileNotFoundError, ValueError: the file is missing, damaged or of another kind, or an option cannot be used.
        TypeError: there is no option of that name.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        device: str | torch.device = "auto",
        padding: float = PADDING,
        on_bad_image: Literal["error", "skip"] = "error",
        trust_model: bool = False,
        **options: Any,
    ) -> None:
        if unknown := options.keys() - set(OPTIONS):
            name = sorted(unknown)[0]
            near = nearest(name, [*OPTIONS, "padding", "on_bad_image", "trust_model"])
            raise TypeError(f"Predictor has no option {name!r}{near}")
        if not isinstance(padding, (int, float)) or not 0.0 < padding < float("inf"):
            raise OptionError("padding", f"expected a positive factor, got {padding}")
        if on_bad_image not in ("error", "skip"):
            raise OptionError("on_bad_image", f"expected error or skip, got {on_bad_image!r}")
        asked = {name: _plain(value) for name, value in options.items()} | {"device": str(device)}
        self.device = choose_device(str(device))
        instead = INSTEAD | (ON_CPU if self.device.type == "cpu" else {})
        self.trained = load_trained(
            Path(checkpoint).expanduser(), asked, self.device, instead=instead, trust_model=trust_model
        )
        settings = self.trained.settings
        self.skeleton = self.trained.skeleton
        self.batch_size = settings.schedule.eval_batch_size
        self._decoder = self.trained.decoder()
        self._maker = making_device(self.device)
        threads = settings.pixels.decode_threads or (available_cores() if self.device.type != "cpu" else 2)
        self._opener = Opener(
            DecodeThreads(threads),
            settings.data.reading,
            settings.network.size,
            settings.pixels.reduced_decode,
            on_bad_image == "skip",
            padding,
        )

    def __repr__(self) -> str:
        height, width = self.trained.settings.network.size
        joints = f"{self.skeleton.num_joints} joints of {self.skeleton.name}"
        return f"Predictor({self.trained.file}: {joints}, crops of {height}x{width} px, on {self.device})"

    def __call__(self, images: Any, boxes: Any = None) -> list[People]:
        """The persons of each image.

        Args:
            images: a file, a folder, uint8 RGB [H, W, 3] or [N, H, W, 3], an `ImageBatch`, or any iterable of files and
                arrays, as a list or a generator of a video's frames.
            boxes: of each image its persons' boxes [P, 4], x, y, width and height in pixels, or [P, 5] with a score of
                each; of one image alone also its boxes themselves. None: each picture as a whole is one person's. Or a
                function that finds them: a detector, which is called with a list of pictures, uint8 RGB [H, W, 3], and
                returns the boxes of each.

        Returns:
            A list with one entry per image, in their order.

        Raises:
            BadImageError: an image cannot be read, see `on_bad_image`.
            ValueError: an image or a box is not what it should be; names it.
            NotFiniteError: the network's outputs are not numbers.
        """
        drops = isinstance(images, Iterator)  # a minute of film is ten gigabytes
        found = []
        for people in self.stream(images, boxes):
            keeps = people.pixels is not None and not drops and not isinstance(people.image, Path)
            found.append(people if keeps else people.without_pixels())
        return found

    def stream(self, images: Any, boxes: Any = None) -> Iterator[People]:
        """The persons of each image, one image after the other, as they are found; takes what calling takes.

        Images and boxes are taken as they are needed, of endless ones, too: up to three times `eval_batch_size` images
        before the first is through. For a camera set that to 1. Each entry can be drawn, also of images that an
        iterator yields.
        """
        if isinstance(images, ImageBatch):
            return self._of_batch(images, boxes)
        if _is_one(images) and boxes is not None and not callable(boxes):
            boxes = [boxes]
        label, ahead = label_of(images), min(AHEAD, self.batch_size)
        pictures = self._opener.opened(listed(images), boxes, label=label, ahead=ahead)
        return self._found(pictures)

    def track(
        self,
        frames: Any,
        boxes: Any = None,
        *,
        detect_every: int = 10,
        fps: float = 30.0,
        smooth: bool = True,
    ) -> Iterator[People]:
        """Follows persons through the frames of a video: each is looked for where its last pose was.

        Ids are kept by the similarity of poses (OKS), a One Euro filter steadies the joints, and a detector looks for
        new persons every `detect_every` frames, and when nobody is left. See `fastpose.tracking.Tracker`.

        Args:
            frames: as images of `stream`, in order; `fastpose.data.video.VideoFrames` reads them from a file.
            boxes: a detector, see calling; or the boxes [P, 4] of the persons in the first frame, where they are looked
                for again once nobody is left; None: the whole picture.
            detect_every: frames from one search for new persons to the next.
            fps: frames per second, by which joints are smoothed.
            smooth: whether joints are smoothed.

        Returns:
            An iterator with one entry per frame, whose `ids` are the same for the same person. Who was not found has no
            entry.

        Raises:
            ValueError: see calling; names the argument.
        """
        if detect_every < 1:
            raise OptionError("detect_every", f"expected at least 1 frame, got {detect_every}")
        if not 0.0 < fps < float("inf"):
            raise OptionError("fps", f"expected a positive number of frames per second, got {fps}")
        return self._tracked(frames, boxes, detect_every, 1.0 / fps, smooth)

    def _tracked(self, frames: Any, boxes: Any, detect_every: int, seconds: float, smooth: bool) -> Iterator[People]:
        tracker = Tracker(self.skeleton, smooth=smooth)
        since = detect_every
        for number, picture in enumerate(self._opener.without_boxes(listed(frames), label=label_of(frames), ahead=4)):
            if picture.pixels is None:
                yield next(self._ended([picture], [], number))
                continue
            searched: NDArray[np.float32] | None = None
            if not tracker.followed or (callable(boxes) and since >= detect_every):
                if callable(boxes):
                    picture.put_detected(detected(boxes, [picture])[0])
                else:
                    picture.put_boxes(boxes)
                self._opener.doubts.look(picture)
                searched, since = picture.boxes, 0
            since += 1
            scores_of = dict(zip(map(tuple, picture.boxes.tolist()), picture.box_scores.tolist(), strict=True))
            places, whose = tracker.boxes(None if searched is None else searched.astype(np.float64))
            picture.whole = picture.whole and len(places) == 1 and whose == [None]
            picture.boxes = places.astype(np.float32)
            picture.box_scores = np.array(
                [scores_of.get(tuple(box), 1.0) for box in picture.boxes.tolist()], np.float32
            )
            batch = ImageBatch.from_list([picture.pixels], device=self._maker)
            people = next(self._ended([picture], self._begin([picture], batch), number))
            rows, ids, smoothed = tracker.update(
                people.keypoints.double().numpy(), people.scores.double().numpy(), places, whose, seconds
            )
            yield replace(
                people,
                keypoints=torch.from_numpy(smoothed).float(),
                scores=people.scores[rows],
                boxes=people.boxes[rows],
                box_scores=people.box_scores[rows],
                ids=torch.from_numpy(ids),
            )

    def _found(self, pictures: Iterator[Opened]) -> Iterator[People]:
        number, begun = 0, None
        for group in _groups(pictures, self.batch_size):
            # On a GPU this group's work begins before the last one's is waited for.
            readable = [picture for picture in group if len(picture.boxes)]
            batch = ImageBatch.from_list(
                [picture.pixels for picture in readable if picture.pixels is not None],
                device=self._maker,
                executor=self._opener.pool,
            )
            found = group, self._begin(readable, batch)
            if self.device.type == "cpu":
                yield from self._ended(*found, number)
                number += len(group)
                continue
            if begun is not None:
                yield from self._ended(*begun, number)
                number += len(begun[0])
            begun = found
        if begun is not None:
            yield from self._ended(*begun, number)

    def _of_batch(self, images: ImageBatch, boxes: Any) -> Iterator[People]:
        """The same of pictures that are in one buffer already, on the device or not."""
        whole = images.to(self._maker)
        sizes = images.sizes.tolist()
        pictures = [Opened(f"images[{number}]", size=(height, width)) for number, (height, width) in enumerate(sizes)]
        if callable(boxes):
            boxes = boxes([image.cpu().numpy() for image in images])
        entries = [None] * len(pictures) if boxes is None else list(boxes)
        if len(entries) != len(pictures):
            raise OptionError("boxes", f"expected an entry for each of {len(pictures)} images, got {len(entries)}")
        for picture, entry in zip(pictures, entries, strict=True):
            picture.put_boxes(entry)
            self._opener.doubts.look(picture)
        for people, image in zip(self._ended(pictures, self._begin(pictures, whole), 0), images, strict=True):
            yield replace(people, pixels=image.cpu().numpy())

    @torch.inference_mode()
    def _begin(self, pictures: Sequence[Opened], batch: ImageBatch) -> list[tuple[Tensor, Tensor]]:
        """Joints and scores of all boxes of pictures, of which `batch` has the pixels; not waited for."""
        counts = [len(picture.boxes) for picture in pictures]
        if not sum(counts):
            return []
        network, compute = self.trained.settings.network, self.trained.settings.compute
        padding = np.repeat([1.0 if picture.whole else self._opener.padding for picture in pictures], counts)
        boxes = np.concatenate([picture.boxes for picture in pictures])
        center, scale = crop_boxes(boxes, network.size[1] / network.size[0], padding)
        scale = scale.astype(np.float32)
        index = torch.from_numpy(np.repeat(np.arange(len(pictures)), counts))
        frame = frame_of(np.array([picture.reduction for picture in pictures]))[index]
        rows = torch.cat([torch.from_numpy(center), torch.from_numpy(scale), frame], dim=1)
        rows, index = to_device(rows, self._maker), to_device(index, self._maker)
        stride = 4 if network.simcc is None else 1
        heatmap_size = (network.size[0] // stride, network.size[1] // stride)
        found = []
        for part in range(0, len(rows), self.batch_size):
            center_of, scale_of, step, origin = rows[part : part + self.batch_size].split((2, 2, 1, 2), dim=1)
            upright = torch.zeros(len(center_of), device=self._maker)
            crops = fastpose.affine_crop(
                batch,
                fastpose.crop_to_image_matrix(
                    (center_of - origin) / step, scale_of / step, upright, network.size, udp=network.udp
                ),
                network.size,
                image_index=index[part : part + self.batch_size],
                color=network.color(),
                dtype=compute.crop_dtype(self.device),
                memory_format=compute.memory_format(self.device),
            )
            matrix = fastpose.crop_to_image_matrix(center_of, scale_of, upright, heatmap_size, udp=network.udp)
            found.append(self._decoder(crops.to(self.device), matrix.to(self.device)))
        return found

    def _ended(
        self, pictures: Sequence[Opened], found: Sequence[tuple[Tensor, Tensor]], number: int
    ) -> Iterator[People]:
        """The persons of each picture; `number` is the first one's."""
        joints = self.skeleton.num_joints
        points, scores = torch.zeros(0, joints, 2), torch.zeros(0, joints)
        if found:
            points, scores = (torch.cat([part.float().cpu() for part in parts]) for parts in zip(*found, strict=True))
        if not torch.isfinite(scores).all():
            raise NotFiniteError("the network's outputs are not numbers; its weights are worth nothing")
        ends = accumulate((len(picture.boxes) for picture in pictures), initial=0)
        for place, (picture, (first, end)) in enumerate(zip(pictures, pairwise(ends), strict=True)):
            yield People(
                keypoints=points[first:end].clone(),
                scores=scores[first:end].clone(),
                boxes=torch.from_numpy(picture.boxes),
                box_scores=torch.from_numpy(picture.box_scores),
                skeleton=self.skeleton,
                image=picture.path or number + place,
                size=picture.size,
                error=None if picture.error is None else str(picture.error),
                pixels=picture.pixels if picture.reduction == 1 else None,
                reading=self._opener.reading,
            )


def _is_one(images: Any) -> bool:
    """Whether it is one image, and not several."""
    if isinstance(images, (str, os.PathLike)):
        return not Path(images).is_dir()
    return isinstance(images, (np.ndarray, Tensor)) and images.ndim == 3


def _plain(value: Any) -> Any:
    """An option's value as the command line has it."""
    return tuple(value) if isinstance(value, list) else value


def _groups(pictures: Iterator[Opened], persons: int) -> Iterator[list[Opened]]:
    """Pictures in groups of about so many persons, and of no more pictures than that."""
    group: list[Opened] = []
    count = 0
    for picture in pictures:
        group.append(picture)
        count += len(picture.boxes)
        if count >= persons or len(group) >= persons:
            yield group
            group, count = [], 0
    if group:
        yield group
