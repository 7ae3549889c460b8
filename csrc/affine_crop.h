// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>

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

FASTPOSE_HOST_DEVICE float bilinear(float upper_left, float upper_right, float lower_left, float lower_right, float wx,
                                    float wy) {
  const float upper = upper_left + wx * (upper_right - upper_left);
  const float lower = lower_left + wx * (lower_right - lower_left);
  return upper + wy * (lower - upper);
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
    for (int c = 0; c < 3; ++c) rgb[c] = bilinear(top[c], top[c + 3], bottom[c], bottom[c + 3], wx, wy);
    return;
  }
  for (int c = 0; c < 3; ++c) {
    rgb[c] = bilinear(tap(image, y0, x0, c, fill), tap(image, y0, x0 + 1, c, fill), tap(image, y0 + 1, x0, c, fill),
                      tap(image, y0 + 1, x0 + 1, c, fill), wx, wy);
  }
}

FASTPOSE_HOST_DEVICE void source_of_pixel(const float* m, float x, float y, float& source_x, float& source_y) {
  source_x = m[0] * x + (m[1] * y + m[2]);
  source_y = m[3] * x + (m[4] * y + m[5]);
}

// Whether every pixel of the crop's rectangle [x, x_last] x [y, y_last] lands so far inside the image that
// sample_inside may read it. An affine map has its extremes at the corners, up to rounding; with all terms below 2^20
// that is under a quarter of a pixel, and the margin is a whole one. NaN fails.
FASTPOSE_HOST_DEVICE bool rectangle_lies_inside(const ImageView& image, const float* m, int x, int x_last, int y,
                                                int y_last) {
  const float far_x = static_cast<float>(x_last), far_y = static_cast<float>(y_last), limit = 1048576.0f;
  bool inside = fabsf(m[0]) * far_x + fabsf(m[1]) * far_y + fabsf(m[2]) < limit &&
                fabsf(m[3]) * far_x + fabsf(m[4]) * far_y + fabsf(m[5]) < limit;
  for (int corner = 0; corner < 4; ++corner) {
    float source_x, source_y;
    source_of_pixel(m, corner & 1 ? far_x : static_cast<float>(x), corner & 2 ? far_y : static_cast<float>(y), source_x,
                    source_y);
    inside = inside && source_x >= 2.0f && source_x <= static_cast<float>(image.width) - 4.0f && source_y >= 1.0f &&
             source_y <= static_cast<float>(image.height) - 3.0f;
  }
  return inside;
}

// Four bytes from an address that is a multiple of 4.
FASTPOSE_HOST_DEVICE uint32_t load_word(const uint8_t* bytes) {
#ifdef __CUDA_ARCH__
  return __ldg(reinterpret_cast<const uint32_t*>(bytes));
#else
  uint32_t word;
  memcpy(&word, bytes, sizeof(word));
  return word;
#endif
}

// Two neighbouring pixels, r g b r g b, in two loads (three where they begin at the last byte of a word) instead of
// six. Reads up to three bytes before and after them.
FASTPOSE_HOST_DEVICE void load_pixel_pair(const uint8_t* pixels, float left[3], float right[3]) {
  const int before = static_cast<int>(reinterpret_cast<uintptr_t>(pixels) % 4);
  const uint8_t* words = pixels - before;
  const uint32_t first = load_word(words), second = load_word(words + 4);
  const uint32_t third = before == 3 ? load_word(words + 8) : 0;
  const uint32_t low = static_cast<uint32_t>((static_cast<uint64_t>(second) << 32 | first) >> (8 * before));
  const uint32_t high = static_cast<uint32_t>((static_cast<uint64_t>(third) << 32 | second) >> (8 * before));
  left[0] = static_cast<float>(low & 255u);
  left[1] = static_cast<float>(low >> 8 & 255u);
  left[2] = static_cast<float>(low >> 16 & 255u);
  right[0] = static_cast<float>(low >> 24);
  right[1] = static_cast<float>(high & 255u);
  right[2] = static_cast<float>(high >> 8 & 255u);
}

// sample_bilinear at a place that rectangle_lies_inside has vouched for.
FASTPOSE_HOST_DEVICE void sample_inside(const ImageView& image, float x, float y, float rgb[3]) {
  const int x0 = static_cast<int>(x), y0 = static_cast<int>(y);  // positive: truncation is the floor
  const uint8_t* top = image.pixels + y0 * image.row_stride + 3 * static_cast<int64_t>(x0);
  float upper_left[3], upper_right[3], lower_left[3], lower_right[3];
  load_pixel_pair(top, upper_left, upper_right);
  load_pixel_pair(top + image.row_stride, lower_left, lower_right);
  const float wx = x - static_cast<float>(x0), wy = y - static_cast<float>(y0);
  for (int c = 0; c < 3; ++c) rgb[c] = bilinear(upper_left[c], upper_right[c], lower_left[c], lower_right[c], wx, wy);
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
  float rgb[3], source_x, source_y;
  source_of_pixel(m, static_cast<float>(x), static_cast<float>(y), source_x, source_y);
  sample_bilinear(image, source_x, source_y, p.fill, rgb);
  for (int c = 0; c < 3; ++c) out[c * p.stride_c] = to_output<T>(apply_color(color, c, rgb));
}

FASTPOSE_HOST_DEVICE const float* color_of_crop(const AffineCropParams& p, int64_t b) {
  return p.color != nullptr ? p.color + b * p.color_stride : p.color_of_all;
}

#ifdef FASTPOSE_WITH_CUDA
cudaError_t launch_affine_crop(const AffineCropParams& params, cudaStream_t stream);
#endif

}  // namespace fastpose
