# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fastpose.data.images import BadImageError, average, is_whole_jpeg, read_image
from tests.helpers.shift import shift_between

REAL_DATA = Path(os.environ.get("FASTPOSE_REAL_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")
ORANGE = (200, 60, 30)


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth RGB picture that JPEG keeps within a few grey levels."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=2).astype(np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> bytes:
    image.save(path, **options)
    return path.read_bytes()


def assert_is_rgb(image: np.ndarray, shape: tuple[int, int]) -> None:
    assert image.dtype == np.uint8
    assert image.shape == (*shape, 3)
    assert image.flags.c_contiguous


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_channels_come_as_red_green_blue(tmp_path, suffix):
    save(tmp_path / f"a.{suffix}", Image.fromarray(picture()), **({"lossless": True} if suffix == "webp" else {}))
    image = read_image(tmp_path / f"a.{suffix}")
    assert_is_rgb(image, (48, 64))
    np.testing.assert_array_equal(image, picture())


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_in_rgb_and_cmyk_keeps_its_colours(tmp_path, mode, progressive):
    orange = Image.new("RGB", (40, 24), ORANGE)
    save(tmp_path / "a.jpg", orange.convert(mode), quality=95, progressive=progressive)
    image = read_image(tmp_path / "a.jpg")
    assert_is_rgb(image, (24, 40))
    assert np.abs(image.astype(int) - ORANGE).max() <= 3


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_grey_is_repeated_in_three_channels(tmp_path, suffix):
    save(tmp_path / f"a.{suffix}", Image.new("L", (9, 7), 98))
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), np.full((7, 9, 3), 98))


def test_sixteen_bits_lose_the_lower_eight(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 5), 40_000, np.uint16))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.full((4, 5, 3), 40_000 // 256))


def test_alpha_is_dropped_without_blending(tmp_path):
    save(tmp_path / "a.png", Image.new("RGBA", (6, 5), (*ORANGE, 0)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.full((5, 6, 3), ORANGE))


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a reader that obeys it would return [64, 48]
    save(tmp_path / "a.jpg", Image.fromarray(picture()), exif=exif)
    assert_is_rgb(read_image(tmp_path / "a.jpg"), (48, 64))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_one_pixel_is_an_image(tmp_path, suffix):
    save(tmp_path / f"a.{suffix}", Image.new("RGB", (1, 1), (7, 7, 7)))
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), [[[7, 7, 7]]])


def jpeg_with_thumbnail(folder: Path) -> tuple[bytes, int]:
    """A JPEG that carries another JPEG in its EXIF segment, and where that one ends."""
    thumbnail = save(folder / "thumbnail.jpg", Image.fromarray(picture(16, 16)))
    main = save(folder / "main.jpg", Image.fromarray(picture()))
    segment = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumbnail
    return main[:2] + segment + main[2:], 2 + len(segment)


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "jpeg with thumbnail", "jpeg with restarts", "png"])
def test_every_truncation_is_reported(tmp_path, kind):
    if kind == "jpeg with thumbnail":
        data, _ = jpeg_with_thumbnail(tmp_path)
    elif kind == "png":
        data = save(tmp_path / "whole.png", Image.fromarray(picture()))
    else:
        options = {"progressive jpeg": {"progressive": True}, "jpeg with restarts": {"restart_marker_blocks": 2}}
        data = save(tmp_path / "whole.jpg", Image.fromarray(picture()), **options.get(kind, {}))
    path = tmp_path / "cut"
    path.write_bytes(data)
    assert_is_rgb(read_image(path), (48, 64))
    for length in range(1, len(data), 7 if len(data) > 3000 else 1):
        path.write_bytes(data[:length])
        with pytest.raises(BadImageError, match="cut: "):
            read_image(path)


@pytest.mark.parametrize("cut", ["in the pixels", "after the thumbnail's own end"])
def test_a_jpeg_whose_tail_is_zeros_is_reported(tmp_path, cut):
    # An interrupted copy into a preallocated file.
    data, thumbnail_end = jpeg_with_thumbnail(tmp_path)
    length = len(data) - 300 if cut == "in the pixels" else thumbnail_end
    (tmp_path / "a.jpg").write_bytes(data[:length] + bytes(len(data) - length))
    with pytest.raises(BadImageError, match="truncated"):
        read_image(tmp_path / "a.jpg")


def with_end_mark_between_scans(data: bytes) -> tuple[bytes, int]:
    """A progressive JPEG with a comment that holds an end mark before its second scan, and where that comment ends."""
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    comment = b"\xff\xfe\x00\x0ba\xff\xd9commen"
    return data[:second] + comment + data[second:], second + len(comment)


def test_an_end_mark_inside_a_segment_between_scans_is_not_the_image_s(tmp_path):
    data = save(tmp_path / "plain.jpg", Image.fromarray(picture()), progressive=True)
    assert data.count(b"\xff\xda") > 2
    marked, end = with_end_mark_between_scans(data)
    path = tmp_path / "a.jpg"
    path.write_bytes(marked)
    np.testing.assert_array_equal(read_image(path), read_image(tmp_path / "plain.jpg"))
    for length in range(end - 6, len(marked), 7):
        path.write_bytes(marked[:length])
        with pytest.raises(BadImageError, match=f"truncated after {length} bytes"):
            read_image(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_second_picture_behind_the_image_may_be_cut(tmp_path, progressive):
    # As phones append them (multi-picture format).
    data = save(tmp_path / "a.jpg", Image.fromarray(picture()), progressive=progressive)
    expected = read_image(tmp_path / "a.jpg")
    for behind in (data, data[:-2], data[: len(data) // 2]):
        (tmp_path / "b.jpg").write_bytes(data + behind)
        np.testing.assert_array_equal(read_image(tmp_path / "b.jpg"), expected)


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"\xff\xd8\xff\xd9", True),  # a decoder says what is missing
        (b"\xff\xd8\xff\xda", False),
        (b"\xff\xd8\xff\xda\x00\x02\xff", False),
        (b"\xff\xd8\xff\xe0\x00\x04\xff\xd9", False),
        (
            b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x01\x00\x01\x01\x01\x11\x00\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\xff\xd9",
            True,
        ),
        (b"\x89PNG\xff\xd9", False),
        (b"", False),
    ],
)
def test_a_whole_jpeg_is_known_by_its_segments(data, whole):
    assert is_whole_jpeg(data) is whole


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_bytes_after_the_end_of_the_image_do_no_harm(tmp_path, suffix):
    data = save(tmp_path / f"a.{suffix}", Image.fromarray(picture()))
    expected = read_image(tmp_path / f"a.{suffix}")
    (tmp_path / f"b.{suffix}").write_bytes(data + b"\0junk")
    np.testing.assert_array_equal(read_image(tmp_path / f"b.{suffix}"), expected)


def test_a_file_that_is_not_an_image_is_reported_with_its_name_and_why(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("<html>404 not found</html>")
    (tmp_path / "folder.jpg").mkdir()
    for name, why in [("empty", "empty"), ("text", "decode"), ("folder", "read"), ("absent", "No such file")]:
        with pytest.raises(BadImageError, match=rf"{name}\.jpg: .*{why}"):
            read_image(tmp_path / f"{name}.jpg")


def test_a_path_with_a_null_byte_is_reported():
    with pytest.raises(BadImageError, match="null"):
        read_image("a\0b.jpg")


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no real data")
def test_the_real_images_read():
    sets = [sorted(folder.glob("*.jpg")) for folder in REAL_DATA.glob("*/images")]
    assert sum(map(len, sets)) >= 5
    for path in (path for paths in sets for path in paths[:100]):
        image = read_image(path)
        assert_is_rgb(image, image.shape[:2])
        with Image.open(path) as pillow:
            assert image.shape[:2] == (pillow.height, pillow.width)
            # Two JPEG decoders differ by rounding only; swapped channels would differ by tens of grey levels.
            assert cv2.absdiff(image, np.asarray(pillow.convert("RGB"))).mean() < 1


def waves(height: int, width: int) -> np.ndarray:
    """Colours that rise and fall over some 90 to 200 px."""
    y, x = np.mgrid[:height, :width]
    bands = [np.sin(x / 17 + y / 29), np.sin(y / 14 - x / 31), np.cos((x + 2 * y) / 67)]
    return np.round(128 + 100 * np.stack(bands, axis=2)).astype(np.uint8)


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("size", [(480, 640), (477, 643)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_reduced_image_lies_where_it_should(tmp_path, suffix, size, reduction):
    path = tmp_path / f"a.{suffix}"
    save(path, Image.fromarray(waves(*size)), **({"quality": 98} if suffix == "jpg" else {}))
    reduced = read_image(path, reduction)
    assert_is_rgb(reduced, tuple(-(-side // reduction) for side in size))
    whole = read_image(path)
    # x_whole = reduction * x + (reduction - 1) / 2: what stands there, between the pixels of the whole image.
    y, x = (reduction * np.arange(side, dtype=np.float32) + (reduction - 1) / 2 for side in reduced.shape[:2])
    expected = cv2.remap(whole, *np.meshgrid(x, y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = np.s_[2:-2, 2:-2]
    assert np.abs(shift_between(reduced[inside], expected[inside]) * reduction).max() < 0.01


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no real data")
def test_real_photographs_are_not_shifted_by_reducing_them(reduction):
    shifts = []
    for path in sorted(REAL_DATA.glob("mpii/images/*.jpg")):
        reduced, expected = read_image(path, reduction), average(read_image(path), reduction, 1)
        assert reduced.shape == expected.shape
        # Means over areas and the smaller inverse DCT are not the same filter, but near.
        assert np.abs(reduced.astype(int) - expected).mean() < 1
        shifts.append(shift_between(reduced[:-1, :-1], expected[:-1, :-1]) * reduction)
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.01
    assert np.abs(shifts).max() < 0.02


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("side", [1, 7, 8, 9])
def test_the_smallest_images_can_be_reduced(tmp_path, suffix, side):
    save(tmp_path / f"a.{suffix}", Image.new("RGB", (side, 16), (90, 90, 90)))
    reduced = read_image(tmp_path / f"a.{suffix}", 8)
    assert_is_rgb(reduced, (2, -(-side // 8)))
    assert np.abs(reduced[:, 0].astype(int) - 90 * (min(side, 8) / 8 if suffix == "png" else 1)).max() <= 1


def test_an_average_by_a_fraction_weighs_the_parts_of_pixels():
    # 12/8 of a pixel each: 0 and half of 60; the other half of 60 and 90. Then 30 of which half is beyond the border.
    row = np.repeat(np.array([0, 60, 90, 30], np.uint8)[None, :, None], 3, axis=2)
    image = np.repeat(row, 3, axis=0)
    assert average(image, 12, 8)[:, :, 0].tolist() == [[20, 80, 20], [20, 80, 20]]
    np.testing.assert_array_equal(average(image, 8, 8), image)


def test_a_reduction_that_no_decoder_has_is_refused(tmp_path):
    save(tmp_path / "a.png", Image.new("RGB", (4, 4)))
    with pytest.raises(ValueError, match=r"reduction: expected one of \(1, 2, 4, 8\), got 3"):
        read_image(tmp_path / "a.png", 3)
