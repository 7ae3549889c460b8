# SPDX-License-Identifier: Apache-2.0
"""Synthetic persons: drawn as MPII-format data, and scored as these."""

from fastpose.data.synthetic.dataset import Synthetic
from fastpose.data.synthetic.generate import SyntheticDataError, SyntheticSummary, generate, render_scene

__all__ = ["Synthetic", "SyntheticDataError", "SyntheticSummary", "generate", "render_scene"]
