// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "maths/affine.h"

namespace fastpose {

struct TransformPointsParams {
  const void* points;   // [B, K, 2]
  const float* matrix;  // [B, 2, 3]
  void* out;            // [B, K, 2]
  ScalarKind kind;      // of points and out: float32 or float64
  int64_t batch;
  int64_t joints;
  bool inverse;
};

// A matrix that cannot be inverted gives NaN: on the GPU nothing can be raised without a synchronisation. The CPU glue
// has raised before it comes here.
template <typename T>
FASTPOSE_HOST_DEVICE void transform_one_point(const TransformPointsParams& p, int64_t index) {
  const T* point = static_cast<const T*>(p.points) + 2 * index;
  T* out = static_cast<T*>(p.out) + 2 * index;
  Affine a = load_affine(p.matrix + 6 * (index / p.joints));
  double x = point[0], y = point[1];
  if (p.inverse) {
    if (!is_invertible(a)) {
      out[0] = out[1] = static_cast<T>(NAN);
      return;
    }
    a = invert(a);
  }
  apply_affine(a, x, y, x, y);
  out[0] = static_cast<T>(x);
  out[1] = static_cast<T>(y);
}

#ifdef FASTPOSE_WITH_CUDA
cudaError_t launch_transform_points(const TransformPointsParams& params, cudaStream_t stream);
#endif

}  // namespace fastpose
