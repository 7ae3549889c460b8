// SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_launch.cuh"

#include "ops/crop_to_image_matrix.h"

namespace fastpose {
namespace {

__global__ void crop_to_image_matrix_kernel(const CropToImageMatrixParams p) {
  for (int64_t b = first_item(); b < p.batch; b += item_stride()) crop_to_image_of_one(p, b);
}

}  // namespace

cudaError_t launch_crop_to_image_matrix(const CropToImageMatrixParams& params, cudaStream_t stream) {
  return launch(crop_to_image_matrix_kernel, grid_for(params.batch, kThreads), kThreads, stream, params);
}

}  // namespace fastpose
