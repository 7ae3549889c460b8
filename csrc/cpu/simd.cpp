// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastpose {

const char* simd_name(SimdLevel level) {
  return level == SimdLevel::kAvx512 ? "avx512" : level == SimdLevel::kAvx2 ? "avx2" : "plain";
}

SimdLevel best_simd_level() {
#ifdef __x86_64__
  // These ask the operating system too, whether it saves the wide registers.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return SimdLevel::kAvx512;
  }
  if (__builtin_cpu_supports("avx2")) return SimdLevel::kAvx2;
#endif
  return SimdLevel::kPlain;
}

SimdLevel simd_level() {
  // A static whose initialiser throws is tried again by the next call, which so fails alike.
  static const SimdLevel level = [] {
    const SimdLevel best = best_simd_level();
    const char* wish = std::getenv("FASTPOSE_SIMD");
    if (wish == nullptr || *wish == '\0') return best;
    for (const SimdLevel known : {SimdLevel::kPlain, SimdLevel::kAvx2, SimdLevel::kAvx512}) {
      if (std::string(wish) != simd_name(known)) continue;
      if (known <= best) return known;
      throw std::runtime_error(std::string("FASTPOSE_SIMD=") + wish + ", but the best this machine has is " +
                               simd_name(best));
    }
    throw std::runtime_error(std::string("FASTPOSE_SIMD must be plain, avx2, avx512 or unset, got '") + wish + "'");
  }();
  return level;
}

}  // namespace fastpose
