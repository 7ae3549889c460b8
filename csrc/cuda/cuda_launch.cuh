// SPDX-License-Identifier: Apache-2.0
// What the kernels of every op share: element types, vectors, launches, reductions. Torch-free.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>

#include "maths/host_device.h"

namespace fastpose {

constexpr int kThreads = 256;
constexpr unsigned kFullWarp = 0xffffffffu;
// Every architecture allows a block 48 KiB by default; the kernels' own small arrays need some of it.
constexpr size_t kSharedBytes = 47 * 1024;

// Blocks for `items`, `per_block` at a time. Kernels walk on with a grid stride or are launched for fewer, so the
// cap (the hardware allows 2^31-1) bounds nothing but the launch.
inline unsigned grid_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>(std::min<int64_t>((items + per_block - 1) / per_block, 1 << 30));
}

// Launches kernel(params). Returns this launch's own error, not one that an earlier call has left behind.
template <typename Params>
cudaError_t launch(void (*kernel)(Params), unsigned blocks, int threads, cudaStream_t stream, const Params& params,
                   size_t shared_bytes = 0) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, params);
}

// The shared memory that the launch asked for, aligned for 16-byte accesses.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ uint4 fastpose_shared_bytes[];
  return reinterpret_cast<T*>(fastpose_shared_bytes);
#else
  return static_cast<T*>(cuda_emulation::dynamic_shared());
#endif
}

// The larger of two numbers; a number if one of them is NaN.
__device__ __forceinline__ float max_number(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double max_number(double a, double b) { return fmax(a, b); }

// Index of this thread among all, and the stride from one of its items to the next.
__device__ __forceinline__ int64_t first_item() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t item_stride() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// Calls body with a value of the device type behind kind.
template <typename Body>
cudaError_t dispatch_device_floating(ScalarKind kind, const Body& body) {
  switch (kind) {
    case ScalarKind::kFloat16:
      return body(__half());
    case ScalarKind::kBFloat16:
      return body(__nv_bfloat16());
    case ScalarKind::kFloat64:
      return body(double());
    default:
      return body(float());
  }
}

// Whether the kernels that share maps by their layout are compiled for a type. Networks do not run in float64, which is
// for checking gradients, and takes the kernels for any strides. So gradcheck sees those alone: that the others have
// the same gradients is for tests/ops/test_kernel_paths.py to show.
template <typename T>
constexpr bool kHasLayoutKernels = sizeof(T) < 8;

// 16 bytes of neighbouring elements: the widest load and store of one thread.
template <typename T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T of[kSize];
};

template <typename T>
bool is_vector_aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Elements that `count` take so that what follows them is aligned for 16-byte accesses.
FASTPOSE_HOST_DEVICE int aligned_count(int count) { return (count + 3) / 4 * 4; }

// `count` elements from 16-byte aligned shared memory.
template <int count, typename A>
__device__ __forceinline__ void load_aligned(A (&to)[count], const A* from) {
  constexpr int step = Vector<A>::kSize;
  static_assert(count % step == 0, "whole vectors");
#pragma unroll
  for (int i = 0; i < count; i += step) {
    const Vector<A> vector = *reinterpret_cast<const Vector<A>*>(from + i);
#pragma unroll
    for (int j = 0; j < step; ++j) to[i + j] = vector.of[j];
  }
}

// Where a thread stands that walks through rows of `width` items in steps of the block's size: no division per step.
struct RowCursor {
  int row, column, step_rows, step_columns, width;

  __device__ __forceinline__ RowCursor(int start, int step, int width_)
      : row(start / width_),
        column(start % width_),
        step_rows(step / width_),
        step_columns(step % width_),
        width(width_) {}
  __device__ __forceinline__ void advance() {
    row += step_rows;
    column += step_columns;
    if (column >= width) {
      column -= width;
      ++row;
    }
  }
};

// Sum over a warp, in an order that depends on nothing but the thread's place. Valid in its first thread.
__device__ __forceinline__ double warp_sum(double value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(kFullWarp, value, offset);
  return value;
}

// Sum over a block of at most 1024 threads, whole warps, in an order that depends on nothing but the thread's place.
// Valid in thread 0.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double of_warp[32];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    value = 0.0;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) value += of_warp[warp];
  }
  __syncthreads();  // of_warp may be written again by the caller's next round
  return value;
}

// n / divisor in two instructions, where (n + 1) * divisor is below 2^32.
struct SmallDivisor {
  unsigned reciprocal;  // of 2^32, rounded down; n + 1 makes up for it

  FASTPOSE_HOST_DEVICE explicit SmallDivisor(int divisor) : reciprocal(0xffffffffu / static_cast<unsigned>(divisor)) {}
  __device__ __forceinline__ unsigned quotient(unsigned n) const { return __umulhi(n + 1, reciprocal); }
};

// The elements in 16 bytes of memory, as kernels compute with them. Vectors that wait for their turn are best kept as
// they came: elements of two bytes would take a register each.
template <typename T>
__device__ __forceinline__ void unpack(accumulate_t<T> (&to)[Vector<T>::kSize], const uint4& from) {
  Vector<T> elements;
  memcpy(&elements, &from, sizeof(from));
#pragma unroll
  for (int i = 0; i < Vector<T>::kSize; ++i) to[i] = static_cast<accumulate_t<T>>(elements.of[i]);
}
// A bfloat16 is the upper half of a float32.
template <>
__device__ __forceinline__ void unpack<__nv_bfloat16>(float (&to)[8], const uint4& from) {
  const unsigned words[] = {from.x, from.y, from.z, from.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned lower = words[i] << 16, upper = words[i] & 0xffff0000u;
    memcpy(&to[2 * i], &lower, sizeof(lower));
    memcpy(&to[2 * i + 1], &upper, sizeof(upper));
  }
}

// A kernel that only needs what the one before it in the stream has written can be launched while that one still runs
// (from sm_90 on): it says launch_dependent instead of launch and waits before it touches memory. The one before says
// when the next may be got ready; the earliest moment is right. Without either call the kernels run one after the
// other.
__device__ __forceinline__ void let_next_kernel_get_ready() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}
__device__ __forceinline__ void wait_for_kernel_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

template <typename Params>
cudaError_t launch_dependent(void (*kernel)(Params), unsigned blocks, int threads, cudaStream_t stream,
                             const Params& params) {
#ifdef __CUDACC__
  // What counts is not the GPU but the code that it runs: compiled for less than sm_90 it would not wait.
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = attributes.ptxVersion >= 90 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params);
#else
  return launch(kernel, blocks, threads, stream, params);
#endif
}

}  // namespace fastpose
