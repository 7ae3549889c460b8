# SPDX-License-Identifier: Apache-2.0
"""Formats of other programs: YOLO, LSP's joints.mat, DeepLabCut, SLEAP and CSV."""

from fastpose.data.formats.dataset import FORMATS

__all__ = ["FORMATS"]
