// SPDX-License-Identifier: Apache-2.0
#include "cuda/warp_peak.cuh"

#include "ops/decode_heatmaps.h"

namespace fastpose {
namespace {

constexpr int kMapWarps = 4;  // of a block that decodes planar maps
constexpr int kSampleThreads = 512;
constexpr int kNothing = 0x7fffffff;  // place of a maximum that nothing has reached

// Blocks of so many threads that an SM is to hold, hence 64 registers for a thread, or 128: every architecture has
// 65,536. Left alone, ptxas takes fewer where it can, and then loads vectors one after the other that are to be under
// way at once; where it cannot, it spills.
template <bool kMoreRegisters>
constexpr int blocks_per_sm(int threads) {
  return (kMoreRegisters ? 512 : 1024) / threads;
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

// The best of a warp, in every lane.
template <typename A>
__device__ __forceinline__ Best<A> warp_best(Best<A> best) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const A value = __shfl_xor_sync(kFullWarp, best.value, offset);
    const int place = __shfl_xor_sync(kFullWarp, best.place, offset);
    best.keep(value, place);
  }
  return best;
}

// The peak of a map that a warp walks through, in every lane. Any strides; also where there is nothing above -infinity.
template <typename T>
__device__ __forceinline__ Peak<accumulate_t<T>> warp_peak(const DecodeHeatmapsParams& p, const DecodedMap<T>& map) {
  using A = accumulate_t<T>;
  Peak<A> best{A(0), -1};
  for (RowCursor at(threadIdx.x % 32, 32, p.width); at.row < p.height; at.advance()) {
    const Peak<A> candidate{map.at(at.row, at.column), static_cast<int64_t>(at.row) * p.width + at.column};
    if (is_better(candidate, best)) best = candidate;
  }
  return best_of_warp(best);
}

// An entry of sample b's matrix in each of a warp's first six lanes: asked for early, it is there when the point is.
__device__ __forceinline__ float entry_of_matrix(const DecodeHeatmapsParams& p, int64_t b) {
  const int lane = threadIdx.x % 32;
  if (p.heatmap_to_image == nullptr) return lane == 0 || lane == 4 ? 1.0f : 0.0f;
  return lane < 6 ? p.heatmap_to_image[6 * b + lane] : 0.0f;
}

constexpr int kMaxSide = 5;                   // of the window: dark's
constexpr int kBlurColumns = 16;              // that a warp blurs downwards at once
constexpr int kBlurPitch = kBlurColumns + 1;  // of a row of them in shared memory, so that rows are in different banks

// What a warp that blurs has in shared memory, or nothing. Lanes that read different entries of a kernel's parameters
// do so one after the other.
struct SharedBlur {
  const double* weights;  // p.blur
  double* columns;        // of the warp: a row of kBlurPitch for each row of the window
};

template <bool kBlurs, int kWarps>
__device__ __forceinline__ SharedBlur shared_blur(const DecodeHeatmapsParams& p) {
  if constexpr (kBlurs) {
    __shared__ double weights[kMaxBlurKernel / 2 + 1], columns[kWarps][kMaxSide * kBlurPitch];
    for (int i = threadIdx.x; i <= p.blur_radius; i += blockDim.x) weights[i] = p.blur[i];
    __syncthreads();
    return {weights, columns[threadIdx.x / 32]};
  } else {
    return {};
  }
}

// The offset of dark or dark_udp, in every lane of a warp whose lanes all know the peak. Half a warp blurs 16 columns
// of the neighbourhood downwards at the upper rows of the window, the other half the same ones at the lower rows; a
// lane then makes one value of the window out of them, and takes its logarithm.
template <int kReach, typename T>
__device__ __forceinline__ Offset warp_offset(const DecodeHeatmapsParams& p, const DecodedMap<T>& map,
                                              const Peak<accumulate_t<T>>& peak, MapPixel at, const SharedBlur& blur) {
  constexpr int kSide = 2 * kReach + 1, kRows = kReach + 1;  // kRows of the window for half a warp
  if (!is_refined<kReach>(p, at)) return {0.0, 0.0};
  const int lane = threadIdx.x % 32, first_row = lane / kBlurColumns * kRows;
  const auto center = [](int place, int i, int size) { return min(max(place + i - kReach, 0), size - 1); };
  const int window_row = min(lane / kSide, kSide - 1), center_x = center(at.x, lane % kSide, p.width);
  const BlurRange range_y(at.y, kReach, p.blur_radius, p.height), range_x(at.x, kReach, p.blur_radius, p.width);
  double mine = 0.0;
  for (int begin = range_x.first; begin <= range_x.last; begin += kBlurColumns) {
    const int x = min(begin + lane % kBlurColumns, range_x.last);
    double blurred[kRows] = {};
#pragma unroll 5
    for (int y = range_y.first; y <= range_y.last; ++y) {
      const double value = static_cast<double>(map.at(y, x));
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int distance = abs(y - center(at.y, first_row + i, p.height));
        if (distance <= p.blur_radius) blurred[i] += blur.weights[distance] * value;
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (first_row + i < kSide) blur.columns[(first_row + i) * kBlurPitch + lane % kBlurColumns] = blurred[i];
    }
    __syncwarp();
    const int columns = min(range_x.last - begin + 1, kBlurColumns);
#pragma unroll 5
    for (int i = 0; i < columns; ++i) {
      const int distance = abs(begin + i - center_x);
      if (distance <= p.blur_radius) mine += blur.weights[distance] * blur.columns[window_row * kBlurPitch + i];
    }
    __syncwarp();
  }
  if (lane >= kSide * kSide) mine = 0.0;
  double highest = mine > 0.0 ? mine : 0.0;
  for (int offset = 16; offset > 0; offset /= 2) {
    const double other = __shfl_xor_sync(kFullWarp, highest, offset);
    highest = other > highest ? other : highest;
  }
  mine = log_above_floor<kReach>(mine * blur_scale(peak, highest));
  return offset_of<kReach>([&](int row, int column) { return __shfl_sync(kFullWarp, mine, row * kSide + column); });
}

// Refines and writes the point of map `index`, whose peak and, if it is found, whose place all lanes of the warp know.
// `entry` is the lane's entry of its sample's matrix. The kernels are compiled twice, so that refinements without a
// blur do not carry its registers.
template <bool kBlurs, typename T>
__device__ __forceinline__ void write_refined_point(const DecodeHeatmapsParams& p, int64_t index,
                                                    const DecodedMap<T>& map, const Peak<accumulate_t<T>>& peak,
                                                    MapPixel at, float entry, const SharedBlur& blur) {
  Offset offset{0.0, 0.0};
  if (is_found(peak)) {
    if constexpr (kBlurs) {
      offset =
          p.refine == Refine::kDark ? warp_offset<2>(p, map, peak, at, blur) : warp_offset<1>(p, map, peak, at, blur);
    } else if (p.refine == Refine::kQuarter) {
      offset = quarter_offset(p, map, at);
    }
  }
  Affine to_image;
#pragma unroll
  for (int i = 0; i < 6; ++i) to_image.m[i] = __shfl_sync(kFullWarp, entry, i);
  if (threadIdx.x % 32 == 0) write_decoded_point(p, index, to_image, peak, at, offset);
}

// The highest of V neighbouring values, NaN passed over; NaN if there is nothing else.
template <int V, typename A>
__device__ __forceinline__ A highest_of(const A (&values)[V]) {
  A highest = values[0];
#pragma unroll
  for (int i = 1; i < V; ++i) highest = max_number(highest, values[i]);
  return highest;
}

// V neighbouring values of the map that flip test and decoder see, `values` being the map's own. The mirrored map's are
// read backwards; shifted, they lie one column further, and that one column, `beyond`, is a load of its own.
template <int V, typename A>
__device__ __forceinline__ void merge_flipped(A (&values)[V], const A (&mirrored)[V], A beyond, bool shifted) {
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const A own = mirrored[V - 1 - i], before = i == 0 ? beyond : mirrored[(V - i) % V];
    values[i] = (values[i] + (shifted ? before : own)) * A(0.5);
  }
}

// How the warps of a block share planar maps: a map for each of them, or a piece of one map.
struct PlanarMaps {
  DecodeHeatmapsParams op;
  bool in_pieces;
  int piece;         // vectors for a warp
  SmallDivisor row;  // the vectors in a row
};

// 16-byte loads, kUnroll of a lane under way at once; no barrier, unless maps are in pieces. Floor: one read of the
// maps. A lane keeps the highest value that it has seen and which of its vectors that was in; the element within it is
// looked up once per map. So a vector costs its maxima, a comparison and two selections: a branch to its elements would
// be taken in every round by some lane.
template <typename T, bool kBlurs, bool kFlipped>
__global__ void __launch_bounds__(32 * kMapWarps, blocks_per_sm<false>(32 * kMapWarps))
    decode_planar_kernel(const __grid_constant__ PlanarMaps t) {
  using A = accumulate_t<T>;
  constexpr int V = Vector<T>::kSize, kUnroll = kFlipped ? 2 : 4;
  __shared__ Best<A> of_warp[kMapWarps];
  const DecodeHeatmapsParams& p = t.op;
  const SharedBlur blur = shared_blur<kBlurs, kMapWarps>(p);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, joints = static_cast<int>(p.joints);
  const int index = t.in_pieces ? blockIdx.x : blockIdx.x * kMapWarps + warp;
  if (index >= static_cast<int>(p.batch) * joints) return;
  const int b = index / joints;
  DecodedMap<T> map = decoded_map<T>(p, b, index - b * joints);
  // The launcher has checked this; knowing it saves the compiler many instructions.
  map.stride_x = map.flipped_stride_x = 1;
  map.stride_y = map.flipped_stride_y = p.width;
  if constexpr (!kFlipped) map.flipped = nullptr;
  const float entry = entry_of_matrix(p, b);
  const auto* plain = reinterpret_cast<const uint4*>(map.map);
  const auto* mirrored = reinterpret_cast<const uint4*>(map.flipped);
  const int row_vectors = p.width / V, vectors = p.height * row_vectors;
  const int begin = t.in_pieces ? warp * t.piece : 0, end = min(begin + t.piece, vectors);

  Best<A> best = nothing_yet<A>();
#pragma unroll 1
  for (int first = begin; first < end; first += 32 * kUnroll) {
    uint4 loaded[kUnroll], other[kUnroll];
    T beyond[kUnroll];
    int place[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      place[u] = min(first + lane + 32 * u, end - 1);  // the last one again changes nothing, and needs no branch
      loaded[u] = plain[place[u]];
      if constexpr (kFlipped) {
        const int row = static_cast<int>(t.row.quotient(place[u])) * row_vectors, column = place[u] - row;
        other[u] = mirrored[row + (row_vectors - 1 - column)];
        // Column x takes the mirrored map's width - x; column 0 has none there and keeps its own, width - 1.
        if (p.flip_shift) beyond[u] = map.flipped[row * V + (column == 0 ? p.width - 1 : p.width - column * V)];
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      A values[V];
      unpack<T>(values, loaded[u]);
      if constexpr (kFlipped) {
        A others[V];
        unpack<T>(others, other[u]);
        merge_flipped(values, others, static_cast<A>(beyond[u]), p.flip_shift);
      }
      const A highest = highest_of<V>(values);
      const bool better = highest > best.value;
      best.value = better ? highest : best.value;
      best.place = better ? place[u] : best.place;
    }
  }
  best = warp_best(best);
  if (t.in_pieces) {
    if (lane == 0) of_warp[warp] = best;
    __syncthreads();
    if (warp != 0) return;
    best = of_warp[0];
#pragma unroll
    for (int i = 1; i < kMapWarps; ++i) best.keep(of_warp[i].value, of_warp[i].place);
  }
  Peak<A> peak;
  MapPixel pixel{};
  if (best.place == kNothing) {
    peak = warp_peak(p, map);
  } else {
    pixel.y = static_cast<int>(t.row.quotient(best.place));
    const int x = (best.place - pixel.y * row_vectors) * V;
    const unsigned where = __ballot_sync(kFullWarp, lane < V && map.at(pixel.y, x + lane % V) == best.value);
    pixel.x = x + __ffs(static_cast<int>(where)) - 1;
    peak = {best.value, static_cast<int64_t>(pixel.y) * p.width + pixel.x};
  }
  write_refined_point<kBlurs>(p, index, map, peak, pixel, entry, blur);
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

// Channels-last maps. One block per sample, 16-byte loads, a maximum for each element of a thread's vectors. Floor: one
// read of the maps.
template <typename T, bool kBlurs, bool kFlipped>
__global__ void __launch_bounds__(kSampleThreads, blocks_per_sm<kBlurs>(kSampleThreads))
    decode_channels_last_kernel(const __grid_constant__ DecodeHeatmapsParams p) {
  using A = accumulate_t<T>;
  using Lanes = ChannelsLastLanes<T>;
  constexpr int V = Lanes::V, kUnroll = kFlipped ? 1 : 4;
  A* values_of = dynamic_shared<A>();
  int* pixels_of = reinterpret_cast<int*>(values_of + V * Lanes::kPitch);
  const SharedBlur blur = shared_blur<kBlurs, kSampleThreads / 32>(p);
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
        uint4 loaded[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int vector = first + u * lanes.threads;
          // Beyond the end its first one again, of the same joints: that changes nothing, and needs no branch.
          loaded[u] = reinterpret_cast<const uint4*>(maps)[vector < vectors ? vector : thread];
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          A values[V];
          unpack<T>(values, loaded[u]);
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
    const float entry = entry_of_matrix(p, b);
    for (int joint = thread / 32; joint < joints; joint += kSampleThreads / 32) {
      Best<A> best = nothing_yet<A>();
      for (int element = joint + thread % 32 * joints; element < lanes.threads * V; element += 32 * joints) {
        const int place = Lanes::shared_place(element);
        best.keep(values_of[place], pixels_of[place]);
      }
      best = warp_best(best);
      DecodedMap<T> map = decoded_map<T>(p, b, joint);
      if constexpr (!kFlipped) map.flipped = nullptr;  // saves the compiler many instructions
      Peak<A> peak{best.value, best.place};
      if (best.place == kNothing) peak = warp_peak(p, map);
      const MapPixel pixel{best.place % p.width, best.place / p.width};
      write_refined_point<kBlurs>(p, b * joints + joint, map, peak, pixel, entry, blur);
    }
    __syncthreads();  // shared memory is free for the next sample
  }
}

// Any strides, sizes and numbers of joints: one warp per map.
template <typename T, bool kBlurs>
__global__ void __launch_bounds__(kThreads, blocks_per_sm<kBlurs>(kThreads))
    decode_strided_kernel(const __grid_constant__ DecodeHeatmapsParams p) {
  const SharedBlur blur = shared_blur<kBlurs, kThreads / 32>(p);
  const int64_t maps = p.batch * p.joints;
  for (int64_t index = first_item() / 32; index < maps; index += item_stride() / 32) {
    const int64_t b = index / p.joints;
    const DecodedMap<T> map = decoded_map<T>(p, b, index - b * p.joints);
    const float entry = entry_of_matrix(p, b);
    const Peak<accumulate_t<T>> peak = warp_peak(p, map);
    write_refined_point<kBlurs>(p, index, map, peak, map_pixel(p, peak.index), entry, blur);
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

// A warp for itself costs a map the least in all, but four are sooner done with one. So a map gets one that is read in
// one go, and so do small maps if there are enough to keep a GPU busy; with a blur even larger ones, for the other
// three would wait for the one that refines.
template <typename T, bool kBlurs>
PlanarMaps planar_maps(const DecodeHeatmapsParams& p) {
  constexpr int kAtOnce = 128, kSmall = kBlurs ? 2048 : 1023;  // vectors
  constexpr int64_t kEnough = 1024;                            // maps
  const int row_vectors = p.width / Vector<T>::kSize, vectors = p.height * row_vectors;
  const bool whole = vectors <= kAtOnce || (vectors <= kSmall && p.batch * p.joints >= kEnough);
  return {p, !whole, whole ? vectors : (vectors + kMapWarps - 1) / kMapWarps, SmallDivisor(row_vectors)};
}

template <typename T, bool kBlurs>
cudaError_t launch_kernel(const DecodeHeatmapsParams& params, cudaStream_t stream) {
  const int64_t maps = params.batch * params.joints;
  if constexpr (kHasLayoutKernels<T>) {
    const bool flipped = params.flipped != nullptr;
    const int64_t pixels = static_cast<int64_t>(params.height) * params.width;
    // The fast kernels count in 32 bits; a round of a block may step beyond the end.
    constexpr int64_t kMost = INT32_MAX - (1 << 16);
    const auto all_are = [&](MapLayout layout) {
      return is_readable<T>(params, params.heatmaps, params.strides, layout) &&
             (!flipped || is_readable<T>(params, params.flipped, params.flipped_strides, layout));
    };
    const int64_t row_vectors = params.width / Vector<T>::kSize;
    // SmallDivisor's condition.
    const bool divides = (params.height * row_vectors + 1) * row_vectors <= UINT32_MAX;
    if (maps <= 1 << 30 && pixels <= kMost && divides && all_are(MapLayout::kPlanar)) {
      const PlanarMaps planar = planar_maps<T, kBlurs>(params);
      return launch(flipped ? decode_planar_kernel<T, kBlurs, true> : decode_planar_kernel<T, kBlurs, false>,
                    grid_for(maps, planar.in_pieces ? 1 : kMapWarps), 32 * kMapWarps, stream, planar);
    }
    if (params.joints <= kSampleThreads && pixels * params.joints <= kMost && all_are(MapLayout::kChannelsLast)) {
      return launch(
          flipped ? decode_channels_last_kernel<T, kBlurs, true> : decode_channels_last_kernel<T, kBlurs, false>,
          grid_for(params.batch, 1), kSampleThreads, stream, params, ChannelsLastLanes<T>::bytes());
    }
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
