// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>

#include "maths/host_device.h"
#include "maths/map_layout.h"

namespace fastpose {

// How a crop's pixels are made of the image's. The numbers are those of RESAMPLING in fastpose/ops/affine_crop.py.
enum class Resample : int { kBilinear, kBicubic };

struct AffineCropParams {
  // Pixels: uint8 RGB. Ragged batches carry tables, dense ones strides.
  const uint8_t* data;
  int64_t data_bytes;
  const int64_t* offsets;            // [N] first byte of each image; null for a dense batch
  const int32_t* sizes;              // [N, 2] (height, width)
  int64_t images;                    // N
  int64_t image_stride, row_stride;  // dense: bytes
  int image_height, image_width;     // dense

  const int64_t* image_index;  // [B], or null: crop b takes image b, or image 0 if there is only one
  const float* crop_to_image;  // [B, 2, 3]

  const float* color;      // per crop [3, 4], or null: color_of_all
  int64_t color_stride;    // floats from one crop's map to the next
  float color_of_all[12];  // travels in the kernel's parameters: normalisation needs no copy to the GPU
  float fill;              // pixel value of taps outside the image

  void* out;  // [B, 3, height, width]
  ScalarKind kind;
  MapStrides out_strides;
  int64_t batch;
  int height, width;
  Resample resample;

  const float* erase;  // [B, boxes, 4] (x0, y0, x1, y1) in crop pixels, or null
  int64_t boxes;
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
  const int64_t height = p.sizes[2 * n], width = p.sizes[2 * n + 1], offset = p.offsets[n];
  // ImageBatch has validated its tables; a table altered since must not become a read outside the buffer. One condition
  // without branches, so that the three loads are under way together. Three times a product that is no larger than the
  // buffer cannot wrap.
  const uint64_t pixels = static_cast<uint64_t>(height) * static_cast<uint64_t>(width);
  const bool inside = (height > 0) & (width > 0) & (offset >= 0) & (offset <= p.data_bytes) &
                      (pixels <= static_cast<uint64_t>(p.data_bytes)) &
                      (3 * pixels <= static_cast<uint64_t>(p.data_bytes) - static_cast<uint64_t>(offset));
  if (!inside) return {nullptr, 0, 0, 0};
  return {p.data + offset, 3 * width, static_cast<int>(height), static_cast<int>(width)};
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

// Cubic convolution with a = -0.75, as in OpenCV's INTER_CUBIC and torch's grid_sample, between four neighbours, the
// point lying `t` behind the second. The weights are those of the others: the second's is what is missing from 1, so
// that equal neighbours give their own value to the bit.
struct CubicWeights {
  float before, after, beyond;

  FASTPOSE_HOST_DEVICE explicit CubicWeights(float t) {
    const float a = -0.75f, s = 1.0f - t;
    before = a * t * s * s;
    after = ((a + 2.0f) * s - (a + 3.0f)) * s * s + 1.0f;
    beyond = a * t * t * s;
  }
  FASTPOSE_HOST_DEVICE float mix(float first, float second, float third, float fourth) const {
    return second + before * (first - second) + after * (third - second) + beyond * (fourth - second);
  }
};

// Bicubic sample of three channels at (x, y), each of the sixteen taps outside the image being `fill`; else as
// sample_bilinear.
FASTPOSE_HOST_DEVICE void sample_bicubic(const ImageView& image, float x, float y, float fill, float rgb[3]) {
  const bool touches = x > -2.0f && y > -2.0f && x < static_cast<float>(image.width) + 1.0f &&
                       y < static_cast<float>(image.height) + 1.0f;
  if (!touches) {
    rgb[0] = rgb[1] = rgb[2] = fill;
    return;
  }
  const int x0 = floor_to_int(x), y0 = floor_to_int(y);
  const CubicWeights along(x - static_cast<float>(x0)), down(y - static_cast<float>(y0));
  if (x0 >= 1 && y0 >= 1 && x0 < image.width - 2 && y0 < image.height - 2) {
    const uint8_t* first = image.pixels + (y0 - 1) * image.row_stride + 3 * static_cast<int64_t>(x0 - 1);
    const uint8_t *second = first + image.row_stride, *third = second + image.row_stride;
    const uint8_t* fourth = third + image.row_stride;
    float columns[12];  // of four pixels, r g b each
    for (int i = 0; i < 12; ++i) columns[i] = down.mix(first[i], second[i], third[i], fourth[i]);
    for (int c = 0; c < 3; ++c) rgb[c] = along.mix(columns[c], columns[c + 3], columns[c + 6], columns[c + 9]);
    return;
  }
  for (int c = 0; c < 3; ++c) {
    const auto column = [&](int x_tap) {
      return down.mix(tap(image, y0 - 1, x_tap, c, fill), tap(image, y0, x_tap, c, fill),
                      tap(image, y0 + 1, x_tap, c, fill), tap(image, y0 + 2, x_tap, c, fill));
    };
    rgb[c] = along.mix(column(x0 - 1), column(x0), column(x0 + 1), column(x0 + 2));
  }
}

FASTPOSE_HOST_DEVICE void source_of_pixel(const float* m, float x, float y, float& source_x, float& source_y) {
  source_x = m[0] * x + (m[1] * y + m[2]);
  source_y = m[3] * x + (m[4] * y + m[5]);
}

// ---- Taps in whole words
// --------------------------------------------------------------------------------------------- Well inside an image
// the two rows of two neighbouring pixels, r g b r g b each, are read as aligned words: three loads a row instead of
// six, all under way before the first is used.

// Whether offsets within the image, in bits, fit into 32 bits, and float32 holds the parts of its coordinates exactly.
FASTPOSE_HOST_DEVICE bool words_reach(const ImageView& image) {
  return image.height < 1 << 20 && image.width < 1 << 20 && image.row_stride >= 0 &&
         image.row_stride * image.height < 1 << 28;
}

// Whether load_taps may read around (x, y): up to three bytes before and six behind the two pixels of a row. NaN fails.
FASTPOSE_HOST_DEVICE bool lies_well_inside(const ImageView& image, float x, float y) {
  return x >= 2.0f && x <= static_cast<float>(image.width - 4) && y >= 1.0f &&
         y <= static_cast<float>(image.height - 3);
}

// The same of a corner of a rectangle of crop pixels. Where it holds for all four, it holds for every pixel between
// them as far as load_taps needs: an affine map has its extremes at the corners, up to rounding; with all terms below
// 2^20 that is under a quarter of a pixel, and lies_well_inside leaves a whole one.
FASTPOSE_HOST_DEVICE bool corner_lies_inside(const ImageView& image, const float* m, float x, float y) {
  const float limit = 1048576.0f;
  float source_x, source_y;
  source_of_pixel(m, x, y, source_x, source_y);
  return fabsf(m[0]) * x + fabsf(m[1]) * y + fabsf(m[2]) < limit &&
         fabsf(m[3]) * x + fabsf(m[4]) * y + fabsf(m[5]) < limit && lies_well_inside(image, source_x, source_y);
}

FASTPOSE_HOST_DEVICE uint32_t bits_of(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

// 2^23 + floor(x) for 0 <= x < 2^23, whose lowest bits are the integer: one addition that rounds down, instead of a
// conversion to an integer and another one back, which have a slower pipe.
constexpr float kBias = 8388608.0f;
constexpr uint32_t kBiasBits = 0x4b000000u;
FASTPOSE_HOST_DEVICE float biased_floor(float x) {
#ifdef __CUDA_ARCH__
  return __fadd_rd(x, kBias);
#else
  return kBias + static_cast<float>(static_cast<int>(x));
#endif
}

// 2^23 + byte n of a word, one instruction too. Differences of two of them are those of the bytes.
FASTPOSE_HOST_DEVICE float biased_byte(uint32_t word, int n) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(__byte_perm(word, kBiasBits, 0x7540u | n));
#else
  return kBias + static_cast<float>(word >> (8 * n) & 255u);
#endif
}

// Four bytes from an address that is a multiple of 4.
FASTPOSE_HOST_DEVICE uint32_t load_word(const uint32_t* word) {
#ifdef __CUDA_ARCH__
  return __ldg(word);
#else
  uint32_t value;
  memcpy(&value, word, sizeof(value));
  return value;
#endif
}

// The third word of a row, which the two pixels reach only if they begin at the first word's last byte, `bits` modulo
// 32 behind its first bit. Other lanes do not load it: fewer lanes touch fewer cache lines. Spelled out for the GPU
// because the compiler takes two instructions for the test.
FASTPOSE_HOST_DEVICE uint32_t load_third_word(const uint32_t* word, uint32_t bits) {
#ifdef __CUDA_ARCH__
  uint32_t value = 0;
  asm("{\n"
      "  .reg .pred reached;\n"
      "  .reg .b32 missing;\n"
      "  not.b32 missing, %1;\n"
      "  and.b32 missing, missing, 24;\n"
      "  setp.eq.u32 reached, missing, 0;\n"
      "  @reached ld.global.nc.u32 %0, [%2];\n"
      "}"
      : "+r"(value)
      : "r"(bits), "l"(word));
  return value;
#else
  return (bits & 24u) == 24u ? load_word(word) : 0;
#endif
}

// The word that begins `bits` modulo 32 behind the first bit of `low`.
FASTPOSE_HOST_DEVICE uint32_t shifted_word(uint32_t low, uint32_t high, uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __funnelshift_r(low, high, bits);
#else
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (bits & 31u));
#endif
}

// An image as load_taps wants it: the aligned words that it lies in, and its rows and its first pixel in bits, where
// the bias of the coordinates is taken off again. All of it modulo 2^32.
struct ImageWords {
  const uint32_t* words;
  uint32_t row_bits, origin_bits;

  FASTPOSE_HOST_DEVICE explicit ImageWords(const ImageView& image) {
    const uint32_t before = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(image.pixels) % 4);
    words = reinterpret_cast<const uint32_t*>(image.pixels - before);
    row_bits = 8 * static_cast<uint32_t>(image.row_stride);
    origin_bits = 8 * before - kBiasBits * (row_bits + kPixelBits);
  }

  static constexpr uint32_t kPixelBits = 24;
};

struct Taps {
  uint32_t upper[3], lower[3], upper_bits, lower_bits;
  float wx, wy;
};

FASTPOSE_HOST_DEVICE Taps load_taps(const ImageWords& image, float x, float y) {
  Taps taps;
  const float column = biased_floor(x), row = biased_floor(y);
  taps.wx = x - (column - kBias);
  taps.wy = y - (row - kBias);
  taps.upper_bits = bits_of(row) * image.row_bits + (ImageWords::kPixelBits * bits_of(column) + image.origin_bits);
  taps.lower_bits = taps.upper_bits + image.row_bits;
  const uint32_t* upper = image.words + taps.upper_bits / 32;
  const uint32_t* lower = image.words + taps.lower_bits / 32;
  for (int i = 0; i < 2; ++i) {
    taps.upper[i] = load_word(upper + i);
    taps.lower[i] = load_word(lower + i);
  }
  taps.upper[2] = load_third_word(upper + 2, taps.upper_bits);
  taps.lower[2] = load_third_word(lower + 2, taps.lower_bits);
  return taps;
}

// Between the two pixels of a row.
FASTPOSE_HOST_DEVICE void mix_row(const uint32_t words[3], uint32_t bits, float wx, float rgb[3]) {
  const uint32_t low = shifted_word(words[0], words[1], bits), high = shifted_word(words[1], words[2], bits);
  const float left[3] = {biased_byte(low, 0), biased_byte(low, 1), biased_byte(low, 2)};
  const float right[3] = {biased_byte(low, 3), biased_byte(high, 0), biased_byte(high, 1)};
  for (int c = 0; c < 3; ++c) rgb[c] = (left[c] - kBias) + wx * (right[c] - left[c]);
}

// sample_bilinear of a place that lies well inside, the same bits.
FASTPOSE_HOST_DEVICE void sample_taps(const Taps& taps, float rgb[3]) {
  float upper[3], lower[3];
  mix_row(taps.upper, taps.upper_bits, taps.wx, upper);
  mix_row(taps.lower, taps.lower_bits, taps.wx, lower);
  for (int c = 0; c < 3; ++c) rgb[c] = upper[c] + taps.wy * (lower[c] - upper[c]);
}

// ---------------------------------------------------------------------------------------------------------------------

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

// The value of a crop whose image_index names no image: NaN, or `fill` if the type has no NaN.
template <typename T>
FASTPOSE_HOST_DEVICE float no_image_value(float fill) {
  return sizeof(T) == 1 ? fill : NAN;
}

template <typename T, Resample resample>
FASTPOSE_HOST_DEVICE void crop_one_pixel(const AffineCropParams& p, const ImageView& image, const float* m,
                                         const float* color, int x, int y, T* out) {
  float rgb[3], source_x, source_y;
  source_of_pixel(m, static_cast<float>(x), static_cast<float>(y), source_x, source_y);
  if constexpr (resample == Resample::kBicubic) {
    sample_bicubic(image, source_x, source_y, p.fill, rgb);
  } else {
    sample_bilinear(image, source_x, source_y, p.fill, rgb);
  }
  for (int c = 0; c < 3; ++c) out[c * p.out_strides.k] = to_output<T>(apply_color(color, c, rgb));
}

FASTPOSE_HOST_DEVICE const float* color_of_crop(const AffineCropParams& p, int64_t b) {
  return p.color != nullptr ? p.color + b * p.color_stride : p.color_of_all;
}

// ---- Erased boxes ---------------------------------------------------------------------------------------------------

constexpr int kBand = 32;  // rows: so that one large crop, or box, also spreads over the threads

// Some pixels of a crop; none where an end is not behind its beginning.
struct PixelBox {
  int x_begin, x_end, y_begin, y_end;
};

// The whole numbers in [low, high), of those in [begin, end). NaN: none.
FASTPOSE_HOST_DEVICE void clip_to_whole(float low, float high, int& begin, int& end) {
  if (!(low < high)) {
    end = begin;
    return;
  }
  const float first = static_cast<float>(begin), last = static_cast<float>(end);  // up to 2^24: exact
  begin = static_cast<int>(fminf(fmaxf(ceilf(low), first), last));
  end = static_cast<int>(fminf(fmaxf(ceilf(high), first), last));
}

// The part of box n of crop b that lies in one band of rows.
FASTPOSE_HOST_DEVICE PixelBox erased_in_band(const AffineCropParams& p, int64_t b, int64_t n, int band) {
  const float* box = p.erase + 4 * (b * p.boxes + n);
  const int y_begin = band * kBand, left = p.height - y_begin;
  PixelBox pixels{0, p.width, y_begin, y_begin + (left < kBand ? left : kBand)};
  clip_to_whole(box[0], box[2], pixels.x_begin, pixels.x_end);
  clip_to_whole(box[1], box[3], pixels.y_begin, pixels.y_end);
  return pixels;
}

// What a pixel holds that is erased, or all of whose taps lie outside the image.
template <typename T>
FASTPOSE_HOST_DEVICE void outside_values(const AffineCropParams& p, int64_t b, T (&values)[3]) {
  const float rgb[3] = {p.fill, p.fill, p.fill};
  for (int c = 0; c < 3; ++c) values[c] = to_output<T>(apply_color(color_of_crop(p, b), c, rgb));
}

#ifdef FASTPOSE_WITH_CUDA
cudaError_t launch_affine_crop(const AffineCropParams& params, cudaStream_t stream);
#endif

}  // namespace fastpose
