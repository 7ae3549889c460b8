// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  // To nearest, ties to even; NaN stays NaN.
  explicit __nv_bfloat16(float x) {
    uint32_t word;
    std::memcpy(&word, &x, sizeof(word));
    bits = static_cast<uint16_t>(x != x ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  operator float() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &word, sizeof(x));
    return x;
  }
};
