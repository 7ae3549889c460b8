# SPDX-License-Identifier: Apache-2.0
"""Pose networks."""

from fastpose.models.flops import compare_heads, count_flops, count_parameters
from fastpose.models.own import make_own_model
from fastpose.models.pose_resnet import DeconvPoseResNet, FcnPoseResNet, PoseResNet, pose_resnet
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
    "to_simple_baselines",
]
