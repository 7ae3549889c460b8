// SPDX-License-Identifier: Apache-2.0
#include "binding/torch_glue.h"

#include "ops/crop_to_image_matrix.h"

namespace fastpose {
namespace {

void crop_to_image_matrix_cpu(const CropToImageMatrixParams& p) {
  parallel_for("crop_to_image_matrix", 0, p.batch, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) crop_to_image_of_one(p, b);
  });
}

Tensor crop_to_image_matrix(const Tensor& center, const Tensor& scale, const Tensor& rotation,
                            const std::optional<Tensor>& flip, int64_t height, int64_t width, bool udp) {
  constexpr const char* op = "crop_to_image_matrix";
  const int64_t batch = center.dim() > 0 ? center.size(0) : 0;
  Argument(op, "center", center).shape({-1, 2}, "[B, 2]").type({ScalarType::Float});
  Argument(op, "scale", scale).shape({batch, 2}, "[B, 2]").type({ScalarType::Float}).on_device_of(center, "center");
  Argument(op, "rotation", rotation).shape({batch}, "[B]").type({ScalarType::Float}).on_device_of(center, "center");
  if (flip) Argument(op, "flip", *flip).shape({batch}, "[B]").type({ScalarType::Bool}).on_device_of(center, "center");
  const int64_t least = udp ? 2 : 1;  // under UDP lengths run between pixel centres: one pixel has none
  if (height < least || width < least || height > INT32_MAX || width > INT32_MAX)
    fail(op, ": size must be (h, w) of at least ", least, ", got (", height, ", ", width, ")");

  const Tensor centers = contiguous(op, "center", center), scales = contiguous(op, "scale", scale);
  const Tensor rotations = contiguous(op, "rotation", rotation);
  const std::optional<Tensor> flips = flip ? std::optional(contiguous(op, "flip", *flip)) : std::nullopt;
  Tensor out = empty_on(op, "matrices", center, {batch, 2, 3}, ScalarType::Float);
  if (batch == 0) return out;
  const CropToImageMatrixParams params{data<float>(centers),
                                       data<float>(scales),
                                       data<float>(rotations),
                                       flips ? data<uint8_t>(*flips) : nullptr,
                                       mutable_data<float>(out),
                                       batch,
                                       static_cast<int>(height),
                                       static_cast<int>(width),
                                       udp};
  FASTPOSE_RUN(crop_to_image_matrix, center, params, crop_to_image_matrix_cpu);
  return out;
}

}  // namespace

FASTPOSE_REGISTER(crop_to_image_matrix,
                  "(Tensor center, Tensor scale, Tensor rotation, Tensor? flip, SymInt height, SymInt width, bool udp)"
                  " -> Tensor");

}  // namespace fastpose
