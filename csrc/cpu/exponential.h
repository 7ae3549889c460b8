// SPDX-License-Identifier: Apache-2.0
// An exponential that compilers turn into vector code, which they do not the C library's.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace fastpose {

// exp(x) for x up to 80, within 2e-7 of it; 0 below -104, as it is in float32. NaN stays NaN. Every level of SIMD gives
// the same bits.
inline float vectorised_exp(float x) {
  constexpr float kToInteger = 0x1.8p23f;  // what is added to it is rounded to a whole number
  constexpr float kLog2High = 0x1.62ep-1f, kLog2Low = 0x1.0bfbe8p-15f;  // the first times a small number is exact
  const float above = x < -104.0f ? -104.0f : x;
  const float shifted = above * 0x1.715476p0f + kToInteger, twos = shifted - kToInteger;
  const float rest = (above - twos * kLog2High) - twos * kLog2Low;  // half a log 2 at most
  // Taylor's series, whose next term is below 1e-8.
  float power = rest * (1.0f / 5040.0f) + 1.0f / 720.0f;
  power = power * rest + 1.0f / 120.0f;
  power = power * rest + 1.0f / 24.0f;
  power = power * rest + 1.0f / 6.0f;
  power = power * rest + 0.5f;
  power = (power * rest + 1.0f) * rest + 1.0f;
  // In two steps, as 2^-150 is no float.
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kToInteger);
  const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(exponent) >> 1);
  const auto two_to = [](uint32_t n) { return std::bit_cast<float>((n + 127u) << 23); };
  return power * two_to(half) * two_to(exponent - half);
}

inline double vectorised_exp(double x) { return std::exp(x); }  // of float64 there are few

}  // namespace fastpose
