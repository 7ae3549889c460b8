// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "maths/affine.h"
#include "maths/blur.h"
#include "maths/joint_permutation.h"
#include "maths/map_layout.h"
#include "maths/peak.h"

namespace fastpose {

struct DecodeSimccAxis {
  const void* pred;  // [B, K, bins]
  VectorStrides strides;
  const void* flipped;  // vectors of the mirrored image, same shape, or null
  VectorStrides flipped_strides;
  int bins;
  int blur_radius;
  double blur[kMaxBlurKernel / 2 + 1];  // the Gaussian's weights by distance from its middle, up to blur_radius
};

struct DecodeSimccParams {
  DecodeSimccAxis axes[2];  // x, y
  JointPermutation mirrored;
  ScalarKind kind;
  const float* crop_to_image;  // [B, 2, 3], or null: points stay in crop pixels
  float* keypoints;            // [B, K, 2]
  float* scores;               // [B, K]
  int64_t batch, joints;
  double split_ratio;  // bins per crop pixel
  bool dark;
};

// One vector as the decoder sees it: averaged with the un-mirrored vector of the mirrored image, if there is one.
template <typename T>
struct DecodedVector {
  using A = accumulate_t<T>;
  const T* pred;
  int64_t stride;
  const T* flipped;  // null without mirror test
  int64_t flipped_stride;

  FASTPOSE_HOST_DEVICE A at(int bin) const {
    const A value = static_cast<A>(pred[bin * stride]);
    return flipped == nullptr ? value : (value + static_cast<A>(flipped[bin * flipped_stride])) * A(0.5);
  }
};

// A mirrored image's bins in x run backwards.
template <typename T>
FASTPOSE_HOST_DEVICE DecodedVector<T> decoded_vector(const DecodeSimccParams& p, const DecodeSimccAxis& axis, int64_t b,
                                                     int64_t k, bool is_x) {
  const T* flipped = static_cast<const T*>(axis.flipped);
  const VectorStrides &strides = axis.strides, &others = axis.flipped_strides;
  if (flipped != nullptr)
    flipped += b * others.b + p.mirrored.of[k] * others.k + (is_x ? (axis.bins - 1) * others.bin : 0);
  return {static_cast<const T*>(axis.pred) + b * strides.b + k * strides.k, strides.bin, flipped,
          is_x ? -others.bin : others.bin};
}

// ---- dark: one Newton step on the logarithm of the blurred vector, all in float64 -----------------------------------

constexpr int kDarkReach = 2;  // bins to each side of the maximum that the step is made of

// The bins of that window; an end is repeated beyond it.
FASTPOSE_HOST_DEVICE int dark_bin(int64_t peak, int i, int bins) {
  const int64_t bin = peak + i - kDarkReach;
  return static_cast<int>(bin < 0 ? 0 : bin < bins ? bin : bins - 1);
}

// Blurred values between mmpose's limits; NaN stays NaN.
FASTPOSE_HOST_DEVICE double dark_log(double blurred) {
  return std::log(blurred < 1e-3 ? 1e-3 : blurred > 50.0 ? 50.0 : blurred);
}

// What is subtracted from the maximum's bin, from the window's blurred values, which are first scaled so that the
// highest of the whole vector, `highest`, is the maximum. 0 if it is not finite.
FASTPOSE_HOST_DEVICE double dark_step(const double (&window)[2 * kDarkReach + 1], double maximum, double highest) {
  const double scale = maximum / highest;
  const double before = dark_log(window[1] * scale), after = dark_log(window[3] * scale);
  const double curvature =
      dark_log(window[4] * scale) - 2.0 * dark_log(window[2] * scale) + dark_log(window[0] * scale);
  const double step = 0.5 * (after - before) / (1e-9 + 0.25 * curvature);
  return is_finite(step) ? step : 0.0;
}

// ---------------------------------------------------------------------------------------------------------------------

// Of joint k of sample b, whose vectors have these maxima and steps.
template <typename A>
FASTPOSE_HOST_DEVICE void write_simcc_point(const DecodeSimccParams& p, int64_t b, int64_t k, const Peak<A> (&peaks)[2],
                                            const double (&steps)[2]) {
  const bool found = is_found(peaks[0]) && is_found(peaks[1]);
  double x = found ? static_cast<double>(peaks[0].index) - steps[0] : -1.0;
  double y = found ? static_cast<double>(peaks[1].index) - steps[1] : -1.0;
  x /= p.split_ratio;
  y /= p.split_ratio;
  if (p.crop_to_image != nullptr) apply_affine(load_affine(p.crop_to_image + 6 * b), x, y, x, y);
  const int64_t index = b * p.joints + k;
  p.keypoints[2 * index] = static_cast<float>(x);
  p.keypoints[2 * index + 1] = static_cast<float>(y);
  const bool only_nan = peaks[0].index < 0 || peaks[1].index < 0;
  p.scores[index] =
      only_nan ? NAN : static_cast<float>(peaks[1].value < peaks[0].value ? peaks[1].value : peaks[0].value);
}

#ifdef FASTPOSE_WITH_CUDA
cudaError_t launch_decode_simcc(const DecodeSimccParams& params, cudaStream_t stream);
#endif

}  // namespace fastpose
