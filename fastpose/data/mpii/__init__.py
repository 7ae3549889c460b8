# SPDX-License-Identifier: Apache-2.0
"""MPII Human Pose: annotations, and PCKh."""

from fastpose.data.annotation_rows import AnnotationError
from fastpose.data.mpii.annotations import GroundTruth, read_ground_truth, read_mpii
from fastpose.data.mpii.dataset import Mpii
from fastpose.data.mpii.pckh import pckh
from fastpose.data.mpii.score import PckhScorer, pckh_from_mat

__all__ = [
    "AnnotationError",
    "GroundTruth",
    "Mpii",
    "PckhScorer",
    "pckh",
    "pckh_from_mat",
    "read_ground_truth",
    "read_mpii",
]
