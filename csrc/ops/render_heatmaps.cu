// SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_launch.cuh"

#include "cuda/target_in_tile.cuh"
#include "ops/render_heatmaps.h"

namespace fastpose {
namespace {

struct RenderTiles {
  RenderHeatmapsParams op;
  MapTiles tiles;
  unsigned count;  // of all maps
  int factors;     // of a warp's tile
};

template <typename T, int V>
struct alignas(V * sizeof(T)) Pixels {
  T of[V];
};

// A warp per tile. It writes zeros first, while its keypoint is under way, then the vectors that the window touches:
// the second time they are in the L2. Floor: the bytes of the maps. V = 1 serves widths that are no multiple of a
// vector, and maps of any alignment.
template <typename T, int V>
__global__ void __launch_bounds__(32 * kTilesPerBlock) render_tile_kernel(const __grid_constant__ RenderTiles t) {
  using A = accumulate_t<T>;
  const RenderHeatmapsParams& p = t.op;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const unsigned index = blockIdx.x * kTilesPerBlock + warp;
  if (index >= t.count) return;
  const WarpTile tile(t.tiles, p.spec, index);
  const JointTarget target = target_of_map(p, tile.map);
  const int64_t first = (static_cast<int64_t>(tile.map) * p.spec.height + tile.y) * p.spec.width + tile.x;
  auto* out = reinterpret_cast<Pixels<T, V>*>(static_cast<T*>(p.heatmaps) + first);
  const int row_vectors = tile.width / V, vectors = tile.height * row_vectors;
  // Without a window all of the map is drawn, or nothing.
  if (p.spec.encoding != Encoding::kUnbiased || target.x_end == 0) {
#pragma unroll 8
    for (int v = lane; v < vectors; v += 32) out[v] = Pixels<T, V>{};
  }
  if (lane == 0 && tile.x == 0 && tile.y == 0) p.weights[tile.map] = target.weight;
  const TargetInTile<A, V> window(p.spec, target, tile, dynamic_shared<A>() + warp * t.factors);

  // As many lanes side by side as the window has columns of vectors, rounded up to a power of two.
  int log_across = 0;
  while (log_across < 5 && 1 << log_across < window.columns) ++log_across;
  for (int column = lane & ((1 << log_across) - 1); column < window.columns; column += 1 << log_across) {
    A factor_x[V];
    if constexpr (V == 1) {
      factor_x[0] = window.factors_x[column];
    } else {
      load_aligned<V>(factor_x, window.factors_x + column * V);
    }
#pragma unroll 1
    for (int row = lane >> log_across; row < window.rows; row += 32 >> log_across) {
      Pixels<T, V> values;
#pragma unroll
      for (int i = 0; i < V; ++i) values.of[i] = static_cast<T>(factor_x[i] * window.factors_y[row]);
      out[(window.row + row) * row_vectors + window.column + column] = values;
    }
  }
}

template <typename T, int V>
cudaError_t launch_tiles(RenderHeatmapsParams params, cudaStream_t stream) {
  const MapTiles tiles = warp_tiles(params.spec.width, params.spec.height, params.kind);
  const int factors = factors_of_tile<accumulate_t<T>, V>(params.spec, tiles);
  // A launch has as many maps as 32-bit numbers can count the tiles of.
  const int64_t pixels = static_cast<int64_t>(params.spec.height) * params.spec.width, all = params.maps;
  const int64_t per_launch = std::max<int64_t>(1, (1 << 30) / tiles.count());
  for (int64_t first = 0; first < all; first += per_launch) {
    params.maps = std::min(per_launch, all - first);
    const auto count = static_cast<unsigned>(params.maps * tiles.count());
    const RenderTiles part{params, tiles, count, factors};
    const cudaError_t error = launch(render_tile_kernel<T, V>, grid_for(count, kTilesPerBlock), 32 * kTilesPerBlock,
                                     stream, part, sizeof(accumulate_t<T>) * kTilesPerBlock * factors);
    if (error != cudaSuccess) return error;
    params.keypoints += 2 * per_launch;
    params.visible += per_launch;
    params.weights += per_launch;
    params.heatmaps = static_cast<T*>(params.heatmaps) + per_launch * pixels;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t launch_render_heatmaps(const RenderHeatmapsParams& params, cudaStream_t stream) {
  return dispatch_device_floating(params.kind, [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = Vector<T>::kSize;
    const bool vectors = params.spec.width % V == 0 && is_vector_aligned(static_cast<const T*>(params.heatmaps));
    return vectors ? launch_tiles<T, V>(params, stream) : launch_tiles<T, 1>(params, stream);
  });
}

}  // namespace fastpose
