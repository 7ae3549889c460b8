# SPDX-License-Identifier: Apache-2.0
"""What is known of an image before it is decoded: format, size, orientation; and which files go no further."""

import errno
import io
import itertools
import logging
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fastpose.data.image_header import EDGE_BYTES, FORMATS
from fastpose.data.images import (
    BadImageError,
    average,
    decode_image,
    image_header,
    image_size,
    read_checked,
    read_image,
    turned,
    turned_tensor,
    warn_of_surprises,
)
from fastpose.data.pixels import ImageFiles
from fastpose.data.reading import AS_STORED, Reading

UPRIGHT = Reading(upright=True)
CPU = torch.device("cpu")


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str, orientation: int = 0, **options: object) -> bytes:
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, bits: int = 8, color: int = 2) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))


def jpeg_of(width: int, height: int, frame: int = 0xC0) -> bytes:
    """A tiny JPEG that claims that size, whole up to its end mark."""
    data = encoded(Image.new("L", (8, 8)), "JPEG")
    start = data.index(b"\xff\xc0")
    return (
        data[: start + 1]
        + bytes([frame])
        + data[start + 2 : start + 5]
        + struct.pack(">HH", height, width)
        + data[start + 9 :]
    )


# ---- size and orientation ----

KINDS = {
    "JPEG": {},
    "PNG": {},
    "BMP": {},
    "WEBP": {},
    "WEBP lossless": {"lossless": True},
    "TIFF": {},
    "TIFF deflated": {"compression": "tiff_adobe_deflate"},
    "GIF": {},
    "PPM": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_header_has_the_size_that_decoding_gives(tmp_path, kind):
    path = tmp_path / "a"
    for height, width in ((1, 1), (48, 64), (301, 7)):
        path.write_bytes(encoded(Image.fromarray(picture(height, width)), kind.split()[0], **KINDS[kind]))
        assert image_size(path) == read_image(path).shape[:2] == (height, width)
        assert image_header(path).format in FORMATS


@pytest.mark.parametrize("magic", ["P1", "P2", "P3", "P4", "P5", "P6"])
def test_the_header_of_a_pnm_may_have_comments(tmp_path, magic):
    path = tmp_path / "a.pnm"
    path.write_bytes(f"{magic} # made\n# 9 9\n 4\n3\n{'' if magic in ('P1', 'P4') else '255 '}".encode() + b"0 1 " * 18)
    assert image_size(path) == read_image(path).shape[:2] == (3, 4)


def test_a_bmp_whose_first_row_is_the_top_one_has_a_height(tmp_path):
    data = bytearray(encoded(Image.fromarray(picture()), "BMP"))
    data[22:26] = struct.pack("<i", -48)
    (tmp_path / "a.bmp").write_bytes(data)
    assert image_size(tmp_path / "a.bmp") == read_image(tmp_path / "a.bmp").shape[:2] == (48, 64)


def test_a_header_at_the_end_of_a_large_tiff_is_found(tmp_path):
    path = tmp_path / "a.tif"
    assert cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8), [259, 1])
    assert path.stat().st_size > 2 * EDGE_BYTES
    assert image_size(path) == (300, 200)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("reduction", [1, 2, 8])
@pytest.mark.parametrize("size", [(48, 64), (45, 61)])
def test_an_upright_picture_is_what_viewers_show(tmp_path, kind, orientation, reduction, size):
    path = tmp_path / "a"
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    path.write_bytes(encoded(Image.fromarray(picture(*size)), kind, orientation, **options))
    with Image.open(path) as opened:
        shown = np.array(ImageOps.exif_transpose(opened).convert("RGB"))
    image = read_image(path, reduction, UPRIGHT)
    assert image.flags.c_contiguous
    expected = average(shown, reduction, 1)
    assert image.shape == expected.shape
    # Not the last pixels of a side that is no multiple: beyond them average has black, and the decoder has not.
    inside = np.s_[: size[0] // 8, : size[0] // 8]
    assert np.abs(image[inside].astype(int) - expected[inside]).max() <= (6 if kind == "JPEG" else 0)
    assert image_size(path, UPRIGHT) == shown.shape[:2]
    np.testing.assert_array_equal(read_image(path).shape[:2], size)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tensors_are_turned_as_arrays_are(orientation):
    image = picture(3, 5)
    expected = turned(image, orientation)
    np.testing.assert_array_equal(turned_tensor(torch.from_numpy(image), orientation).numpy(), expected)


def exif(order: str, kind: int = 3, value: int = 6) -> bytes:
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    field = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
    return start + struct.pack(order + "HHHI", 1, 0x0112, kind, 1) + field + bytes(4)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [3, 4])
def test_the_orientation_is_read_in_both_byte_orders_before_and_behind_the_pixels(tmp_path, order, kind):
    path, data = tmp_path / "a.png", encoded(Image.fromarray(picture(300, 400)).effect_spread(200), "PNG")
    assert len(data) > 2 * EDGE_BYTES
    chunk = png_chunk(b"eXIf", exif(order, kind))
    for place in (33, len(data) - 12):
        path.write_bytes(data[:place] + chunk + data[place:])
        assert image_header(path).orientation == 6
        assert read_checked(path, AS_STORED)[1].orientation == 6


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"II",
        b"II*\0",
        exif("<")[:18],
        exif("<", value=0),
        exif("<", value=9),
        exif("<")[:4] + b"\xff" * 30,
        b"XX" * 20,
    ],
)
def test_damaged_exif_means_no_orientation(tmp_path, damaged):
    path, data = tmp_path / "a.jpg", encoded(Image.fromarray(picture()), "JPEG")
    segment = b"Exif\0\0" + damaged
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:])
    assert image_header(path).orientation == 1
    assert read_image(path, 1, UPRIGHT).shape == (48, 64, 3)


# ---- what goes no further ----

NAMED = {
    "a JPEG 2000 picture": b"\0\0\0\x0cjP  \r\n\x87\n",
    "an AVIF picture": b"\0\0\0\x20ftypavif",
    "a HEIC picture": b"\0\0\0\x20ftypheic",
    "an OpenEXR picture": b"v/1\x01\x02\0\0\0",
    "a Radiance HDR picture": b"#?RADIANCE\n",
    "a PFM picture": b"PF\n4 4\n-1.0\n",
    "a Sun raster picture": b"\x59\xa6\x6a\x95",
    "the path that a link leads to, as git stores links where the system has none": b"../disk/p0.jpg",
    "a Git LFS pointer, not the file itself: git lfs pull": b"version https://git-lfs.github.com/spec/v1\n",
    "an HTML or XML page": b"<!DOCTYPE html>",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_format_that_nobody_asked_for_reaches_no_decoder(tmp_path, monkeypatch, name):
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: pytest.fail("decoded"))
    (tmp_path / "a.jpg").write_bytes(NAMED[name] + bytes(100))
    for read in (read_image, image_size):
        with pytest.raises(BadImageError, match=rf"a\.jpg: .*it is {name}; fastpose reads JPEG, PNG"):
            read(tmp_path / "a.jpg")


TOO_LARGE = {
    "a PNG of 833 megapixels": png_header(40_000, 20_833) + bytes(1_200_000) + b"IEND\xaeB`\x82",
    "a BMP": b"BM" + bytes(12) + struct.pack("<Iii", 40, 30_000, -30_000) + bytes(100),
    "a WebP": b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff" * 2,
    "a GIF": b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(100),
    "a TIFF": b"II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIIHHII", 256, 4, 1, 1 << 20, 257, 4, 1, 1 << 20) + bytes(100),
    "a PNM": b"P6 99999 99999 255 ",
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch, name):
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: pytest.fail("decoded"))
    (tmp_path / "a").write_bytes(TOO_LARGE[name])
    for read in (read_image, image_size):
        with pytest.raises(BadImageError, match=r"pixels, more than the 250,000,000 of max_image_pixels"):
            read(tmp_path / "a")


@pytest.mark.parametrize(
    "data",
    [
        jpeg_of(15_000, 16_000),
        jpeg_of(2_000, 2_000, frame=0xC2),
        jpeg_of(15_000, 16_000, frame=0xC9),
        png_header(3_000, 3_000) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""),
        b"GIF89a" + struct.pack("<HH", 15_000, 15_000) + bytes(100),
    ],
)
def test_a_picture_of_more_pixels_than_its_bytes_can_be_is_refused_before_it_is_decoded(tmp_path, monkeypatch, data):
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: pytest.fail("decoded"))
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(BadImageError, match=rf"its {len(data):,} bytes cannot be [\d]+ x [\d]+ pixels of"):
        read_image(tmp_path / "a")


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "L", {"optimize": True}),
        ("JPEG", "L", {"optimize": True, "progressive": True}),
        ("JPEG", "RGB", {"optimize": True, "subsampling": "4:2:0"}),
        ("PNG", "1", {"compress_level": 9}),
        ("PNG", "L", {}),
        ("GIF", "L", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("TIFF", "1", {"compression": "group4"}),
    ],
)
def test_pictures_of_one_colour_are_large_for_their_bytes_and_read(tmp_path, kind, mode, options):
    (tmp_path / "a").write_bytes(encoded(Image.new(mode, (2048, 2048), 1), kind, **options))
    assert read_image(tmp_path / "a", 8).shape == (256, 256, 3)


def test_the_largest_picture_is_an_option(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(picture()), "PNG"))
    assert read_image(tmp_path / "a.png", 1, Reading(most_pixels=48 * 64)).shape == (48, 64, 3)
    with pytest.raises(BadImageError, match=r"64 x 48 are 3,072 pixels, more than the 3,071 of max_image_pixels"):
        read_image(tmp_path / "a.png", 1, Reading(most_pixels=48 * 64 - 1))


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    data = encoded(Image.fromarray(picture()), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(data[:last] + data[last:-2] * 100 + data[-2:])
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: pytest.fail("decoded"))
    with pytest.raises(BadImageError, match=r"a\.jpg: .*more than 50 scans"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff\xfe\0\2" * 50_000,
        encoded(Image.fromarray(picture()), "JPEG", progressive=True)[:-2] + b"\xff\xfe\0\2" * 50_000,
    ],
)
def test_a_jpeg_of_endless_segments_is_refused(tmp_path, data):
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(BadImageError, match=r"a\.jpg: .*more than 10,000 segments"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("start", [encoded(Image.fromarray(picture()), "PNG"), b"\xff\xd8\xff\xe0"])
@pytest.mark.parametrize("read", [read_image, image_size])
def test_a_file_of_more_bytes_than_its_pixels_can_be_is_not_read(tmp_path, monkeypatch, start, read):
    path = tmp_path / "a"
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(10 << 30)  # of a hole, which takes no room
    taken, read_some = [], os.read
    monkeypatch.setattr(os, "read", lambda file, count: taken.append(count) or read_some(file, count))
    with pytest.raises(BadImageError, match=r"bytes are too many for 64 x 48|expected at most .* got 10,737,418,240"):
        read(path)
    assert sum(taken) <= 2 * EDGE_BYTES


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bytes_decode_to_what_a_file_of_them_does(tmp_path, kind):
    data = encoded(Image.fromarray(picture()), kind, orientation=6)
    path = tmp_path / "a"
    path.write_bytes(data)
    for reduction, reading in ((1, AS_STORED), (2, AS_STORED), (4, UPRIGHT)):
        np.testing.assert_array_equal(
            decode_image(data, path, reduction, reading), read_image(path, reduction, reading)
        )
    for bad, reading in (
        (b"", AS_STORED),
        (data[:-20], AS_STORED),
        (b"text", AS_STORED),
        (data, Reading(most_pixels=9)),
    ):
        path.write_bytes(bad)
        with pytest.raises(BadImageError) as of_file:
            read_image(path, 1, reading)
        with pytest.raises(BadImageError) as of_bytes:
            decode_image(bad, path, 1, reading)
        assert str(of_bytes.value) == str(of_file.value)


@pytest.mark.parametrize("read", [read_image, image_size])
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(BadImageError, match=r"a\.jpg: cannot be read: expected a file, got a named pipe"):
        read(tmp_path / "a.jpg")


def test_a_message_is_one_line_whatever_the_file_is_called(tmp_path):
    for name in (b"a\nb.jpg", b"a\xff.jpg"):
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
        path.write_bytes(b"no picture")
        for read in (read_image, image_size):
            with pytest.raises(BadImageError, match="cannot be") as caught:
                read(path)
            assert str(caught.value).isprintable()


# ---- the machine's own trouble ----


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("read", [read_image, image_size])
def test_trouble_of_the_machine_is_no_bad_image(tmp_path, monkeypatch, code, read):
    (tmp_path / "a.jpg").touch()

    def fail(path, *arguments, **options):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError, match=rf"{os.strerror(code)} \(.*a\.jpg") as caught:
        read(tmp_path / "a.jpg")
    assert not isinstance(caught.value, BadImageError)
    assert caught.value.errno == code


def test_descriptors_that_run_out_stop_a_batch_and_skip_nobody(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(picture()), "PNG"))
    source = ImageFiles([path, tmp_path / "missing.png"], 1)
    assert list(source.load(torch.tensor([0, 1]), CPU).errors) == [1]
    monkeypatch.setattr(os, "open", lambda *a, **k: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many open files")))
    with pytest.raises(OSError, match=r"Too many open files \(this process may open no more files: ulimit -n\)"):
        source.load(torch.tensor([0, 1]), CPU)


def test_a_decoder_that_gets_no_memory_is_no_bad_image(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(picture()), "PNG"))
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: None)
    with pytest.raises(BadImageError, match="the PNG is damaged"):
        read_image(tmp_path / "a.png")
    monkeypatch.setattr(np, "empty", lambda *arguments: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(OSError, match=r"no memory to decode 64 x 48 pixels.*a\.png"):
        read_image(tmp_path / "a.png")


# ---- 16 bits ----


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_stretched_pictures_of_16_bits_use_the_whole_range(tmp_path, suffix, channels):
    values = np.linspace(29_184, 29_700, 48 * 64 * channels).astype(np.uint16).reshape(48, 64, channels)
    path = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(path), values[..., ::-1])
    expected = np.round((values.astype(float) - 29_184) * 255 / (29_700 - 29_184))
    image = read_image(path, 1, Reading(stretch=True))
    assert image.dtype == np.uint8
    assert np.abs(image - np.broadcast_to(expected, image.shape)).max() <= 1
    upper = np.broadcast_to(values >> 8, image.shape)
    assert np.abs(read_image(path).astype(int) - upper).max() <= (suffix == "tif")  # which OpenCV rounds


def test_stretching_leaves_pictures_of_8_bits_and_of_one_grey_as_they_are(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (4, 4), (9, 90, 30)), "PNG"))
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.png", 1, Reading(stretch=True)), read_image(tmp_path / "a.png")
    )
    assert cv2.imwrite(str(tmp_path / "b.png"), np.full((4, 4), 700, np.uint16))
    assert (read_image(tmp_path / "b.png", 1, Reading(stretch=True)) == 0).all()


# ---- what is said ----


def write_surprises(folder: Path) -> list[Path]:
    paths = [folder / f"{n}.png" for n in range(6)]
    for path, orientation in zip(paths, (1, 3, 6, 1), strict=False):
        path.write_bytes(encoded(Image.fromarray(picture()), "PNG", orientation))
    twelve_bits = np.linspace(0, 4095, 48 * 64).astype(np.uint16).reshape(48, 64)
    assert cv2.imwrite(str(paths[4]), twelve_bits)
    assert cv2.imwrite(str(paths[5]), twelve_bits * 16)
    return paths


def test_what_is_read_otherwise_than_shown_is_said_once_with_counts_and_the_first_example(tmp_path, caplog):
    paths = write_surprises(tmp_path)
    with caplog.at_level(logging.WARNING):
        warn_of_surprises(paths, AS_STORED, "valid.json")
    turns, bits = caplog.messages
    assert "valid.json: 2 of 6 images looked at have an EXIF orientation other than 1 (the first: " in turns
    assert "1.png, 3)" in turns
    assert "--exif upright" in turns
    assert "1 of 2 pictures with 16 bits looked at keep fewer than 32 of 256 grey levels (the first: " in bits
    assert "4.png, 16)" in bits
    assert "--sixteen_bits stretch" in bits


def test_nothing_is_said_of_what_the_options_mend_or_of_bad_images(tmp_path, caplog):
    paths = write_surprises(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING):
        warn_of_surprises([*paths, tmp_path / "bad.png", tmp_path / "none.png"], Reading(True, True), "valid.json")
        warn_of_surprises([], AS_STORED, "valid.json")
    assert caplog.messages == []


def test_of_many_images_a_thousand_are_looked_at(monkeypatch):
    seen = []
    monkeypatch.setattr("fastpose.data.images.image_header", lambda path, reading: seen.append(path) or bad(path))

    def bad(path):
        raise BadImageError(str(path))

    warn_of_surprises([Path(str(n)) for n in range(25_000)], AS_STORED, "train.json")
    assert len(seen) == 1000
    assert {int(str(b)) - int(str(a)) for a, b in itertools.pairwise(seen)} == {25}
