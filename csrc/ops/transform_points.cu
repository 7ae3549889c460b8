// SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_launch.cuh"

#include "ops/transform_points.h"

namespace fastpose {
namespace {

template <typename T>
__global__ void transform_points_kernel(const TransformPointsParams p) {
  for (int64_t i = first_item(); i < p.batch * p.joints; i += item_stride()) transform_one_point<T>(p, i);
}

}  // namespace

cudaError_t launch_transform_points(const TransformPointsParams& params, cudaStream_t stream) {
  const unsigned grid = grid_for(params.batch * params.joints, kThreads);
  const bool wide = params.kind == ScalarKind::kFloat64;
  return launch(wide ? transform_points_kernel<double> : transform_points_kernel<float>, grid, kThreads, stream,
                params);
}

}  // namespace fastpose
