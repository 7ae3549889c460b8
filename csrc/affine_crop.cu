// SPDX-License-Identifier: Apache-2.0
#include "cuda_launch.cuh"

#include "affine_crop.h"

namespace fastpose {
namespace {

// A block takes kThreads pixels of one crop, so that matrix, colour map and image table are the same for all of it.
template <typename T>
__global__ void affine_crop_kernel(const __grid_constant__ AffineCropParams p) {
  const int64_t pixels = static_cast<int64_t>(p.height) * p.width;
  const int64_t tiles = (pixels + kThreads - 1) / kThreads;
  for (int64_t tile = blockIdx.x; tile < p.batch * tiles; tile += gridDim.x) {
    const int64_t b = tile / tiles;
    const int64_t pixel = (tile - b * tiles) * kThreads + threadIdx.x;
    if (pixel >= pixels) continue;
    const int y = static_cast<int>(pixel / p.width), x = static_cast<int>(pixel - static_cast<int64_t>(y) * p.width);
    T* out = static_cast<T*>(p.out) + b * p.stride_b + y * p.stride_y + x * p.stride_x;
    const ImageView image = image_of_crop(p, b);
    if (image.pixels == nullptr) {
      for (int c = 0; c < 3; ++c) out[c * p.stride_c] = no_image_value<T>(p.fill);
    } else {
      crop_one_pixel<T>(p, image, p.crop_to_image + 6 * b, color_of_crop(p, b), x, y, out);
    }
  }
}

}  // namespace

cudaError_t launch_affine_crop(const AffineCropParams& params, cudaStream_t stream) {
  const int64_t pixels = static_cast<int64_t>(params.height) * params.width;
  const unsigned grid = grid_for(params.batch * ((pixels + kThreads - 1) / kThreads), 1);
  const auto launch = [&](auto zero) { affine_crop_kernel<decltype(zero)><<<grid, kThreads, 0, stream>>>(params); };
  params.kind == ScalarKind::kUInt8 ? launch(uint8_t()) : dispatch_device_floating(params.kind, launch);
  return cudaGetLastError();
}

}  // namespace fastpose
