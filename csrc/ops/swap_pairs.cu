// SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_launch.cuh"

#include "ops/swap_pairs.h"

namespace fastpose {
namespace {

// __grid_constant__: the permutation is indexed at run time, and reading it where the launch put it beats a copy of the
// kilobyte in every thread's local memory.
__global__ void swap_pairs_kernel(const __grid_constant__ SwapPairsParams p) {
  for (int64_t i = first_item(); i < p.batch * p.joints; i += item_stride()) swap_one_joint(p, i);
}

}  // namespace

cudaError_t launch_swap_pairs(const SwapPairsParams& params, cudaStream_t stream) {
  return launch(swap_pairs_kernel, grid_for(params.batch * params.joints, kThreads), kThreads, stream, params);
}

}  // namespace fastpose
