# SPDX-License-Identifier: Apache-2.0
"""JPEGs through nvImageCodec: on a GPU, and with its own CPU decoder where the package is there without one."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastpose import doctor
from fastpose.data.images import read_image
from fastpose.data.pixels import GpuJpegFiles, PixelOptions, ResidentImages, open_pixels
from fastpose.data.reading import AS_STORED, Reading
from fastpose.option import OptionError
from tests.helpers.persons import persons_of

INSTALL = 'pip install "nvidia-nvimgcodec-cu13[nvjpeg]"'


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """JPEGs of several kinds, one turned by EXIF, a PNG, and a file that is none."""
    y, x = np.mgrid[:48, :70]
    picture = Image.fromarray(np.stack([3 * x, 5 * y, 2 * (x + y)], 2).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / "0.jpg", quality=95)
    picture.convert("L").save(tmp_path / "1.jpg")
    picture.crop((0, 0, 33, 47)).save(tmp_path / "2.jpg", progressive=True)
    picture.save(tmp_path / "3.jpg", exif=turned, subsampling=2)
    picture.save(tmp_path / "4.png")
    picture.convert("CMYK").save(tmp_path / "5.jpg")
    (tmp_path / "6.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:-30])
    return sorted(tmp_path.iterdir())


@pytest.mark.parametrize("reading", [AS_STORED, Reading(upright=True)], ids=["stored", "upright"])
def test_pixels_are_those_of_opencv_to_a_few_grey_levels(paths, device, reading):
    pytest.importorskip("nvidia.nvimgcodec")
    asked = torch.tensor([6, 3, 0, 3, 1, 2, 4, 5])
    source = GpuJpegFiles(paths, device, reading=reading)
    pixels = source.load(asked, device)
    assert pixels.images.device.type == pixels.index.device.type == device.type
    assert len(pixels.images) == 7
    assert list(pixels.errors) == [6]
    assert "6.jpg: truncated" in str(pixels.errors[6])
    pictures = [pixels.images[at].cpu().numpy() for at in pixels.index.tolist()]
    assert pictures[0].tolist() == [[[0, 0, 0]]]
    for got, image in zip(pictures[1:], asked.tolist()[1:], strict=True):
        expected = read_image(paths[image], reading=reading)
        assert got.shape == expected.shape
        assert np.abs(got.astype(int) - expected).max() <= 12
        assert np.abs(got.astype(int) - expected).mean() <= 2
    resident = ResidentImages.from_files(paths, device, decoder=source, reading=reading, on_bad_image="skip")
    assert list(resident.errors) == [6]
    again = resident.load(asked, device)
    for at, picture in zip(again.index.tolist(), pictures, strict=True):
        np.testing.assert_array_equal(again.images[at].cpu().numpy(), picture)


def test_without_the_package_it_says_how_to_install_it(monkeypatch, capsys):
    for name in ("nvidia", "nvidia.nvimgcodec"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(OptionError, match=rf"decoder: gpu needs nvImageCodec .*: {re.escape(INSTALL)}$"):
        GpuJpegFiles([], "cpu")
    doctor.main([])
    assert INSTALL in capsys.readouterr().out


def test_without_a_gpu_the_option_is_refused():
    with pytest.raises(OptionError, match="decoder gpu: expected a CUDA device, got cpu"):
        open_pixels(persons_of(np.zeros((1, 16, 2))), (64, 64), PixelOptions(decoder="gpu"), torch.device("cpu"))
