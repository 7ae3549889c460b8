# SPDX-License-Identifier: Apache-2.0
"""Reads hostile image files, each in a process of its own with limits on time and memory.

    python -m studies.reliability.images

Prints what came of each, and the counts: a file should be read, or be refused by one line in under 1 s and 300 MB.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import struct
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from fastpose.data.images import BadImageError, image_size, read_image

SECONDS, BYTES = 30, 12 << 30  # when a reader is stopped
SLOW, LARGE = 1.0, 300  # what a refusal may take, s and MB


def picture(height: int = 120, width: int = 160) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(cv2.resize(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8), (width, height)))


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, bits: int = 8, color: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """That many zeros, deflated a megabyte at a time."""
    deflate = zlib.compressobj(9)
    parts = [deflate.compress(bytes(min(1 << 20, count - done))) for done in range(0, count, 1 << 20)]
    return b"".join(parts) + deflate.flush()


def jpeg_of(width: int, height: int, frame: int = 0xC0, mode: str = "RGB") -> bytes:
    """A small JPEG whose frame claims that size."""
    data = bytearray(encoded("JPEG", picture(16, 16).convert(mode), progressive=frame == 0xC2))
    start = next(i for i in (data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) if i > 0)
    data[start + 1], data[start + 5 : start + 9] = frame, struct.pack(">HH", height, width)
    return bytes(data)


def scans(count: int) -> bytes:
    """A progressive JPEG of 12 megapixels whose last scan comes that often."""
    data = encoded("JPEG", Image.new("L", (4000, 3000), 90), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def tiff(*tags: tuple[int, int, int, int], data: bytes = bytes(400)) -> bytes:
    fields = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + fields + bytes(4) + data


def tiff_of(width: int, height: int, *others: tuple[int, int, int, int]) -> bytes:
    common = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    changed = {tag[0] for tag in others}
    return tiff(*(tag for tag in common if tag[0] not in changed), *others)


def webp(width: int, height: int) -> bytes:
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size + encoded("WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_animation(frames: int) -> bytes:
    pictures = [Image.new("RGB", (64, 64), (n, 0, 0)) for n in range(2)] * (frames // 2)
    return encoded("WEBP", pictures[0], save_all=True, append_images=pictures[1:], lossless=True)


def with_exif(data: bytes) -> bytes:
    whole = encoded("JPEG")
    segment = b"Exif\0\0" + data
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + whole[2:]


def hostile() -> dict[str, bytes | Callable[[Path], None]]:
    """Contents of files by what is wrong with them, or what makes the file."""
    lzw = encoded("TIFF", compression="tiff_lzw")
    files: dict[str, bytes | Callable[[Path], None]] = {
        # Many pixels.
        "PNG 40000 x 20833 of 2.5 GB": png(40_000, 20_833, chunk(b"IDAT", zeros(40_000 * 20_833 * 3 + 20_833))),
        "PNG 15000 x 16000 of zeros": png(15_000, 16_000, chunk(b"IDAT", zeros((15_000 * 3 + 1) * 16_000))),
        "PNG 2 ^ 31 wide": png((1 << 31) - 1, 1),
        "PNG 15000 x 16000, no pixels": png(15_000, 16_000, chunk(b"IDAT", b"")),
        "PNG 16 bits, 60000 x 60000": png(60_000, 60_000, bits=16),
        "PNG interlaced 1 bit, 65535 x 65535": png(65_535, 65_535, bits=1, color=0),
        "JPEG 65500 x 65500 in 600 bytes": jpeg_of(65_500, 65_500),
        "JPEG 15000 x 16000": jpeg_of(15_000, 16_000),
        "JPEG 15000 x 16000, progressive": jpeg_of(15_000, 16_000, 0xC2),
        "JPEG 15000 x 16000, arithmetic": jpeg_of(15_000, 16_000, 0xC9),
        "JPEG 4000 x 4000, arithmetic": jpeg_of(4_000, 4_000, 0xC9),
        "JPEG 15000 x 16000, lossless": jpeg_of(15_000, 16_000, 0xC3),
        "JPEG 15000 x 16000, grey": jpeg_of(15_000, 16_000, mode="L"),
        "JPEG 0 x 0": jpeg_of(0, 0),
        "JPEG of 90 more scans": scans(90),
        "JPEG of 5000 scans": scans(5_000),
        "BMP 30000 x 30000": b"BM"
        + struct.pack("<IHHI", 0, 0, 0, 54)
        + struct.pack("<IiiHH", 40, 30_000, 30_000, 1, 24)
        + bytes(200),
        "BMP -2 ^ 31 high": b"BM"
        + struct.pack("<IHHI", 0, 0, 0, 54)
        + struct.pack("<IiiHH", 40, 1, -(1 << 31), 1, 24)
        + bytes(200),
        "BMP 15000 x 16000, run lengths": b"BM"
        + struct.pack("<IHHI", 0, 0, 0, 54)
        + struct.pack("<IiiHHI", 40, 15_000, 16_000, 1, 8, 1)
        + bytes(200),
        "BMP 4000 x 4000, run lengths": b"BM"
        + struct.pack("<IHHI", 0, 0, 0, 1078)
        + struct.pack("<IiiHHIIiiII", 40, 4_000, 4_000, 1, 8, 1, 0, 0, 0, 256, 0)
        + bytes(1024)
        + b"\0\1",
        "GIF 65535 x 65535": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + encoded("GIF")[10:],
        "GIF 15000 x 16000": b"GIF89a" + struct.pack("<HH", 15_000, 16_000) + encoded("GIF")[10:],
        "WebP 16777216 x 16777216": webp(1 << 24, 1 << 24),
        "WebP 15000 x 16000": webp(15_000, 16_000),
        "WebP of 2000 frames": webp_animation(2_000),
        "TIFF 2 ^ 31 x 2 ^ 31": tiff_of(1 << 31, 1 << 31),
        "TIFF 15000 x 16000": tiff_of(15_000, 16_000, (278, 4, 1, 16_000), (273, 4, 1, 200), (279, 4, 1, 50)),
        "TIFF 64 x 64 in tiles of 30000 x 30000": tiff_of(
            64, 64, (322, 4, 1, 30_000), (323, 4, 1, 30_000), (324, 4, 1, 200), (325, 4, 1, 50)
        ),
        "TIFF 64 x 64 in tiles of 4096 x 4096": tiff_of(
            64, 64, (322, 4, 1, 4_096), (323, 4, 1, 4_096), (324, 4, 1, 200), (325, 4, 1, 50)
        ),
        "TIFF 4096 x 4096 of 60000 channels": tiff_of(
            4_096, 4_096, (277, 3, 1, 60_000), (278, 4, 1, 4_096), (273, 4, 1, 200), (279, 4, 1, 50)
        ),
        "TIFF of 1 strip of 2 GB": tiff_of(64, 64, (278, 4, 1, 64), (273, 4, 1, 200), (279, 4, 1, (1 << 31) - 1)),
        "TIFF of strips of 2 ^ 32 - 1 rows": tiff_of(
            64, 64, (278, 4, 1, (1 << 32) - 1), (273, 4, 1, 200), (279, 4, 1, 50)
        ),
        "TIFF with a million strips": tiff_of(
            64, 64, (278, 4, 1, 1), (273, 4, 1_000_000, 200), (279, 4, 1_000_000, 50)
        ),
        "TIFF whose tags are at its own beginning": tiff_of(64, 64).replace(
            struct.pack("<I", 8), struct.pack("<I", 0), 1
        ),
        "TIFF of 65535 tags": b"II*\0" + struct.pack("<IH", 8, 65_535) + bytes(100),
        "PNM 99999 x 99999": b"P6 99999 99999 255\n" + bytes(100),
        "PNM 15000 x 16000": b"P5 15000 16000 255\n" + bytes(100),
        "PNM of endless digits": b"P5 " + b"9" * 1_000_000,
        "PNM of an endless comment": b"P5 #" + b" " * 1_000_000,
        "PNM below 0": b"P5 -5 -5 255\n" + bytes(100),
        # Other parts of a file that grow.
        "PNG with 1 GB of text": png(
            16, 16, chunk(b"zTXt", b"a\0\0" + zeros(1 << 30)), chunk(b"IDAT", zlib.compress(bytes(16 * 49)))
        ),
        "PNG with a colour profile of 1 GB": png(
            16, 16, chunk(b"iCCP", b"a\0\0" + zeros(1 << 30)), chunk(b"IDAT", zlib.compress(bytes(16 * 49)))
        ),
        "PNG of 16 x 16 with 1 GB of pixels": png(16, 16, chunk(b"IDAT", zeros(1 << 30))),
        "PNG of 200000 chunks": png(
            16, 16, *[chunk(b"tEXt", b"a\0b")] * 200_000, chunk(b"IDAT", zlib.compress(bytes(16 * 49)))
        ),
        "APNG of 2 ^ 31 frames": png(
            16, 16, chunk(b"acTL", struct.pack(">II", (1 << 31) - 1, 0)), chunk(b"IDAT", zlib.compress(bytes(16 * 49)))
        ),
        "JPEG with EXIF that refers to itself": with_exif(
            b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x112, 4, 1 << 30, 8)
        ),
        "JPEG with 65535 EXIF tags": with_exif(b"II*\0\x08\0\0\0\xff\xff" + bytes(60_000)),
        "JPEG of 20 MB of fill bytes": b"\xff\xd8\xff" + b"\xff" * 20_000_000,
        "JPEG of 20 MB of empty segments": b"\xff\xd8" + b"\xff\xfe\0\2" * 5_000_000,
        "JPEG of 20 MB of marks between scans": encoded("JPEG", progressive=True)[:-2] + b"\xff\xfe\0\2" * 5_000_000,
        # Other formats, which OpenCV could decode or somebody may have called a picture.
        "JPEG 2000": encoded("JPEG2000"),
        "AVIF": encoded("AVIF"),
        "Radiance HDR": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n" + bytes(100),
        "PFM": b"PF\n30000 30000\n-1.0\n" + bytes(100),
        "Sun raster": struct.pack(">8I", 0x59A66A95, 30_000, 30_000, 24, 0, 1, 0, 0) + bytes(100),
        "OpenEXR": b"v/1\x01\2\0\0\0" + bytes(200),
        "PAM": b"P7\nWIDTH 30000\nHEIGHT 30000\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n",
        "HTML": b"<!DOCTYPE html><html>404</html>",
        "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "zip": b"PK\x03\x04" + bytes(100),
        "zeros": bytes(1_000_000),
        "noise": np.random.default_rng(0).bytes(1_000_000),
        "empty": b"",
        # No files.
        "named pipe": lambda path: os.mkfifo(path),
        "folder": lambda path: path.mkdir(),
        "link to itself": lambda path: path.symlink_to(path),
        "link to nowhere": lambda path: path.symlink_to(path.with_name("nowhere")),
        "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "/dev/tty": lambda path: path.symlink_to("/dev/tty"),
        "/proc/self/mem": lambda path: path.symlink_to("/proc/self/mem"),
        "10 GB of nothing": lambda path: sparse(path, b"\xff\xd8\xff\xe0", 10 << 30),
    }
    whole = {
        "JPEG": encoded("JPEG"),
        "progressive JPEG": encoded("JPEG", progressive=True),
        "PNG": encoded("PNG"),
        "BMP": encoded("BMP"),
        "WebP": encoded("WEBP"),
        "lossless WebP": encoded("WEBP", lossless=True),
        "TIFF": encoded("TIFF"),
        "TIFF LZW": lzw,
        "GIF": encoded("GIF"),
        "PNM": encoded("PPM"),
    }
    for name, data in whole.items():
        for share in (2, 50, 99):
            files[f"{name}, {share} % of it"] = data[: len(data) * share // 100]
        rng = np.random.default_rng(1)
        for kind in ("some bytes changed", "a zeroed stretch"):
            spoilt = bytearray(data)
            if kind == "some bytes changed":
                for place in rng.integers(0, len(data), 20).tolist():
                    spoilt[place] ^= 0xFF
            else:
                spoilt[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
            files[f"{name}, {kind}"] = bytes(spoilt)
    return files


def sparse(path: Path, start: bytes, size: int) -> None:
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(size)


def attempt(path: Path, read: Callable[[Path], object]) -> tuple[str, str, float, int, int]:
    """What came of it, in what words, after how many seconds, with how many MB, and the lines that decoders printed."""
    with tempfile.TemporaryFile() as words, tempfile.TemporaryFile() as printed:
        begin = time.perf_counter()
        process = os.fork()
        if process == 0:
            resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
            os.dup2(printed.fileno(), 2)
            try:
                found = read(path)
                text, code = str(getattr(found, "shape", found)), 0
            except (BadImageError, OSError) as error:
                text, code = str(error).replace(f"{path}", "…"), 1
            except BaseException as error:
                text, code = f"{type(error).__name__}: {error}", 2
            os.pwrite(words.fileno(), text.encode(errors="replace"), 0)
            os._exit(code)
        while not (done := os.wait4(process, os.WNOHANG))[0] and time.perf_counter() - begin < SECONDS:
            time.sleep(0.005)
        seconds = time.perf_counter() - begin
        if not done[0]:
            os.kill(process, signal.SIGKILL)
            os.wait4(process, 0)
            return "HANGS", "", seconds, 0, 0
        text = os.pread(words.fileno(), 10_000, 0).decode()
        lines = os.pread(printed.fileno(), 100_000, 0).count(b"\n")
    came = {0: "read", 1: "refused"}.get(os.waitstatus_to_exitcode(done[1]), "CRASHES")
    megabytes = max(0, done[2].ru_maxrss - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) >> 10
    return came, text, seconds, megabytes, lines


def main() -> None:
    cv2.setNumThreads(0)
    counts = dict.fromkeys(("tried", "read", "refused", "HANGS", "CRASHES"), 0) | dict.fromkeys(
        ("refused in 1 s or more", "refused with 300 MB or more", "refused in several lines", "decoder prints too"), 0
    )
    slowest, largest = 0.0, 0
    files = hostile()
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, contents) in enumerate(files.items()):
            path = Path(folder) / f"{number}.jpg"
            if isinstance(contents, bytes):
                path.write_bytes(contents)
            else:
                contents(path)
            files[name] = b""  # no longer needed: what is left counts as memory of the readers
            for reader in (read_image, image_size):
                came, text, seconds, megabytes, lines = attempt(path, reader)
                counts["tried"] += 1
                counts[came] += 1
                if came == "refused":
                    counts["refused in 1 s or more"] += seconds >= SLOW
                    counts["refused with 300 MB or more"] += megabytes >= LARGE
                    counts["refused in several lines"] += "\n" in text
                    slowest, largest = max(slowest, seconds), max(largest, megabytes)
                counts["decoder prints too"] += lines > 0
                print(
                    f"{name:42} {reader.__name__:10} {came:8} {seconds:6.2f} s {megabytes:5} MB  {text[:110]}",
                    flush=True,
                )
    print()
    for name, count in counts.items():
        print(f"{name:30} {count}")
    print(f"slowest refusal {slowest:.2f} s, largest {largest} MB; {len(files)} files")


if __name__ == "__main__":
    main()
