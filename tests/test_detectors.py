# SPDX-License-Identifier: Apache-2.0
"""Adapters of detectors: with graphs of ONNX made here, and with stand-ins for the packages that are not installed."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fastpose import detectors
from fastpose.detectors import make_detector
from fastpose.models.checkpoint import CheckpointError
from fastpose.option import OptionError
from tests.helpers.onnx_graphs import constant_graph

SIDE = 64  # of the networks' inputs: YOLOX has 8 * 8 + 4 * 4 + 2 * 2 = 84 places in them
PICTURE = np.full((120, 240, 3), 90, np.uint8)  # shrunk by 64 / 240
RATIO = SIDE / 240


def raw_outputs(*found: tuple[int, float, float, float, float, float, int]) -> np.ndarray:
    """YOLOX's [1, 84, 85]: (place, middle x, y, width, height in pixels of the input, score, class) each."""
    raw = np.zeros((1, 84, 85), np.float32)
    strides = np.repeat([8, 16, 32], [64, 16, 4])
    grids = np.concatenate([np.indices((n, n))[::-1].reshape(2, -1).T for n in (8, 4, 2)])
    for place, x, y, w, h, score, kind in found:
        stride = strides[place]
        raw[0, place, :2] = np.array([x, y]) / stride - grids[place]
        raw[0, place, 2:4] = np.log(np.array([w, h]) / stride)
        raw[0, place, 4], raw[0, place, 5 + kind] = 1.0, score
    return raw


def test_a_raw_yolox_finds_persons_once_in_pixels_of_the_picture(tmp_path):
    file = constant_graph(
        tmp_path / "yolox.onnx",
        output=raw_outputs(
            (3, 20, 16, 16, 24, 0.9, 0),
            (70, 21, 16, 16, 24, 0.8, 0),  # the same person again
            (82, 50, 20, 10, 20, 0.7, 0),
            (40, 40, 40, 10, 20, 0.9, 2),  # a car
            (41, 10, 10, 10, 20, 0.3, 0),  # hardly a person
        ),
    )
    for text in (f"yolox={file}", file):
        (found,) = make_detector(text)([PICTURE])
        expected = np.array([[12, 4, 16, 24, 0.9 * RATIO], [45, 10, 10, 20, 0.7 * RATIO]]) / RATIO
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert make_detector(file)([]) == []


def test_a_yolox_with_suppression_inside(tmp_path):
    dets = np.array([[[4, 6, 10, 26, 0.95], [1, 1, 1, 9, 0.9], [0, 0, 5, 5, 0.9], [0, 0, 5, 5, 0.2]]], np.float32)
    file = constant_graph(tmp_path / "end2end.onnx", dets=dets, labels=np.array([[0, 0, 7, 0]], np.int64))
    (found, again) = make_detector(file)([PICTURE, PICTURE])
    np.testing.assert_allclose(found, [[4 / RATIO, 6 / RATIO, 6 / RATIO, 20 / RATIO, 0.95]], rtol=1e-5)
    np.testing.assert_array_equal(found, again)


def test_yolox_sees_blue_first_and_grey_where_the_picture_ends(tmp_path, monkeypatch):
    seen = []
    file = constant_graph(tmp_path / "yolox.onnx", output=raw_outputs())
    run = detectors.OnnxNetwork.run
    monkeypatch.setattr(detectors.OnnxNetwork, "run", lambda self, image: seen.append(image) or run(self, image))
    picture = np.zeros((120, 240, 3), np.uint8)
    picture[..., 0] = 200  # red
    assert make_detector(file)([picture])[0].shape == (0, 5)
    assert seen[0][0, :, 5, 5].tolist() == [0, 0, 200]
    assert seen[0][0, :, 40, 5].tolist() == [114, 114, 114]


def test_another_graph_is_refused_with_what_it_returns(tmp_path):
    file = constant_graph(tmp_path / "other.onnx", output=np.zeros((1, 10, 85), np.float32))
    with pytest.raises(CheckpointError, match=r"expected YOLOX's outputs for 64x64 pixels, got \[1, 10, 85\]"):
        make_detector(file)([PICTURE])


def test_torchvision_s_labels_and_corners_become_boxes(monkeypatch):
    class Model(nn.Module):
        def forward(self, images):
            assert [list(image.shape) for image in images] == [[3, 120, 240]]
            assert float(images[0].max()) == pytest.approx(90 / 255)
            boxes = torch.tensor([[10.0, 20, 40, 90], [0, 0, 9, 9], [5, 5, 50, 50]])
            return [{"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.1]), "labels": torch.tensor([1, 3, 1])}]

    asked = []
    models = SimpleNamespace(get_model=lambda name, weights: asked.append((name, weights)) or Model())
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    (found,) = make_detector("torchvision=retinanet")([PICTURE])
    np.testing.assert_allclose(found, [[10, 20, 30, 70, 0.9]])
    assert asked == [("retinanet", "DEFAULT")]


def test_ultralytics_gets_blue_first_and_counts_classes_from_0(monkeypatch):
    seen = []

    def model(pictures, verbose):
        seen.extend(pictures)
        values = {"xyxy": [[10.0, 20, 40, 90], [0, 0, 9, 9]], "conf": [0.9, 0.8], "cls": [0.0, 1.0]}
        boxes = SimpleNamespace(**{name: torch.tensor(value) for name, value in values.items()})
        return [SimpleNamespace(boxes=boxes)] * len(pictures)

    monkeypatch.setitem(sys.modules, "ultralytics", SimpleNamespace(YOLO=lambda file: model))
    picture = PICTURE.copy()
    picture[..., 2] = 7
    found = make_detector("ultralytics=mine.pt")([picture, picture])
    np.testing.assert_allclose(found[1], [[10, 20, 30, 70, 0.9]])
    assert seen[0][0, 0].tolist() == [7, 90, 90]


def test_what_a_package_raises_is_said_in_one_line_that_names_the_detector(monkeypatch):
    """ultralytics cannot download a file, torchvision has no such network, one of them cannot see a picture."""

    def missing(*_, **__):
        raise FileNotFoundError("No such file or directory: 'mine.pt'")

    monkeypatch.setitem(sys.modules, "ultralytics", SimpleNamespace(YOLO=missing))
    with pytest.raises(OptionError, match=r"^detector: ultralytics=mine\.pt fails: FileNotFoundError: No such file"):
        make_detector("ultralytics=mine.pt")
    monkeypatch.setitem(sys.modules, "ultralytics", SimpleNamespace(YOLO=lambda file: missing))
    with pytest.raises(OptionError, match=r"^detector: what ultralytics=mine\.pt returned fails: FileNotFound"):
        make_detector("ultralytics=mine.pt")([PICTURE])


@pytest.mark.parametrize("name", ["torchvision", "ultralytics"])
def test_a_package_that_is_missing_is_named_with_its_command(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(OptionError, match=rf"detector: {name} cannot be imported .*: pip install {name}"):
        make_detector(name)
