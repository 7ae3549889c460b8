// SPDX-License-Identifier: Apache-2.0
// How maps [B, K, h, w] lie in memory, and the two layouts that there are fast ways through. Crops are maps as well: of
// three colours.
#pragma once

#include "maths/host_device.h"

namespace fastpose {

struct MapStrides {
  int64_t b, k, y, x;  // elements
};

// Of SimCC's vectors [B, K, bins], of which a joint has one per axis.
struct VectorStrides {
  int64_t b, k, bin;  // elements
};

enum class MapLayout : int {
  kPlanar,        // map after map: torch's contiguous_format
  kChannelsLast,  // pixel after pixel, each with its values of all K maps: torch's channels_last
  kStrided,       // any
};

// Whether the pixels of a row lie as in that layout. Between rows and between samples there may be gaps. Of one map
// both layouts may hold.
FASTPOSE_HOST_DEVICE bool has_layout(const MapStrides& strides, MapLayout layout, int64_t maps) {
  switch (layout) {
    case MapLayout::kPlanar:
      return strides.x == 1;
    case MapLayout::kChannelsLast:
      return strides.k == 1 && strides.x == maps;
    default:
      return true;
  }
}

// Whether there are no gaps between rows either, in a planar or a channels-last layout.
FASTPOSE_HOST_DEVICE bool has_dense_rows(const MapStrides& strides, int64_t width) {
  return strides.y == width * strides.x;
}

}  // namespace fastpose
