# SPDX-License-Identifier: Apache-2.0
"""Pose networks."""

from fastpose.models.flops import compare_heads, count_flops, count_parameters
from fastpose.models.pose_resnet import PoseResNet, load_imagenet_backbone, pose_resnet

__all__ = ["PoseResNet", "compare_heads", "count_flops", "count_parameters", "load_imagenet_backbone", "pose_resnet"]
