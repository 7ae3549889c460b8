// SPDX-License-Identifier: Apache-2.0
// The factors of a target as kernels want them that give each warp a tile of a planar map. Most tiles hold a window of
// a few pixels, or none: what lies outside it is 0 and costs one comparison.
#pragma once

#include "cuda/cuda_launch.cuh"
#include "maths/heatmap_target.h"
#include "maths/map_tiles.h"

namespace fastpose {

// The factor of a row or a column: a loop over both has one exponential.
template <typename A>
__device__ __forceinline__ A target_factor_along(const TargetSpec& spec, const JointTarget& t, bool along_x, int at) {
  return target_factor<A>(spec, at, along_x ? t.center_x : t.center_y, along_x ? t.x_begin : t.y_begin,
                          along_x ? t.x_end : t.y_end);
}

// Where a warp's tile lies.
struct WarpTile {
  unsigned map;
  int x = 0, y = 0, width, height;

  __device__ __forceinline__ WarpTile(const MapTiles& tiles, const TargetSpec& spec, unsigned tile) : map(tile) {
    const unsigned across = static_cast<unsigned>(tiles.across), count = across * static_cast<unsigned>(tiles.down);
    if (count > 1) {
      map = tile / count;
      const unsigned in_map = tile - map * count, row = across > 1 ? in_map / across : in_map;
      x = static_cast<int>(in_map - row * across) * tiles.width;
      y = static_cast<int>(row) * tiles.height;
    }
    width = min(tiles.width, spec.width - x);
    height = min(tiles.height, spec.height - y);
  }
};

// A window's pixels in either direction; all of a map's where the encoding has no window.
inline int window_extent(const TargetSpec& spec) {
  const bool all = spec.encoding == Encoding::kUnbiased || spec.radius > 1 << 20;
  return all ? 1 << 24 : 2 * static_cast<int>(spec.radius) + 1;
}

// Room for the factors of a warp's tile, which are never more than those of whole vectors around a window.
template <typename A, int V>
int factors_of_tile(const TargetSpec& spec, const MapTiles& tiles) {
  const int extent = window_extent(spec);
  return aligned_count(std::min(divided_up(tiles.width, V), (extent + V - 2) / V + 1) * V +
                       std::min(tiles.height, extent));
}

// The part of a target's window that lies in a warp's tile. `columns` counts vectors of V pixels; rows and columns are
// those of the tile. No rows or no columns: nothing is drawn here.
template <typename A, int V>
struct TargetInTile {
  int row, rows, column, columns;
  const A *factors_x, *factors_y;  // [columns * V], [rows]

  // By all lanes of a warp. factors: factors_of_tile numbers of the warp's own, in shared memory.
  __device__ __forceinline__ TargetInTile(const TargetSpec& spec, const JointTarget& target, const WarpTile& tile,
                                          A* factors) {
    const int x_begin = max(target.x_begin - tile.x, 0), x_end = min(target.x_end - tile.x, tile.width);
    const int y_begin = max(target.y_begin - tile.y, 0), y_end = min(target.y_end - tile.y, tile.height);
    row = y_begin;
    rows = max(y_end - y_begin, 0);
    column = x_begin / V;
    columns = max((x_end + V - 1) / V - column, 0);
    if (rows == 0 || x_end <= x_begin) rows = columns = 0;
    factors_x = factors;
    factors_y = factors + columns * V;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x % 32); i < columns * V + rows; i += 32) {
      const bool along_x = i < columns * V;
      const int at = along_x ? tile.x + column * V + i : tile.y + row + i - columns * V;
      factors[i] = target_factor_along<A>(spec, target, along_x, at);
    }
    __syncwarp();
  }
};

}  // namespace fastpose
