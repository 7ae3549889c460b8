// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "maths/joint_permutation.h"

namespace fastpose {

struct SwapPairsParams {
  const float* points;   // [B, K, 2]
  const float* visible;  // [B, K]
  const uint8_t* flip;   // [B] bools; a byte that is not 0 is true, as torch reads them
  float* out_points;
  float* out_visible;
  int64_t batch;
  int64_t joints;
  JointPermutation mirrored;
};

FASTPOSE_HOST_DEVICE void swap_one_joint(const SwapPairsParams& p, int64_t index) {
  const int64_t b = index / p.joints;
  const int64_t source = p.flip[b] != 0 ? b * p.joints + p.mirrored.of[index - b * p.joints] : index;
  p.out_points[2 * index] = p.points[2 * source];
  p.out_points[2 * index + 1] = p.points[2 * source + 1];
  p.out_visible[index] = p.visible[source];
}

#ifdef FASTPOSE_WITH_CUDA
cudaError_t launch_swap_pairs(const SwapPairsParams& params, cudaStream_t stream);
#endif

}  // namespace fastpose
