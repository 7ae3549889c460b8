# SPDX-License-Identifier: Apache-2.0
"""Pose networks."""

from fastpose.models.flops import compare_heads, count_flops, count_parameters
from fastpose.models.own import make_own_model
from fastpose.models.pose_resnet import DeconvPoseResNet, FcnPoseResNet, PoseResNet, SimccPoseResNet, pose_resnet
from fastpose.models.rtmpose import RtmPose, rtmpose
from fastpose.models.weights import (
    Weights,
    export_simple_baselines,
    load_backbone,
    load_imagenet_backbone,
    load_weights,
    read_weights,
    to_simple_baselines,
)

__all__ = [
    "DeconvPoseResNet",
    "FcnPoseResNet",
    "PoseResNet",
    "RtmPose",
    "SimccPoseResNet",
    "Weights",
    "compare_heads",
    "count_flops",
    "count_parameters",
    "export_simple_baselines",
    "load_backbone",
    "load_imagenet_backbone",
    "load_weights",
    "make_own_model",
    "pose_resnet",
    "read_weights",
    "rtmpose",
    "to_simple_baselines",
]
