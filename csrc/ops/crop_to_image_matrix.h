// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "maths/affine.h"

namespace fastpose {

struct CropToImageMatrixParams {
  const float* center;    // [B, 2] image pixels
  const float* scale;     // [B, 2]; times 200 is the box's (width, height) in image pixels
  const float* rotation;  // [B] degrees
  const uint8_t* flip;    // [B] bools, or null for none; a byte that is not 0 is true, as torch reads them
  float* crop_to_image;   // [B, 2, 3]
  int64_t batch;
  int height, width;  // of the crop
  bool udp;
};

FASTPOSE_HOST_DEVICE void crop_to_image_of_one(const CropToImageMatrixParams& p, int64_t b) {
  const double center_x = p.center[2 * b];
  const double center_y = p.center[2 * b + 1];
  const double box_width = 200.0 * p.scale[2 * b];
  const double box_height = 200.0 * p.scale[2 * b + 1];
  // Image pixels per crop pixel. Without UDP the width decides for both axes, and the box's centre falls on the middle
  // of the crop's extent; with UDP lengths run from the first pixel's centre to the last one's.
  const double step_x = p.udp ? box_width / (p.width - 1) : box_width / p.width;
  const double step_y = p.udp ? box_height / (p.height - 1) : step_x;
  const double crop_x = p.udp ? 0.5 * (p.width - 1) : 0.5 * p.width;
  const double crop_y = p.udp ? 0.5 * (p.height - 1) : 0.5 * p.height;
  double sine, cosine;
  sincos_degrees(p.rotation[b], sine, cosine);
  // x about the box's centre, after the rotation
  const double mirror = p.flip != nullptr && p.flip[b] != 0 ? -1.0 : 1.0;
  const double xx = mirror * cosine * step_x, xy = -mirror * sine * step_y;
  const double yx = sine * step_x, yy = cosine * step_y;
  float* m = p.crop_to_image + 6 * b;
  m[0] = static_cast<float>(xx);
  m[1] = static_cast<float>(xy);
  m[2] = static_cast<float>(center_x - xx * crop_x - xy * crop_y);
  m[3] = static_cast<float>(yx);
  m[4] = static_cast<float>(yy);
  m[5] = static_cast<float>(center_y - yx * crop_x - yy * crop_y);
}

#ifdef FASTPOSE_WITH_CUDA
cudaError_t launch_crop_to_image_matrix(const CropToImageMatrixParams& params, cudaStream_t stream);
#endif

}  // namespace fastpose
