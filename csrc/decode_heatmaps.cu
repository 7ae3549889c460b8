// SPDX-License-Identifier: Apache-2.0
#include "cuda_launch.cuh"

#include "decode_heatmaps.h"

namespace fastpose {
namespace {

constexpr int kMapThreads = 128;
constexpr int kSampleThreads = 512;

// Kernels that blur may take 128 registers per thread, of the 65,536 that every architecture has: left alone, ptxas
// aims at more blocks and spills on some. 0: left alone.
template <bool kBlurs>
constexpr int blocks_per_sm(int threads) {
  return kBlurs ? 512 / threads : 0;
}

// The best peak of a warp, in lane 0.
template <typename A>
__device__ __forceinline__ Peak<A> warp_peak(Peak<A> best) {
  for (int offset = 16; offset > 0; offset /= 2) {
    Peak<A> other;
    other.value = __shfl_down_sync(kFullWarp, best.value, offset);
    other.index = __shfl_down_sync(kFullWarp, best.index, offset);
    if (is_better(other, best)) best = other;
  }
  return best;
}

// The offset of dark or dark_udp, in every lane of a warp whose lanes all know the peak. A lane blurs one column of the
// neighbourhood downwards, so that a row is one coalesced load; then it takes the columns that its own column of the
// window is made of from the others.
template <int kReach, typename T>
__device__ __forceinline__ Offset warp_offset(const DecodeHeatmapsParams& p, const DecodedMap<T>& map,
                                              const Peak<accumulate_t<T>>& peak) {
  constexpr int kSide = 2 * kReach + 1;
  const MapPixel at = map_pixel(p, peak.index);
  if (!is_refined<kReach>(p, at)) return {0.0, 0.0};
  const int lane = threadIdx.x % 32;
  const WindowAxis<kReach> rows(at.y, p.height);
  const int center = min(max(at.x + lane - kReach, 0), p.width - 1);  // of lane's column of the window
  const BlurRange range_y(at.y, kReach, p.blur_radius, p.height), range_x(at.x, kReach, p.blur_radius, p.width);
  double blurred[kSide] = {};
  for (int begin = range_x.first; begin <= range_x.last; begin += 32) {
    double column[kSide][1] = {};
    if (begin + lane <= range_x.last) blur_columns(p, map, rows, range_y, begin + lane, range_x.last, column);
    const int columns = min(range_x.last - begin + 1, 32);
    for (int x = 0; x < columns; ++x) {
      const int distance = abs(begin + x - center);
#pragma unroll
      for (int i = 0; i < kSide; ++i) {
        const double value = __shfl_sync(kFullWarp, column[i][0], x);
        if (distance <= p.blur_radius) blurred[i] += p.blur[distance] * value;
      }
    }
  }
  // One value of the window per lane, row by row: one logarithm each.
  double mine = 0.0;
#pragma unroll
  for (int i = 0; i < kSide; ++i) {
    const double value = __shfl_sync(kFullWarp, blurred[i], lane % kSide);
    if (lane / kSide == i) mine = value;
  }
  double highest = mine > 0.0 ? mine : 0.0;  // lanes beyond the window have 0
  for (int offset = 16; offset > 0; offset /= 2) {
    const double other = __shfl_down_sync(kFullWarp, highest, offset);
    highest = other > highest ? other : highest;
  }
  mine = log_above_floor<kReach>(mine * blur_scale(peak, __shfl_sync(kFullWarp, highest, 0)));
  return offset_of<kReach>([&](int row, int column) { return __shfl_sync(kFullWarp, mine, row * kSide + column); });
}

// Refines and writes the point of a map whose peak lane 0 of the warp knows. The kernels are compiled twice, so that
// refinements without a blur do not carry its registers.
template <bool kBlurs, typename T>
__device__ __forceinline__ void write_refined_point(const DecodeHeatmapsParams& p, int64_t index,
                                                    const DecodedMap<T>& map, Peak<accumulate_t<T>> peak) {
  Offset offset{0.0, 0.0};
  if constexpr (kBlurs) {
    peak.value = __shfl_sync(kFullWarp, peak.value, 0);
    peak.index = __shfl_sync(kFullWarp, peak.index, 0);
    if (is_found(peak)) {
      offset = p.refine == Refine::kDark ? warp_offset<2>(p, map, peak) : warp_offset<1>(p, map, peak);
    }
  }
  if (threadIdx.x % 32 != 0) return;
  if (!kBlurs && p.refine == Refine::kQuarter && is_found(peak))
    offset = quarter_offset(p, map, map_pixel(p, peak.index));
  write_decoded_point(p, index, peak, offset);
}

template <typename A>
__device__ __forceinline__ void keep_better(Peak<A>& best, A value, int64_t index) {
  const Peak<A> candidate{value, index};
  if (is_better(candidate, best)) best = candidate;
}

// V neighbouring values, the first of which is pixel `index`. Most vectors hold no new maximum: one comparison says so.
template <int V, typename A>
__device__ __forceinline__ void keep_better_of(Peak<A>& best, const A (&values)[V], int64_t index) {
  A highest = values[0];
#pragma unroll
  for (int i = 1; i < V; ++i) highest = values[i] > highest || highest != highest ? values[i] : highest;
  // Only where all values are NaN is the highest NaN, and that beats nothing.
  if (best.index >= 0 && !(highest > best.value)) return;
#pragma unroll
  for (int i = 0; i < V; ++i) keep_better(best, values[i], index + i);
}

// V neighbouring values of the map that flip test and decoder see, from two 16-byte loads. The mirrored map is read
// backwards; shifted, it lies one column further, and that one column is a load of its own.
template <typename T>
__device__ __forceinline__ void merge_flipped(const Vector<T>& plain, const Vector<T>& mirrored, T beyond, bool shifted,
                                              accumulate_t<T> (&values)[Vector<T>::kSize]) {
  using A = accumulate_t<T>;
  constexpr int V = Vector<T>::kSize;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const T own = mirrored.of[V - 1 - i];
    const T before = i == 0 ? beyond : mirrored.of[(V - i) % V];
    values[i] = (static_cast<A>(plain.of[i]) + static_cast<A>(shifted ? before : own)) * A(0.5);
  }
}

// One block per map, rows side by side, 16-byte loads, several in flight. Floor: one read of the maps.
template <typename T, bool kBlurs, bool kFlipped>
__global__ void __launch_bounds__(kMapThreads, blocks_per_sm<kBlurs>(kMapThreads))
    decode_planar_kernel(const __grid_constant__ DecodeHeatmapsParams p) {
  using A = accumulate_t<T>;
  constexpr int V = Vector<T>::kSize, kUnroll = kFlipped ? 2 : 4;
  __shared__ Peak<A> of_warp[kMapThreads / 32];
  const int row_vectors = p.width / V;
  const int64_t maps = p.batch * p.joints, vectors = static_cast<int64_t>(p.height) * row_vectors;
  for (int64_t index = blockIdx.x; index < maps; index += gridDim.x) {
    const int64_t b = index / p.joints;
    const DecodedMap<T> map = decoded_map<T>(p, b, index - b * p.joints);
    const auto* plain = reinterpret_cast<const Vector<T>*>(map.map);
    const auto* mirrored = reinterpret_cast<const Vector<T>*>(map.flipped);
    Peak<A> best{A(0), -1};
    RowCursor at(threadIdx.x, kMapThreads, row_vectors);
    for (int64_t first = threadIdx.x; first < vectors; first += kUnroll * kMapThreads) {
      Vector<T> loaded[kUnroll], other[kUnroll];
      T beyond[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (first + u * kMapThreads < vectors) {
          loaded[u] = plain[first + u * kMapThreads];
          if constexpr (kFlipped) {
            const int64_t row = static_cast<int64_t>(at.row) * row_vectors;
            other[u] = mirrored[row + (row_vectors - 1 - at.column)];
            // Column x takes the mirrored map's width - x; column 0 has none there and keeps its own, width - 1.
            const int column = at.column == 0 ? p.width - 1 : p.width - at.column * V;
            if (p.flip_shift) beyond[u] = map.flipped[row * V + column];
          }
        }
        at.advance();
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t vector = first + u * kMapThreads;
        if (vector >= vectors) continue;
        A values[V];
        if constexpr (kFlipped) {
          merge_flipped(loaded[u], other[u], beyond[u], p.flip_shift, values);
        } else {
#pragma unroll
          for (int i = 0; i < V; ++i) values[i] = static_cast<A>(loaded[u].of[i]);
        }
        keep_better_of<V>(best, values, vector * V);
      }
    }
    best = warp_peak(best);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x < 32) {
      for (int warp = 1; warp < kMapThreads / 32; ++warp)
        if (is_better(of_warp[warp], best)) best = of_warp[warp];  // lane 0's own is that of warp 0
      write_refined_point<kBlurs>(p, index, map, best);
    }
    __syncthreads();  // of_warp is free for the next map
  }
}

// Maps whose joints lie side by side, as a channels-last network gives them. One block per sample; neighbouring threads
// read neighbouring joints, and each thread keeps to one joint.
template <typename T, bool kBlurs>
__global__ void __launch_bounds__(kSampleThreads, blocks_per_sm<kBlurs>(kSampleThreads))
    decode_interleaved_kernel(const __grid_constant__ DecodeHeatmapsParams p) {
  using A = accumulate_t<T>;
  constexpr int kUnroll = 8;
  auto* peaks = dynamic_shared<Peak<A>>();  // [lanes][joints]
  const int joints = static_cast<int>(p.joints), lanes = kSampleThreads / joints;
  const int k = threadIdx.x % joints, lane = threadIdx.x / joints;
  for (int64_t b = blockIdx.x; b < p.batch; b += gridDim.x) {
    if (lane < lanes) {
      const DecodedMap<T> map = decoded_map<T>(p, b, k);
      Peak<A> best{A(0), -1};
      RowCursor at(lane, lanes, p.width);
      while (at.row < p.height) {
        A values[kUnroll];
        int64_t pixels[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const bool inside = at.row < p.height;
          pixels[u] = inside ? static_cast<int64_t>(at.row) * p.width + at.column : -1;
          values[u] = inside ? map.at(at.row, at.column) : A(0);
          at.advance();
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) keep_better(best, values[u], pixels[u]);
      }
      peaks[threadIdx.x] = best;
    }
    __syncthreads();
    for (int joint = threadIdx.x / 32; joint < joints; joint += kSampleThreads / 32) {
      Peak<A> best{A(0), -1};
      for (int i = threadIdx.x % 32; i < lanes; i += 32)
        if (is_better(peaks[i * joints + joint], best)) best = peaks[i * joints + joint];
      best = warp_peak(best);
      write_refined_point<kBlurs>(p, b * joints + joint, decoded_map<T>(p, b, joint), best);
    }
    __syncthreads();  // peaks are free for the next sample
  }
}

// Any strides, widths and numbers of joints: one warp per map.
template <typename T, bool kBlurs>
__global__ void __launch_bounds__(kThreads, blocks_per_sm<kBlurs>(kThreads))
    decode_strided_kernel(const __grid_constant__ DecodeHeatmapsParams p) {
  using A = accumulate_t<T>;
  const int lane = threadIdx.x % 32;
  const int64_t maps = p.batch * p.joints;
  for (int64_t index = first_item() / 32; index < maps; index += item_stride() / 32) {
    const int64_t b = index / p.joints;
    const DecodedMap<T> map = decoded_map<T>(p, b, index - b * p.joints);
    Peak<A> best{A(0), -1};
    for (RowCursor at(lane, 32, p.width); at.row < p.height; at.advance())
      keep_better(best, map.at(at.row, at.column), static_cast<int64_t>(at.row) * p.width + at.column);
    best = warp_peak(best);
    write_refined_point<kBlurs>(p, index, map, best);
  }
}

// Whether every map is rows of whole, aligned vectors without gaps.
template <typename T>
bool is_planar(const DecodeHeatmapsParams& p, const void* maps, const MapStrides& strides) {
  constexpr int V = Vector<T>::kSize;
  return strides.x == 1 && strides.y == p.width && p.width % V == 0 && strides.b % V == 0 && strides.k % V == 0 &&
         is_vector_aligned(static_cast<const T*>(maps));
}

bool is_interleaved(const DecodeHeatmapsParams& p, const MapStrides& strides) {
  return p.joints > 1 && p.joints <= kSampleThreads / 4 && strides.k == 1 && strides.x >= p.joints;
}

template <typename T, bool kBlurs>
cudaError_t launch_kernel(const DecodeHeatmapsParams& params, cudaStream_t stream) {
  const bool flipped = params.flipped != nullptr;
  const int64_t maps = params.batch * params.joints;
  if (is_planar<T>(params, params.heatmaps, params.strides) &&
      (!flipped || is_planar<T>(params, params.flipped, params.flipped_strides))) {
    return launch(flipped ? decode_planar_kernel<T, kBlurs, true> : decode_planar_kernel<T, kBlurs, false>,
                  grid_for(maps, 1), kMapThreads, stream, params);
  }
  if (is_interleaved(params, params.strides) && (!flipped || is_interleaved(params, params.flipped_strides))) {
    return launch(decode_interleaved_kernel<T, kBlurs>, grid_for(params.batch, 1), kSampleThreads, stream, params,
                  kSampleThreads * sizeof(Peak<accumulate_t<T>>));
  }
  return launch(decode_strided_kernel<T, kBlurs>, grid_for(maps * 32, kThreads), kThreads, stream, params);
}

}  // namespace

cudaError_t launch_decode_heatmaps(const DecodeHeatmapsParams& params, cudaStream_t stream) {
  const bool blurs = params.refine == Refine::kDark || params.refine == Refine::kDarkUdp;
  return dispatch_device_floating(params.kind, [&](auto zero) {
    using T = decltype(zero);
    return blurs ? launch_kernel<T, true>(params, stream) : launch_kernel<T, false>(params, stream);
  });
}

}  // namespace fastpose
