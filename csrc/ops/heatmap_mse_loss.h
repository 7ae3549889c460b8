// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "maths/heatmap_target.h"
#include "maths/map_layout.h"
#include "maths/map_tiles.h"

namespace fastpose {

struct HeatmapMseLossParams {
  const void* pred;  // [B, K, h, w], any strides
  MapStrides pred_strides;
  ScalarKind kind;
  const float* keypoints;      // [B, K, 2] map pixels
  const float* visible;        // [B, K]
  const float* joint_weights;  // [B, K] through its strides, or null for 1
  int64_t weight_stride_b, weight_stride_k;
  int64_t batch, joints;
  TargetSpec spec;
  bool ignore_missing;  // a joint that render gives no weight does not count
  bool of_maps;         // the losses of single maps, not their mean

  double* partial_sums;  // forward: scratch for partial_sum_count(params) numbers
  void* loss;            // forward: one number, or [B, K] with of_maps; float32 (float64 for float64)

  const void* grad_output;  // backward: as many numbers on the device, of loss's type
  void* grad;               // backward: [B, K, h, w] with the strides below, else null
  MapStrides grad_strides;
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

// 0.5 / (B K h w), or of a map's loss 0.5 / (h w): the 0.5 is SimpleBaselines' JointsMSELoss. An empty batch adds
// nothing to a training step: loss 0.
FASTPOSE_HOST_DEVICE double loss_scale(const HeatmapMseLossParams& p) {
  if (p.batch == 0 || p.joints == 0) return 0.0;
  const double maps = p.of_maps ? 1.0 : static_cast<double>(p.batch) * static_cast<double>(p.joints);
  return 0.5 / (maps * p.spec.height * p.spec.width);
}

// What backward multiplies the difference from the target by, `scale` being loss_scale(p). grad_output (a loss scaler's
// 65536, say) goes in before rounding to the gradient's type: in half precision it could not after.
template <typename A>
FASTPOSE_HOST_DEVICE A weight_of_gradient(const HeatmapMseLossParams& p, double scale, int64_t map, float weight) {
  const A grad_output = static_cast<const A*>(p.grad_output)[p.of_maps ? map : 0];
  return static_cast<A>(2.0 * scale * static_cast<double>(grad_output) * static_cast<double>(weight));
}

// How a GPU's blocks share the maps. Planar: a warp per tile of one map. Channels last: a block per tile of all maps of
// a sample. Strided, which is everything that does not allow 16-byte accesses: a block per map.
struct LossTiling {
  MapLayout layout;
  MapTiles tiles;
  int64_t count;  // of all tiles
};

FASTPOSE_HOST_DEVICE int64_t blocks_of(const LossTiling& tiling) {
  return tiling.layout == MapLayout::kPlanar ? (tiling.count + kTilesPerBlock - 1) / kTilesPerBlock : tiling.count;
}

FASTPOSE_HOST_DEVICE LossTiling strided_loss(const HeatmapMseLossParams& p) {
  return {MapLayout::kStrided, {p.spec.width, p.spec.height, 1, 1}, p.batch * p.joints};
}

constexpr int kSampleTileBytes = 1 << 16;  // 16 accesses of 16 bytes for each of 256 threads
constexpr int kSampleThreads = 256;

// The tiles of a sample of channels-last maps, a block for each: about as many vectors wide as it has threads.
FASTPOSE_HOST_DEVICE MapTiles sample_tiles(const HeatmapMseLossParams& p) {
  const int64_t vector = 16 / bytes_of(p.kind), row = p.spec.width * p.joints / vector;
  const int64_t pixels = vector * (p.joints < kSampleThreads ? kSampleThreads / p.joints : 1);
  const int width = static_cast<int>(row <= kSampleThreads || p.spec.width < pixels ? p.spec.width : pixels);
  const int height = static_cast<int>(kSampleTileBytes / bytes_of(p.kind) / p.joints / width);
  return map_tiles(p.spec.width, p.spec.height, width, height < 1 ? 1 : height, static_cast<int>(vector));
}

FASTPOSE_HOST_DEVICE LossTiling loss_tiling(const HeatmapMseLossParams& p) {
  const int64_t width = p.spec.width, vector = 16 / bytes_of(p.kind);
  const auto fits = [&](const void* data, const MapStrides& strides, MapLayout layout) {
    return has_layout(strides, layout, p.joints) && has_dense_rows(strides, width) &&
           reinterpret_cast<uintptr_t>(data) % 16 == 0 && strides.b % vector == 0 &&
           (layout == MapLayout::kChannelsLast || strides.k % vector == 0);
  };
  for (const MapLayout layout : {MapLayout::kPlanar, MapLayout::kChannelsLast}) {
    const bool planar = layout == MapLayout::kPlanar;
    const int64_t row = planar ? width : width * p.joints;
    if (row == 0 || row % vector != 0) continue;
    if (!fits(p.pred, p.pred_strides, layout)) continue;
    if (p.grad != nullptr && !fits(p.grad, p.grad_strides, layout)) continue;
    const MapTiles tiles = planar ? warp_tiles(p.spec.width, p.spec.height, p.kind) : sample_tiles(p);
    return {layout, tiles, (planar ? p.batch * p.joints : p.batch) * tiles.count()};
  }
  return strided_loss(p);
}

// One for each block, or with of_maps for each map in each tile.
FASTPOSE_HOST_DEVICE int64_t partial_sums_of(const HeatmapMseLossParams& p, const LossTiling& tiling) {
  if (!p.of_maps) return blocks_of(tiling);
  return tiling.layout == MapLayout::kChannelsLast ? tiling.count * p.joints : tiling.count;
}

// Enough for every way through the maps.
FASTPOSE_HOST_DEVICE int64_t partial_sum_count(const HeatmapMseLossParams& p) {
  const int64_t maps = p.batch * p.joints, sums = partial_sums_of(p, loss_tiling(p));
  return maps > sums ? maps : sums;
}

#ifdef FASTPOSE_WITH_CUDA
cudaError_t launch_heatmap_mse_loss(const HeatmapMseLossParams& params, cudaStream_t stream);
cudaError_t launch_heatmap_mse_loss_backward(const HeatmapMseLossParams& params, cudaStream_t stream);
#endif

}  // namespace fastpose
