# SPDX-License-Identifier: Apache-2.0
"""Image processors for transformers' ViTPose and Sapiens2, and the same numbers from transformers' own."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import (
    Sapiens2Config,
    Sapiens2ForPoseEstimation,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
)

import fastpose
from fastpose.integrations import hf

SIZE = {"height": 128, "width": 96}
MAP = (32, 24)
KINDS = ["VitPose", "Sapiens2"]
each_kind = pytest.mark.parametrize("kind", KINDS)


def processors(kind: str, **options: Any) -> tuple[Any, Any]:
    """Ours and transformers'."""
    name = f"{kind}ImageProcessor"
    return getattr(hf, name)(size=SIZE, **options), getattr(transformers, name)(size=SIZE, **options)


def network(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "VitPose":
        options = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
        backbone = VitPoseBackboneConfig(image_size=(128, 96), patch_size=(16, 16), out_indices=[2], **options)
        return VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=17)).eval()
    options = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_attention_heads": 2}
    head = {"upsample_out_channels": [32, 32], "conv_out_channels": [32], "conv_kernel_sizes": [1]}
    config = Sapiens2Config(
        image_size=(128, 96), hidden_size=48, intermediate_size=96, num_labels=17, head_config=head, **options
    )
    return Sapiens2ForPoseEstimation(config).eval()


@pytest.fixture(params=["generated", "COCO"])
def pictures(request: pytest.FixtureRequest) -> tuple[list[np.ndarray], list[list[list[float]]]]:
    """RGB pictures with the boxes of their persons; enlarged and shrunk ones, and such that leave the picture."""
    if request.param == "generated":
        picture = noise((300, 400))
        inside = [[120, 60, 70, 160], [200, 100, 40, 30], [90, 70, 76.1, 101.5]]  # the last is enlarged in y alone
        return [picture, picture[50:, 30:]], [[*inside, [-30, -20, 100, 90], [320, 250, 200, 200]], [inside[0]]]
    folder: Path = request.getfixturevalue("real_data") / "coco"
    written = json.loads((folder / "person_keypoints.json").read_text())
    found = {image["id"]: (image["file_name"], []) for image in written["images"]}
    for person in written["annotations"]:
        if not person["iscrowd"]:
            found[person["image_id"]][1].append(person["bbox"])
    names, boxes = zip(*found.values(), strict=True)
    return [np.array(Image.open(folder / "images" / name).convert("RGB")) for name in names], list(boxes)


def noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def predicted(count: int, seed: int = 0) -> Tensor:
    """Heatmaps as of a trained network: Gaussians of any height under noise, three pixels or more from the edge."""
    generator = torch.Generator().manual_seed(seed)
    height, width = MAP
    points = 3.6 + torch.rand(count, 17, 2, generator=generator) * torch.tensor([width - 8.2, height - 8.2])
    maps, _ = fastpose.render_heatmaps(points, torch.ones(count, 17), MAP, sigma=2.0, encoding="unbiased")
    peaks = 0.1 + 0.9 * torch.rand(count, 17, 1, 1, generator=generator)
    return maps * peaks + 0.005 * torch.randn(maps.shape, generator=generator)


def stacked(results: list[list[dict[str, Tensor]]], key: str) -> Tensor:
    return torch.stack([person[key] for image in results for person in image])


@each_kind
def test_crops_are_those_of_transformers(kind, pictures):
    ours, theirs = processors(kind)
    images, boxes = pictures
    crops = ours(images, boxes=boxes, return_tensors="pt").pixel_values
    expected = theirs(images, boxes=boxes, return_tensors="pt").pixel_values
    assert crops.shape == expected.shape == (sum(map(len, boxes)), 3, 128, 96)
    if kind == "Sapiens2":
        torch.testing.assert_close(crops, expected, rtol=0, atol=1e-3)
        return
    white = [np.full_like(image, 255) for image in images]
    inside = ours(white, boxes=boxes, return_tensors="pt", do_normalize=False).pixel_values > 0.9999
    outside = ours(white, boxes=boxes, return_tensors="pt", do_normalize=False).pixel_values == 0
    grey_level = 1 / 255 / min(fastpose.IMAGENET_STD)
    assert (crops - expected)[inside].abs().max() < 0.51 * grey_level
    torch.testing.assert_close(crops[outside], expected[outside], rtol=0, atol=1e-5)
    assert (inside | outside).float().mean() > 0.98  # the rest is one pixel wide, at the picture's edge


@each_kind
def test_options_are_those_of_transformers(kind, pictures):
    images, boxes = (part[:1] for part in pictures)
    changes: list[dict[str, Any]] = [
        {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [50.0, 60.0, 70.0]},
        {"do_normalize": False, "rescale_factor": 1 / 128, "size": {"height": 64, "width": 96}},
    ]
    for options in changes:
        ours, theirs = processors(kind)
        crops, expected = (one(images, boxes=boxes, return_tensors="pt", **options) for one in (ours, theirs))
        assert crops.pixel_values.shape == expected.pixel_values.shape
        step = 1 / 50 if options.get("do_normalize", True) else 1 / 128  # a grey level
        difference = (crops.pixel_values - expected.pixel_values).abs()
        assert difference.float().quantile(0.95) < (0.51 if kind == "VitPose" else 0.01) * step
    one, three = ({"image_mean": mean, "image_std": std} for mean, std in ((0.5, 0.25), ([0.5] * 3, [0.25] * 3)))
    one, three = (ours(images, boxes=boxes, return_tensors="pt", **options).pixel_values for options in (one, three))
    assert torch.equal(one, three)


@each_kind
def test_pictures_of_every_form_give_the_same_crops(kind):
    ours, _ = processors(kind)
    image = noise((60, 80))
    boxes = [[[10.0, 12.0, 30.0, 50.0]], [[0.0, 0.0, 20.0, 20.0], [30.0, 30.0, 9.0, 30.0]]]
    expected = ours([image, image], boxes=boxes, return_tensors="pt").pixel_values
    tensor = torch.from_numpy(image)
    forms: list[Any] = [
        [Image.fromarray(image), tensor],
        [image.transpose(2, 0, 1), tensor.permute(2, 0, 1)],
        [image[..., ::-1].copy()[..., ::-1], np.asfortranarray(image)],
        torch.stack([tensor, tensor]),
        torch.stack([tensor, tensor]).permute(0, 3, 1, 2),
        np.stack([image, image]),
        fastpose.ImageBatch.from_list([image, image]),
    ]
    for form in forms:
        got = ours(form, boxes=[np.array(boxes[0]), torch.tensor(boxes[1])], return_tensors="pt")
        torch.testing.assert_close(got.pixel_values, expected, rtol=0, atol=0)
    one = ours(Image.fromarray(image), boxes=boxes[:1])  # one picture, a list of tensors
    torch.testing.assert_close(one.pixel_values[0], expected[0], rtol=0, atol=0)
    flat = np.zeros((3, 40, 3), np.uint8)
    assert len(ours(flat, boxes=boxes[:1], input_data_format="channels_last").pixel_values) == 1
    grey = ours(Image.fromarray(image).convert("L"), boxes=boxes[:1], do_normalize=False, return_tensors="pt")
    assert torch.equal(grey.pixel_values[:, 0], grey.pixel_values[:, 2])
    meta = ours(torch.zeros(3, 20, 30, dtype=torch.uint8, device="meta"), boxes=boxes[:1], return_tensors="pt")
    assert meta.pixel_values.device.type == "meta"


@each_kind
@pytest.mark.parametrize("kernel_size", [5, 11])
def test_points_are_those_of_transformers(kind, kernel_size):
    ours, theirs = processors(kind)
    boxes = [[[10.0, 20.0, 200.0, 300.0], [400.0, 300.0, 90.0, 80.0]], [], [[-30.0, 5.0, 60.0, 140.0]]]
    outputs = SimpleNamespace(heatmaps=predicted(3))
    for threshold in (None, 0.5):
        options = {"kernel_size": kernel_size, "threshold": threshold}
        got = ours.post_process_pose_estimation(outputs, boxes, **options)
        expected = theirs.post_process_pose_estimation(outputs, boxes, **options)
        assert [len(image) for image in got] == [len(image) for image in expected] == [2, 0, 1]
        for mine, other in zip(chain(*got), chain(*expected), strict=True):
            assert mine.keys() == other.keys()
            torch.testing.assert_close(mine["keypoints"], other["keypoints"], rtol=0, atol=0.02)
            for key in ("scores", "labels"):
                torch.testing.assert_close(mine[key], other[key], rtol=0, atol=0)
            assert (mine["bbox"].shape, mine["bbox"].dtype) == (other["bbox"].shape, other["bbox"].dtype)
            if kind == "Sapiens2":
                torch.testing.assert_close(mine["bbox"], other["bbox"])
    last = 1.0 if kind == "VitPose" else 0.0  # whether the last pixel or the edge after it
    assert got[0][0]["bbox"].tolist() == [10, 20, 210 - last, 320 - last]


@each_kind
def test_from_pictures_to_points_with_a_network(kind, pictures):
    """Random weights give flat maps; their exponentials have peaks, as a trained network's have."""
    ours, theirs = processors(kind)
    images, boxes = pictures
    model = network(kind)

    def heatmaps(processor: Any) -> Tensor:
        with torch.inference_mode():
            maps = model(**processor(images, boxes=boxes, return_tensors="pt")).heatmaps
        return torch.exp(2 * (maps - maps.amax((2, 3), keepdim=True)) / maps.std((2, 3), keepdim=True))

    expected_maps = heatmaps(theirs)
    expected, same_maps, got = (
        one.post_process_pose_estimation(SimpleNamespace(heatmaps=maps), boxes)
        for one, maps in ((theirs, expected_maps), (ours, expected_maps), (ours, heatmaps(ours)))
    )
    place = expected_maps.flatten(2).argmax(2)
    x, y = place % MAP[1], place // MAP[1]
    inner = (x >= 3) & (x < MAP[1] - 3) & (y >= 3) & (y < MAP[0] - 3)
    away = (stacked(same_maps, "keypoints") - stacked(expected, "keypoints")).abs().amax(2)[inner]
    assert len(away) > 20
    assert away.max() < 0.02
    away = (stacked(got, "keypoints") - stacked(expected, "keypoints")).abs().amax(2)[inner]
    # ViTPose's crops are rounded to grey levels there, and those that leave their picture differ at its edge.
    assert away.median() < 0.1 if kind == "VitPose" else away.max() < 0.02


def test_the_loop_of_the_guide(tmp_path, monkeypatch):
    guide = (Path(__file__).parents[2] / "docs" / "other_loops.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n# transformers_loop\.py\n(.*?)```", guide, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, "transformers_loop.py", "exec"), names)
    _, theirs = processors("VitPose")
    theirs.save_pretrained(tmp_path)
    network("VitPose").save_pretrained(tmp_path)
    processor, model = names["load"](tmp_path, device="cpu")
    boxes = [[[40.0, 60.0, 80.0, 100.0]], [], [[60.0, 85.0, 40.0, 50.0], [10.0, 10.0, 60.0, 90.0]]]
    found = names["find_joints"](processor, model, [noise((200, 220))] * 3, boxes, threshold=0.0)
    assert [len(persons) for persons in found] == [1, 0, 2]
    assert all(len(person["keypoints"]) == len(person["labels"]) > 0 for persons in found for person in persons)


def test_sapiens2_mirror_test_and_other_sizes_of_pictures():
    ours, theirs = processors("Sapiens2")
    boxes = [[[10.0, 20.0, 200.0, 300.0]], [[400.0, 300.0, 90.0, 80.0], [0.0, 0.0, 50.0, 100.0]]]
    outputs, flipped = (SimpleNamespace(heatmaps=predicted(3) + 0.01 * seed * predicted(3, seed)) for seed in (0, 1))
    options = {"source_sizes": [(480, 640), (500, 300)], "target_sizes": torch.tensor([[240, 640], [1000, 150]])}
    got, expected = (
        one.post_process_pose_estimation(outputs, boxes, outputs_flipped=flipped, **options) for one in (ours, theirs)
    )
    for key in ("keypoints", "scores", "bbox"):
        torch.testing.assert_close(stacked(got, key), stacked(expected, key), rtol=0, atol=0.02)


def test_sapiens2_targets_are_those_of_transformers():
    ours, theirs = processors("Sapiens2", keypoint_heatmap_sigma=2.0)
    boxes = [[[10.0, 20.0, 100.0, 150.0], [40.0, 30.0, 90.0, 80.0]]]
    rng = np.random.default_rng(0)
    joints = np.concatenate([rng.uniform(-40, 240, (1, 2, 17, 2)), rng.integers(0, 3, (1, 2, 17, 1))], 3)
    image = np.zeros((200, 220, 3), np.uint8)
    for keypoints in (joints.tolist(), joints[..., :2].tolist()):
        got, expected = (one(image, boxes=boxes, keypoints=keypoints, return_tensors="pt") for one in (ours, theirs))
        torch.testing.assert_close(got["label_weights"], expected["label_weights"], rtol=0, atol=0)
        torch.testing.assert_close(got["labels"], expected["labels"], rtol=0, atol=1e-5)
        assert 5 < expected["label_weights"].sum() < 34


def test_vitpose_boxes_in_shares_of_the_picture_and_a_factor():
    ours, theirs = processors("VitPose")
    outputs = SimpleNamespace(heatmaps=predicted(2))
    boxes = np.array([[[0.1, 0.2, 0.3, 0.4]], [[0.5, 0.5, 0.2, 0.4]]])
    sizes = torch.tensor([[640, 480], [300, 500]])
    got, expected = (one.post_process_pose_estimation(outputs, boxes, target_sizes=sizes) for one in (ours, theirs))
    torch.testing.assert_close(stacked(got, "keypoints"), stacked(expected, "keypoints"), rtol=0, atol=0.02)
    assert stacked(got, "bbox")[0].tolist() == pytest.approx([64, 96, 64 + 192 - 1, 96 + 192 - 1])


def test_vitpose_normalize_factor_acts_on_crops_and_points():
    ours, theirs = processors("VitPose", normalize_factor=400.0)
    whole, half = [[[40.0, 60.0, 80.0, 100.0]]], [[[60.0, 85.0, 40.0, 50.0]]]
    image = noise((200, 200))
    crops = ours(image, boxes=whole, return_tensors="pt").pixel_values
    expected = theirs(image, boxes=whole, return_tensors="pt").pixel_values
    torch.testing.assert_close(crops, expected, rtol=0, atol=0.51 / 255 / min(fastpose.IMAGENET_STD))
    outputs = SimpleNamespace(heatmaps=predicted(1))
    got, expected = (
        one.post_process_pose_estimation(outputs, boxes)
        for one, boxes in ((ours, whole), (processors("VitPose")[1], half))
    )
    torch.testing.assert_close(stacked(got, "keypoints"), stacked(expected, "keypoints"), rtol=0, atol=0.02)


@each_kind
def test_no_persons_and_boxes_outside_the_picture(kind):
    ours, _ = processors(kind, do_normalize=False)
    image = np.full((60, 80, 3), 200, np.uint8)
    crops = ours([image, image], boxes=[[], [[500.0, 500.0, 40.0, 60.0]]], return_tensors="pt").pixel_values
    assert crops.shape == (1, 3, 128, 96)
    assert (crops == 0).all()
    for images, boxes in (([image], [[]]), ([], [])):
        assert ours(images, boxes=boxes, return_tensors="pt").pixel_values.shape == (0, 3, 128, 96)
    for threshold in (None, 0.3):
        outputs = SimpleNamespace(heatmaps=torch.zeros(0, 17, *MAP))
        assert ours.post_process_pose_estimation(outputs, [[], []], threshold=threshold) == [[], []]
    # One joint, in a half-precision map: transformers loses the axis, or has no NumPy type.
    outputs = SimpleNamespace(heatmaps=predicted(1)[:, :1].bfloat16())
    ((person,),) = ours.post_process_pose_estimation(outputs, [[[0.0, 0.0, 30.0, 40.0]]])
    assert person["keypoints"].shape == (1, 2)
    assert person["scores"].shape == person["labels"].shape == (1,)


@each_kind
def test_options_come_from_transformers_processor_or_folder(kind, tmp_path):
    _, theirs = processors(kind, image_mean=[0.5, 0.4, 0.3], do_rescale=False)
    theirs.save_pretrained(tmp_path)
    ours = getattr(hf, f"{kind}ImageProcessor")
    for one in (ours.from_hf(theirs), ours.from_pretrained(tmp_path)):
        assert (one.size, one.do_rescale, one.device) == (SIZE, False, None)
        assert list(one.image_mean) == [0.5, 0.4, 0.3]
        assert list(one.image_std) == list(theirs.image_std)
    assert ours.from_pretrained(tmp_path, device="meta", local_files_only=True).device == "meta"
    with pytest.raises(ValueError, match="do_center_crop must be False for pose estimation, got True"):
        ours.from_hf({"do_center_crop": True})


BOX = [[[1.0, 2.0, 30.0, 40.0]]]
IMAGE = np.zeros((50, 60, 3), np.uint8)


@each_kind
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "a.jpg"}, r"images\[0\] must be a PIL picture, an array or a tensor, got str"),
        (
            {"images": IMAGE[..., :2]},
            r"images\[0\] must be uint8 \[h, w, 3\] or \[3, h, w\] .*, got uint8 \[50, 60, 2\]",
        ),
        ({"images": torch.zeros(0, 9, 3).byte()}, r"images\[0\] must be uint8 .*, got torch.uint8 \[0, 9, 3\]"),
        ({"images": IMAGE / 255}, r"images\[0\] must be uint8 .*, got float64 \[50, 60, 3\]"),
        ({"images": IMAGE, "input_data_format": "channels_first"}, r"images\[0\] .* \(channels_first\), got uint8"),
        (
            {"input_data_format": "HWC"},
            "input_data_format must be 'channels_first', 'channels_last' or None, got 'HWC'",
        ),
        ({"boxes": None}, r"boxes must be a list of boxes \(x, y, w, h\) for each picture, got NoneType"),
        ({"boxes": BOX * 2}, "boxes must have one list per picture, 1, got 2"),
        ({"boxes": BOX[0]}, r"boxes\[0\] must be \[persons, 4\] \(x, y, w, h\), got \[4\]"),
        ({"boxes": [[[1, 2, 0, 4]]]}, r"boxes\[0\]\[0\] must be finite .* above 0, got \[1.0, 2.0, 0.0, 4.0\]"),
        ({"boxes": [[*BOX[0], [1, 2, np.nan, 4]]]}, r"boxes\[0\]\[1\] must be finite"),
        ({"return_tensors": "np"}, "return_tensors must be 'pt' or None, got 'np'"),
        ({"size": 64}, r'size must be \{"height": h, "width": w\} or \(h, w\), got 64'),
    ],
)
def test_errors_of_crops_name_the_argument(kind, change, message):
    ours, _ = processors(kind)
    with pytest.raises(ValueError, match=message):
        ours(**({"images": IMAGE, "boxes": BOX} | change))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("VitPose", {"boxes": BOX * 2}, r"outputs.heatmaps must be \[2, K, h, w\], one per box, got \[1, 17, 32, 24\]"),
        ("VitPose", {"kernel_size": 4}, "kernel_size must be an odd number of pixels from 1 to 255, got 4"),
        ("VitPose", {"target_sizes": [(1, 2)] * 2}, r"target_sizes must be \[1, 2\], got \[2, 2\]"),
        ("Sapiens2", {"target_sizes": [(1, 2)]}, "source_sizes must be passed with target_sizes, got None"),
        ("Sapiens2", {"target_sizes": [(1, 2)], "source_sizes": [1, 2]}, r"source_sizes must be \[1, 2\], got \[2\]"),
    ],
)
def test_errors_of_points_name_the_argument(kind, change, message):
    ours, _ = processors(kind)
    with pytest.raises(ValueError, match=message):
        ours.post_process_pose_estimation(
            **({"outputs": SimpleNamespace(heatmaps=predicted(1)), "boxes": BOX} | change)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation_maps": IMAGE}, "segmentation_maps must be None for pose estimation, got uint8"),
        ({"keypoints": [[]]}, r"keypoints must have one entry per box, \[1\] by picture, got \[0\]"),
        (
            {"keypoints": [[[1.0, 2.0]]]},
            r"keypoints must all be \[K, 2\] or \[K, 3\] \(x, y, visibility\), got \[\(2,\)\]",
        ),
    ],
)
def test_errors_of_targets_name_the_argument(change, message):
    ours, _ = processors("Sapiens2")
    with pytest.raises(ValueError, match=message):
        ours(IMAGE, boxes=BOX, **change)


@each_kind
def test_options_that_crops_of_persons_cannot_have_otherwise_may_be_named(kind: str) -> None:
    ours, _ = processors(kind)
    picture, boxes = np.zeros((60, 80, 3), np.uint8), [[[5.0, 6.0, 30.0, 40.0]]]
    neutral = {"do_affine_transform": True, "do_convert_rgb": True, "disable_grouping": None, "data_format": None}
    plain = ours(picture, boxes=boxes, return_tensors="pt")["pixel_values"]
    named = ours(picture, boxes=boxes, return_tensors="pt", size=(128, 96), **neutral)["pixel_values"]
    assert torch.equal(plain, named)
    for option, message in (
        ({"do_affine_transform": False}, "do_affine_transform must be True"),
        ({"data_format": "channels_last"}, "data_format must be channels_first"),
        ({"do_what": 1}, f"{kind}ImageProcessor has no option do_what"),
        ({"size": (0, 96)}, "size must be positive"),
        ({"size": 7}, "size must be"),
    ):
        with pytest.raises(ValueError, match=message):
            ours(picture, boxes=boxes, **option)


def test_another_default_dtype_changes_no_crop() -> None:
    ours, _ = processors("Sapiens2")
    picture = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    boxes = [[[5.0, 6.0, 30.0, 40.0], [0.0, 0.0, 280.0, 290.0]]]  # one is enlarged
    expected = ours(picture, boxes=boxes, return_tensors="pt")["pixel_values"]
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = ours(picture, boxes=boxes, return_tensors="pt")["pixel_values"]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, expected)
