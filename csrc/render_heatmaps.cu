// SPDX-License-Identifier: Apache-2.0
#include "cuda_launch.cuh"

#include "render_heatmaps.h"

namespace fastpose {
namespace {

// One block per map.
template <typename T>
__global__ void render_heatmaps_kernel(const RenderHeatmapsParams p) {
  using A = accumulate_t<T>;
  const int64_t pixels = static_cast<int64_t>(p.spec.height) * p.spec.width;
  for (int64_t map = blockIdx.x; map < p.maps; map += gridDim.x) {
    const JointTarget target = target_of_map(p, map);
    if (threadIdx.x == 0) p.weights[map] = target.weight;
    T* out = static_cast<T*>(p.heatmaps) + map * pixels;
    for (int64_t i = threadIdx.x; i < pixels; i += blockDim.x) {
      const int y = static_cast<int>(i / p.spec.width),
                x = static_cast<int>(i - static_cast<int64_t>(y) * p.spec.width);
      out[i] = static_cast<T>(target_value<A>(target, p.spec.sigma, x, y));
    }
  }
}

}  // namespace

cudaError_t launch_render_heatmaps(const RenderHeatmapsParams& params, cudaStream_t stream) {
  dispatch_device_floating(params.kind, [&](auto zero) {
    render_heatmaps_kernel<decltype(zero)><<<grid_for(params.maps, 1), kThreads, 0, stream>>>(params);
  });
  return cudaGetLastError();
}

}  // namespace fastpose
