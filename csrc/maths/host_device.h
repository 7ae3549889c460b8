// SPDX-License-Identifier: Apache-2.0
// What every shared header needs: functions that compile for the CPU and for CUDA, and the element types of tensors.
// Nothing here or in <op>.h knows torch: glue (<op>.cpp) and kernel (<op>.cu) meet in plain structs.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define FASTPOSE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTPOSE_HOST_DEVICE inline
#endif

namespace fastpose {

enum class ScalarKind : int { kFloat32, kFloat16, kBFloat16, kFloat64, kUInt8 };

FASTPOSE_HOST_DEVICE int bytes_of(ScalarKind kind) {
  switch (kind) {
    case ScalarKind::kUInt8:
      return 1;
    case ScalarKind::kFloat16:
    case ScalarKind::kBFloat16:
      return 2;
    case ScalarKind::kFloat64:
      return 8;
    default:
      return 4;
  }
}

// Half types compute in float, float64 in itself.
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename T>
using accumulate_t = typename Accumulate<T>::type;

FASTPOSE_HOST_DEVICE float exp_of(float x) { return expf(x); }
FASTPOSE_HOST_DEVICE double exp_of(double x) { return exp(x); }

// False for NaN and for both infinities. std::isfinite is not callable from device code on every compiler.
template <typename F>
FASTPOSE_HOST_DEVICE bool is_finite(F x) {
  return x - x == F(0);
}

}  // namespace fastpose
