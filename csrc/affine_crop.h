// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "host_device.h"

namespace fastpose {

struct AffineCropParams {
  // Pixels: uint8 RGB. Ragged batches carry tables, dense ones strides.
  const uint8_t* data;
  int64_t data_bytes;
  const int64_t* offsets;            // [N] first byte of each image; null for a dense batch
  const int32_t* sizes;              // [N, 2] (height, width)
  int64_t images;                    // N
  int64_t image_stride, row_stride;  // dense: bytes
  int image_height, image_width;     // dense

  const int64_t* image_index;  // [B], or null: crop b takes image b, or image 0 where there is one only
  const float* crop_to_image;  // [B, 2, 3]

  const float* color;      // per crop [3, 4], or null: color_of_all
  int64_t color_stride;    // floats from one crop's map to the next
  float color_of_all[12];  // travels in the kernel's parameters: normalisation needs no copy to the GPU
  float fill;              // pixel value of taps outside the image

  void* out;  // [B, 3, height, width]
  ScalarKind kind;
  int64_t stride_b, stride_c, stride_y, stride_x;
  int64_t batch;
  int height, width;
};

struct ImageView {
  const uint8_t* pixels;  // null: image_index names no image
  int64_t row_stride;     // bytes
  int height, width;
};

FASTPOSE_HOST_DEVICE ImageView image_of_crop(const AffineCropParams& p, int64_t b) {
  const int64_t n = p.image_index != nullptr ? p.image_index[b] : p.images == 1 ? 0 : b;
  if (n < 0 || n >= p.images) return {nullptr, 0, 0, 0};
  if (p.offsets == nullptr) return {p.data + n * p.image_stride, p.row_stride, p.image_height, p.image_width};
  const int64_t height = p.sizes[2 * n], width = p.sizes[2 * n + 1];
  // ImageBatch has validated its tables; a table altered since must not become a read outside the buffer.
  const bool inside = height > 0 && width > 0 && p.offsets[n] >= 0 && p.offsets[n] <= p.data_bytes &&
                      height * width <= (p.data_bytes - p.offsets[n]) / 3;
  if (!inside) return {nullptr, 0, 0, 0};
  return {p.data + p.offsets[n], 3 * width, static_cast<int>(height), static_cast<int>(width)};
}

FASTPOSE_HOST_DEVICE float tap(const ImageView& image, int y, int x, int channel, float fill) {
  const bool inside = x >= 0 && x < image.width && y >= 0 && y < image.height;
  return inside ? static_cast<float>(image.pixels[y * image.row_stride + 3 * static_cast<int64_t>(x) + channel]) : fill;
}

// floorf is a library call on baseline x86; truncation and a comparison are two instructions. For |x| < 2^31.
FASTPOSE_HOST_DEVICE int floor_to_int(float x) {
  const int truncated = static_cast<int>(x);
  return truncated - (x < static_cast<float>(truncated) ? 1 : 0);
}

// Bilinear sample of three channels at (x, y), pixel centres at integers, each of the four taps outside the image being
// `fill` (OpenCV's BORDER_CONSTANT). Coordinates that are not finite fail the first comparison.
FASTPOSE_HOST_DEVICE void sample_bilinear(const ImageView& image, float x, float y, float fill, float rgb[3]) {
  const bool touches =
      x > -1.0f && y > -1.0f && x < static_cast<float>(image.width) && y < static_cast<float>(image.height);
  if (!touches) {
    rgb[0] = rgb[1] = rgb[2] = fill;
    return;
  }
  const int x0 = floor_to_int(x), y0 = floor_to_int(y);
  const float wx = x - static_cast<float>(x0), wy = y - static_cast<float>(y0);
  if (x0 >= 0 && y0 >= 0 && x0 + 1 < image.width && y0 + 1 < image.height) {
    const uint8_t* top = image.pixels + y0 * image.row_stride + 3 * static_cast<int64_t>(x0);
    const uint8_t* bottom = top + image.row_stride;
    for (int c = 0; c < 3; ++c) {
      const float upper = top[c] + wx * (static_cast<float>(top[c + 3]) - top[c]);
      const float lower = bottom[c] + wx * (static_cast<float>(bottom[c + 3]) - bottom[c]);
      rgb[c] = upper + wy * (lower - upper);
    }
    return;
  }
  for (int c = 0; c < 3; ++c) {
    const float upper_left = tap(image, y0, x0, c, fill), upper_right = tap(image, y0, x0 + 1, c, fill);
    const float lower_left = tap(image, y0 + 1, x0, c, fill), lower_right = tap(image, y0 + 1, x0 + 1, c, fill);
    const float upper = upper_left + wx * (upper_right - upper_left);
    const float lower = lower_left + wx * (lower_right - lower_left);
    rgb[c] = upper + wy * (lower - upper);
  }
}

FASTPOSE_HOST_DEVICE float apply_color(const float* color, int channel, const float rgb[3]) {
  const float* row = color + 4 * channel;
  return row[0] * rgb[0] + row[1] * rgb[1] + row[2] * rgb[2] + row[3];
}

template <typename T>
FASTPOSE_HOST_DEVICE T to_output(float value) {
  return static_cast<T>(value);
}
// Pixel values round to nearest and saturate; NaN (a colour map that is not finite) becomes 0.
template <>
FASTPOSE_HOST_DEVICE uint8_t to_output<uint8_t>(float value) {
  return static_cast<uint8_t>(!(value > 0.0f) ? 0.0f : value >= 255.0f ? 255.0f : rintf(value));
}

// What a crop whose image_index names no image holds: NaN, or `fill` where the type has no NaN.
template <typename T>
FASTPOSE_HOST_DEVICE T no_image_value(float) {
  return static_cast<T>(NAN);
}
template <>
FASTPOSE_HOST_DEVICE uint8_t no_image_value<uint8_t>(float fill) {
  return to_output<uint8_t>(fill);
}

template <typename T>
FASTPOSE_HOST_DEVICE void crop_one_pixel(const AffineCropParams& p, const ImageView& image, const float* m,
                                         const float* color, int x, int y, T* out) {
  float rgb[3];
  const float crop_x = static_cast<float>(x), crop_y = static_cast<float>(y);
  sample_bilinear(image, m[0] * crop_x + (m[1] * crop_y + m[2]), m[3] * crop_x + (m[4] * crop_y + m[5]), p.fill, rgb);
  for (int c = 0; c < 3; ++c) out[c * p.stride_c] = to_output<T>(apply_color(color, c, rgb));
}

FASTPOSE_HOST_DEVICE const float* color_of_crop(const AffineCropParams& p, int64_t b) {
  return p.color != nullptr ? p.color + b * p.color_stride : p.color_of_all;
}

#ifdef FASTPOSE_WITH_CUDA
cudaError_t launch_affine_crop(const AffineCropParams& params, cudaStream_t stream);
#endif

}  // namespace fastpose
