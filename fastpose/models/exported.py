# SPDX-License-Identifier: Apache-2.0
"""A network and all that surrounds it as one file, pixels in, points out: an ONNX graph or a torch.export program."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import fastpose
from fastpose.files import WholeFile, written_beside
from fastpose.models.decoding import DecodeOptions
from fastpose.models.network import NetworkOptions
from fastpose.models.own import outputs_of
from fastpose.ops.decode_heatmaps import REFINEMENTS, plain_decode_heatmaps
from fastpose.ops.decode_simcc import plain_decode_simcc, refinement
from fastpose.ops.swap_pairs import mirror_order
from fastpose.skeletons import Skeleton

OUTPUTS = ("keypoints", "scores")

Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class ExportError(ValueError):
    """The network cannot be expressed in the format, or the file does not compute what fastpose does."""


class PixelsToPoints(nn.Module):
    """A network with its colour map, its mirror test and the decoding of its heatmaps.

    Args:
        model: colour-mapped images [B, 3, H, W] to heatmaps [B, K, H/4, W/4] or to SimCC's vectors, float32, on the
            CPU. It is put into evaluation mode and contiguous layout, and its weights will want no gradients.
        network: what it sees.
        decode: how what it returns becomes joints.
        skeleton: its joints.
        input: what `forward` takes.
    """

    color: Tensor
    strides: Tensor
    crop_pixels: Tensor

    def __init__(
        self,
        model: nn.Module,
        network: NetworkOptions,
        decode: DecodeOptions,
        skeleton: Skeleton,
        *,
        input: Literal["crops", "image"] = "crops",
    ) -> None:
        super().__init__()
        self.model, self.options, self.decode, self.skeleton, self.input = model, network, decode, skeleton, input
        height, width = network.size
        sides = torch.tensor([width, height], dtype=torch.float32)
        stride = (sides - 1) / (sides / 4 - 1) if network.udp else torch.full((2,), 4.0)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        self.register_buffer("color", network.color())
        self.register_buffer("strides", torch.cat([stride, torch.ones(1)]))
        self.register_buffer("crop_pixels", torch.stack([x, y, torch.ones_like(x)], 2).flatten(0, 1).float())
        self.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def forward(self, pixels: Tensor, crop_to_image: Tensor) -> tuple[Tensor, Tensor]:
        """Finds the joints of B persons.

        Args:
            pixels: uint8 RGB; for input "crops" [B, H, W, 3] of the network's size, for "image" one picture of any
                size, [h, w, 3].
            crop_to_image: float32 [B, 2, 3], from the crops to the picture. With input "crops" the identity leaves
                points in pixels of the crops; with "image" the crops are taken through it.

        Returns:
            keypoints float32 [B, K, 2], (x, y) in pixels of the picture, and scores float32 [B, K].
        """
        crops = self.cropped(pixels, crop_to_image) if self.input == "image" else pixels.float()
        images = (crops @ self.color[:, :3].mT + self.color[:, 3]).permute(0, 3, 1, 2)
        outputs, flipped = self.outputs(images)
        mirrored = mirror_order(self.skeleton.mirror_pairs, outputs[0].shape[1]) if self.decode.flip_test else []
        # As DecodeOptions.decode and decode_vectors have it, by the ops' versions in torch's operators.
        if self.options.simcc is not None:
            (pred_x, pred_y), (flipped_x, flipped_y) = outputs, flipped or (None, None)
            return plain_decode_simcc(
                pred_x,
                pred_y,
                crop_to_image,
                flipped_x,
                flipped_y,
                mirrored,
                self.options.simcc.split_ratio,
                *refinement(self.decode.refine, self.options.simcc.sigma),
            )
        (maps,), (of_mirror,) = outputs, flipped or (None,)
        return plain_decode_heatmaps(
            maps,
            crop_to_image * self.strides,  # with the step from heatmap to crop in it
            of_mirror,
            mirrored,
            self.decode.shifts(self.options.udp),
            REFINEMENTS.index(self.decode.refine),
            self.decode.blur_kernel,
        )

    def cropped(self, picture: Tensor, crop_to_image: Tensor) -> Tensor:
        """Crops [B, H, W, 3] of a picture [h, w, 3], black outside it, as float32 pixel values."""
        # For grid_sample all crops are one, so that it takes the picture once; it counts from -1 to 1, edge to edge.
        x, y = (self.crop_pixels @ crop_to_image.mT).flatten(0, 1).unbind(1)
        places = torch.stack([(2 * x + 1) / picture.shape[1] - 1, (2 * y + 1) / picture.shape[0] - 1], 1)
        taken = F.grid_sample(picture.permute(2, 0, 1)[None].float(), places[None, None], align_corners=False)
        return taken[0, :, 0].mT.unflatten(0, (-1, *self.options.size))

    def outputs(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:
        """What the network returns of normalised images [B, 3, H, W], the heatmaps or both vectors, and for the mirror
        test the same of their mirror images."""
        count = images.shape[0]
        if self.decode.flip_test:
            images = torch.cat([images, images.flip(3)])  # once, so that the network is in the file once
        returned = tuple(outputs_of(self.model(images)))
        if not self.decode.flip_test:
            return returned, None
        return tuple(both[:count] for both in returned), tuple(both[count:] for both in returned)

    def decoded(
        self, outputs: Sequence[Tensor], flipped: Sequence[Tensor] | None, crop_to_image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Joints of outputs, by fastpose's ops."""
        simcc = self.options.simcc
        if simcc is not None:
            return self.decode.decode_vectors(outputs, flipped, crop_to_image, self.skeleton, simcc)
        (maps,), (of_mirror,) = outputs, flipped or (None,)
        heatmap_to_image = crop_to_image * self.strides
        return self.decode.decode(maps, of_mirror, heatmap_to_image, self.skeleton, udp=self.options.udp)


def write(network: PixelsToPoints, path: Path, pictures: Sequence[np.ndarray]) -> str:
    """Writes an ONNX graph (.onnx) or a torch.export program (.pt2), compares it with fastpose and names it `path`.

    Both have plain operators only and take any number of persons. ONNX: inputs `crops` or `image`, and
    `crop_to_image`, outputs `keypoints` and `scores`, as `PixelsToPoints.forward` has them. What a caller must know
    of the network, see `metadata`, is in the graph's metadata_props, or in the program's extra file fastpose.json.

    Args:
        network: what to export.
        path: the file; its suffix says the format. Until the comparison is done it has another name.
        pictures: uint8 RGB [h, w, 3], what to compare on.

    Returns:
        A line that says how the results differ.

    Raises:
        ExportError: the network cannot be exported or the file differs, and is then removed; a package is missing.
    """
    load: Callable[[Path], Run] = load_onnx if path.suffix == ".onnx" else load_program
    with written_beside(path) as beside:
        with warnings.catch_warnings():
            # torch's, about its own code, and that axes of the same length will have the same name.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            program = export_program(network)
            if path.suffix == ".onnx":
                write_onnx(program, network, beside)
            else:
                buffer = io.BytesIO()
                torch.export.save(program, buffer, extra_files={"fastpose.json": json.dumps(metadata(network))})
                with WholeFile(beside) as file:
                    file.write(buffer.getbuffer())
        return compare(network, load(beside), pictures)


def export_program(network: PixelsToPoints) -> ExportedProgram:
    """The network as torch.export traces it, for any number of persons, in torch's own operators.

    Raises:
        ExportError: torch.export cannot trace the model, or it is for one batch size only.
    """
    crop_to_image = torch.eye(2, 3).repeat(2, 1, 1)
    # Sides unlike each other and unlike the batch: what has the same length while it is traced is taken for the same.
    shape = (2, *network.options.size, 3) if network.input == "crops" else (90, 70, 3)
    dims = {name: Dim(name) for shapes in axes(network) for name in shapes.values()}
    try:
        return torch.export.export(
            network,
            (torch.zeros(shape, dtype=torch.uint8), crop_to_image),
            dynamic_shapes=tuple({axis: dims[name] for axis, name in shapes.items()} for shapes in axes(network)),
        )
    except RuntimeError as error:
        raise ExportError(f"torch.export cannot trace the network: {error}") from error


def axes(network: PixelsToPoints) -> tuple[dict[int, str], dict[int, str]]:
    """Names of the axes of both inputs that have any length."""
    return ({0: "batch"} if network.input == "crops" else {0: "height", 1: "width"}), {0: "batch"}


def write_onnx(program: ExportedProgram, network: PixelsToPoints, path: Path) -> None:
    """Converts the program to ONNX, in one file.

    Raises:
        ExportError: an operator of the network has no counterpart in ONNX.
    """
    # It would print at every export that torchvision, whose operators no pose network uses, is missing.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    try:
        made = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=[network.input, "crop_to_image"],
            output_names=OUTPUTS,
            dynamic_shapes=axes(network),
        )
    except RuntimeError as error:
        raise ExportError(f"torch.onnx cannot express the network: {error}") from error
    assert made is not None  # with dynamo it never is
    made.model.metadata_props.update({name: json.dumps(value) for name, value in metadata(network).items()})
    made.save(path, external_data=False)
    require("onnx").checker.check_model(path, full_check=True)


def metadata(network: PixelsToPoints) -> dict[str, Any]:
    """What somebody who has only the file must know of the network, as plain values.

    joints (names, in the order of the keypoints), limbs and mirror_pairs (index pairs), skeleton (its name), size
    ([H, W] of the crops), color_order (of the pixels that go in), udp (whether the crops are measured from first to
    last pixel centre), refine, blur_kernel (of dark and dark_udp), flip_test, flip_shift (whether the mirror image's
    heatmaps are shifted by a pixel), targets (heatmap, or simcc and its split_ratio) and fastpose (the version).
    """
    skeleton, options = network.skeleton, network.options
    return {
        "fastpose": fastpose.__version__,
        "skeleton": skeleton.name,
        "joints": list(skeleton.joints),
        "limbs": [list(pair) for pair in skeleton.limbs],
        "mirror_pairs": [list(pair) for pair in skeleton.mirror_pairs],
        "size": list(options.size),
        "color_order": "rgb",
        "udp": options.udp,
        **dataclasses.asdict(network.decode),
        "flip_shift": options.simcc is None and network.decode.shifts(options.udp),
        "targets": "heatmap" if options.simcc is None else "simcc",
        **({} if options.simcc is None else {"split_ratio": options.split_ratio}),
    }


def load_onnx(path: Path) -> Run:
    """The graph as onnxruntime computes it on the CPU."""
    runtime = require("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def run(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        inputs = {name: value.numpy() for name, value in zip(names, arguments, strict=True)}
        keypoints, scores = session.run(OUTPUTS, inputs)
        return torch.from_numpy(keypoints), torch.from_numpy(scores)

    return run


def load_program(path: Path) -> Run:
    """The torch.export program as a function."""
    return torch.export.load(path).module()


def require(name: str) -> ModuleType:
    """Imports a package that exporting needs, or raises ExportError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(
            f"format onnx needs the package {name}: pip install onnx onnxscript onnxruntime ({error})"
        ) from error


@torch.inference_mode()
def compare(network: PixelsToPoints, exported: Run, pictures: Sequence[np.ndarray]) -> str:
    """Runs `exported` and fastpose's own ops on four crops of each picture; returns a line about the differences.

    A keypoint that rounding decides, one of two equal maxima for example, is not compared: one that moves when
    what the network returns is changed at random by 1e-4 of its highest value.

    Raises:
        ExportError: scores differ by more than 1e-4 of the highest value, keypoints by more than 0.01 pixels
            of the crop, or no keypoint can be compared.
    """
    each = [differences(network, exported, torch.from_numpy(picture)) for picture in pictures]
    points, scores, steady = (torch.cat(parts) for parts in zip(*each, strict=True))
    points = torch.where(steady, points, 0.0)
    difference = (
        f"compared with fastpose on {len(steady)} crops: {int(steady.sum())} of {steady.numel()} keypoints, those that "
        f"do not depend on rounding, differ by up to {float(points.max()):.2g} pixels of the crop, scores by up to "
        f"{float(scores.max()):.2g} of the highest {'heatmap ' * (network.options.simcc is None)}value"
    )
    if not (steady.any() and (points <= 0.01).all() and (scores <= 1e-4).all()):
        raise ExportError(f"the exported file does not compute what fastpose does: {difference}")
    return difference


def differences(network: PixelsToPoints, exported: Run, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of four crops and K joints, [4, K] each: how far keypoints lie from fastpose's, in pixels of the crop, how far
    scores are from its, as a share of the highest value, and which keypoints do not depend on rounding."""
    crop_to_image = views(network, picture)
    if network.input == "image":
        pixels, through = picture, crop_to_image
        parts = [exported(picture, crop_to_image[:1]), exported(picture, crop_to_image[1:])]  # two sizes of batches
    else:
        crops = fastpose.affine_crop(picture, crop_to_image, network.options.size, dtype=torch.uint8)
        pixels, through = crops.permute(0, 2, 3, 1).contiguous(), torch.eye(2, 3).repeat(4, 1, 1)
        parts = [exported(pixels[:1], crop_to_image[:1]), exported(pixels[1:], crop_to_image[1:])]
    got_points, got_scores = (torch.cat(both) for both in zip(*parts, strict=True))

    images = fastpose.affine_crop(pixels, through, network.options.size, color=network.color)
    outputs, flipped = network.outputs(images)
    points, scores = network.decoded(outputs, flipped, crop_to_image)
    highest = max(float(values.abs().max()) for values in outputs) + 1e-30
    generator = torch.Generator().manual_seed(0)
    moved = torch.zeros_like(scores)
    for _ in range(8):
        noisy = [v + 1e-4 * highest * (torch.rand(v.shape, generator=generator) * 2 - 1) for v in outputs]
        moved = torch.maximum(moved, (network.decoded(noisy, flipped, crop_to_image)[0] - points).norm(dim=2))
    pixel = crop_to_image[:, :, 0].norm(dim=1)[:, None]  # of the crop, in pixels of the picture
    return (got_points - points).norm(dim=2) / pixel, (got_scores - scores).abs() / highest, moved / pixel < 0.005


def views(network: PixelsToPoints, picture: Tensor) -> Tensor:
    """`crop_to_image` [4, 2, 3]: the whole picture, upright and turned, and the half in its middle, likewise."""
    (height, width), (rows, columns) = network.options.size, picture.shape[:2]
    whole = max(columns, rows * width / height) / 200
    scale = torch.tensor([whole, whole, whole / 2, whole / 2])[:, None] * torch.tensor([1.0, height / width])
    center = torch.tensor([columns / 2, rows / 2]).repeat(4, 1)
    rotation = torch.tensor([0.0, 20.0, 0.0, -30.0])
    return fastpose.crop_to_image_matrix(center, scale, rotation, network.options.size, udp=network.options.udp)
