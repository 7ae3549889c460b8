// SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_launch.cuh"

#include "ops/decode_heatmaps.h"

namespace fastpose {
namespace {

constexpr int kMapThreads = 128;
constexpr int kSampleThreads = 512;
constexpr int kNothing = 0x7fffffff;  // place of a maximum that nothing has reached

// Kernels that blur may take 128 registers per thread, of the 65,536 that every architecture has: left alone, ptxas
// aims at more blocks and spills on some. 0: left alone.
template <bool kBlurs>
constexpr int blocks_per_sm(int threads) {
  return kBlurs ? 512 / threads : 0;
}

// A maximum and its place, the lower one of equals.
template <typename A>
struct Best {
  A value;
  int place;

  __device__ __forceinline__ void keep(A other, int other_place) {
    if (other > value || (other == value && other_place < place)) {
      value = other;
      place = other_place;
    }
  }
};

// Infinity below everything: nothing but NaN and itself fails to be greater.
template <typename A>
__device__ __forceinline__ Best<A> nothing_yet() {
  return {static_cast<A>(-INFINITY), kNothing};
}

// The best of a warp, in lane 0.
template <typename A>
__device__ __forceinline__ Best<A> warp_best(Best<A> best) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const A value = __shfl_down_sync(kFullWarp, best.value, offset);
    const int place = __shfl_down_sync(kFullWarp, best.place, offset);
    best.keep(value, place);
  }
  return best;
}

// The peak of a map that a warp walks through, in lane 0. Any strides; also where there is nothing above -infinity.
template <typename T>
__device__ __forceinline__ Peak<accumulate_t<T>> warp_peak(const DecodeHeatmapsParams& p, const DecodedMap<T>& map) {
  using A = accumulate_t<T>;
  Peak<A> best{A(0), -1};
  for (RowCursor at(threadIdx.x % 32, 32, p.width); at.row < p.height; at.advance()) {
    const Peak<A> candidate{map.at(at.row, at.column), static_cast<int64_t>(at.row) * p.width + at.column};
    if (is_better(candidate, best)) best = candidate;
  }
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
// window is made of from the others. `blur` is p.blur in shared memory: lanes that read different entries of a kernel's
// parameters do so one after the other.
template <int kReach, typename T>
__device__ __forceinline__ Offset warp_offset(const DecodeHeatmapsParams& p, const DecodedMap<T>& map,
                                              const Peak<accumulate_t<T>>& peak, const double* blur) {
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
        if (distance <= p.blur_radius) blurred[i] += blur[distance] * value;
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

// p.blur, copied to shared memory if the kernel blurs.
template <bool kBlurs>
__device__ __forceinline__ const double* shared_blur(const DecodeHeatmapsParams& p) {
  if constexpr (kBlurs) {
    __shared__ double blur[kMaxBlurKernel / 2 + 1];
    for (int i = threadIdx.x; i <= p.blur_radius; i += blockDim.x) blur[i] = p.blur[i];
    __syncthreads();
    return blur;
  } else {
    return nullptr;
  }
}

// Refines and writes the point of map `index`, one of sample b, whose peak lane 0 of the warp knows. The kernels are
// compiled twice, so that refinements without a blur do not carry its registers.
template <bool kBlurs, typename T>
__device__ __forceinline__ void write_refined_point(const DecodeHeatmapsParams& p, int64_t index, int64_t b,
                                                    const DecodedMap<T>& map, Peak<accumulate_t<T>> peak,
                                                    const double* blur) {
  Offset offset{0.0, 0.0};
  if constexpr (kBlurs) {
    peak.value = __shfl_sync(kFullWarp, peak.value, 0);
    peak.index = __shfl_sync(kFullWarp, peak.index, 0);
    if (is_found(peak)) {
      offset = p.refine == Refine::kDark ? warp_offset<2>(p, map, peak, blur) : warp_offset<1>(p, map, peak, blur);
    }
  }
  if (threadIdx.x % 32 != 0) return;
  if (!kBlurs && p.refine == Refine::kQuarter && is_found(peak))
    offset = quarter_offset(p, map, map_pixel(p, peak.index));
  write_decoded_point(p, index, b, peak, offset);
}

// The highest of V neighbouring values, NaN passed over; NaN if there is nothing else.
template <int V, typename A>
__device__ __forceinline__ A highest_of(const A (&values)[V]) {
  A highest = values[0];
#pragma unroll
  for (int i = 1; i < V; ++i) highest = max_number(highest, values[i]);
  return highest;
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

// One block per map, 16-byte loads, several in flight. Floor: one read of the maps. A thread keeps the highest value
// that it has seen and which of its vectors that was in; the element within it is looked up once per map. So a vector
// costs its maxima, a comparison and two selections: a branch to its elements would be taken in every round by some
// lane.
template <typename T, bool kBlurs, bool kFlipped>
__global__ void __launch_bounds__(kMapThreads, blocks_per_sm<kBlurs>(kMapThreads))
    decode_planar_kernel(const __grid_constant__ DecodeHeatmapsParams p) {
  using A = accumulate_t<T>;
  constexpr int V = Vector<T>::kSize, kUnroll = kFlipped ? 2 : 4, kWarps = kMapThreads / 32;
  __shared__ Best<A> of_warp[kWarps];
  const double* blur = shared_blur<kBlurs>(p);
  const int row_vectors = p.width / V, vectors = p.height * row_vectors, lane = threadIdx.x % 32;
  const int maps = static_cast<int>(p.batch * p.joints);
  for (int index = blockIdx.x; index < maps; index += gridDim.x) {
    const int b = index / static_cast<int>(p.joints);
    const DecodedMap<T> map = decoded_map<T>(p, b, index - b * static_cast<int>(p.joints));
    const auto* plain = reinterpret_cast<const Vector<T>*>(map.map);
    const auto* mirrored = reinterpret_cast<const Vector<T>*>(map.flipped);
    Best<A> best = nothing_yet<A>();
    RowCursor at(threadIdx.x, kMapThreads, row_vectors);
    for (int first = threadIdx.x; first < vectors; first += kUnroll * kMapThreads) {
      Vector<T> loaded[kUnroll], other[kUnroll];
      T beyond[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (first + u * kMapThreads < vectors) {
          loaded[u] = plain[first + u * kMapThreads];
          if constexpr (kFlipped) {
            const int row = at.row * row_vectors;
            other[u] = mirrored[row + (row_vectors - 1 - at.column)];
            // Column x takes the mirrored map's width - x; column 0 has none there and keeps its own, width - 1.
            const int column = at.column == 0 ? p.width - 1 : p.width - at.column * V;
            if (p.flip_shift) beyond[u] = map.flipped[row * V + column];
          }
        }
        if constexpr (kFlipped) at.advance();
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int vector = first + u * kMapThreads;
        if (vector >= vectors) continue;
        A values[V];
        if constexpr (kFlipped) {
          merge_flipped(loaded[u], other[u], beyond[u], p.flip_shift, values);
        } else {
#pragma unroll
          for (int i = 0; i < V; ++i) values[i] = static_cast<A>(loaded[u].of[i]);
        }
        const A highest = highest_of<V>(values);
        const bool better = highest > best.value;
        best.value = better ? highest : best.value;
        best.place = better ? vector : best.place;
      }
    }
    best = warp_best(best);
    if (lane == 0) of_warp[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x < 32) {
      best = of_warp[0];
#pragma unroll
      for (int warp = 1; warp < kWarps; ++warp) best.keep(of_warp[warp].value, of_warp[warp].place);
      Peak<A> peak{best.value, -1};
      if (best.place != kNothing) {
        const int y = best.place / row_vectors, x = (best.place - y * row_vectors) * V;
        const unsigned where = __ballot_sync(kFullWarp, lane < V && map.at(y, x + lane % V) == best.value);
        peak.index = static_cast<int64_t>(y) * p.width + x + (__ffs(static_cast<int>(where)) - 1);
      } else {
        peak = warp_peak(p, map);
      }
      write_refined_point<kBlurs>(p, index, b, map, peak, blur);
    }
    __syncthreads();  // of_warp is free for the next map
  }
}

// How the threads of a block share the elements of a sample of channels-last maps, at least a vector of joints. A
// thread steps by whole periods, after which a vector's elements are of the same joints again.
template <typename T>
struct ChannelsLastLanes {
  static constexpr int V = Vector<T>::kSize;
  // Of an element of all threads' vectors in shared memory: vectors lie across, so that neighbouring threads use
  // neighbouring banks.
  static constexpr int kPitch = kSampleThreads + 4;
  int joints, threads, step_pixels;

  FASTPOSE_HOST_DEVICE explicit ChannelsLastLanes(int joints_) : joints(joints_) {
    const int power_of_two = joints & -joints, common = power_of_two < V ? power_of_two : V;
    const int period = joints / common;  // vectors
    threads = kSampleThreads / period * period;
    step_pixels = threads / period * (V / common);
  }
  static __device__ __forceinline__ int shared_place(int element) { return element % V * kPitch + element / V; }
  static constexpr size_t bytes() { return static_cast<size_t>(V) * kPitch * (sizeof(accumulate_t<T>) + sizeof(int)); }
};

// Channels-last maps. One block per sample, 16-byte loads, a
// maximum for each element of a thread's vectors. Floor: one read of the maps.
template <typename T, bool kBlurs, bool kFlipped>
__global__ void __launch_bounds__(kSampleThreads, kBlurs ? 1 : 2)
    decode_channels_last_kernel(const __grid_constant__ DecodeHeatmapsParams p) {
  using A = accumulate_t<T>;
  using Lanes = ChannelsLastLanes<T>;
  constexpr int V = Lanes::V, kUnroll = kFlipped ? 1 : V > 4 ? 3 : 4;
  A* values_of = dynamic_shared<A>();
  int* pixels_of = reinterpret_cast<int*>(values_of + V * Lanes::kPitch);
  const double* blur = shared_blur<kBlurs>(p);
  const Lanes lanes(static_cast<int>(p.joints));
  const int joints = lanes.joints, vectors = p.height * p.width * joints / V, thread = threadIdx.x;
  const int first_pixel = thread * V / joints, first_joint = thread * V - first_pixel * joints;
  const int own_joints = joints - first_joint;  // a vector's elements from there on are the next pixel's
  for (int64_t b = blockIdx.x; b < p.batch; b += gridDim.x) {
    if (thread < lanes.threads) {
      const T* maps = static_cast<const T*>(p.heatmaps) + b * p.strides.b;
      const T* flipped = static_cast<const T*>(p.flipped) + (kFlipped ? b * p.flipped_strides.b : 0);
      int partners[V];  // joints of the mirrored person, each element's own
      if constexpr (kFlipped) {
#pragma unroll
        for (int i = 0; i < V; ++i) partners[i] = p.mirrored.of[i < own_joints ? first_joint + i : i - own_joints];
      }
      Best<A> best[V];
#pragma unroll
      for (int i = 0; i < V; ++i) best[i] = nothing_yet<A>();
      int pixel = first_pixel;  // of a vector's first element
      RowCursor at(first_pixel, lanes.step_pixels, p.width);
      for (int first = thread; first < vectors; first += kUnroll * lanes.threads) {
        Vector<T> loaded[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int vector = first + u * lanes.threads;
          if (vector < vectors) loaded[u] = reinterpret_cast<const Vector<T>*>(maps)[vector];
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (first + u * lanes.threads >= vectors) continue;
          A values[V];
#pragma unroll
          for (int i = 0; i < V; ++i) values[i] = static_cast<A>(loaded[u].of[i]);
          if constexpr (kFlipped) {
            const auto mirrored = [&](int row, int column) {
              const int unshifted = p.flip_shift && column > 0 ? column - 1 : column;
              return flipped + (row * p.width + (p.width - 1 - unshifted)) * joints;
            };
            const bool row_ends = at.column + 1 == p.width;
            const T* here = mirrored(at.row, at.column);
            const T* next = own_joints < V ? mirrored(at.row + row_ends, row_ends ? 0 : at.column + 1) : here;
#pragma unroll
            for (int i = 0; i < V; ++i)
              values[i] = (values[i] + static_cast<A>((i < own_joints ? here : next)[partners[i]])) * A(0.5);
            at.advance();
          }
#pragma unroll
          for (int i = 0; i < V; ++i) {
            const bool better = values[i] > best[i].value;
            best[i].value = better ? values[i] : best[i].value;
            best[i].place = better ? pixel : best[i].place;
          }
          pixel += lanes.step_pixels;
        }
      }
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const bool found = best[i].place != kNothing;
        values_of[i * Lanes::kPitch + thread] = best[i].value;
        pixels_of[i * Lanes::kPitch + thread] = best[i].place + (found && i >= own_joints ? 1 : 0);
      }
    }
    __syncthreads();
    for (int joint = thread / 32; joint < joints; joint += kSampleThreads / 32) {
      Best<A> best = nothing_yet<A>();
      for (int element = joint + thread % 32 * joints; element < lanes.threads * V; element += 32 * joints) {
        const int place = Lanes::shared_place(element);
        best.keep(values_of[place], pixels_of[place]);
      }
      best = warp_best(best);
      const DecodedMap<T> map = decoded_map<T>(p, b, joint);
      Peak<A> peak{best.value, best.place};
      if (__shfl_sync(kFullWarp, best.place, 0) == kNothing) peak = warp_peak(p, map);
      write_refined_point<kBlurs>(p, b * joints + joint, b, map, peak, blur);
    }
    __syncthreads();  // shared memory is free for the next sample
  }
}

// Any strides, sizes and numbers of joints: one warp per map.
template <typename T, bool kBlurs>
__global__ void __launch_bounds__(kThreads, blocks_per_sm<kBlurs>(kThreads))
    decode_strided_kernel(const __grid_constant__ DecodeHeatmapsParams p) {
  const double* blur = shared_blur<kBlurs>(p);
  const int64_t maps = p.batch * p.joints;
  for (int64_t index = first_item() / 32; index < maps; index += item_stride() / 32) {
    const int64_t b = index / p.joints;
    const DecodedMap<T> map = decoded_map<T>(p, b, index - b * p.joints);
    write_refined_point<kBlurs>(p, index, b, map, warp_peak(p, map), blur);
  }
}

// Whether the fast kernel for that layout can read these maps: without gaps, planar ones in rows of whole, aligned
// vectors, channels-last ones in samples of such, no vector of more than two pixels.
template <typename T>
bool is_readable(const DecodeHeatmapsParams& p, const void* maps, const MapStrides& strides, MapLayout layout) {
  constexpr int V = Vector<T>::kSize;
  const int64_t sample = static_cast<int64_t>(p.height) * p.width * p.joints;
  const bool whole_vectors =
      layout == MapLayout::kPlanar ? p.width % V == 0 && strides.k % V == 0 : p.joints >= V && sample % V == 0;
  return has_layout(strides, layout, p.joints) && has_dense_rows(strides, p.width) && whole_vectors &&
         strides.b % V == 0 && is_vector_aligned(static_cast<const T*>(maps));
}

template <typename T, bool kBlurs>
cudaError_t launch_kernel(const DecodeHeatmapsParams& params, cudaStream_t stream) {
  const bool flipped = params.flipped != nullptr;
  const int64_t maps = params.batch * params.joints, pixels = static_cast<int64_t>(params.height) * params.width;
  // The fast kernels count in 32 bits; a round of a block may step beyond the end.
  constexpr int64_t kMost = INT32_MAX - (1 << 16);
  const auto all_are = [&](MapLayout layout) {
    return is_readable<T>(params, params.heatmaps, params.strides, layout) &&
           (!flipped || is_readable<T>(params, params.flipped, params.flipped_strides, layout));
  };
  if (maps <= 1 << 30 && pixels <= kMost && all_are(MapLayout::kPlanar)) {
    return launch(flipped ? decode_planar_kernel<T, kBlurs, true> : decode_planar_kernel<T, kBlurs, false>,
                  grid_for(maps, 1), kMapThreads, stream, params);
  }
  if (params.joints <= kSampleThreads && pixels * params.joints <= kMost && all_are(MapLayout::kChannelsLast)) {
    return launch(
        flipped ? decode_channels_last_kernel<T, kBlurs, true> : decode_channels_last_kernel<T, kBlurs, false>,
        grid_for(params.batch, 1), kSampleThreads, stream, params, ChannelsLastLanes<T>::bytes());
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
