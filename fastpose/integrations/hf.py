# SPDX-License-Identifier: Apache-2.0
"""fastpose inside Hugging Face transformers: image processors for ViTPose and Sapiens2 on the network's device.

They replace transformers' own of the same names in pose estimation: the same calls, and results of the same form.
transformers warps person by person, ViTPose's in SciPy on the CPU, and decodes ViTPose's heatmaps in NumPy. Here one
call of `affine_crop` cuts out the persons of all pictures, one of `decode_heatmaps` finds their joints, and pixels,
points and scores stay on their device.

Differences from transformers 5.24, besides rounding:

* ViTPose's crops are not rounded to whole grey levels. Where a crop leaves its picture, the last pixel fades out over
  one pixel, as in `cv2.warpAffine` and in Sapiens2's processor; SciPy ends it sharply.
* ViTPose's maps are blurred with zeros beyond their edge, where SciPy mirrors them. Points within three pixels of a
  map's edge differ, and within six on a map that is not near 0 there.
* Logarithms have a floor of 0.001 in both. Here blurred values are first scaled to the map's maximum by the highest of
  the nine in use; ViTPose's processor does not scale, Sapiens2's scales by the highest of the map. Scores below about
  0.002 and peaks beside deep valleys can differ. Values above 50 are cut there.
* A map without a positive value decodes to the crop's first pixel, there to a point near (-1, -1) on the map.
* ViTPose's "bbox" has the corners of the box. There it has its centre, and in place of the far corner sums with its
  scale.
* ViTPose's `normalize_factor` acts on crops and points, there on crops alone.
* Results are on the heatmaps' device; ViTPose's are on the CPU there.
* Pictures are uint8 RGB; PIL's become so from any mode. Tensors are what "pt" gives, and there is no "np".
* Empty lists of boxes are fine. Boxes without an area, or as many boxes as neither pictures nor heatmaps have, are
  errors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastpose import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageBatch,
    affine_crop,
    crop_to_image_matrix,
    decode_heatmaps,
    normalize_color,
    render_heatmaps,
    transform_points,
)
from fastpose.device import to_device
from fastpose.integrations.hf_inputs import flat_boxes, flat_joints, image_batch, kind, picture_of, table
from fastpose.ops.affine_crop import Resampling

if TYPE_CHECKING:
    from typing_extensions import Self

PADDING = 1.25  # of a box's width and height, in both of transformers' processors
# Options of transformers' that other tasks have, with the value that crops of persons need.
_REQUIRED = {"do_affine_transform": True, "do_center_crop": False, "data_format": "channels_first"}
_WITHOUT_EFFECT = ("do_convert_rgb", "disable_grouping")


@dataclass(kw_only=True)
class _PoseImageProcessor:
    """What both processors have: options of transformers' names, the crops, and the results' form."""

    size: Mapping[str, int] = field(default_factory=lambda: {"height": 256, "width": 192})
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Sequence[float] | float = IMAGENET_MEAN
    image_std: Sequence[float] | float = IMAGENET_STD
    device: torch.device | str | None = None

    @classmethod
    def from_hf(cls, processor: Any, **changes: Any) -> Self:
        """With the options of one of transformers' processors.

        Args:
            processor: an image processor of transformers, or a mapping such as its `preprocessor_config.json` has.
            changes: options that replace the processor's, such as `device`.

        Raises:
            ValueError: an option that crops are not made with, such as `do_affine_transform=False`.
        """
        has = processor if isinstance(processor, Mapping) else vars(processor)
        _check_required(has)
        names = {f.name for f in dataclasses.fields(cls)} - {"device"}
        return cls(**{name: has[name] for name in names if has.get(name) is not None} | changes)

    @classmethod
    def from_pretrained(cls, name_or_folder: Any, **options: Any) -> Self:
        """With the options that a checkpoint's `preprocessor_config.json` has.

        Args:
            name_or_folder: of a checkpoint, as transformers' `from_pretrained` takes it.
            options: of that `from_pretrained`, such as `revision`; and those that replace the file's, such as `device`.
        """
        from transformers.image_processing_base import ImageProcessingMixin

        config, changes = ImageProcessingMixin.get_image_processor_dict(name_or_folder, **options)
        return cls.from_hf(config, **changes)

    def _changed(self, changes: Mapping[str, Any]) -> Self:
        _check_required(changes)
        changes = {n: value for n, value in changes.items() if n not in (*_REQUIRED, *_WITHOUT_EFFECT)}
        if unknown := changes.keys() - {f.name for f in dataclasses.fields(self)}:
            raise ValueError(f"{type(self).__name__} has no option {', '.join(sorted(unknown))}")
        return dataclasses.replace(self, **changes)

    def __post_init__(self) -> None:
        size = self.size
        try:
            height, width = size if isinstance(size, (tuple, list)) else (size["height"], size["width"])
            self.size = {"height": int(height), "width": int(width)}
        except (KeyError, TypeError, ValueError):
            raise ValueError(f'size must be {{"height": h, "width": w}} or (h, w), got {size!r}') from None
        numbers = {"size": min(self.size.values())}
        numbers |= {name: getattr(self, name, 1) for name in ("normalize_factor", "keypoint_heatmap_downscale_factor")}
        for name, number in numbers.items():
            if not number > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def _color(self) -> Tensor:
        """The colour map of the rescaling and the normalisation."""
        unit = 255 * self.rescale_factor if self.do_rescale else 255.0  # what becomes of a value of 255
        mean, std = (self.image_mean, self.image_std) if self.do_normalize else (0.0, 1.0)
        return normalize_color(*((np.broadcast_to(value, 3) / unit).tolist() for value in (mean, std)))

    def _frames(self, boxes: Tensor, padding: float) -> tuple[Tensor, Tensor]:
        """Centres and extents (w, h) of boxes [P, 4] (x, y, w, h), padded and widened to the crop's aspect ratio."""
        corner, extent = boxes.split(2, 1)
        width, height = (padding * extent).unbind(1)
        aspect = self.size["width"] / self.size["height"]
        return corner + 0.5 * extent, torch.stack([width.maximum(height * aspect), height.maximum(width / aspect)], 1)

    def _matrix(self, frames: tuple[Tensor, Tensor], size: tuple[int, int], device: torch.device) -> Tensor:
        center, extent = frames
        return to_device(crop_to_image_matrix(center, extent / 200, 0.0, size, udp=True), device)

    def _decoded(
        self, heatmaps: Tensor, boxes: Tensor, padding: float, kernel_size: int, blur_sigma: float
    ) -> tuple[Tensor, Tensor]:
        """Keypoints [P, K, 2] in the pixels that the boxes [P, 4] are in, and scores [P, K]."""
        if heatmaps.dim() != 4 or len(heatmaps) != len(boxes):
            wanted = f"[{len(boxes)}, K, h, w], one per box"
            raise ValueError(f"outputs.heatmaps must be {wanted}, got {list(heatmaps.shape)}")
        if not 1 <= kernel_size <= 255 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be an odd number of pixels from 1 to 255, got {kernel_size}")
        height, width = heatmaps.shape[2:]
        matrix = self._matrix(self._frames(boxes, padding), (height, width), heatmaps.device)
        return decode_heatmaps(
            heatmaps, refine="dark_udp", heatmap_to_image=matrix, blur_kernel=kernel_size, blur_sigma=blur_sigma
        )


@dataclass(kw_only=True)
class VitPoseImageProcessor(_PoseImageProcessor):
    """transformers' `VitPoseImageProcessor`: UDP crops of the persons of pictures, and points from their heatmaps.

    Args:
        size: {"height": h, "width": w} of the crops in pixels.
        do_rescale, rescale_factor: whether pixel values 0–255 are multiplied by a factor, and by which.
        do_normalize, image_mean, image_std: whether the mean (R G B, or one number, of rescaled values) is then
            subtracted, and the result divided by the deviation.
        normalize_factor: 200 leaves boxes as they are; a crop is 200 / normalize_factor times as large.
        device: where the pictures go; None: where they are if they are tensors, else the CPU.
    """

    normalize_factor: float = 200.0

    def __call__(self, images: Any, boxes: Any, **options: Any) -> Any:
        """See `preprocess`."""
        return self.preprocess(images, boxes, **options)

    def preprocess(
        self,
        images: Any,
        boxes: Any,
        *,
        return_tensors: str | None = None,
        device: torch.device | str | None = None,
        input_data_format: str | None = None,
        **changes: Any,
    ) -> Any:
        """The crops of all persons, picture by picture, in one call of `affine_crop`.

        Args:
            images: one picture or a list of N: PIL pictures, or uint8 RGB as NumPy arrays or torch tensors on any
                device, [h, w, 3] or [3, h, w]; or a tensor or array of four dimensions; or an `ImageBatch`.
            boxes: N lists, arrays or tensors of boxes (x, y, w, h) in pixels of the picture (COCO's), of any number.
            return_tensors: "pt" for a tensor, None for a list of tensors.
            device: of the result, instead of the processor's.
            input_data_format: "channels_first" or "channels_last"; None: first if the first axis has three elements.
            changes: options for this call alone.

        Returns:
            transformers' BatchFeature: "pixel_values", float32 [P, 3, h, w], or P of [3, h, w].

        Raises:
            ValueError: names the argument that is wrong.
        """
        options = self._changed(changes)
        batch = image_batch(images, input_data_format, device or self.device)
        flat, counts = flat_boxes(boxes, len(batch))
        size = (options.size["height"], options.size["width"])
        matrix = options._matrix(options._frames(flat, options._padding()), size, batch.device)
        crops = affine_crop(batch, matrix, size, image_index=picture_of(counts, batch.device), color=options._color())
        return _features({"pixel_values": crops}, return_tensors)

    def post_process_pose_estimation(
        self,
        outputs: Any,
        boxes: Any,
        kernel_size: int = 11,
        threshold: float | None = None,
        target_sizes: Any = None,
    ) -> list[list[dict[str, Tensor]]]:
        """The joints of all persons, on the heatmaps' device.

        Args:
            outputs: of the network: `outputs.heatmaps` [P, K, h, w], floating, on any device.
            boxes: as in `preprocess`.
            kernel_size: side of the blur before the refinement, heatmap pixels, odd. Its sigma is 0.8.
            threshold: leave out joints with a score up to this. On a GPU this waits for it once.
            target_sizes: [P, 2], factors in x and y for boxes in shares of the picture. transformers' documentation
                has (height, width) here and its code the other order, which this follows.

        Returns:
            For each picture a list with one dict per person: "keypoints" float32 [K, 2] (x, y) in pixels of the
            picture, "scores" float32 [K], "labels" int64 [K] (which joint), "bbox" float32 [4] (x, y of the box's first
            pixel and of its last).

        Raises:
            ValueError: names the argument that is wrong.
        """
        flat, counts = flat_boxes(boxes)
        if target_sizes is not None:
            flat = flat * table("target_sizes", target_sizes, len(flat)).repeat(1, 2)
        points, scores = self._decoded(outputs.heatmaps, flat, self._padding(), kernel_size, 0.8)
        corners = torch.cat([flat[:, :2], flat[:, :2] + flat[:, 2:] - 1], 1)
        return _results(points, scores, to_device(corners, points.device), counts, threshold)

    def _padding(self) -> float:
        return PADDING * 200 / self.normalize_factor


@dataclass(kw_only=True)
class Sapiens2ImageProcessor(_PoseImageProcessor):
    """transformers' `Sapiens2ImageProcessor` for pose estimation: crops, targets, and points from heatmaps.

    Args:
        size, do_rescale, rescale_factor, do_normalize, image_mean, image_std, device: see `VitPoseImageProcessor`.
        keypoint_heatmap_downscale_factor: by how much targets are smaller than crops.
        keypoint_heatmap_sigma: of the targets' Gaussians, heatmap pixels.
    """

    size: Mapping[str, int] = field(default_factory=lambda: {"height": 1024, "width": 768})
    keypoint_heatmap_downscale_factor: int = 4
    keypoint_heatmap_sigma: float = 6.0

    def __call__(self, images: Any, *arguments: Any, **options: Any) -> Any:
        """See `preprocess`."""
        return self.preprocess(images, *arguments, **options)

    def preprocess(
        self,
        images: Any,
        segmentation_maps: None = None,
        boxes: Any = None,
        keypoints: Any = None,
        *,
        return_tensors: str | None = None,
        device: torch.device | str | None = None,
        input_data_format: str | None = None,
        **changes: Any,
    ) -> Any:
        """The crops of all persons, and for training their targets.

        Crops that enlarge the picture are bicubic, others bilinear.

        Args:
            images, boxes, return_tensors, device, input_data_format, changes: see `VitPoseImageProcessor.preprocess`.
            segmentation_maps: of other tasks; must be None.
            keypoints: the joints [K, 2] or [K, 3] (x, y, visibility) of each box, nested as the boxes; x and y in
                pixels of the picture, visible if positive.

        Returns:
            transformers' BatchFeature: "pixel_values", float32 [P, 3, h, w]; with keypoints "labels" float32
            [P, K, h / factor, w / factor] and "label_weights" float32 [P, K].

        Raises:
            ValueError: names the argument that is wrong.
        """
        if segmentation_maps is not None:
            raise ValueError(f"segmentation_maps must be None for pose estimation, got {kind(segmentation_maps)}")
        options = self._changed(changes)
        batch = image_batch(images, input_data_format, device or self.device)
        flat, counts = flat_boxes(boxes, len(batch))
        frames = options._frames(flat, PADDING)
        data = {"pixel_values": options._crops(batch, frames, counts)}
        if keypoints is not None:
            factor = options.keypoint_heatmap_downscale_factor
            heatmap_size = (options.size["height"] // factor, options.size["width"] // factor)
            joints, visible = (to_device(part, batch.device) for part in flat_joints(keypoints, counts))
            matrix = options._matrix(frames, heatmap_size, batch.device)
            data["labels"], data["label_weights"] = render_heatmaps(
                transform_points(joints, matrix, inverse=True),
                visible,
                heatmap_size,
                sigma=options.keypoint_heatmap_sigma,
                encoding="udp",
            )
        return _features(data, return_tensors)

    def _crops(self, batch: ImageBatch, frames: tuple[Tensor, Tensor], counts: list[int]) -> Tensor:
        height, width = size = self.size["height"], self.size["width"]
        matrix, index = self._matrix(frames, size, batch.device), picture_of(counts, batch.device)
        enlarges = (torch.tensor([width - 1, height - 1]) / frames[1]).amin(1) >= 1
        crops = torch.empty((len(matrix), 3, height, width), dtype=torch.float32, device=batch.device)
        resample: Resampling
        for resample, chosen in (("bilinear", ~enlarges), ("bicubic", enlarges)):
            some = to_device(chosen.nonzero()[:, 0], batch.device)  # a mask would wait for a GPU
            part = affine_crop(
                batch, matrix[some], size, image_index=index[some], color=self._color(), resample=resample
            )
            if len(part) == len(crops):
                return part
            crops[some] = part
        return crops

    def post_process_pose_estimation(
        self,
        outputs: Any,
        boxes: Any,
        outputs_flipped: Any = None,
        kernel_size: int = 11,
        threshold: float | None = None,
        source_sizes: Any = None,
        target_sizes: Any = None,
    ) -> list[list[dict[str, Tensor]]]:
        """The joints of all persons, on the heatmaps' device.

        Args:
            outputs: of the network: `outputs.heatmaps` [P, K, h, w], floating, on any device.
            boxes: as in `preprocess`.
            outputs_flipped: of the mirrored crops, un-mirrored by the network's `flip_pairs`; averaged with the others.
            kernel_size: side of the blur before the refinement, heatmap pixels, odd.
            threshold: leave out joints with a score up to this. On a GPU this waits for it once.
            source_sizes, target_sizes: [N, 2] (height, width) of the pictures, and of those that the points are wanted
                in. Targets need sources.

        Returns:
            As `VitPoseImageProcessor.post_process_pose_estimation`, "bbox" with the corners x, y, x + w and y + h.

        Raises:
            ValueError: names the argument that is wrong.
        """
        flat, counts = flat_boxes(boxes)
        heatmaps = outputs.heatmaps
        if outputs_flipped is not None:
            heatmaps = (heatmaps + outputs_flipped.heatmaps) / 2
        sigma = 0.3 * ((kernel_size - 1) * 0.5 - 1) + 0.8
        points, scores = self._decoded(heatmaps, flat, PADDING, kernel_size, sigma)
        corners = to_device(torch.cat([flat[:, :2], flat[:, :2] + flat[:, 2:]], 1), points.device)
        if target_sizes is not None:
            if source_sizes is None:
                raise ValueError("source_sizes must be passed with target_sizes, got None")
            source, target = (
                table(name, sizes, len(counts))
                for name, sizes in (("source_sizes", source_sizes), ("target_sizes", target_sizes))
            )
            factor = (target / source).flip(1).repeat_interleave(torch.tensor(counts), 0)
            factor = to_device(factor, points.device)
            points, corners = points * factor[:, None], corners * factor.repeat(1, 2)
        return _results(points, scores, corners, counts, threshold)


def _check_required(options: Mapping[str, Any]) -> None:
    for name, required in _REQUIRED.items():
        if options.get(name, required) not in (required, None):
            raise ValueError(f"{name} must be {required} for pose estimation, got {options[name]!r}")


def _features(data: dict[str, Tensor], return_tensors: str | None) -> Any:
    from transformers.image_processing_base import BatchFeature

    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors must be 'pt' or None, got {return_tensors!r}")
    return BatchFeature(data=data if return_tensors else {name: list(values) for name, values in data.items()})


def _results(
    points: Tensor, scores: Tensor, corners: Tensor, counts: list[int], threshold: float | None
) -> list[list[dict[str, Tensor]]]:
    columns: list[Any] = [points, scores, torch.arange(points.shape[1], device=points.device).expand(scores.shape)]
    if threshold is not None:
        keep = (scores > threshold).cpu()  # the one wait; an index by a mask would be another
        kept, joints = to_device(keep.flatten().nonzero()[:, 0], scores.device), keep.sum(1).tolist()
        columns = [column.flatten(0, 1).index_select(0, kept).split(joints) for column in columns]
    names = ("keypoints", "scores", "labels", "bbox")
    persons: Iterator[dict[str, Tensor]] = (
        dict(zip(names, person, strict=True)) for person in zip(*columns, corners, strict=True)
    )
    return [list(islice(persons, count)) for count in counts]
