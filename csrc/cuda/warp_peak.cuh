// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/cuda_launch.cuh"
#include "maths/peak.h"

namespace fastpose {

// The best of a warp's peaks, in every lane.
template <typename A>
__device__ __forceinline__ Peak<A> best_of_warp(Peak<A> best) {
  for (int offset = 16; offset > 0; offset /= 2) {
    Peak<A> other;
    other.value = __shfl_xor_sync(kFullWarp, best.value, offset);
    other.index = __shfl_xor_sync(kFullWarp, best.index, offset);
    if (is_better(other, best)) best = other;
  }
  return best;
}

}  // namespace fastpose
