// SPDX-License-Identifier: Apache-2.0
// SIMD picked at run time. The source of a CPU loop stands once, as plain C++ in the shape that compilers turn into
// vector code, and is compiled for several instruction sets; the best that this machine has is called. The levels give
// the same bits: without contraction a vector instruction rounds like the scalar one, and the source fixes the order of
// every sum. On Arm there is one level, the compiler's own.
#pragma once

namespace fastpose {

enum class SimdLevel : int { kPlain, kAvx2, kAvx512 };

// What the ops run with: the best of this machine, or what the environment variable FASTPOSE_SIMD names. Read once;
// a level that is unknown, or that this machine does not have, is an error in every op.
SimdLevel simd_level();
SimdLevel best_simd_level();
const char* simd_name(SimdLevel level);

// `flatten` inlines the whole loop into a function of that instruction set, and only there: no function that others
// share is ever compiled for it, so the linker cannot hand a machine without it such a copy.
#define FASTPOSE_FLATTEN __attribute__((flatten, noinline))

template <typename Body>
FASTPOSE_FLATTEN void run_plain(const Body& body) {
  body();
}
#ifdef __x86_64__
template <typename Body>
__attribute__((target("avx2"))) FASTPOSE_FLATTEN void run_avx2(const Body& body) {
  body();
}
template <typename Body>
__attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl"))) FASTPOSE_FLATTEN void run_avx512(const Body& body) {
  body();
}
#endif

// Runs body(), a loop over pixels, with the instruction set of `level`: simd_level(), asked before the work is shared
// among threads, where an error would lose its text.
template <typename Body>
void with_simd(SimdLevel level, const Body& body) {
#ifdef __x86_64__
  if (level == SimdLevel::kAvx512) return run_avx512(body);
  if (level == SimdLevel::kAvx2) return run_avx2(body);
#else
  static_cast<void>(level);
#endif
  run_plain(body);
}

}  // namespace fastpose
