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

  double* partial_sums;  // forward: scratch for partial_sum_count(params) numbers
  void* loss;            // forward: one number, float32 (float64 for float64)

  const void* grad_output;  // backward: one number on the device, of loss's type
  void* grad;               // backward: [B, K, h, w] with the strides below, else null
  int64_t grad_stride_b, grad_stride_k, grad_stride_y, grad_stride_x;
};

struct LossOfMap {
  JointTarget target;
  float weight;
};

FASTPOSE_HOST_DEVICE LossOfMap loss_of_map(const HeatmapMseLossParams& p, int64_t b, int64_t k) {
  const int64_t map = b * p.joints + k;
  LossOfMap l;
  l.target = joint_target(p.spec, p.keypoints[2 * map], p.keypoints[2 * map + 1], p.visible[map]);
  l.weight = p.ignore_missing ? l.target.weight : 1.0f;
  if (p.joint_weights != nullptr) l.weight *= p.joint_weights[b * p.weight_stride_b + k * p.weight_stride_k];
  return l;
}

// 0.5 / (B K h w): the 0.5 is SimpleBaselines' JointsMSELoss. An empty batch adds nothing to a training step: loss 0.
FASTPOSE_HOST_DEVICE double loss_scale(const HeatmapMseLossParams& p) {
  if (p.batch == 0 || p.joints == 0) return 0.0;
  return 0.5 / (static_cast<double>(p.batch) * static_cast<double>(p.joints) * p.spec.height * p.spec.width);
}

// How a GPU's blocks share the maps: whole rows of one map, or of all maps of a sample where their joints lie side by
// side (channels_last), so that every block reads and writes memory in one piece.
struct LossTiling {
  bool tiled;        // false: strides, widths or alignments that allow no 16-byte accesses; a block per map
  bool interleaved;  // joints side by side
  int64_t groups;    // maps, or samples where interleaved
  int tiles, rows;   // of a group; of a tile, the last one may have fewer
};

constexpr int kLossTile = 8192;  // elements of a tile, where a single row has no more

FASTPOSE_HOST_DEVICE LossTiling untiled_loss(const HeatmapMseLossParams& p) {
  return {false, false, p.batch * p.joints, 1, p.spec.height};
}

FASTPOSE_HOST_DEVICE LossTiling loss_tiling(const HeatmapMseLossParams& p) {
  const int64_t width = p.spec.width, vector = 16 / bytes_of(p.kind);
  const auto fits = [&](const void* data, int64_t b, int64_t k, int64_t y, int64_t x, bool interleaved) {
    const bool dense = interleaved ? k == 1 && x == p.joints && y == width * p.joints : x == 1 && y == width;
    return dense && reinterpret_cast<uintptr_t>(data) % 16 == 0 && b % vector == 0 && (interleaved || k % vector == 0);
  };
  for (const bool interleaved : {false, true}) {
    const int64_t row = interleaved ? width * p.joints : width;
    if (row == 0 || row % vector != 0 || row > 1 << 16) continue;
    if (!fits(p.pred, p.stride_b, p.stride_k, p.stride_y, p.stride_x, interleaved)) continue;
    if (p.grad != nullptr &&
        !fits(p.grad, p.grad_stride_b, p.grad_stride_k, p.grad_stride_y, p.grad_stride_x, interleaved)) {
      continue;
    }
    const int wanted = static_cast<int>(kLossTile / row);
    const int rows = wanted < 1 ? 1 : wanted < p.spec.height ? wanted : p.spec.height;
    return {true, interleaved, interleaved ? p.batch : p.batch * p.joints, (p.spec.height + rows - 1) / rows, rows};
  }
  return untiled_loss(p);
}

// Enough for every way through the maps: one sum per map, or one per tile.
FASTPOSE_HOST_DEVICE int64_t partial_sum_count(const HeatmapMseLossParams& p) {
  const LossTiling tiling = loss_tiling(p);
  const int64_t maps = p.batch * p.joints, tiles = tiling.groups * tiling.tiles;
  return maps > tiles ? maps : tiles;
}

#ifdef FASTPOSE_WITH_CUDA
cudaError_t launch_heatmap_mse_loss(const HeatmapMseLossParams& params, cudaStream_t stream);
cudaError_t launch_heatmap_mse_loss_backward(const HeatmapMseLossParams& params, cudaStream_t stream);
#endif

}  // namespace fastpose
