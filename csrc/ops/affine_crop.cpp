// SPDX-License-Identifier: Apache-2.0
#include "binding/torch_glue.h"

#include "cpu/simd.h"
#include "ops/affine_crop.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace fastpose {
namespace {

// Crop pixels [begin, end) of one row.
struct Span {
  int begin, end;
};

struct Box {
  double x_first, x_last, y_first, y_last;
};

// Where along x a source point crosses into and out of [first, last], narrowed down to that; the ends may be a rounding
// off.
void clip_to_range(double slope, double offset, double first, double last, double& begin, double& end) {
  if (slope == 0.0) {
    if (!(offset >= first && offset <= last)) end = begin;
    return;
  }
  const double at_first = (first - offset) / slope, at_last = (last - offset) / slope;
  begin = std::max(begin, std::min(at_first, at_last));
  end = std::min(end, std::max(at_first, at_last) + 1.0);
}

Span span_in_box(const float* m, int y, int width, const Box& box) {
  double begin = 0.0, end = width;
  clip_to_range(m[0], static_cast<double>(m[1]) * y + m[2], box.x_first, box.x_last, begin, end);
  clip_to_range(m[3], static_cast<double>(m[4]) * y + m[5], box.y_first, box.y_last, begin, end);
  if (!(begin < end)) return {0, 0};  // NaN too
  return {static_cast<int>(std::ceil(begin)), static_cast<int>(std::ceil(end))};
}

// One row of a crop as the loops below see it.
struct CropRow {
  ImageView image;
  const float* m;
  const float* color;
  int y, width;

  void source(int x, float& source_x, float& source_y) const {
    source_of_pixel(m, static_cast<float>(x), static_cast<float>(y), source_x, source_y);
  }
  // Whether all four taps of a pixel lie in the image, and so far from a row's end that 8 bytes can be read from either
  // left one. Truncation is then the floor.
  bool reads_inside(int x) const {
    float sx, sy;
    source(x, sx, sy);
    return sx >= 0.0f && sy >= 0.0f && sx < static_cast<float>(image.width - 2) &&
           sy < static_cast<float>(image.height - 1);
  }
  // The edges of the image beyond which all taps of a pixel lie, one bit each.
  int beyond(int x) const {
    float sx, sy;
    source(x, sx, sy);
    return (sx <= -1.0f) | (sx >= static_cast<float>(image.width)) << 1 | (sy <= -1.0f) << 2 |
           (sy >= static_cast<float>(image.height)) << 3;
  }
};

// Source coordinates are monotone along a row, after rounding too. So between two pixels that read inside all do, and
// between two beyond the same edge none touches the image: checking the ends of an estimated span makes it exact.
Span inner_span(const CropRow& row) {
  // Larger images are not exact in float32, or their offsets not in 32 bits.
  const ImageView& image = row.image;
  if (image.width < 3 || image.width > 1 << 24 || image.height > 1 << 24) return {0, 0};
  if (image.row_stride * (image.height - 1) + 3 * image.width > INT32_MAX) return {0, 0};
  Span span = span_in_box(row.m, row.y, row.width, {0.0, image.width - 2.0, 0.0, image.height - 1.0});
  while (span.begin < span.end && !row.reads_inside(span.begin)) ++span.begin;
  while (span.begin < span.end && !row.reads_inside(span.end - 1)) --span.end;
  return span.begin < span.end ? span : Span{0, 0};
}

Span touching_span(const CropRow& row) {
  const Box around{-1.0, static_cast<double>(row.image.width), -1.0, static_cast<double>(row.image.height)};
  Span span = span_in_box(row.m, row.y, row.width, around);
  if (span.begin >= span.end && row.beyond(0) & row.beyond(row.width - 1)) return {0, 0};
  if (span.begin > 0 && !(row.beyond(0) & row.beyond(span.begin - 1))) span.begin = 0;
  if (span.end < row.width && !(row.beyond(span.end) & row.beyond(row.width - 1))) span.end = row.width;
  return span;
}

uint64_t load_8_bytes(const uint8_t* bytes) {
  uint64_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

float byte_of(uint32_t word, int n) { return static_cast<float>(static_cast<int32_t>(word >> (8 * n) & 255u)); }

constexpr int kStrip = 128;  // pixels; their intermediate values stay in the L1 cache

// Up to kStrip pixels of the inner span, in loops that compilers vectorise: where to read, reading, arithmetic. One
// read of 8 bytes fetches two neighbouring pixels. No gather instructions: since processors guard them against data
// sampling they take three times as long as single loads.
void crop_strip(const CropRow& row, int first, int count, float* __restrict red, float* __restrict green,
                float* __restrict blue) {
  float wx[kStrip], wy[kStrip];
  int32_t offset[kStrip];
  uint64_t top[kStrip], bottom[kStrip];
  const float *m = row.m, *color = row.color;
  const int32_t row_stride = static_cast<int32_t>(row.image.row_stride);
  for (int i = 0; i < count; ++i) {
    float x, y;
    row.source(first + i, x, y);
    const int x0 = static_cast<int>(x), y0 = static_cast<int>(y);
    wx[i] = x - static_cast<float>(x0);
    wy[i] = y - static_cast<float>(y0);
    offset[i] = y0 * row_stride + 3 * x0;
  }
  // Crops that shrink a large image wait for its memory most of the time; the processor does not foresee slanted ways
  // through it. What the next row of the crop will read, one prefetch per cache line.
  const float far = 1024.0f, down_x = std::clamp(m[1], -far, far), down_y = std::clamp(m[4], -far, far);
  const int64_t next_row = 3 * static_cast<int64_t>(down_x) + static_cast<int64_t>(down_y) * row.image.row_stride;
  const float lines_per_pixel = std::fabs(m[0]) * (3.0f / 64.0f) + std::fabs(m[3]);
  const int step = lines_per_pixel < 1.0f / kStrip ? kStrip : std::max(1, static_cast<int>(1.0f / lines_per_pixel));
  const uint8_t* pixels = row.image.pixels;
  for (int i = 0; i < count; i += step) {
    __builtin_prefetch(pixels + offset[i] + next_row);
    __builtin_prefetch(pixels + offset[i] + next_row + row.image.row_stride);
  }
  for (int i = 0; i < count; ++i) top[i] = load_8_bytes(pixels + offset[i]);
  pixels += row.image.row_stride;
  for (int i = 0; i < count; ++i) bottom[i] = load_8_bytes(pixels + offset[i]);
  for (int i = 0; i < count; ++i) {
    const uint32_t t0 = static_cast<uint32_t>(top[i]), t1 = static_cast<uint32_t>(top[i] >> 32);
    const uint32_t b0 = static_cast<uint32_t>(bottom[i]), b1 = static_cast<uint32_t>(bottom[i] >> 32);
    const float rgb[3] = {
        bilinear(byte_of(t0, 0), byte_of(t0, 3), byte_of(b0, 0), byte_of(b0, 3), wx[i], wy[i]),
        bilinear(byte_of(t0, 1), byte_of(t1, 0), byte_of(b0, 1), byte_of(b1, 0), wx[i], wy[i]),
        bilinear(byte_of(t0, 2), byte_of(t1, 1), byte_of(b0, 2), byte_of(b1, 1), wx[i], wy[i]),
    };
    red[i] = apply_color(color, 0, rgb);
    green[i] = apply_color(color, 1, rgb);
    blue[i] = apply_color(color, 2, rgb);
  }
}

template <typename T>
void crop_inner(const CropRow& row, Span span, T* out, const MapStrides& strides) {
  const bool planar = has_layout(strides, MapLayout::kPlanar, 3);
  float planes[3][kStrip];
  for (int first = span.begin; first < span.end; first += kStrip) {
    const int count = std::min(kStrip, span.end - first);
    T* at = out + first * strides.x;
    if constexpr (std::is_same_v<T, float>) {
      if (planar) {
        crop_strip(row, first, count, at, at + strides.k, at + 2 * strides.k);
        continue;
      }
    }
    crop_strip(row, first, count, planes[0], planes[1], planes[2]);
    if (planar) {
      for (int c = 0; c < 3; ++c)
        for (int i = 0; i < count; ++i) at[c * strides.k + i] = to_output<T>(planes[c][i]);
    } else {
      for (int i = 0; i < count; ++i)
        for (int c = 0; c < 3; ++c) at[3 * i + c] = to_output<T>(planes[c][i]);
    }
  }
}

template <typename T>
void crop_rows(const AffineCropParams& p, int64_t b, int row_begin, int row_end) {
  CropRow row{image_of_crop(p, b), p.crop_to_image + 6 * b, color_of_crop(p, b), 0, p.width};
  T outside[3];
  outside_values(p, b, outside);
  for (row.y = row_begin; row.y < row_end; ++row.y) {
    T* out = static_cast<T*>(p.out) + b * p.out_strides.b + row.y * p.out_strides.y;
    const Span touching = touching_span(row), inner = inner_span(row);
    const auto blank = [&](int begin, int end) {
      for (int c = 0; c < 3; ++c)
        for (int x = begin; x < end; ++x) out[c * p.out_strides.k + x * p.out_strides.x] = outside[c];
    };
    const auto border = [&](int begin, int end) {
      for (int x = begin; x < end; ++x)
        crop_one_pixel<T, Resample::kBilinear>(p, row.image, row.m, row.color, x, row.y, out + x * p.out_strides.x);
    };
    blank(0, touching.begin);
    if (inner.begin < inner.end) {
      border(touching.begin, inner.begin);
      crop_inner(row, inner, out, p.out_strides);
      border(inner.end, touching.end);
    } else {
      border(touching.begin, touching.end);
    }
    blank(touching.end, p.width);
  }
}

template <typename T>
void bicubic_rows(const AffineCropParams& p, int64_t b, int row_begin, int row_end) {
  const ImageView image = image_of_crop(p, b);
  const float *m = p.crop_to_image + 6 * b, *color = color_of_crop(p, b);
  for (int y = row_begin; y < row_end; ++y) {
    T* out = static_cast<T*>(p.out) + b * p.out_strides.b + y * p.out_strides.y;
    for (int x = 0; x < p.width; ++x)
      crop_one_pixel<T, Resample::kBicubic>(p, image, m, color, x, y, out + x * p.out_strides.x);
  }
}

template <typename T>
void erase_boxes(const AffineCropParams& p, int64_t b, int band) {
  T outside[3];
  outside_values(p, b, outside);
  for (int64_t n = 0; n < p.boxes; ++n) {
    const PixelBox box = erased_in_band(p, b, n, band);
    for (int y = box.y_begin; y < box.y_end; ++y) {
      T* out = static_cast<T*>(p.out) + b * p.out_strides.b + y * p.out_strides.y;
      for (int c = 0; c < 3; ++c)
        for (int x = box.x_begin; x < box.x_end; ++x) out[c * p.out_strides.k + x * p.out_strides.x] = outside[c];
    }
  }
}

void affine_crop_cpu(const AffineCropParams& p) {
  for (int64_t b = 0; b < p.batch; ++b) {
    if (image_of_crop(p, b).pixels != nullptr) continue;
    const int64_t n = p.image_index != nullptr ? p.image_index[b] : b;
    if (n < 0 || n >= p.images) fail("affine_crop: image_index[", b, "] must be in [0, ", p.images, "), got ", n);
    fail("affine_crop: images: image ", n, " (", p.sizes[2 * n], " x ", p.sizes[2 * n + 1], " at byte ", p.offsets[n],
         ") does not lie inside the buffer of ", p.data_bytes, " bytes");
  }
  const SimdLevel level = simd_level();
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const int bands = (p.height + kBand - 1) / kBand;
    parallel_for("affine_crop", 0, p.batch * bands, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int band = static_cast<int>(i % bands), row = band * kBand;
        const int row_end = std::min(row + kBand, p.height);
        if (p.resample == Resample::kBicubic) {
          with_simd(level, [&] { bicubic_rows<T>(p, i / bands, row, row_end); });
        } else {
          with_simd(level, [&] { crop_rows<T>(p, i / bands, row, row_end); });
        }
        erase_boxes<T>(p, i / bands, band);
      }
    });
  };
  p.kind == ScalarKind::kUInt8 ? run(uint8_t()) : dispatch_floating(p.kind, run);
}

// Sets the image half of the params from a dense [N, H, W, 3] tensor, or from ImageBatch's buffer and tables.
void set_images(const char* op, AffineCropParams& params, const Tensor& images, const std::optional<Tensor>& offsets,
                const std::optional<Tensor>& sizes) {
  params.data = data<uint8_t>(images);
  if (offsets.has_value() != sizes.has_value())
    fail(op, ": images.offsets and images.sizes must be passed together, got ", offsets ? "offsets" : "sizes",
         " alone");
  if (!offsets) {
    Argument(op, "images", images).shape({-1, -1, -1, 3}, "[N, H, W, 3]").type({ScalarType::Byte});
    if (images.numel() > 0 && (images.stride(3) != 1 || (images.size(2) > 1 && images.stride(2) != 3)))
      fail(op, ": images must hold the three channels of a pixel, and the pixels of a row, side by side");
    params.images = images.size(0);
    params.image_stride = images.stride(0);
    params.row_stride = images.stride(1);
    params.image_height = static_cast<int>(images.size(1));
    params.image_width = static_cast<int>(images.size(2));
    if (params.images > 0 &&
        (images.size(1) < 1 || images.size(2) < 1 || images.size(1) > INT32_MAX || images.size(2) > INT32_MAX)) {
      fail(op, ": images must be 1 to ", INT32_MAX, " pixels high and wide, got ", describe(images));
    }
    return;
  }
  Argument(op, "images.data", images).shape({-1}, "[bytes]").type({ScalarType::Byte});
  params.images = offsets->dim() > 0 ? offsets->size(0) : 0;
  Argument(op, "images.offsets", *offsets)
      .shape({-1}, "[N]")
      .type({ScalarType::Long})
      .on_device_of(images, "images.data");
  Argument(op, "images.sizes", *sizes)
      .shape({params.images, 2}, "[N, 2]")
      .type({ScalarType::Int})
      .on_device_of(images, "images.data");
  if (!images.is_contiguous() || !offsets->is_contiguous() || !sizes->is_contiguous())
    fail(op, ": images.data, images.offsets and images.sizes must be contiguous");
  params.data_bytes = images.numel();
  params.offsets = data<int64_t>(*offsets);
  params.sizes = data<int32_t>(*sizes);
}

// A [3, 4] map on the CPU goes into the params by value; others are read where they lie.
std::optional<Tensor> set_color(const char* op, AffineCropParams& params, const Tensor& images,
                                const std::optional<Tensor>& color) {
  if (!color) {
    for (int c = 0; c < 3; ++c) params.color_of_all[5 * c] = 1.0f;
    return std::nullopt;
  }
  const Argument argument(op, "color", *color);
  argument.type({ScalarType::Float});
  const Tensor maps = contiguous(op, "color", *color);
  if (color->dim() == 2) {
    argument.shape({3, 4}, "[3, 4]");
    if (color->is_cpu()) {
      std::copy_n(data<float>(maps), 12, params.color_of_all);
      return std::nullopt;
    }
  } else {
    argument.shape({params.batch, 3, 4}, "[3, 4] or [B, 3, 4]");
    params.color_stride = 12;
  }
  argument.on_device_of(images, "images");
  params.color = data<float>(maps);
  return maps;
}

Tensor affine_crop(const Tensor& images, const std::optional<Tensor>& offsets, const std::optional<Tensor>& sizes,
                   const Tensor& crop_to_image, const std::optional<Tensor>& image_index,
                   const std::optional<Tensor>& color, int64_t height, int64_t width, double fill, ScalarType dtype,
                   bool channels_last, int64_t resample, const std::optional<Tensor>& erase) {
  constexpr const char* op = "affine_crop";
  AffineCropParams params{};
  set_images(op, params, images, offsets, sizes);
  Argument(op, "crop_to_image", crop_to_image)
      .shape({-1, 2, 3}, "[B, 2, 3]")
      .type({ScalarType::Float})
      .on_device_of(images, "images");
  params.batch = crop_to_image.size(0);
  if (height < 1 || width < 1 || height > kMaxExtent || width > kMaxExtent)
    fail(op, ": size must be (h, w) of 1 to ", kMaxExtent, ", got (", height, ", ", width, ")");
  if (!is_finite(static_cast<float>(fill))) fail(op, ": fill must be a finite pixel value, got ", fill);
  check_dtype(op, dtype, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Byte});
  if (resample < 0 || resample > static_cast<int64_t>(Resample::kBicubic)) fail(op, ": unknown resample ", resample);

  const Tensor matrices = contiguous(op, "crop_to_image", crop_to_image);
  std::optional<Tensor> index;
  if (image_index) {
    Argument(op, "image_index", *image_index)
        .shape({params.batch}, "[B]")
        .type({ScalarType::Long})
        .on_device_of(images, "images");
    index = contiguous(op, "image_index", *image_index);
    params.image_index = data<int64_t>(*index);
  } else if (params.images != params.batch && params.images != 1) {
    fail(op, ": without image_index there must be one image per crop, or one for all; got ", params.images,
         " images and ", params.batch, " crops");
  }
  std::optional<Tensor> boxes;
  if (erase) {
    Argument(op, "erase", *erase)
        .shape({params.batch, -1, 4}, "[B, N, 4]")
        .type({ScalarType::Float})
        .on_device_of(images, "images");
    boxes = contiguous(op, "erase", *erase);
    params.erase = data<float>(*boxes);
    params.boxes = boxes->size(1);
  }
  const std::optional<Tensor> colors = set_color(op, params, images, color);
  const MapLayout layout = channels_last ? MapLayout::kChannelsLast : MapLayout::kPlanar;
  Tensor out = empty_on(op, "crops", images, {params.batch, 3, height, width}, dtype, layout);
  if (params.batch == 0) return out;
  params.crop_to_image = data<float>(matrices);
  params.fill = static_cast<float>(fill);
  params.out = out.mutable_data_ptr();
  params.kind = kind_of(dtype);
  params.out_strides = map_strides(out);
  params.height = static_cast<int>(height);
  params.width = static_cast<int>(width);
  params.resample = static_cast<Resample>(resample);
  FASTPOSE_RUN(affine_crop, images, params, affine_crop_cpu);
  return out;
}

}  // namespace

FASTPOSE_REGISTER(affine_crop,
                  "(Tensor images, Tensor? offsets, Tensor? sizes, Tensor crop_to_image, Tensor? image_index,"
                  " Tensor? color, SymInt height, SymInt width, float fill, ScalarType dtype, bool channels_last,"
                  " int resample=0, Tensor? erase=None) -> Tensor");

}  // namespace fastpose
