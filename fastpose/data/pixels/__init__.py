# SPDX-License-Identifier: Apache-2.0
"""Where the pixels of a batch come from: files, packs, or a whole data set in memory."""

from fastpose.data.pixels.files import ImageFiles
from fastpose.data.pixels.fingerprint import images_fingerprint
from fastpose.data.pixels.gpu_jpeg import GpuJpegFiles
from fastpose.data.pixels.open import open_images, open_pixels
from fastpose.data.pixels.packed import PackedImages
from fastpose.data.pixels.resident import ResidentImages
from fastpose.data.pixels.source import DecodeThreads, PixelOptions, Pixels, PixelSource

__all__ = [
    "DecodeThreads",
    "GpuJpegFiles",
    "ImageFiles",
    "PackedImages",
    "PixelOptions",
    "PixelSource",
    "Pixels",
    "ResidentImages",
    "images_fingerprint",
    "open_images",
    "open_pixels",
]
