// SPDX-License-Identifier: Apache-2.0
// As much of CUDA as our kernels use, on the CPU: compiled as C++ against this folder, a .cu file runs anywhere, one
// fiber per thread of a block, blocks one after the other. `make emulate` puts the op tests on it, under sanitizers, so
// that indexing, barriers and reductions are tested where there is no GPU. It says nothing about speed, nor about
// what needs several blocks at once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one at a time, so a block's memory may outlive it

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration";
}

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
using std::max;
using std::min;

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulation {

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& kernel);
void* dynamic_shared();
void wait_for_block();
void wait_for_warp();
uint64_t& shuffle_slot(unsigned lane);  // of the calling thread's warp

template <typename T>
T shuffle_from(T value, unsigned lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "shuffles move up to eight bytes");
  std::memcpy(&shuffle_slot(threadIdx.x % 32), &value, sizeof(T));
  wait_for_warp();
  if (lane < 32) std::memcpy(&value, &shuffle_slot(lane), sizeof(T));
  wait_for_warp();
  return value;
}

}  // namespace cuda_emulation

template <typename... Params, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Arguments&&... arguments) {
  return cuda_emulation::run(*config, [&] { kernel(arguments...); });
}

inline void __syncthreads() { cuda_emulation::wait_for_block(); }
inline void __syncwarp() { cuda_emulation::wait_for_warp(); }
template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned offset) {
  return cuda_emulation::shuffle_from(value, threadIdx.x % 32 + offset);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, unsigned mask) {
  return cuda_emulation::shuffle_from(value, threadIdx.x % 32 ^ mask);
}
template <typename T>
T __shfl_sync(unsigned, T value, unsigned lane) {
  return cuda_emulation::shuffle_from(value, lane);
}
inline unsigned __ballot_sync(unsigned, bool mine) {
  using cuda_emulation::shuffle_slot;
  using cuda_emulation::wait_for_warp;
  shuffle_slot(threadIdx.x % 32) = mine;
  wait_for_warp();
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (shuffle_slot(lane) != 0) votes |= 1u << lane;
  wait_for_warp();
  return votes;
}
inline int __ffs(unsigned word) { return __builtin_ffs(static_cast<int>(word)); }
template <typename T>
T atomicOr(T* at, T bits) {
  const T before = *at;
  *at |= bits;
  return before;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }
