// SPDX-License-Identifier: Apache-2.0
#include "binding/torch_glue.h"

#include "ops/transform_points.h"

namespace fastpose {
namespace {

template <typename T>
void transform_points_typed(const TransformPointsParams& p) {
  parallel_for("transform_points", 0, p.batch * p.joints, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) transform_one_point<T>(p, i);
  });
}

void transform_points_cpu(const TransformPointsParams& p) {
  if (p.inverse) {
    for (int64_t b = 0; b < p.batch; ++b) {
      const float* m = p.matrix + 6 * b;
      if (!is_invertible(load_affine(m))) {
        fail("transform_points: matrix[", b, "] must be invertible, got [[", m[0], ", ", m[1], ", ", m[2], "], [", m[3],
             ", ", m[4], ", ", m[5], "]]");
      }
    }
  }
  p.kind == ScalarKind::kFloat64 ? transform_points_typed<double>(p) : transform_points_typed<float>(p);
}

Tensor transform_points(const Tensor& points, const Tensor& matrix, bool inverse) {
  constexpr const char* op = "transform_points";
  Argument(op, "points", points).shape({-1, -1, 2}, "[B, K, 2]").type({ScalarType::Float, ScalarType::Double});
  const int64_t batch = points.size(0), joints = points.size(1);
  Argument(op, "matrix", matrix)
      .shape({batch, 2, 3}, "[B, 2, 3]")
      .type({ScalarType::Float})
      .on_device_of(points, "points");

  const Tensor in = contiguous(op, "points", points), matrices = contiguous(op, "matrix", matrix);
  Tensor out = empty_on(op, "points", points, {batch, joints, 2}, points.scalar_type());
  if (batch * joints == 0) return out;
  const TransformPointsParams params{in.const_data_ptr(),
                                     data<float>(matrices),
                                     out.mutable_data_ptr(),
                                     kind_of(in.scalar_type()),
                                     batch,
                                     joints,
                                     inverse};
  FASTPOSE_RUN(transform_points, points, params, transform_points_cpu);
  return out;
}

}  // namespace

FASTPOSE_REGISTER(transform_points, "(Tensor points, Tensor matrix, bool inverse) -> Tensor");

}  // namespace fastpose
