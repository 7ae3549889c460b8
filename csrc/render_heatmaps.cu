// SPDX-License-Identifier: Apache-2.0
#include "cuda_launch.cuh"

#include "render_heatmaps.h"

namespace fastpose {
namespace {

constexpr int kRenderThreads = 128;

// One block per map: w + h factors into shared memory, then nothing but stores, V elements each. Floor: the bytes of
// the maps. V = 1 serves widths that are no multiple of a vector, and types of any alignment.
template <typename T, int V>
__global__ void __launch_bounds__(kRenderThreads)
    render_heatmaps_kernel(const __grid_constant__ RenderHeatmapsParams p) {
  using A = accumulate_t<T>;
  __shared__ JointTarget target;
  const int height = p.spec.height, width = p.spec.width;
  A* factors_x = dynamic_shared<A>();
  A* factors_y = factors_x + aligned_count(width);
  for (int64_t map = blockIdx.x; map < p.maps; map += gridDim.x) {
    if (threadIdx.x == 0) {
      target = target_of_map(p, map);
      p.weights[map] = target.weight;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < width; i += kRenderThreads) factors_x[i] = target_factor_x<A>(p.spec, target, i);
    for (int i = threadIdx.x; i < height; i += kRenderThreads) factors_y[i] = target_factor_y<A>(p.spec, target, i);
    __syncthreads();
    T* out = static_cast<T*>(p.heatmaps) + map * height * width;
    const int row_vectors = width / V;
    for (RowCursor at(threadIdx.x, kRenderThreads, row_vectors); at.row < height; at.advance()) {
      const A factor_y = factors_y[at.row];
      const int64_t vector = static_cast<int64_t>(at.row) * row_vectors + at.column;
      if constexpr (V == 1) {
        out[vector] = static_cast<T>(factors_x[at.column] * factor_y);
      } else {
        A factor_x[V];
        load_aligned<V>(factor_x, factors_x + at.column * V);
        Vector<T> values;
#pragma unroll
        for (int i = 0; i < V; ++i) values.of[i] = static_cast<T>(factor_x[i] * factor_y);
        reinterpret_cast<Vector<T>*>(out)[vector] = values;
      }
    }
    __syncthreads();  // the factors are free for the next map
  }
}

// Maps so large that their factors do not fit into shared memory: every pixel computes its own.
template <typename T>
__global__ void __launch_bounds__(kRenderThreads)
    render_huge_map_kernel(const __grid_constant__ RenderHeatmapsParams p) {
  using A = accumulate_t<T>;
  const int width = p.spec.width;
  const int64_t pixels = static_cast<int64_t>(p.spec.height) * width;
  for (int64_t map = 0; map < p.maps; ++map) {
    const JointTarget target = target_of_map(p, map);
    if (first_item() == 0) p.weights[map] = target.weight;
    T* out = static_cast<T*>(p.heatmaps) + map * pixels;
    for (int64_t i = first_item(); i < pixels; i += item_stride()) {
      const int y = static_cast<int>(i / width), x = static_cast<int>(i - static_cast<int64_t>(y) * width);
      out[i] = static_cast<T>(target_factor_x<A>(p.spec, target, x) * target_factor_y<A>(p.spec, target, y));
    }
  }
}

}  // namespace

cudaError_t launch_render_heatmaps(const RenderHeatmapsParams& params, cudaStream_t stream) {
  return dispatch_device_floating(params.kind, [&](auto zero) {
    using T = decltype(zero);
    const size_t shared_bytes =
        sizeof(accumulate_t<T>) * (aligned_count(params.spec.width) + static_cast<size_t>(params.spec.height));
    if (shared_bytes > kSharedBytes) {
      const int64_t pixels = static_cast<int64_t>(params.spec.height) * params.spec.width;
      return launch(render_huge_map_kernel<T>, grid_for(pixels, kRenderThreads), kRenderThreads, stream, params);
    }
    const bool vectors =
        params.spec.width % Vector<T>::kSize == 0 && is_vector_aligned(static_cast<const T*>(params.heatmaps));
    return launch(vectors ? render_heatmaps_kernel<T, Vector<T>::kSize> : render_heatmaps_kernel<T, 1>,
                  grid_for(params.maps, 1), kRenderThreads, stream, params, shared_bytes);
  });
}

}  // namespace fastpose
