# SPDX-License-Identifier: Apache-2.0
"""Scores that the field compares."""

from fastpose.metrics.coco import format_ap, keypoint_ap, keypoint_results
from fastpose.metrics.oks import oks, oks_nms
from fastpose.metrics.pckh import format_pckh, pckh, pckh_from_mat

__all__ = [
    "format_ap",
    "format_pckh",
    "keypoint_ap",
    "keypoint_results",
    "oks",
    "oks_nms",
    "pckh",
    "pckh_from_mat",
]
