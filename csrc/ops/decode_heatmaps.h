// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "maths/affine.h"
#include "maths/blur.h"
#include "maths/joint_permutation.h"
#include "maths/map_layout.h"
#include "maths/peak.h"

namespace fastpose {

enum class Refine : int { kNone, kQuarter, kDark, kDarkUdp };

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
  int blur_radius;
  double blur[kMaxBlurKernel / 2 + 1];  // the Gaussian's weights by distance from its middle, up to blur_radius
};

// One map as the decoder sees it: averaged with the un-mirrored map of the mirrored image, if there is one.
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

struct MapPixel {
  int x, y;
};

FASTPOSE_HOST_DEVICE MapPixel map_pixel(const DecodeHeatmapsParams& p, int64_t index) {
  // On a GPU a division of 64-bit numbers takes four times as long.
  const int y = index <= INT32_MAX ? static_cast<int>(static_cast<uint32_t>(index) / static_cast<uint32_t>(p.width))
                                   : static_cast<int>(index / p.width);
  return {static_cast<int>(index - static_cast<int64_t>(y) * p.width), y};
}

struct Offset {
  double x, y;
};

// A quarter of a pixel toward the higher neighbour, not at all between equal (or NaN) ones.
template <typename A>
FASTPOSE_HOST_DEVICE double quarter_toward(A before, A after) {
  return after > before ? 0.25 : after < before ? -0.25 : 0.0;
}

template <typename T>
FASTPOSE_HOST_DEVICE Offset quarter_offset(const DecodeHeatmapsParams& p, const DecodedMap<T>& map, MapPixel at) {
  if (!(at.x > 1 && at.x < p.width - 1 && at.y > 1 && at.y < p.height - 1)) return {0.0, 0.0};
  return {quarter_toward(map.at(at.y, at.x - 1), map.at(at.y, at.x + 1)),
          quarter_toward(map.at(at.y - 1, at.x), map.at(at.y + 1, at.x))};
}

// ---- dark and dark_udp ----------------------------------------------------------------------------------------------
// A window of blurred values around the peak, kReach pixels to each side: 2 for dark, 1 for dark_udp. Only what these
// values are made of is read. Each backend adds them up in its own way, column by column; all in float64, since the
// second differences of their logarithms are small.

// The pixels of one axis, first to last, that a window's blurred values are computed from; beyond the map there is
// zero.
struct BlurRange {
  int first, last;

  FASTPOSE_HOST_DEVICE BlurRange(int peak, int reach, int radius, int size)
      : first(peak > reach + radius ? peak - reach - radius : 0),
        last(peak + reach + radius < size ? peak + reach + radius : size - 1) {}
};

// What the blurred values are multiplied by, so that the highest of them is as high as the map. 0 if none is positive.
template <typename A>
FASTPOSE_HOST_DEVICE double blur_scale(const Peak<A>& peak, double highest) {
  return highest > 0.0 ? static_cast<double>(peak.value) / highest : 0.0;
}

// Values below mmpose's floors count as these; NaN stays NaN.
template <int kReach>
FASTPOSE_HOST_DEVICE double log_above_floor(double value) {
  constexpr double floor = kReach == 2 ? 1e-10 : 1e-3;
  return std::log(value < floor ? floor : value);
}

// Newton's step to where the gradient is zero. None where the Hessian is singular to rounding: one of its eigenvalues
// less than 1e-12 of the other, or both less than 1e-10.
FASTPOSE_HOST_DEVICE Offset newton_step(double dx, double dy, double dxx, double dxy, double dyy) {
  const double determinant = dxx * dyy - dxy * dxy;
  const double smallest = 1e-12 * (dxx * dxx + 2.0 * dxy * dxy + dyy * dyy) + 1e-20;
  const Offset step{(dxy * dy - dyy * dx) / determinant, (dxy * dx - dxx * dy) / determinant};
  const bool holds = std::fabs(determinant) > smallest && is_finite(step.x) && is_finite(step.y);
  return holds ? step : Offset{0.0, 0.0};
}

// mmpose's refine_keypoints_dark and refine_keypoints_dark_udp, which adds float32's epsilon to the Hessian's diagonal.
// logs(row, column) is a logarithm of the window.
template <int kReach, typename Logs>
FASTPOSE_HOST_DEVICE Offset offset_of(const Logs& logs) {
  if constexpr (kReach == 2) {
    const double middle = 2.0 * logs(2, 2);
    return newton_step(
        0.5 * (logs(2, 3) - logs(2, 1)), 0.5 * (logs(3, 2) - logs(1, 2)), 0.25 * (logs(2, 4) - middle + logs(2, 0)),
        0.25 * (logs(3, 3) - logs(1, 3) - logs(3, 1) + logs(1, 1)), 0.25 * (logs(4, 2) - middle + logs(0, 2)));
  } else {
    constexpr double epsilon = 0x1p-23;
    const double left = logs(1, 0), right = logs(1, 2), above = logs(0, 1), below = logs(2, 1);
    const double middle = 2.0 * logs(1, 1);
    return newton_step(0.5 * (right - left), 0.5 * (below - above), right - middle + left + epsilon,
                       0.5 * (logs(2, 2) - right - below + middle - left - above + logs(0, 0)),
                       below - middle + above + epsilon);
  }
}

// dark leaves peaks alone whose window does not lie within the map; dark_udp moves all.
template <int kReach>
FASTPOSE_HOST_DEVICE bool is_refined(const DecodeHeatmapsParams& p, MapPixel at) {
  return kReach == 1 || (at.x > 1 && at.x < p.width - 2 && at.y > 1 && at.y < p.height - 2);
}

// ---------------------------------------------------------------------------------------------------------------------

// Where the points of sample b go. Without a matrix they stay where they are, to the bit.
FASTPOSE_HOST_DEVICE Affine map_to_image(const DecodeHeatmapsParams& p, int64_t b) {
  return p.heatmap_to_image == nullptr ? Affine{{1, 0, 0, 0, 1, 0}} : load_affine(p.heatmap_to_image + 6 * b);
}

// Of map `index`, whose peak is found at that pixel, if there is one.
template <typename A>
FASTPOSE_HOST_DEVICE void write_decoded_point(const DecodeHeatmapsParams& p, int64_t index, const Affine& to_image,
                                              const Peak<A>& peak, MapPixel at, Offset offset) {
  const bool found = is_found(peak);
  double x = found ? at.x + offset.x : 0.0, y = found ? at.y + offset.y : 0.0;
  apply_affine(to_image, x, y, x, y);
  p.keypoints[2 * index] = static_cast<float>(x);
  p.keypoints[2 * index + 1] = static_cast<float>(y);
  p.scores[index] = peak.index >= 0 ? static_cast<float>(peak.value) : NAN;
}

#ifdef FASTPOSE_WITH_CUDA
cudaError_t launch_decode_heatmaps(const DecodeHeatmapsParams& params, cudaStream_t stream);
#endif

}  // namespace fastpose
