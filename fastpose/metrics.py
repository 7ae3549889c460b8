# SPDX-License-Identifier: Apache-2.0
"""Scores that the field compares, from arrays; the code of each is with its data set, in `fastpose.data`."""

from fastpose.data.coco import (
    auc,
    crowd_ap,
    epe,
    keypoint_ap,
    keypoint_results,
    nme,
    oks,
    oks_nms,
    pck,
    rescore,
    wholebody_ap,
)
from fastpose.data.mpii import pckh, pckh_from_mat

__all__ = [
    "auc",
    "crowd_ap",
    "epe",
    "keypoint_ap",
    "keypoint_results",
    "nme",
    "oks",
    "oks_nms",
    "pck",
    "pckh",
    "pckh_from_mat",
    "rescore",
    "wholebody_ap",
]
