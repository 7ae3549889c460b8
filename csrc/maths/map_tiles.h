// SPDX-License-Identifier: Apache-2.0
// How a GPU shares a map: equal tiles, each small enough that there are many, large enough to be worth its beginning.
#pragma once

#include "maths/host_device.h"

namespace fastpose {

struct MapTiles {
  int width, height;  // of a tile, pixels; the last one of a row or a column may have fewer
  int across, down;   // tiles of a map

  FASTPOSE_HOST_DEVICE int64_t count() const { return static_cast<int64_t>(across) * down; }
};

FASTPOSE_HOST_DEVICE int divided_up(int n, int by) { return (n + by - 1) / by; }

// Tiles of at most `width` x `height`, about as large as each other, that begin at multiples of `step` columns.
FASTPOSE_HOST_DEVICE MapTiles map_tiles(int map_width, int map_height, int width, int height, int step) {
  MapTiles tiles;
  const int share = divided_up(map_width, divided_up(map_width, width));
  tiles.width = map_width <= width ? map_width : divided_up(share, step) * step;
  tiles.height = divided_up(map_height, divided_up(map_height, height));
  tiles.across = divided_up(map_width, tiles.width);
  tiles.down = divided_up(map_height, tiles.height);
  return tiles;
}

constexpr int kTilesPerBlock = 4;     // of planar maps, one for each warp
constexpr int kWarpTileBytes = 8192;  // 16 accesses of 16 bytes for each lane
constexpr int kWarpTileSide = 2048;   // at most: the factors of four tiles fit into a block's shared memory

// The tiles of a planar map: whole rows, or pieces of one. Either way a tile is one piece of memory.
FASTPOSE_HOST_DEVICE MapTiles warp_tiles(int map_width, int map_height, ScalarKind kind) {
  const int elements = kWarpTileBytes / bytes_of(kind), width = elements < kWarpTileSide ? elements : kWarpTileSide;
  const int rows = map_width <= width ? elements / map_width : 1;
  return map_tiles(map_width, map_height, width, rows < kWarpTileSide ? rows : kWarpTileSide, 16 / bytes_of(kind));
}

}  // namespace fastpose
