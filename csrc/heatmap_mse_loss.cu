// SPDX-License-Identifier: Apache-2.0
#include "cuda_launch.cuh"

#include "heatmap_mse_loss.h"

namespace fastpose {
namespace {

// Where pixel (x, y) lies in its map.
__device__ __forceinline__ int64_t pixel_offset(int y, int x, int64_t stride_y, int64_t stride_x) {
  return y * stride_y + x * stride_x;
}

// One block per map; its sum goes to map_losses.
template <typename T>
__global__ void map_loss_kernel(const HeatmapMseLossParams p) {
  using A = accumulate_t<T>;
  const int width = p.spec.width;
  const int64_t pixels = static_cast<int64_t>(p.spec.height) * width;
  for (int64_t map = blockIdx.x; map < p.batch * p.joints; map += gridDim.x) {
    const LossOfMap l = loss_of_map(p, map);
    const int64_t b = map / p.joints, k = map - b * p.joints;
    const T* pred = static_cast<const T*>(p.pred) + b * p.stride_b + k * p.stride_k;
    A sum = A(0);
    for (int64_t i = threadIdx.x; i < pixels; i += blockDim.x) {
      const int y = static_cast<int>(i / width), x = static_cast<int>(i - static_cast<int64_t>(y) * width);
      const A difference = static_cast<A>(pred[pixel_offset(y, x, p.stride_y, p.stride_x)]) -
                           target_value<A>(l.target, p.spec.sigma, x, y);
      sum += difference * difference;
    }
    const double total = block_sum(static_cast<double>(sum));
    if (threadIdx.x == 0) p.map_losses[map] = total * l.weight;
  }
}

// One block adds the maps up, always in the same order: two runs give the same bits.
template <typename T>
__global__ void total_loss_kernel(const HeatmapMseLossParams p) {
  double sum = 0.0;
  for (int64_t map = threadIdx.x; map < p.batch * p.joints; map += blockDim.x) sum += p.map_losses[map];
  const double total = block_sum(sum);
  if (threadIdx.x == 0) *static_cast<accumulate_t<T>*>(p.loss) = static_cast<accumulate_t<T>>(total * loss_scale(p));
}

template <typename T>
__global__ void loss_backward_kernel(const HeatmapMseLossParams p) {
  using A = accumulate_t<T>;
  const int width = p.spec.width;
  const int64_t pixels = static_cast<int64_t>(p.spec.height) * width;
  const double grad_output = *static_cast<const A*>(p.grad_output);
  for (int64_t map = blockIdx.x; map < p.batch * p.joints; map += gridDim.x) {
    const LossOfMap l = loss_of_map(p, map);
    const int64_t b = map / p.joints, k = map - b * p.joints;
    const T* pred = static_cast<const T*>(p.pred) + b * p.stride_b + k * p.stride_k;
    T* grad = static_cast<T*>(p.grad) + b * p.grad_stride_b + k * p.grad_stride_k;
    // grad_output goes in before rounding to T: a gradient in half precision would be 0 before loss scaling.
    const A factor = static_cast<A>(2.0 * loss_scale(p) * grad_output * l.weight);
    for (int64_t i = threadIdx.x; i < pixels; i += blockDim.x) {
      const int y = static_cast<int>(i / width), x = static_cast<int>(i - static_cast<int64_t>(y) * width);
      const A difference = static_cast<A>(pred[pixel_offset(y, x, p.stride_y, p.stride_x)]) -
                           target_value<A>(l.target, p.spec.sigma, x, y);
      grad[pixel_offset(y, x, p.grad_stride_y, p.grad_stride_x)] = static_cast<T>(factor * difference);
    }
  }
}

}  // namespace

cudaError_t launch_heatmap_mse_loss(const HeatmapMseLossParams& params, cudaStream_t stream) {
  dispatch_device_floating(params.kind, [&](auto zero) {
    using T = decltype(zero);
    const int64_t maps = params.batch * params.joints;
    if (maps > 0) map_loss_kernel<T><<<grid_for(maps, 1), kThreads, 0, stream>>>(params);
    total_loss_kernel<T><<<1, kThreads, 0, stream>>>(params);
  });
  return cudaGetLastError();
}

cudaError_t launch_heatmap_mse_loss_backward(const HeatmapMseLossParams& params, cudaStream_t stream) {
  dispatch_device_floating(params.kind, [&](auto zero) {
    loss_backward_kernel<decltype(zero)><<<grid_for(params.batch * params.joints, 1), kThreads, 0, stream>>>(params);
  });
  return cudaGetLastError();
}

}  // namespace fastpose
