// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "affine.h"
#include "joint_permutation.h"

namespace fastpose {

enum class Refine : int { kNone, kQuarter };

struct MapStrides {
  int64_t b, k, y, x;
};

struct DecodeHeatmapsParams {
  const void* heatmaps;  // [B, K, h, w]
  MapStrides strides;
  const void* flipped;  // maps of the mirrored image, same shape, or null
  MapStrides flipped_strides;
  JointPermutation mirrored;
  bool flip_shift;
  ScalarKind kind;
  const float* heatmap_to_image;  // [B, 2, 3], or null: points stay in map pixels
  float* keypoints;               // [B, K, 2]
  float* scores;                  // [B, K]
  int64_t batch, joints;
  int height, width;
  Refine refine;
};

// One map as the decoder sees it: averaged, where there is one, with the un-mirrored map of the mirrored image.
template <typename T>
struct DecodedMap {
  using A = accumulate_t<T>;
  const T* map;
  int64_t stride_y, stride_x;
  const T* flipped;  // null without mirror test
  int64_t flipped_stride_y, flipped_stride_x;
  int width;
  bool flip_shift;

  FASTPOSE_HOST_DEVICE A at(int y, int x) const {
    const A value = static_cast<A>(map[y * stride_y + x * stride_x]);
    if (flipped == nullptr) return value;
    // Column x of the un-mirrored map is column width-1-x; shifted, it is the neighbour's, and column 0 keeps its own.
    const int unshifted = flip_shift && x > 0 ? x - 1 : x;
    const A other = static_cast<A>(flipped[y * flipped_stride_y + (width - 1 - unshifted) * flipped_stride_x]);
    return (value + other) * A(0.5);
  }
};

template <typename T>
FASTPOSE_HOST_DEVICE DecodedMap<T> decoded_map(const DecodeHeatmapsParams& p, int64_t b, int64_t k) {
  const T* flipped = static_cast<const T*>(p.flipped);
  if (flipped != nullptr) flipped += b * p.flipped_strides.b + p.mirrored.of[k] * p.flipped_strides.k;
  return {static_cast<const T*>(p.heatmaps) + b * p.strides.b + k * p.strides.k,
          p.strides.y,
          p.strides.x,
          flipped,
          p.flipped_strides.y,
          p.flipped_strides.x,
          p.width,
          p.flip_shift};
}

// The running maximum of a map: pixel index y * width + x, or -1 while only NaN was seen.
template <typename A>
struct Peak {
  A value;
  int64_t index;
};

// Lowest index wins a tie; NaN never wins.
template <typename A>
FASTPOSE_HOST_DEVICE bool is_better(const Peak<A>& candidate, const Peak<A>& best) {
  if (candidate.index < 0 || candidate.value != candidate.value) return false;
  if (best.index < 0) return true;
  return candidate.value > best.value || (candidate.value == best.value && candidate.index < best.index);
}

// A quarter of a pixel toward the higher neighbour, not at all between equal (or NaN) ones.
template <typename A>
FASTPOSE_HOST_DEVICE double quarter_toward(A before, A after) {
  return after > before ? 0.25 : after < before ? -0.25 : 0.0;
}

template <typename T>
FASTPOSE_HOST_DEVICE void write_decoded_point(const DecodeHeatmapsParams& p, int64_t index, const DecodedMap<T>& map,
                                              const Peak<accumulate_t<T>>& peak) {
  using A = accumulate_t<T>;
  double x = 0.0, y = 0.0;
  if (peak.index >= 0 && peak.value > A(0)) {
    const int row = static_cast<int>(peak.index / p.width);
    const int column = static_cast<int>(peak.index - static_cast<int64_t>(row) * p.width);
    x = column;
    y = row;
    const bool inside = column > 1 && column < p.width - 1 && row > 1 && row < p.height - 1;
    if (p.refine == Refine::kQuarter && inside) {
      x += quarter_toward(map.at(row, column - 1), map.at(row, column + 1));
      y += quarter_toward(map.at(row - 1, column), map.at(row + 1, column));
    }
  }
  if (p.heatmap_to_image != nullptr) {
    apply_affine(load_affine(p.heatmap_to_image + 6 * (index / p.joints)), x, y, x, y);
  }
  p.keypoints[2 * index] = static_cast<float>(x);
  p.keypoints[2 * index + 1] = static_cast<float>(y);
  p.scores[index] = peak.index >= 0 ? static_cast<float>(peak.value) : NAN;
}

#ifdef FASTPOSE_WITH_CUDA
cudaError_t launch_decode_heatmaps(const DecodeHeatmapsParams& params, cudaStream_t stream);
#endif

}  // namespace fastpose
