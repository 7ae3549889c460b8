// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "heatmap_target.h"

namespace fastpose {

struct HeatmapMseLossParams {
  const void* pred;  // [B, K, h, w], any strides
  int64_t stride_b, stride_k, stride_y, stride_x;
  ScalarKind kind;
  const float* keypoints;      // [B, K, 2] map pixels
  const float* visible;        // [B, K]
  const float* joint_weights;  // [B, K] through its strides, or null for 1
  int64_t weight_stride_b, weight_stride_k;
  int64_t batch, joints;
  TargetSpec spec;
  bool ignore_missing;  // a joint that render gives no weight does not count

  double* map_losses;  // forward: [B * K] sums of squared errors times weight
  void* loss;          // forward: one number, float32 (float64 for float64)

  const void* grad_output;  // backward: one number on the device, of loss's type
  void* grad;               // backward: [B, K, h, w] with the strides below
  int64_t grad_stride_b, grad_stride_k, grad_stride_y, grad_stride_x;
};

struct LossOfMap {
  JointTarget target;
  float weight;
};

FASTPOSE_HOST_DEVICE LossOfMap loss_of_map(const HeatmapMseLossParams& p, int64_t map) {
  LossOfMap l;
  l.target = joint_target(p.spec, p.keypoints[2 * map], p.keypoints[2 * map + 1], p.visible[map]);
  l.weight = p.ignore_missing ? l.target.weight : 1.0f;
  if (p.joint_weights != nullptr) {
    const int64_t b = map / p.joints;
    l.weight *= p.joint_weights[b * p.weight_stride_b + (map - b * p.joints) * p.weight_stride_k];
  }
  return l;
}

// 0.5 / (B K h w): the 0.5 is SimpleBaselines' JointsMSELoss. An empty batch adds nothing to a training step: loss 0.
FASTPOSE_HOST_DEVICE double loss_scale(const HeatmapMseLossParams& p) {
  if (p.batch == 0 || p.joints == 0) return 0.0;
  return 0.5 / (static_cast<double>(p.batch) * static_cast<double>(p.joints) * p.spec.height * p.spec.width);
}

#ifdef FASTPOSE_WITH_CUDA
cudaError_t launch_heatmap_mse_loss(const HeatmapMseLossParams& params, cudaStream_t stream);
cudaError_t launch_heatmap_mse_loss_backward(const HeatmapMseLossParams& params, cudaStream_t stream);
#endif

}  // namespace fastpose
