// SPDX-License-Identifier: Apache-2.0
// The Gaussian that refinements blur with.
#pragma once

#include <cmath>

namespace fastpose {

constexpr int kMaxBlurKernel = 255;  // pixels or bins; the weights travel among a kernel's parameters
constexpr double kLeastBlurSigma = 0.01, kMostBlurSigma = 1000;  // pixels: from no blur at all to equal weights

// Its weights by distance from the middle, up to the radius, which is returned: those of cv2.getGaussianKernel(side,
// sigma), where 0 is OpenCV's own choice: fixed weights up to 9 pixels, a sampled Gaussian beyond.
inline int set_blur(double (&weights)[kMaxBlurKernel / 2 + 1], int side, double sigma = 0.0) {
  constexpr double kFixed[][5] = {{256}, {128, 64}, {96, 64, 16}, {72, 56, 28, 8}, {60, 51, 30, 13, 4}};
  const int radius = side / 2;
  const bool fixed = sigma == 0.0 && radius < 5;
  if (sigma == 0.0) sigma = 0.3 * (radius - 1) + 0.8;
  double sum = 0.0;
  for (int d = 0; d <= radius; ++d) {
    weights[d] = fixed ? kFixed[radius][d] : std::exp(-0.5 * d * d / (sigma * sigma));
    sum += d == 0 ? weights[d] : 2.0 * weights[d];
  }
  for (int d = 0; d <= radius; ++d) weights[d] /= sum;
  return radius;
}

}  // namespace fastpose
