// SPDX-License-Identifier: Apache-2.0
// The Gaussian target of one joint, shared by render_heatmaps and heatmap_mse_loss. All three encodings are a product
// of a function of x and a function of y (the window is a square), so a map is the outer product of two short vectors.
#pragma once

#include "maths/host_device.h"

namespace fastpose {

enum class Encoding : int {
  kMsra,      // centre rounded to a pixel, square window of radius int(3 sigma): SimpleBaselines
  kUnbiased,  // sub-pixel centre, whole map: DARK
  kUdp,       // sub-pixel centre, the window of msra
};

struct TargetSpec {
  double inverse_sigma;  // per map pixel
  double radius;         // of the window, int(3 sigma) map pixels
  Encoding encoding;
  int height, width;
};

FASTPOSE_HOST_DEVICE TargetSpec make_target_spec(double sigma, Encoding encoding, int height, int width) {
  return {1.0 / sigma, trunc(3.0 * sigma), encoding, height, width};
}

struct JointTarget {
  float center_x, center_y;            // where the Gaussian peaks, map pixels
  int x_begin, x_end, y_begin, y_end;  // window clipped to the map; empty when nothing is drawn
  float weight;
};

// The pixel that msra and udp centre their window on: x + 0.5 truncated toward zero. In float64, where the sum is exact
// for every float32 near a map; in float32 0.49999997 + 0.5 rounds up to 1 and would move the window by a pixel.
FASTPOSE_HOST_DEVICE double rounded_center(float x) { return trunc(static_cast<double>(x) + 0.5); }

FASTPOSE_HOST_DEVICE int clip_to_map(double value, int size) {
  return value <= 0.0 ? 0 : value >= size ? size : static_cast<int>(value);
}

FASTPOSE_HOST_DEVICE JointTarget joint_target(const TargetSpec& spec, float x, float y, float visible) {
  JointTarget target{0.0f, 0.0f, 0, 0, 0, 0, 0.0f};
  if (!is_finite(x) || !is_finite(y)) return target;  // nowhere on the map
  const double radius = spec.radius;
  const bool rounded = spec.encoding != Encoding::kUnbiased;
  const double cx = rounded ? rounded_center(x) : x;
  const double cy = rounded ? rounded_center(y) : y;
  const bool off_map =
      cx - radius >= spec.width || cy - radius >= spec.height || cx + radius + 1.0 < 0.0 || cy + radius + 1.0 < 0.0;
  if (off_map) return target;
  target.weight = visible;
  if (!(visible > 0.5f)) return target;
  target.center_x = spec.encoding == Encoding::kMsra ? static_cast<float>(cx) : x;
  target.center_y = spec.encoding == Encoding::kMsra ? static_cast<float>(cy) : y;
  target.x_begin = rounded ? clip_to_map(cx - radius, spec.width) : 0;
  target.y_begin = rounded ? clip_to_map(cy - radius, spec.height) : 0;
  target.x_end = rounded ? clip_to_map(cx + radius + 1.0, spec.width) : spec.width;
  target.y_end = rounded ? clip_to_map(cy + radius + 1.0, spec.height) : spec.height;
  return target;
}

// One factor of the Gaussian: exp(-(i - center)^2 / (2 sigma^2)) inside [begin, end), 0 outside.
template <typename A>
FASTPOSE_HOST_DEVICE A target_factor(const TargetSpec& spec, int i, float center, int begin, int end) {
  if (i < begin || i >= end) return A(0);
  const A scaled = (static_cast<A>(i) - static_cast<A>(center)) * static_cast<A>(spec.inverse_sigma);
  return exp_of(A(-0.5) * scaled * scaled);
}

template <typename A>
FASTPOSE_HOST_DEVICE A target_factor_x(const TargetSpec& spec, const JointTarget& t, int x) {
  return target_factor<A>(spec, x, t.center_x, t.x_begin, t.x_end);
}

template <typename A>
FASTPOSE_HOST_DEVICE A target_factor_y(const TargetSpec& spec, const JointTarget& t, int y) {
  return target_factor<A>(spec, y, t.center_y, t.y_begin, t.y_end);
}

}  // namespace fastpose
