# SPDX-License-Identifier: Apache-2.0
"""The exported files against the network and the ops that they were made from."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

import fastpose
from fastpose import export
from fastpose.data.images import read_image
from fastpose.data.synthetic import render_scene
from fastpose.models import exported, pose_resnet
from fastpose.models.decoding import Decoder
from fastpose.models.exported import ExportError, PixelsToPoints
from fastpose.options.settings import Settings
from fastpose.skeletons import MPII, Skeleton
from tests.helpers.full_disk import fill_the_disk_at
from tests.helpers.runs import save_weights
from tests.helpers.settings import changed

SIZE = (64, 64)
OPTIONS = Settings.of(
    {"depth": 18, "head": "deconv", "channels": 16, "size": SIZE, "color_order": "rgb", "flip_test": False}
)
MIRRORED = changed(OPTIONS, flip_test=True, color_order="bgr")
THREE = Skeleton("three", ("middle", "right", "left"), ((1, 2),), ((1, 0), (0, 2)))
DOCS = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return render_scene(np.random.default_rng(3), 2, "")[0]


def resnet() -> nn.Module:
    """With weights that make maps with peaks, unlike those that training begins with."""
    torch.manual_seed(0)
    model = pose_resnet(18, "deconv", 16, channels=16)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
        elif isinstance(module, nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
    nn.init.normal_(model.final_layer.weight, std=0.1)
    return model.eval()


def module_of(model: nn.Module, settings: Settings, skeleton: Skeleton = MPII, **input: Any) -> PixelsToPoints:
    return PixelsToPoints(model, settings.network, settings.decode, skeleton, **input)


def small_network(joints: int) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, joints, 3, 1, 1)
    ).eval()


class Maps(nn.Module):
    """Gives the three joints the red, green and blue values of its input minus 100, and NaN for black."""

    def forward(self, images: Tensor) -> Tensor:
        std, mean = (torch.tensor(v).view(3, 1, 1) for v in (fastpose.IMAGENET_STD, fastpose.IMAGENET_MEAN))
        values = ((images[:, :, ::4, ::4] * std + mean) * 255).round()
        return torch.where(values > 0, values - 100, torch.nan)


def as_crops(maps: np.ndarray) -> np.ndarray:
    """Crops uint8 [B, 4h, 4w, 3] of which `Maps` makes the maps [B, 3, h, w], NaN and whole numbers from -99 to 155."""
    return np.nan_to_num(maps + 100).astype(np.uint8).transpose(0, 2, 3, 1).repeat(4, 1).repeat(4, 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A run's best.pt."""
    path = tmp_path_factory.mktemp("run") / "best.pt"
    save_weights(path, resnet().state_dict(), OPTIONS.as_plain(), skeleton=dataclasses.asdict(MPII))
    return path


@pytest.fixture(scope="module")
def onnx_file(checkpoint) -> Path:
    """What the command makes of the checkpoint."""
    assert export.main(["--checkpoint", str(checkpoint.parent)]) == 0
    return checkpoint.with_suffix(".onnx")


@pytest.fixture(scope="module")
def image_file(picture, tmp_path_factory) -> Path:
    """A small network of another order of colours, with the mirror test, that takes whole pictures."""
    file = tmp_path_factory.mktemp("image") / "pose_image.onnx"
    network = module_of(small_network(16), MIRRORED, input="image")
    comparison = exported.write(network, file, [picture])
    assert re.fullmatch(r"compared with fastpose on 4 crops: \d+ of 64 keypoints, .*", comparison)
    return file


def expected(
    model: nn.Module, options: Settings, pixels: Tensor, through: Tensor, heatmap_to_image: Tensor
) -> tuple[Tensor, Tensor]:
    """Keypoints and scores as an evaluation with `options` has them, of pixels cropped through matrices [B, 2, 3]."""
    network = options.network
    with torch.inference_mode():
        images = fastpose.affine_crop(pixels, through, network.size, color=network.color())
        return Decoder(model, MPII, options.decode, options.compute, udp=network.udp)(images, heatmap_to_image)


def matrices(picture: np.ndarray, count: int, options: Settings) -> tuple[Tensor, Tensor]:
    """`crop_to_image` and `heatmap_to_image` of random boxes in a picture."""
    rng, (height, width) = np.random.default_rng(count), picture.shape[:2]
    center = rng.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height), (count, 2))
    scale, rotation = rng.uniform(0.3, 1.0, count) * height / 200, rng.uniform(-40, 40, count)
    box = [torch.tensor(values, dtype=torch.float32) for values in (center, scale, rotation)]
    heatmap_size = (options.network.size[0] // 4, options.network.size[1] // 4)
    crop, heatmap = (
        fastpose.crop_to_image_matrix(*box, size, udp=options.network.udp)
        for size in (options.network.size, heatmap_size)
    )
    return crop, heatmap


def assert_same_points(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(got[0], wanted[0], rtol=0, atol=2e-3)
    torch.testing.assert_close(got[1], wanted[1], rtol=1e-4, atol=1e-4)


# ---- what a file computes ----


def assert_finds_the_same(run: exported.Run, pictures: list[np.ndarray], counts: tuple[int, ...]) -> None:
    model = resnet()
    for picture, count in itertools.product(pictures, counts):
        crop_to_image, heatmap_to_image = matrices(picture, count, OPTIONS)
        crops = fastpose.affine_crop(torch.from_numpy(picture), crop_to_image, SIZE, dtype=torch.uint8)
        crops = crops.permute(0, 2, 3, 1).contiguous()
        identity = torch.eye(2, 3).repeat(count, 1, 1)
        wanted = expected(model, OPTIONS, crops, identity, heatmap_to_image)
        assert wanted[0].std() > 10
        assert_same_points(run(crops, crop_to_image), wanted)


def test_the_onnx_file_finds_what_an_evaluation_finds(onnx_file, picture):
    assert_finds_the_same(exported.load_onnx(onnx_file), [picture], (1, 3))


def test_the_onnx_file_finds_it_in_real_pictures(onnx_file, real_data):
    paths = sorted((real_data / "mpii" / "images").glob("*.jpg"))
    assert len(paths) == 5
    assert_finds_the_same(exported.load_onnx(onnx_file), [read_image(path) for path in paths], (3,))


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_whole_picture_is_cropped_and_looked_at_twice(image_file, picture, tmp_path, kind, caplog, monkeypatch):
    options, model = MIRRORED, small_network(16)
    if kind == "torch":
        options = changed(options, udp=True, size=(96, 64), color_order="rgb", flip_shift="on", refine="none")
        file = tmp_path / "pose.pt2"
        last = small_network(16).to(memory_format=torch.channels_last)
        # Where torch says which files it does not like.
        monkeypatch.setattr(logging.getLogger("torch.export"), "handlers", [caplog.handler])
        exported.write(module_of(last, options, input="image"), file, [picture])
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    run = exported.load_onnx(image_file) if kind == "onnx" else exported.load_program(file)
    for count, other in ((1, picture), (3, np.ascontiguousarray(picture[:-50, :-80]))):
        crop_to_image, heatmap_to_image = matrices(other, count, options)
        pixels = torch.from_numpy(other)
        wanted = expected(model, options, pixels, crop_to_image, heatmap_to_image)
        assert_same_points(run(pixels, crop_to_image), wanted)


def odd_maps() -> np.ndarray:
    """[7, 3, 16, 24]: noise, NaN, ties, plateaus, nothing above zero."""
    rng = np.random.default_rng(0)
    maps = rng.integers(-99, 156, (7, 3, 16, 24)).astype(np.float32)
    maps[0, 1:][rng.random((2, 16, 24)) < 0.2] = np.nan
    maps[1] = rng.integers(-3, 4, maps[1].shape)  # many equal maxima
    maps[2] = -50
    maps[2, :, [9, 3, 3], [2, 5, 17]] = 90  # three equal ones; the first is (5, 3)
    maps[2, :, 3, 6] = 10
    maps[3] = 40  # a plateau
    maps[4] = [[[0]], [[np.nan]], [[np.nan]]]
    maps[5] = -rng.integers(1, 99, maps[5].shape)
    maps[6] = -20
    maps[6, 0, 0, 0] = maps[6, 1, 15, 23] = maps[6, 2, 1, 1] = 7  # at the border and beside it
    return maps


def peaks() -> np.ndarray:
    """[7, 3, 16, 24]: a Gaussian anywhere, the first map's beyond the border, and one map below zero."""
    y, x = np.mgrid[:16, :24]
    centers = np.random.default_rng(0).uniform((0, 0), (23, 15), (7, 3, 2))
    centers[0, 0] = (-0.3, 7.2)
    squares = (x - centers[..., :1, None]) ** 2 + (y - centers[..., 1:, None]) ** 2
    maps = np.rint(155 * np.exp(-squares / (2 * 2.0**2))).astype(np.float32)
    maps[1, 1] -= 90
    maps[2, 2] -= 100 + maps[2, 2].max() // 2
    return np.maximum(maps, -99)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # torch's, about its own code
@pytest.mark.parametrize(
    ("refine", "flip_test", "udp"), [("quarter", True, False), ("dark", True, False), ("dark_udp", False, True)]
)
def test_odd_maps_decode_as_the_reference_says(tmp_path, refine, flip_test, udp):
    options = changed(OPTIONS, size=(64, 96), refine=refine, udp=udp, blur_kernel=5, flip_test=flip_test)
    network = module_of(Maps(), options, THREE)
    program = exported.export_program(network)
    exported.write_onnx(program, network, tmp_path / "maps.onnx")
    # Newton's step from one of many equal maxima is nothing that two ways to compute it agree on.
    maps = odd_maps() if refine == "quarter" else peaks()
    crop_to_image = np.repeat(np.float32([[[2.0, 0.5, 30.0], [-0.5, 1.5, 7.0]]]), len(maps), 0)
    points, scores = fastpose.reference.decode_heatmaps(
        maps,
        refine=refine,
        heatmap_to_image=crop_to_image * np.float32([95 / 23, 63 / 15, 1] if udp else [4, 4, 1]),
        flipped=maps[..., ::-1] if flip_test else None,  # the joints' colours are not mirrored
        flip_pairs=THREE.mirror_pairs if flip_test else None,
        flip_shift=flip_test,
        blur_kernel=5,
    )
    for run in (exported.load_onnx(tmp_path / "maps.onnx"), program.module()):
        got = run(torch.from_numpy(as_crops(maps)), torch.from_numpy(crop_to_image))
        torch.testing.assert_close(got[0], torch.from_numpy(points), rtol=0, atol=1e-3)
        torch.testing.assert_close(got[1], torch.from_numpy(scores), rtol=0, atol=0, equal_nan=True)


# ---- what a file is ----


def test_the_onnx_file_is_whole_and_says_what_it_is(onnx_file):
    import onnx  # where it is missing the other files' tests are still collected

    assert [path.name for path in onnx_file.parent.iterdir() if path.suffix != ".pt"] == [onnx_file.name]
    model = onnx.shape_inference.infer_shapes(onnx.load(onnx_file), strict_mode=True, data_prop=True)
    assert {node.domain for node in model.graph.node} == {""}
    # No float64, which many runtimes lack.
    types = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.value_info, *model.graph.output]}
    assert {name for node in model.graph.node for name in node.output} <= types.keys()
    types |= {weights.name: weights.data_type for weights in model.graph.initializer}
    assert set(types.values()) <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL}

    def sides(values) -> dict[str, list[str | int]]:
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    assert sides(model.graph.input) == {"crops": ["batch", 64, 64, 3], "crop_to_image": ["batch", 2, 3]}
    assert sides(model.graph.output) == {"keypoints": ["batch", 16, 2], "scores": ["batch", 16]}
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert about["joints"] == list(MPII.joints)
    assert about["limbs"] == [list(limb) for limb in MPII.limbs]
    assert (about["size"], about["color_order"], about["refine"]) == ([64, 64], "rgb", "quarter")
    assert (about["udp"], about["flip_test"], about["fastpose"]) == (False, False, fastpose.__version__)
    assert (about["blur_kernel"], about["flip_shift"]) == (11, False)


def test_the_documented_programs_run_without_fastpose(onnx_file, image_file, picture, tmp_path):
    shutil.copy(onnx_file, tmp_path / "pose.onnx")
    shutil.copy(image_file, tmp_path / "pose_image.onnx")
    exported.write(module_of(small_network(16), OPTIONS), tmp_path / "pose.pt2", [picture])
    cv2.imwrite(str(tmp_path / "photo.jpg"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    program = "import sys\nsys.modules['fastpose'] = None  # to import it is an error\nresults = []\n"
    program += "".join(block + "results += [np.asarray(keypoints), np.asarray(scores)]\n" for block in blocks)
    program += "np.savez('results.npz', *results, crop=crop, picture=picture, crop_to_image=crop_to_image)\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(MPII.joints)

    found = {name: torch.from_numpy(value) for name, value in np.load(tmp_path / "results.npz").items()}
    matrix, identity = found["crop_to_image"][None], torch.eye(2, 3)[None]
    crop, image = (found["crop"][None], identity), (found["picture"], matrix)
    runs = [(resnet(), OPTIONS, crop), (small_network(16), MIRRORED, image), (small_network(16), OPTIONS, crop)]
    for number, (model, options, (pixels, through)) in enumerate(runs):
        wanted = expected(model, options, pixels, through, matrix * torch.tensor([4.0, 4.0, 1.0]))
        assert_same_points((found[f"arr_{2 * number}"], found[f"arr_{2 * number + 1}"]), wanted)

    extra = {"fastpose.json": ""}
    moved = move_to_device_pass(torch.export.load(tmp_path / "pose.pt2", extra_files=extra), "meta").module()
    assert json.loads(extra["fastpose.json"])["joints"] == list(MPII.joints)
    on_meta = moved(torch.empty(5, *SIZE, 3, dtype=torch.uint8, device="meta"), torch.empty(5, 2, 3, device="meta"))
    assert [(tuple(t.shape), t.device.type) for t in on_meta] == [((5, 16, 2), "meta"), ((5, 16), "meta")]


def test_weights_in_the_layout_of_simple_baselines_are_those_of_the_checkpoint(checkpoint, tmp_path, capsys):
    file = tmp_path / "new" / "pose_resnet_18.pth.tar"
    assert export.main(["--checkpoint", str(checkpoint), "--format", "simple_baselines", "--out", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    weights, wanted = torch.load(file, weights_only=True), resnet().state_dict()
    assert weights.keys() == {name for name in wanted if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(value, wanted[name]) for name, value in weights.items())


@pytest.mark.parametrize("name", ["pose_1.5.pth.tar", "pose_1.5.pth"])
@pytest.mark.parametrize(("kind", "suffix"), export.SUFFIXES.items())
def test_without_a_name_the_file_has_the_checkpoint_s_with_its_own_suffix(tmp_path, monkeypatch, name, kind, suffix):
    (tmp_path / name).write_bytes(b"")
    weights = SimpleNamespace(checkpoint=None)
    trained = SimpleNamespace(model=nn.Identity(), weights=weights, settings=OPTIONS, skeleton=MPII)
    monkeypatch.setattr(export, "load_trained", lambda *arguments, **more: trained)
    monkeypatch.setattr(export, "PixelsToPoints", lambda *arguments, **more: None)
    written = []
    monkeypatch.setattr(export, "write", lambda network, file, pictures: written.append(file))
    monkeypatch.setattr(export, "export_safetensors", lambda file, **parts: written.append(file))
    monkeypatch.setattr(export, "export_simple_baselines", lambda model, file, order: written.append(file))
    code = export.main(["--checkpoint", str(tmp_path / name), "--format", kind])
    assert (code, written) == ((1, []) if name.endswith(suffix) else (0, [tmp_path / f"pose_1.5{suffix}"]))


# ---- what is refused ----


def test_a_missing_package_is_named_with_the_command_that_installs_it(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export.main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "pose.onnx")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: format onnx needs the package onnxruntime")
    assert ": pip install onnx onnxscript onnxruntime (" in error
    assert not list(tmp_path.iterdir())


def test_a_name_of_another_format_is_refused(checkpoint, tmp_path, capsys):
    assert export.main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "pose.pth")]) == 1
    assert capsys.readouterr().err.startswith("error: out: expected a file ending in .onnx, got ")


def test_the_checkpoint_is_not_overwritten(tmp_path, capsys):
    file = str(tmp_path / "pose.pth.tar")
    assert export.main(["--checkpoint", file, "--format", "simple_baselines", "--out", file]) == 1
    assert "is the checkpoint itself" in capsys.readouterr().err


class Moody(nn.Module):
    """What it does depends on values, which no graph can follow."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, ::4, ::4] if images.sum() > 0 else -images[:, :, ::4, ::4]


class ForTwo(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, ::4, ::4].reshape(2, 3, 16, 16)


@pytest.mark.parametrize("network", [Moody(), ForTwo()])
def test_a_network_that_cannot_be_traced_is_an_error_and_leaves_nothing(tmp_path, picture, network):
    with pytest.raises(ExportError, match=r"torch\.export cannot trace the network"):
        exported.write(module_of(network, OPTIONS, THREE), tmp_path / "pose.pt2", [picture])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["colours", "points", "scores", "nan"])
def test_a_file_that_differs_does_not_get_its_name(tmp_path, picture, monkeypatch, fault):
    network = module_of(small_network(16), OPTIONS)

    def faulty(pixels: Tensor, crop_to_image: Tensor) -> tuple[Tensor, Tensor]:
        points, scores = network(pixels.flip(-1) if fault == "colours" else pixels, crop_to_image)
        if fault == "points":
            points[0, 3] += 0.1
        return points * (torch.nan if fault == "nan" else 1), scores * (1.01 if fault == "scores" else 1)

    monkeypatch.setattr(exported, "load_program", lambda path: faulty)
    file = tmp_path / "pose.pt2"
    file.write_text("the one before")
    with pytest.raises(ExportError, match="does not compute what fastpose does: compared with fastpose on 4 crops"):
        exported.write(network, file, [picture])
    assert [path.name for path in tmp_path.iterdir()] == ["pose.pt2"]
    assert file.read_text() == "the one before"


@pytest.mark.parametrize("change", [{"blur_kernel": 11}, {"flip_shift": "on"}, {"refine": "dark_udp"}], ids=str)
def test_a_file_that_decodes_with_another_setting_is_found_out(picture, change):
    options = changed(OPTIONS, refine="dark", blur_kernel=5, flip_shift="off", flip_test=True)
    network, other = (module_of(small_network(16), changed(options, **changes)) for changes in ({}, change))
    assert " of 64 keypoints, those that do not depend on rounding" in exported.compare(network, network, [picture])
    with pytest.raises(ExportError, match="does not compute what fastpose does"):
        exported.compare(network, other, [picture])


class Flat(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.ones_like(images[:, :, ::4, ::4])


def test_maps_whose_maximum_is_anywhere_prove_nothing(picture):
    network = module_of(Flat(), OPTIONS, THREE)
    with pytest.raises(ExportError, match=r": 0 of 12 keypoints"):
        exported.compare(network, network, [picture])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("suffix", [pytest.param(".onnx", marks=pytest.mark.slow), ".pt2"])
def test_a_full_disk_is_one_line_with_the_file(tmp_path, picture, suffix, monkeypatch):
    """A real one, instead of the file that is written."""
    path = tmp_path / f"pose{suffix}"
    path.write_bytes(b"old")
    fill_the_disk_at(tmp_path / f"pose.part{suffix}", monkeypatch)
    with pytest.raises(OSError, match="No space left on device") as full:
        exported.write(module_of(small_network(16), OPTIONS), path, [picture])
    assert full.value.filename == str(path)
    assert "\n" not in str(full.value)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(path.name, b"old")]
