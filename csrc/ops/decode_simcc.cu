// SPDX-License-Identifier: Apache-2.0
#include "cuda/warp_peak.cuh"

#include "ops/decode_simcc.h"

namespace fastpose {
namespace {

constexpr int kJointThreads = 128;  // a warp per joint
// That an SM is to hold, hence 64 registers for a thread, or 128: left alone, ptxas takes fewer and spills.
template <bool kMoreRegisters>
constexpr int kBlocksPerSm = kMoreRegisters ? 4 : 8;

template <typename T>
__device__ __forceinline__ Peak<accumulate_t<T>> peak_of_vector(const DecodedVector<T>& vector, int bins) {
  Peak<accumulate_t<T>> best{0, -1};
#pragma unroll 4
  for (int i = threadIdx.x % 32; i < bins; i += 32) {
    const Peak<accumulate_t<T>> candidate{vector.at(i), i};
    if (is_better(candidate, best)) best = candidate;
  }
  return best_of_warp(best);
}

constexpr int kBlurredAtOnce = 128;  // bins by a warp
constexpr int kStaged = kBlurredAtOnce + kMaxBlurKernel - 1;

// Calls visit(bin, value) with the blurred value of each bin from `begin` up to `end`, at most kBlurredAtOnce; a lane
// has every 32nd. What the blur reaches, zeros beyond either end, first goes to shared memory: it is loaded, merged and
// converted once and not for every weight.
template <typename T, typename Visit>
__device__ __forceinline__ void blur_bins(const DecodeSimccAxis& axis, const DecodedVector<T>& vector, double* staged,
                                          int begin, int end, const Visit& visit) {
  const int lane = threadIdx.x % 32, first = begin - axis.blur_radius, count = end - begin + 2 * axis.blur_radius;
#pragma unroll 2
  for (int i = lane; i < count; i += 32) {
    const int bin = first + i;
    staged[i] = bin < 0 || bin >= axis.bins ? 0.0 : static_cast<double>(vector.at(bin));
  }
  __syncwarp();
#pragma unroll 1
  for (int bin = begin + lane; bin < end; bin += 32) {
    const double* middle = staged + (bin - first);
    double sum = axis.blur[0] * middle[0];
#pragma unroll 4
    for (int d = 1; d <= axis.blur_radius; ++d) sum += axis.blur[d] * (middle[-d] + middle[d]);
    visit(bin, sum);
  }
  __syncwarp();
}

// The step of dark, in every lane of a warp whose lanes all know the peak.
template <typename T>
__device__ __forceinline__ double warp_step(const DecodeSimccAxis& axis, const DecodedVector<T>& vector,
                                            const Peak<accumulate_t<T>>& peak, double* staged) {
  constexpr int kSide = 2 * kDarkReach + 1;
  double highest = -static_cast<double>(INFINITY);
#pragma unroll 1
  for (int begin = 0; begin < axis.bins; begin += kBlurredAtOnce)
    blur_bins(axis, vector, staged, begin, min(begin + kBlurredAtOnce, axis.bins),
              [&](int, double value) { highest = max_number(highest, value); });
  for (int offset = 16; offset > 0; offset /= 2)
    highest = max_number(highest, __shfl_xor_sync(kFullWarp, highest, offset));
  const int first = dark_bin(peak.index, 0, axis.bins), last = dark_bin(peak.index, kSide - 1, axis.bins);
  double mine = 0.0;
  blur_bins(axis, vector, staged, first, last + 1, [&](int, double value) { mine = value; });
  double window[kSide];
#pragma unroll
  for (int i = 0; i < kSide; ++i) window[i] = __shfl_sync(kFullWarp, mine, dark_bin(peak.index, i, axis.bins) - first);
  return dark_step(window, static_cast<double>(peak.value), highest);
}

// Floor: one read of the vectors. Compiled twice, so that plain maxima do not carry the registers of a blur.
template <typename T, bool kDark>
__global__ void __launch_bounds__(kJointThreads, kBlocksPerSm<kDark || sizeof(T) == 8>)
    decode_simcc_kernel(const __grid_constant__ DecodeSimccParams p) {
  const int64_t joints = p.batch * p.joints;
  for (int64_t index = first_item() / 32; index < joints; index += item_stride() / 32) {
    const int64_t b = index / p.joints, k = index - b * p.joints;
    const DecodedVector<T> vectors[2] = {decoded_vector<T>(p, p.axes[0], b, k, true),
                                         decoded_vector<T>(p, p.axes[1], b, k, false)};
    const Peak<accumulate_t<T>> peaks[2] = {peak_of_vector(vectors[0], p.axes[0].bins),
                                            peak_of_vector(vectors[1], p.axes[1].bins)};
    double steps[2] = {0.0, 0.0};
    if constexpr (kDark) {
      __shared__ double staged[kJointThreads / 32][kStaged];
      if (is_found(peaks[0]) && is_found(peaks[1])) {
#pragma unroll
        for (int i = 0; i < 2; ++i) steps[i] = warp_step(p.axes[i], vectors[i], peaks[i], staged[threadIdx.x / 32]);
      }
    }
    if (threadIdx.x % 32 == 0) write_simcc_point(p, b, k, peaks, steps);
  }
}

}  // namespace

cudaError_t launch_decode_simcc(const DecodeSimccParams& params, cudaStream_t stream) {
  return dispatch_device_floating(params.kind, [&](auto zero) {
    using T = decltype(zero);
    return launch(params.dark ? decode_simcc_kernel<T, true> : decode_simcc_kernel<T, false>,
                  grid_for(params.batch * params.joints * 32, kJointThreads), kJointThreads, stream, params);
  });
}

}  // namespace fastpose
