# SPDX-License-Identifier: Apache-2.0
"""Prediction as people run it, from files to joints: `fastpose.Predictor` beside the loops of rtmlib and mmpose.

    python -m bench.predict_loops PICTURES ANNOTATIONS.json --out bench/results/predict_loops.json

Needs onnxruntime and rtmlib, and mmpose for its loop; what is missing is left out, which is printed.

All take the same pictures, boxes and network, RTMPose-s with random weights, and decode each picture once. rtmlib
runs a person at a time, as its RTMPose does; mmpose prepares a person at a time and runs those of a picture together,
as its `inference_topdown` does. Each is timed with that network, and without: with outputs that are there already.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import fastpose
from fastpose.models import rtmpose
from fastpose.models.checkpoint import save_contents
from fastpose.skeletons import COCO

SIZE = (256, 192)
REPEATED = 8  # how often the pictures are looked at in a round
ROUNDS = 5

Boxes = list[list[list[float]]]
Loop = Callable[[], int]  # runs over all pictures, returns the persons


class There(nn.Module):
    """Outputs that are there already: what is left is all but the network."""

    def __init__(self, outputs: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.x, self.y = outputs

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        count = len(images)
        return self.x[:1].expand(count, -1, -1), self.y[:1].expand(count, -1, -1)


def loops(pictures: list[Path], boxes: Boxes, folder: Path) -> dict[str, Loop]:
    """The loops by name."""
    torch.manual_seed(0)
    model = rtmpose("rtmpose-s", COCO.num_joints, SIZE).eval()
    save_contents(folder / "rtmpose.pt", model.state_dict())
    dims = ({0: torch.export.Dim("batch")},)
    images = torch.zeros(2, 3, *SIZE)
    file = folder / "rtmpose.onnx"
    torch.onnx.export(model, (images,), str(file), dynamo=True, verbose=False, dynamic_shapes=dims, external_data=False)
    with torch.inference_mode():
        there = There(model(images))
    found: dict[str, Loop] = {}
    options: dict[str, Any] = {"flip_test": False, "device": "cpu", "exif": "stored"}
    for name, checkpoint in (("fastpose, torch", folder / "rtmpose.pt"), ("fastpose, onnxruntime", file)):
        predictor = fastpose.Predictor(checkpoint, **options)
        found[f"{name}, with the network"] = lambda own=predictor: sum(map(len, own(pictures, boxes)))  # type: ignore[misc]
    without = fastpose.Predictor(folder / "rtmpose.pt", **options)
    without._decoder.model = there
    found["fastpose, without"] = lambda: sum(map(len, without(pictures, boxes)))
    found |= of_rtmlib(pictures, boxes, file, there)
    found |= of_mmpose(pictures, boxes, model, there)
    return found


def corners(boxes: list[list[float]]) -> list[list[float]]:
    return [[x, y, x + w, y + h] for x, y, w, h in boxes]


def of_rtmlib(pictures: list[Path], boxes: Boxes, file: Path, there: There) -> dict[str, Loop]:
    try:
        from rtmlib import RTMPose
    except ImportError as error:
        print(f"without rtmlib: {error}", file=sys.stderr)
        return {}
    pose = RTMPose(str(file), SIZE[::-1], backend="onnxruntime", device="cpu")
    outputs = [there.x[:1].numpy(), there.y[:1].numpy()]

    def loop(inference: Callable[[Any], Any]) -> int:
        pose.inference = inference
        return sum(len(pose(cv2.imread(str(path)), corners(of))[0]) for path, of in zip(pictures, boxes, strict=True))

    run = pose.inference
    return {
        "rtmlib, onnxruntime, with the network": lambda: loop(run),
        "rtmlib, without": lambda: loop(lambda image: outputs),
    }


def of_mmpose(pictures: list[Path], boxes: Boxes, model: nn.Module, there: There) -> dict[str, Loop]:
    try:
        from mmpose.codecs import SimCCLabel
        from mmpose.datasets.transforms import GetBBoxCenterScale, TopdownAffine
    except ImportError as error:
        print(f"without mmpose: {error}", file=sys.stderr)
        return {}
    transforms = [GetBBoxCenterScale(), TopdownAffine(input_size=SIZE[::-1])]
    codec = SimCCLabel(input_size=SIZE[::-1], sigma=(4.9, 5.66), simcc_split_ratio=2.0, normalize=False, use_dark=False)
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    deviation = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)

    @torch.inference_mode()
    def loop(network: nn.Module) -> int:
        persons = 0
        for path, of in zip(pictures, boxes, strict=True):
            image: NDArray[np.uint8] = cv2.imread(str(path))  # type: ignore[assignment]
            prepared, tensors = [], []
            for box in corners(of):
                data: dict[str, Any] = {"img": image, "bbox": np.array([box], np.float32), "bbox_score": np.ones(1)}
                for transform in transforms:
                    data = transform(data)
                crop = np.ascontiguousarray(data["img"].transpose(2, 0, 1))
                tensors.append((torch.from_numpy(crop)[[2, 1, 0]].float() - mean) / deviation)
                prepared.append(data)
            for x, y, data in zip(*network(torch.stack(tensors)), prepared, strict=True):
                points, _ = codec.decode(x[None].numpy(), y[None].numpy())
                points = points / SIZE[::-1] * data["bbox_scale"] + data["bbox_center"] - 0.5 * data["bbox_scale"]
                persons += len(points)
        return persons

    return {"mmpose, torch, with the network": lambda: loop(model), "mmpose, without": lambda: loop(there)}


def main() -> None:
    """Prints and writes persons per second, the medians over rounds that take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("annotations", type=Path, help="in COCO's format: boxes of persons are taken from it")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    annotations = json.loads(asked.annotations.read_text())
    names = {image["id"]: image["file_name"] for image in annotations["images"]}
    of_picture: dict[str, list[list[float]]] = {}
    for one in annotations["annotations"]:
        if (asked.pictures / names[one["image_id"]]).is_file() and min(one["bbox"][2:]) > 8:
            of_picture.setdefault(names[one["image_id"]], []).append(one["bbox"])
    pictures = [asked.pictures / name for name in of_picture] * REPEATED
    boxes = list(of_picture.values()) * REPEATED
    persons = sum(map(len, boxes))
    print(f"{len(of_picture)} pictures, {persons // REPEATED} persons, {REPEATED} times each, in {ROUNDS} rounds")
    with tempfile.TemporaryDirectory() as folder:
        every = loops(pictures, boxes, Path(folder))
        times: dict[str, list[float]] = {name: [] for name in every}
        for _ in range(ROUNDS + 1):  # the first one warms up
            for name, loop in every.items():
                begin = time.perf_counter()
                assert loop() == persons, name
                times[name].append(time.perf_counter() - begin)
    rows = {name: persons / statistics.median(seconds[1:]) for name, seconds in times.items()}
    spread = {name: [persons / max(s[1:]), persons / min(s[1:])] for name, s in times.items()}
    for name, rate in rows.items():
        print(f"{name:45} {rate:8.1f} persons/s   ({spread[name][0]:.1f} to {spread[name][1]:.1f})")
    if asked.out:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        machine = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        }
        contents = {
            "commit": commit,
            "machine": machine,
            "pictures": len(of_picture),
            "persons": persons // REPEATED,
            "persons_per_second": {name: round(rate, 1) for name, rate in rows.items()},
            "slowest_and_fastest_round": {name: [round(one, 1) for one in pair] for name, pair in spread.items()},
        }
        asked.out.write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
