// SPDX-License-Identifier: Apache-2.0
#include "torch_glue.h"

#include "affine_crop.h"

#include <algorithm>

namespace fastpose {
namespace {

template <typename T>
void crop_one(const AffineCropParams& p, int64_t b, int row_begin, int row_end) {
  T* out = static_cast<T*>(p.out) + b * p.stride_b;
  const ImageView image = image_of_crop(p, b);
  const float* m = p.crop_to_image + 6 * b;
  const float* color = color_of_crop(p, b);
  for (int y = row_begin; y < row_end; ++y) {
    T* row = out + y * p.stride_y;
    for (int x = 0; x < p.width; ++x) crop_one_pixel<T>(p, image, m, color, x, y, row + x * p.stride_x);
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
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    // Bands of rows, so that one large crop also spreads over the threads.
    const int band = 32, bands = (p.height + band - 1) / band;
    torch::stable::parallel_for(0, p.batch * bands, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int row = static_cast<int>(i % bands) * band;
        crop_one<T>(p, i / bands, row, std::min(row + band, p.height));
      }
    });
  };
  p.kind == ScalarKind::kUInt8 ? run(uint8_t()) : dispatch_floating(p.kind, run);
}

// Sets the image half of the params from a dense [N, H, W, 3] tensor, or from ImageBatch's buffer and tables.
void set_images(const char* op, AffineCropParams& params, const Tensor& images, const std::optional<Tensor>& offsets,
                const std::optional<Tensor>& sizes) {
  params.data = data<uint8_t>(images);
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
  const Tensor maps = torch::stable::contiguous(*color);
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
                   bool channels_last) {
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

  const Tensor matrices = torch::stable::contiguous(crop_to_image);
  std::optional<Tensor> index;
  if (image_index) {
    Argument(op, "image_index", *image_index)
        .shape({params.batch}, "[B]")
        .type({ScalarType::Long})
        .on_device_of(images, "images");
    index = torch::stable::contiguous(*image_index);
    params.image_index = data<int64_t>(*index);
  } else if (params.images != params.batch && params.images != 1) {
    fail(op, ": without image_index there must be one image per crop, or one for all; got ", params.images,
         " images and ", params.batch, " crops");
  }
  const std::optional<Tensor> colors = set_color(op, params, images, color);
  Tensor out = empty_on(images, {params.batch, 3, height, width}, dtype, channels_last);
  Argument(op, "dtype", out).type({ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Byte});
  if (params.batch == 0) return out;
  params.crop_to_image = data<float>(matrices);
  params.fill = static_cast<float>(fill);
  params.out = out.mutable_data_ptr();
  params.kind = kind_of(dtype);
  params.stride_b = out.stride(0);
  params.stride_c = out.stride(1);
  params.stride_y = out.stride(2);
  params.stride_x = out.stride(3);
  params.height = static_cast<int>(height);
  params.width = static_cast<int>(width);
  FASTPOSE_RUN(affine_crop, images, params, affine_crop_cpu);
  return out;
}

}  // namespace

FASTPOSE_REGISTER(affine_crop,
                  "(Tensor images, Tensor? offsets, Tensor? sizes, Tensor crop_to_image, Tensor? image_index,"
                  " Tensor? color, SymInt height, SymInt width, float fill, ScalarType dtype, bool channels_last)"
                  " -> Tensor");

}  // namespace fastpose
