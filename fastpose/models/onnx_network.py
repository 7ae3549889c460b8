# SPDX-License-Identifier: Apache-2.0
"""Networks in ONNX files, as onnxruntime computes them: a network alone, or with all that `fastpose export` puts in."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import fastpose
from fastpose.device import ComputeOptions
from fastpose.files import check_is_file
from fastpose.models.checkpoint import CheckpointError
from fastpose.models.decoding import DecodeOptions, Decoder
from fastpose.models.network import NetworkOptions, skeleton_of
from fastpose.option import OptionError
from fastpose.skeletons import Skeleton

log = logging.getLogger(__name__)

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
EXPORTED = (
    "skeleton",
    "joints",
    "limbs",
    "mirror_pairs",
    "size",
    "udp",
    "refine",
    "blur_kernel",
    "flip_test",
    "targets",
)


class OnnxNetwork(nn.Module):
    """The graph of an ONNX file as a network; inputs and outputs go through the host's memory.

    Args:
        path: the file.
        device: cuda runs it by onnxruntime's CUDA provider, everything else on the CPU.
        option: which option names the file, for messages.

    Attributes:
        path: the file.
        inputs: name, type and shape of each input; what may be of any length is None.
        notes: the file's metadata: texts by name.
        decodes: whether it takes pixels and returns points, as `fastpose export` writes it.

    Raises:
        OptionError: there is no such file, or onnxruntime is missing.
        CheckpointError: the file is damaged, or onnxruntime cannot run it; or another input than is known.
    """

    def __init__(self, path: Path, device: torch.device, option: str = "checkpoint") -> None:
        super().__init__()
        check_is_file(option, path)
        try:
            import onnxruntime
        except ImportError as error:
            raise OptionError(
                option,
                f"{path} is computed by onnxruntime, which cannot be imported ({error}): pip install onnxruntime",
            ) from None
        wanted = ["CPUExecutionProvider"]
        if device.type == "cuda":
            if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
                wanted.insert(0, "CUDAExecutionProvider")
            else:
                log.warning(
                    "%s: this onnxruntime has no CUDA: the network runs on the CPU (pip install onnxruntime-gpu)", path
                )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # warnings about the graph help nobody here
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:  # onnxruntime's own kinds, which have no common base
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{path}: onnxruntime cannot load it: {reason}") from error
        self.path = path
        self.inputs = [
            (one.name, one.type, tuple(side if isinstance(side, int) else None for side in one.shape))
            for one in self._session.get_inputs()
        ]
        self.notes: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.decodes = "fastpose" in self.notes
        self._outputs = [one.name for one in self._session.get_outputs()]
        self.eval()
        for name, kind, shape in self.inputs:
            if kind not in _TYPES:
                raise CheckpointError(f"{path}: input {name} is {kind} {list(shape)}, and images are float or uint8")

    def run(self, *values: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs of the graph; of a graph for so many samples alone in as many runs as it takes.

        Raises:
            CheckpointError: onnxruntime fails.
        """
        names, fixed = [name for name, _, _ in self.inputs], self.inputs[0][2][0]
        count = len(values[0])
        step = fixed or max(count, 1)
        parts = []
        for first in range(0, max(count, 1), step):
            part = [value[first : first + step] for value in values]
            missing = step - len(part[0]) if fixed else 0
            part = [np.concatenate([value, np.zeros((missing, *value.shape[1:]), value.dtype)]) for value in part]
            typed = {name: one.astype(_TYPES[kind]) for (name, kind, _), one in zip(self.inputs, part, strict=True)}
            assert list(typed) == names
            try:
                found = self._session.run(self._outputs, typed)
            except Exception as error:  # as above
                shapes = " and ".join(str(list(one.shape)) for one in part)
                reason = " ".join(str(error).split())[:300]
                raise CheckpointError(f"{self.path}: onnxruntime cannot run it on {shapes}: {reason}") from error
            parts.append([output[: step - missing] for output in found])
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] to heatmaps [B, K, H/4, W/4], or to SimCC's vectors in x and in y, float32."""
        if self.decodes:
            raise CheckpointError(f"{self.path}: takes pixels and returns points, as fastpose.Predictor runs it")
        outputs = self.run(images.detach().float().cpu().contiguous().numpy())
        found = [torch.from_numpy(output).float().to(images.device) for output in outputs]
        return found[0] if len(found) == 1 else (found[0], found[1])


@dataclass(frozen=True)
class OnnxPose:
    """What an ONNX file is.

    Attributes:
        network: its graph.
        options: what the file says of itself, by the options' names.
        num_joints: how many joints it finds.
        skeleton: these joints, if the file says; else None.
    """

    network: OnnxNetwork
    options: Mapping[str, Any]
    num_joints: int
    skeleton: Skeleton | None


def read_onnx(path: Path, device: torch.device, asked: Mapping[str, Any]) -> OnnxPose:
    """Loads an ONNX file and recognises what it is: `fastpose export`'s, or a network of heatmaps or SimCC's vectors.

    Args:
        path: the file.
        device: see `OnnxNetwork`.
        asked: `size` is read where the graph takes images of any size.

    Raises:
        OptionError, CheckpointError: see `OnnxNetwork`; or it is no such network.
    """
    network = OnnxNetwork(path, device)
    if network.decodes:
        return _exported(network)
    _, kind, shape = network.inputs[0]
    if len(network.inputs) != 1 or len(shape) != 4 or shape[1] not in (3, None) or kind == "tensor(uint8)":
        texts = ", ".join(f"{name} {kind} {list(shape)}" for name, kind, shape in network.inputs)
        raise CheckpointError(f"{path}: expected a network of images [B, 3, H, W], float, got the inputs {texts}")
    size = tuple(asked["size"]) if "size" in asked else (shape[2], shape[3])
    if None in size:
        raise OptionError("size", f"{path} takes images of any size: name the height and width that it was trained for")
    for side, own in zip(size, shape[2:], strict=True):
        if own not in (None, side):
            raise OptionError("size", f"{path} takes images of {shape[2]}x{shape[3]} pixels, got {list(size)}")
    height, width = size
    outputs = network.run(np.zeros((1, 3, height, width), np.float32))
    shapes = [list(output.shape) for output in outputs]
    options: dict[str, Any] = {"size": size}
    if len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][2:] == [height // 4, width // 4]:
        return OnnxPose(network, options | {"targets": "heatmap"}, shapes[0][1], None)
    if len(shapes) == 2 and all(len(shape) == 3 for shape in shapes) and shapes[0][1] == shapes[1][1]:
        of_x, of_y = shapes[0][2], shapes[1][2]
        if of_x * height == of_y * width:
            options |= {"targets": "simcc", "split_ratio": of_x / width}
            return OnnxPose(network, options, shapes[0][1], None)
    raise CheckpointError(
        f"{path}: expected heatmaps [B, K, {height // 4}, {width // 4}], or SimCC's vectors in x and y, of images of "
        f"{height}x{width} pixels, got outputs {' and '.join(map(str, shapes))}"
    )


def _exported(network: OnnxNetwork) -> OnnxPose:
    notes: dict[str, Any] = {}
    for name in (*EXPORTED, *(["split_ratio"] if "split_ratio" in network.notes else [])):
        try:
            notes[name] = json.loads(network.notes[name])
        except (KeyError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{network.path}: metadata {name}: expected what fastpose export writes: {error}"
            ) from error
    try:
        skeleton = skeleton_of(
            {name: notes[name] for name in ("joints", "limbs", "mirror_pairs")} | {"name": notes["skeleton"]}
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{network.path}: metadata: {error}") from error
    options = {name: notes[name] for name in notes.keys() - {"skeleton", "joints", "limbs", "mirror_pairs"}}
    options["color_order"] = "rgb"  # of the pixels that go in; the network's own is inside
    options["size"] = tuple(notes["size"])
    return OnnxPose(network, options, skeleton.num_joints, skeleton)


class ExportedDecoder(Decoder):
    """Finds joints with a file of `fastpose export`, which has colours, mirror test and decoding inside.

    Args:
        network: the file's graph, of input crops or image.
        options: of the network that it was made from.
        skeleton, decode, compute: see `Decoder`.
    """

    def __init__(
        self,
        network: OnnxNetwork,
        options: NetworkOptions,
        skeleton: Skeleton,
        decode: DecodeOptions,
        compute: ComputeOptions,
    ) -> None:
        super().__init__(network, skeleton, decode, compute, udp=options.udp, simcc=options.simcc)
        self.network = network
        self._color = options.color()
        height, width = options.size
        sides = torch.tensor([width, height], dtype=torch.float32)
        stride = (sides - 1) / (sides / 4 - 1) if options.udp else torch.full((2,), 4.0)
        self._strides = torch.cat([stride if options.simcc is None else torch.ones(2), torch.ones(1)])

    def __call__(self, images: Tensor, heatmap_to_image: Tensor) -> tuple[Tensor, Tensor]:
        """See `Decoder`. The colour map of the crops is undone: the file takes pixels."""
        scale, shift = self._color[:, :3], self._color[:, 3]
        pixels = (images.float().cpu().permute(0, 2, 3, 1) - shift) @ torch.linalg.inv(scale).mT
        pixels = pixels.round().clamp(0, 255).to(torch.uint8)
        crop_to_image = heatmap_to_image.cpu() / self._strides
        if self.network.inputs[0][0] == "image":  # one picture at a time: each crop is one, cut out as it is
            eye = torch.eye(2, 3)[None].numpy()
            found = [self._run(crop.numpy(), eye) for crop in pixels]
            points, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
            return fastpose.transform_points(points, crop_to_image.contiguous()), scores
        return self._run(pixels.contiguous().numpy(), crop_to_image.contiguous().numpy())

    def _run(self, pixels: NDArray[np.uint8], matrix: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        points, scores = self.network.run(pixels, matrix)
        return torch.from_numpy(points), torch.from_numpy(scores)
