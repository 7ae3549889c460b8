// SPDX-License-Identifier: Apache-2.0
// What the kernels of every op share: element types, grid sizes, reductions. Torch-free.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "host_device.h"

namespace fastpose {

constexpr int kThreads = 256;
constexpr unsigned kFullWarp = 0xffffffffu;

// Blocks for `items`, `per_block` at a time. Kernels walk on with a grid stride, so the cap (the hardware allows
// 2^31-1) bounds nothing but the launch.
inline unsigned grid_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>(std::min<int64_t>((items + per_block - 1) / per_block, 1 << 30));
}

// Index of this thread among all, and the stride from one of its items to the next.
__device__ __forceinline__ int64_t first_item() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t item_stride() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// Calls body with a value of the device type behind kind.
template <typename Body>
void dispatch_device_floating(ScalarKind kind, const Body& body) {
  switch (kind) {
    case ScalarKind::kFloat16:
      return body(__half());
    case ScalarKind::kBFloat16:
      return body(__nv_bfloat16());
    case ScalarKind::kFloat64:
      return body(double());
    default:
      return body(float());
  }
}

// Sum over a block of kThreads, in an order that depends on nothing but the thread's place. Valid in thread 0.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double of_warp[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(kFullWarp, value, offset);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    value = 0.0;
    for (int warp = 0; warp < kThreads / 32; ++warp) value += of_warp[warp];
  }
  __syncthreads();  // of_warp may be written again by the caller's next round
  return value;
}

}  // namespace fastpose
