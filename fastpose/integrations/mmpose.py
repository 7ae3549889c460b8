# SPDX-License-Identifier: Apache-2.0
"""fastpose inside mmpose 1.x: crops, targets and decoding of its top-down heatmap networks, for whole batches.

mmpose's workers warp each picture, render each target, and decode each result in NumPy. With what is here they only
read pictures and draw augmentations; the data preprocessor crops, normalises and renders the batch on the network's
device, and the codec decodes it there. A config imports this module with
``custom_imports = dict(imports=["fastpose.mmpose"])`` (docs/other_loops.md); fastpose itself never does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.structures import PixelData
from mmpose.codecs.base import BaseKeypointCodec
from mmpose.datasets.transforms import PackPoseInputs, TopdownAffine
from mmpose.models.data_preprocessors import PoseDataPreprocessor
from mmpose.registry import KEYPOINT_CODECS, MODELS, TRANSFORMS
from numpy.typing import NDArray
from torch import Tensor

from fastpose import (
    ImageBatch,
    affine_crop,
    crop_to_image_matrix,
    decode_heatmaps,
    normalize_color,
    render_heatmaps,
    transform_points,
)
from fastpose.ops.decode_heatmaps import Refinement
from fastpose.ops.render_heatmaps import Encoding


@KEYPOINT_CODECS.register_module()
class FastposeHeatmap(BaseKeypointCodec):
    """Heatmaps of one Gaussian per joint: mmpose's MSRAHeatmap and UDPHeatmap with `render_heatmaps` and
    `decode_heatmaps`.

    ``msra`` with ``quarter`` is MSRAHeatmap, ``unbiased`` with ``dark`` its ``unbiased=True``, ``udp`` with
    ``dark_udp`` UDPHeatmap. They differ in maps without a positive value: those decode to (0, 0), there to (-1, -1).

    Args:
        input_size: (w, h) of the network's input in pixels, as everywhere in mmpose.
        heatmap_size: (w, h) of the heatmaps.
        sigma: of the Gaussian, in heatmap pixels.
        encoding: see `fastpose.render_heatmaps`.
        refine, blur_kernel: see `fastpose.decode_heatmaps`.
    """

    label_mapping_table = {"keypoint_weights": "keypoint_weights"}  # noqa: RUF012  # as mmpose declares them
    field_mapping_table = {"heatmaps": "heatmaps"}  # noqa: RUF012

    def __init__(
        self,
        input_size: tuple[int, int],
        heatmap_size: tuple[int, int],
        sigma: float = 2.0,
        encoding: Encoding = "msra",
        refine: Refinement = "quarter",
        blur_kernel: int = 11,
    ) -> None:
        super().__init__()
        self.input_size, self.heatmap_size = tuple(input_size), tuple(heatmap_size)  # a config may have lists
        self.sigma, self.encoding, self.refine, self.blur_kernel = sigma, encoding, refine, blur_kernel
        self.udp = encoding == "udp"
        # Under udp sizes are measured from the first pixel's centre to the last one's. Points on their way back are not
        # quite in pixels of the input then: TopdownPoseEstimator divides them by the whole input_size.
        span = np.array(heatmap_size, np.float32) - self.udp
        self.scale_factor = (np.array(input_size, np.float32) - self.udp) / span
        self.decode_factor = np.array(input_size, np.float32) / span

    def render(self, keypoints: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """The targets of a batch.

        Args:
            keypoints: [B, K, 2] in pixels of the input, on any device.
            visible: [B, K].

        Returns:
            heatmaps [B, K, h, w] and weights [B, K], float32.
        """
        on_map = keypoints / torch.from_numpy(self.scale_factor).to(keypoints.device)
        width, height = self.heatmap_size
        return render_heatmaps(on_map, visible, (height, width), sigma=self.sigma, encoding=self.encoding)

    def encode(
        self, keypoints: NDArray[np.float32], keypoints_visible: NDArray[np.float32] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """The target of one sample, as GenerateTarget asks for it.

        Args:
            keypoints: [1, K, 2] in pixels of the input.
            keypoints_visible: [1, K]; all visible without it.

        Returns:
            "heatmaps" [K, h, w] and "keypoint_weights" [1, K], float32.

        Raises:
            ValueError: not the joints of one person.
        """
        if len(keypoints) != 1:
            raise ValueError(f"keypoints must be [1, K, 2], of one person, got {list(keypoints.shape)}")
        visible = np.ones(keypoints.shape[:2]) if keypoints_visible is None else keypoints_visible
        heatmaps, weights = self.render(torch.as_tensor(keypoints).float(), torch.as_tensor(visible).float())
        return {"heatmaps": heatmaps[0].numpy(), "keypoint_weights": weights.numpy()}

    def batch_decode(self, batch_encoded: Tensor) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
        """The head's heatmaps [B, K, h, w], decoded on their device.

        Returns:
            points [1, K, 2] in pixels of the input (udp: stretched by w/(w-1) and h/(h-1), as TopdownPoseEstimator
            takes them) and scores [1, K], of each sample.
        """
        to_input = torch.diag(torch.from_numpy(self.decode_factor)).to(batch_encoded.device)
        to_input = torch.nn.functional.pad(to_input, (0, 1)).repeat(len(batch_encoded), 1, 1)
        keypoints, scores = decode_heatmaps(
            batch_encoded.detach(), refine=self.refine, heatmap_to_image=to_input, blur_kernel=self.blur_kernel
        )
        return list(keypoints[:, None].cpu().numpy()), list(scores[:, None].cpu().numpy())

    def decode(self, encoded: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One sample's heatmaps [K, h, w]; returns what `batch_decode` does, of this one."""
        keypoints, scores = self.batch_decode(torch.from_numpy(encoded)[None])
        return keypoints[0], scores[0]


@TRANSFORMS.register_module()
class FastposePack(PackPoseInputs):
    """The end of a pipeline: packs the whole picture, its box and joints for `FastposeDataPreprocessor`.

    Stands for TopdownAffine, GenerateTarget and PackPoseInputs. What comes before them stays: LoadImage,
    GetBBoxCenterScale, RandomFlip, RandomHalfBody, RandomBBoxTransform and whatever changes pixels.

    Args:
        input_size: (w, h) of the network's input; boxes are widened to its aspect ratio.
        use_dataset_keypoint_weights: as GenerateTarget's: the data set's weight of each joint multiplies the targets'.
        options: of PackPoseInputs.
    """

    def __init__(self, input_size: tuple[int, int], use_dataset_keypoint_weights: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.input_size = tuple(input_size)
        self.use_dataset_keypoint_weights = use_dataset_keypoint_weights

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """See PackPoseInputs; ``inputs`` is the picture, uint8 [h, w, 3], not its crop.

        Raises:
            ValueError: there is not one picture of uint8 [h, w, 3] with one box.
        """
        picture, boxes, (width, height) = results["img"], len(results["bbox_center"]), self.input_size
        if not (isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3):
            raise ValueError(f"img must be one picture of uint8 [h, w, 3], got {_kind(picture)}")
        if boxes != 1:
            raise ValueError(f"bbox_center must be of one person, got {boxes}")
        scale = TopdownAffine._fix_aspect_ratio(results["bbox_scale"], aspect_ratio=width / height)
        changes = {"bbox_scale": scale, "input_size": self.input_size}
        changes |= {"input_center": results["bbox_center"][0], "input_scale": scale[0]}
        visible = results.get("keypoints_visible", np.ones((1, 1, 1)))
        if visible.ndim == 3 and visible.shape[2] == 2:  # GenerateTarget's reading of it
            changes |= {"keypoints_visible": visible[..., 0], "keypoints_visible_weights": visible[..., 1]}
        if self.use_dataset_keypoint_weights:
            changes["keypoint_weights"] = np.asarray(results["dataset_keypoint_weights"], np.float32).reshape(1, -1)
        # PackPoseInputs would copy the picture into planes: it gets one of a single pixel.
        packed = super().transform(results | changes | {"img": np.zeros((1, 1, 3), np.uint8)})
        packed["data_samples"].set_metainfo({"bbox_rotation": results.get("bbox_rotation", np.zeros(1))})
        if picture.strides[1] < 0:  # RandomFlip's view, which NumPy copies 30 times as slowly as OpenCV
            picture = cv2.flip(picture[:, ::-1], 1)
        return packed | {"inputs": torch.from_numpy(np.ascontiguousarray(picture))}


@MODELS.register_module()
class FastposeDataPreprocessor(PoseDataPreprocessor):
    """Crops, normalises and, for training, renders the targets of what `FastposePack` has packed, on the device.

    The crops are TopdownAffine's (``use_udp`` where the codec's encoding is ``udp``) without its rounding to whole
    grey levels; the targets are the codec's. They lie where HeatmapHead's loss looks for them:
    ``gt_fields.heatmaps`` and ``gt_instance_labels.keypoint_weights``.

    Args:
        codec: the config of a `FastposeHeatmap`.
        mean, std: of the channels after their conversion, 0 to 255, as PoseDataPreprocessor's; None: 0 and 1.
        bgr_to_rgb, rgb_to_bgr, non_blocking, batch_augments: as PoseDataPreprocessor's.
    """

    def __init__(
        self,
        codec: dict[str, Any],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bgr_to_rgb: bool = False,
        rgb_to_bgr: bool = False,
        non_blocking: bool = False,
        batch_augments: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(
            mean,
            std,
            bgr_to_rgb=bgr_to_rgb,
            rgb_to_bgr=rgb_to_bgr,
            non_blocking=non_blocking,
            batch_augments=batch_augments,
        )
        self.codec = KEYPOINT_CODECS.build(codec)
        if not isinstance(self.codec, FastposeHeatmap):
            raise ValueError(f"codec must be a FastposeHeatmap, got {type(self.codec).__name__}")
        levels = ((0.0 if mean is None else mean), (1.0 if std is None else std))
        self.color = normalize_color(*((np.broadcast_to(level, 3) / 255).tolist() for level in levels))
        if bgr_to_rgb or rgb_to_bgr:
            self.color = self.color[:, [2, 1, 0, 3]]

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Makes the network's batch.

        Args:
            data: ``inputs``, B pictures uint8 [h, w, 3] of any sizes, and ``data_samples``, as collated.
            training: render the targets.

        Returns:
            ``inputs`` float32 [B, 3, h, w] and ``data_samples``.
        """
        samples = self.cast_data(data["data_samples"])
        images = ImageBatch.from_list(data["inputs"], pin_memory=self.device.type == "cuda")
        center, scale, rotation = (
            self._stacked(sample.metainfo[name] for sample in samples)
            for name in ("input_center", "input_scale", "bbox_rotation")
        )
        # get_warp_matrix turns as crop_to_image_matrix does, get_udp_warp_matrix the other way.
        rotation = rotation[:, 0] * (-1 if self.codec.udp else 1)
        width, height = self.codec.input_size
        size = (height, width)
        crop_to_image = crop_to_image_matrix(center, scale / 200, rotation, size, udp=self.codec.udp)
        inputs = affine_crop(
            images.to(self.device, non_blocking=self._non_blocking), crop_to_image, size, color=self.color
        )
        for sample in samples:
            sample.set_metainfo({"batch_input_shape": size, "pad_shape": size})
        if training:
            self._add_targets(samples, crop_to_image)
            for augment in self.batch_augments or ():
                inputs, samples = augment(inputs, samples)
        return {"inputs": inputs, "data_samples": samples}

    def _add_targets(self, samples: list[Any], crop_to_image: Tensor) -> None:
        points = self._stacked(sample.gt_instances.keypoints[0, :, :2] for sample in samples)
        visible = self._stacked(sample.gt_instances.keypoints_visible[0] for sample in samples)
        heatmaps, weights = self.codec.render(transform_points(points, crop_to_image, inverse=True), visible)
        for sample, maps, weight in zip(samples, heatmaps, weights, strict=True):
            labels = sample.gt_instance_labels
            labels.keypoint_weights = weight[None] * labels.get("keypoint_weights", 1)
            sample.gt_fields = PixelData(heatmaps=maps)

    def _stacked(self, rows: Any) -> Tensor:
        return torch.from_numpy(np.stack(list(rows)).astype(np.float32)).to(
            self.device, non_blocking=self._non_blocking
        )


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
