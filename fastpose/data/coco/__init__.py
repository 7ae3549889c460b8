# SPDX-License-Identifier: Apache-2.0
"""COCO's keypoints, and any data in their format: annotations, AP, OKS and PCK."""

from fastpose.data.boxes import crop_boxes
from fastpose.data.coco.annotations import AnnotationError, read_coco
from fastpose.data.coco.ap import CocoTruth, keypoint_ap, keypoint_results, rescore
from fastpose.data.coco.crowdpose import CrowdPose
from fastpose.data.coco.dataset import Coco, read_split, scorer_of
from fastpose.data.coco.family import Aic, Halpe26, Halpe136, HumanArt
from fastpose.data.coco.family_ap import crowd_ap, wholebody_ap
from fastpose.data.coco.oks import oks, oks_nms
from fastpose.data.coco.pck import auc, epe, nme, pck
from fastpose.data.coco.pck_score import PckScorer
from fastpose.data.coco.records import Visibility
from fastpose.data.coco.score import ApScorer
from fastpose.data.coco.wholebody import WholeBody

__all__ = [
    "Aic",
    "AnnotationError",
    "ApScorer",
    "Coco",
    "CocoTruth",
    "CrowdPose",
    "Halpe26",
    "Halpe136",
    "HumanArt",
    "PckScorer",
    "Visibility",
    "WholeBody",
    "auc",
    "crop_boxes",
    "crowd_ap",
    "epe",
    "keypoint_ap",
    "keypoint_results",
    "nme",
    "oks",
    "oks_nms",
    "pck",
    "read_coco",
    "read_split",
    "rescore",
    "scorer_of",
    "wholebody_ap",
]
