// SPDX-License-Identifier: Apache-2.0
// Affine maps of the plane, [x', y']^T = M [x, y, 1]^T, row major: m[0] m[1] m[2] / m[3] m[4] m[5].
// Stored as float32, computed in float64, so that a point carried there and back returns to its float32 self.
#pragma once

#include "maths/host_device.h"

namespace fastpose {

struct Affine {
  double m[6];
};

FASTPOSE_HOST_DEVICE Affine load_affine(const float* m) { return Affine{{m[0], m[1], m[2], m[3], m[4], m[5]}}; }

FASTPOSE_HOST_DEVICE void apply_affine(const Affine& a, double x, double y, double& out_x, double& out_y) {
  out_x = a.m[0] * x + a.m[1] * y + a.m[2];
  out_y = a.m[3] * x + a.m[4] * y + a.m[5];
}

// The determinant of float32 entries in float64: both products are exact, so it is 0 exactly where the rows are
// parallel.
FASTPOSE_HOST_DEVICE double determinant(const Affine& a) { return a.m[0] * a.m[4] - a.m[1] * a.m[3]; }

// An affine map can be undone when its entries are finite and its determinant is not 0.
FASTPOSE_HOST_DEVICE bool is_invertible(const Affine& a) {
  const double det = determinant(a);
  return is_finite(det) && det != 0.0 && is_finite(a.m[2]) && is_finite(a.m[5]);
}

FASTPOSE_HOST_DEVICE Affine invert(const Affine& a) {
  const double det = determinant(a);
  Affine b;
  b.m[0] = a.m[4] / det;
  b.m[1] = -a.m[1] / det;
  b.m[3] = -a.m[3] / det;
  b.m[4] = a.m[0] / det;
  b.m[2] = -(b.m[0] * a.m[2] + b.m[1] * a.m[5]);
  b.m[5] = -(b.m[3] * a.m[2] + b.m[4] * a.m[5]);
  return b;
}

// Sine and cosine of an angle in degrees, exact at multiples of 90: an upright box keeps its zeros.
FASTPOSE_HOST_DEVICE void sincos_degrees(double degrees, double& sine, double& cosine) {
  const double quarter_turns = floor(degrees / 90.0 + 0.5);
  const double radians = (degrees - 90.0 * quarter_turns) * (3.14159265358979323846 / 180.0);
  const double s = sin(radians);
  const double c = cos(radians);
  const double quadrant = quarter_turns - 4.0 * floor(quarter_turns / 4.0);
  sine = quadrant == 0.0 ? s : quadrant == 1.0 ? c : quadrant == 2.0 ? -s : -c;
  cosine = quadrant == 0.0 ? c : quadrant == 1.0 ? -s : quadrant == 2.0 ? -c : s;
}

}  // namespace fastpose
