// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "maths/heatmap_target.h"

namespace fastpose {

struct RenderHeatmapsParams {
  const float* keypoints;  // [B, K, 2] map pixels
  const float* visible;    // [B, K]
  void* heatmaps;          // [B, K, h, w] contiguous
  float* weights;          // [B, K]
  ScalarKind kind;
  int64_t maps;  // B * K
  TargetSpec spec;
};

FASTPOSE_HOST_DEVICE JointTarget target_of_map(const RenderHeatmapsParams& p, int64_t map) {
  return joint_target(p.spec, p.keypoints[2 * map], p.keypoints[2 * map + 1], p.visible[map]);
}

#ifdef FASTPOSE_WITH_CUDA
cudaError_t launch_render_heatmaps(const RenderHeatmapsParams& params, cudaStream_t stream);
#endif

}  // namespace fastpose
