# SPDX-License-Identifier: Apache-2.0
"""Detectors of persons, ready to use: adapters for other packages' networks, none of which is a dependency.

A detector is any callable from a list of pictures, uint8 RGB [H, W, 3], to the boxes of each: [P, 4] of x, y, width and
height in pixels, or [P, 5] with a score.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fastpose.data.opened import Detector
from fastpose.device import choose_device
from fastpose.models.checkpoint import CheckpointError
from fastpose.models.onnx_network import OnnxNetwork
from fastpose.models.own import failed, find_factory, names_of
from fastpose.option import OptionError

Pictures = list[NDArray[np.uint8]]

LEAST_SCORE = 0.5  # of a box that counts
YOLOX_OVERLAP = 0.45  # of two boxes of one person, for networks without suppression of their own
YOLOX_STRIDES = (8, 16, 32)
YOLOX_GREY = 114  # what YOLOX's pictures are padded with
HELP = (
    "what finds the persons in each picture: torchvision, ultralytics=MODEL.pt, yolox=FILE.onnx (or FILE.onnx), or "
    "MODULE:FACTORY[=ARGUMENT], which returns a callable from a list of RGB pictures to the boxes of each"
)


def make_detector(text: str) -> Detector:
    """The detector that option `detector` names: see HELP.

    Raises:
        OptionError: no such name, module or factory, or a missing package; or making the detector fails.
        CheckpointError: a missing or another file.
    """
    name, equals, argument = text.partition("=")
    if not equals and name.endswith(".onnx"):
        name, argument = "yolox", text
    if name == "yolox":
        return yolox(argument)
    if name in ADAPTERS:
        make = ADAPTERS[name]
    else:
        try:
            place = names_of(name)
        except OptionError:
            raise OptionError(
                "detector", f"expected {', '.join(ADAPTERS)} or MODULE:FACTORY, got {text[:60]!r}"
            ) from None
        make = find_factory(*place, "detector")
    try:
        detector = make(argument) if equals else make()
    except OptionError:
        raise
    except (Exception, SystemExit) as error:
        raise failed(text, error, "detector") from error
    if not callable(detector):
        raise OptionError("detector", f"{name} must return a callable, got {type(detector).__name__}")

    def detect(pictures: Pictures) -> Any:
        try:
            return detector(pictures)
        except Exception as error:
            raise failed(f"what {text} returned", error, "detector") from error

    return detect


def torchvision(name: str = "fasterrcnn_resnet50_fpn_v2", *, least_score: float = LEAST_SCORE) -> Detector:
    """A detector of torchvision with its weights for COCO, which it downloads once.

    Args:
        name: of the network in `torchvision.models.detection`.
        least_score: of a box.
    """
    found = _package("torchvision")
    device = choose_device("auto")
    model = found.models.get_model(name, weights="DEFAULT").to(device).eval()

    @torch.inference_mode()
    def detect(pictures: Pictures) -> list[NDArray[np.float32]]:
        inputs = [torch.from_numpy(np.ascontiguousarray(one)).to(device).permute(2, 0, 1) / 255 for one in pictures]
        outputs = [{key: value.cpu().numpy() for key, value in output.items()} for output in model(inputs)]
        return [
            _persons(output["boxes"], output["scores"], output["labels"] == 1, least_score)  # 1: COCO's person
            for output in outputs
        ]

    return detect


def ultralytics(file: str = "yolo11n.pt", *, least_score: float = LEAST_SCORE) -> Detector:
    """A detector of ultralytics, which downloads its own files by name.

    Args:
        file: the weights, see `ultralytics.YOLO`.
        least_score: of a box.
    """
    model = _package("ultralytics").YOLO(file)

    def detect(pictures: Pictures) -> list[NDArray[np.float32]]:
        # It takes arrays for what OpenCV reads, blue first.
        results = model([np.ascontiguousarray(one[..., ::-1]) for one in pictures], verbose=False)
        found = []
        for result in results:
            corners, scores, labels = (
                getattr(result.boxes, name).cpu().numpy().astype(np.float32) for name in ("xyxy", "conf", "cls")
            )
            found.append(_persons(corners, scores, labels == 0, least_score))
        return found

    return detect


def yolox(file: str = "", *, least_score: float = LEAST_SCORE, device: str = "auto") -> Detector:
    """A YOLOX network in an ONNX file, with onnxruntime: as YOLOX exports it, or with the suppression of boxes in it
    (dets and labels), as mmdeploy and rtmlib have it.

    Args:
        file: the file.
        least_score: of a box.
        device: cpu, cuda or auto.
    """
    if not file:
        raise OptionError("detector", "yolox needs a file: --detector yolox=FILE.onnx")
    network = OnnxNetwork(Path(file), choose_device(device), option="detector")
    shape = network.inputs[0][2]
    if len(network.inputs) != 1 or len(shape) != 4 or shape[1] != 3:
        raise CheckpointError(f"{file}: expected one input [B, 3, H, W] as YOLOX has it, got {network.inputs}")
    height, width = shape[2] or 640, shape[3] or 640

    def detect_one(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        ratio = min(height / picture.shape[0], width / picture.shape[1])
        rows, columns = round(picture.shape[0] * ratio), round(picture.shape[1] * ratio)
        padded = np.full((height, width, 3), YOLOX_GREY, np.uint8)
        padded[:rows, :columns] = cv2.resize(np.ascontiguousarray(picture), (columns, rows))
        blue_first = padded[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32)
        outputs = network.run(np.ascontiguousarray(blue_first))
        boxes = outputs[0][0]
        if boxes.ndim == 2 and boxes.shape[1] == 5 and len(outputs) == 2:
            labels = outputs[1].reshape(-1)
            return _persons(boxes[:, :4] / ratio, boxes[:, 4], labels == 0, least_score)
        if (
            boxes.ndim != 2
            or boxes.shape[1] < 6
            or len(boxes) != sum((height // stride) * (width // stride) for stride in YOLOX_STRIDES)
        ):
            shapes = " and ".join(str(list(output.shape)) for output in outputs)
            raise CheckpointError(f"{file}: expected YOLOX's outputs for {height}x{width} pixels, got {shapes}")
        return _persons(*_decoded(boxes, height, width, ratio), least_score)

    return lambda pictures: [detect_one(one) for one in pictures]


def _decoded(
    raw: NDArray[np.float32], height: int, width: int, ratio: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Corners, scores and which are persons, after suppression, of YOLOX's raw outputs [N, 5 + classes]."""
    places, strides = [], []
    for stride in YOLOX_STRIDES:
        y, x = np.mgrid[: height // stride, : width // stride]
        places.append(np.stack([x.ravel(), y.ravel()], axis=1))
        strides.append(np.full(places[-1].shape[0], stride))
    step = np.concatenate(strides)[:, None]
    middle = (raw[:, :2] + np.concatenate(places)) * step / ratio
    sides = np.exp(np.minimum(raw[:, 2:4], 20)) * step / ratio
    scores = raw[:, 4:5] * raw[:, 5:]
    is_person = scores.argmax(axis=1) == 0
    corners = np.concatenate([middle - sides / 2, middle + sides / 2], axis=1).astype(np.float32)
    best = scores[:, 0]
    boxes = np.concatenate([corners[is_person, :2], sides[is_person]], axis=1)
    kept = np.array(cv2.dnn.NMSBoxes(boxes.tolist(), best[is_person].tolist(), 0.01, YOLOX_OVERLAP), np.int64).reshape(
        -1
    )
    rows = np.flatnonzero(is_person)[kept]
    return corners[rows], best[rows], np.ones(len(rows), bool)


def _persons(
    corners: NDArray[np.float32], scores: NDArray[np.float32], is_person: NDArray[np.bool_], least_score: float
) -> NDArray[np.float32]:
    """[P, 5], x, y, width, height and score of persons' boxes that are certain enough and not empty."""
    corners, scores = corners.reshape(-1, 4), scores.reshape(-1)
    sides = corners[:, 2:] - corners[:, :2]
    kept = is_person & (scores >= least_score) & (sides > 0).all(axis=1)
    return np.concatenate([corners[:, :2], sides, scores[:, None]], axis=1)[kept].astype(np.float32)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise OptionError("detector", f"{name} cannot be imported ({error}): pip install {name}") from None


ADAPTERS = {"torchvision": torchvision, "ultralytics": ultralytics, "yolox": yolox}
