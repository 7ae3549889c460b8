// SPDX-License-Identifier: Apache-2.0
#include "cuda_launch.cuh"

#include "decode_heatmaps.h"

namespace fastpose {
namespace {

// One warp per map: every lane finds the maximum of its pixels, the warp the best of the lanes.
template <typename T>
__global__ void decode_heatmaps_kernel(const __grid_constant__ DecodeHeatmapsParams p) {
  using A = accumulate_t<T>;
  const int lane = threadIdx.x % 32;
  const int64_t pixels = static_cast<int64_t>(p.height) * p.width;
  const int64_t maps = p.batch * p.joints;
  for (int64_t index = first_item() / 32; index < maps; index += item_stride() / 32) {
    const int64_t b = index / p.joints;
    const DecodedMap<T> map = decoded_map<T>(p, b, index - b * p.joints);
    Peak<A> best{A(0), -1};
    for (int64_t i = lane; i < pixels; i += 32) {
      const int y = static_cast<int>(i / p.width), x = static_cast<int>(i - static_cast<int64_t>(y) * p.width);
      const Peak<A> candidate{map.at(y, x), i};
      if (is_better(candidate, best)) best = candidate;
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      Peak<A> other;
      other.value = __shfl_down_sync(kFullWarp, best.value, offset);
      other.index = __shfl_down_sync(kFullWarp, best.index, offset);
      if (is_better(other, best)) best = other;
    }
    if (lane == 0) write_decoded_point(p, index, map, best);
  }
}

}  // namespace

cudaError_t launch_decode_heatmaps(const DecodeHeatmapsParams& params, cudaStream_t stream) {
  const unsigned grid = grid_for(params.batch * params.joints * 32, kThreads);
  dispatch_device_floating(
      params.kind, [&](auto zero) { decode_heatmaps_kernel<decltype(zero)><<<grid, kThreads, 0, stream>>>(params); });
  return cudaGetLastError();
}

}  // namespace fastpose
