// SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_launch.cuh"

#include "ops/affine_crop.h"

namespace fastpose {
namespace {

// A block makes a tile of one crop, each of its warps a few strips of 64 x 4 pixels. The lanes of a warp stand 8 x 4
// and make two neighbouring pixels each: a step of 16 x 4 pixels stays compact in the source when the crop is rotated,
// where a row of pixels would touch as many rows of the image. A finished strip goes through the warp's own shared
// memory, so that it leaves in whole vectors whatever the layout. No warp waits for another.
constexpr int kWarps = kThreads / 32, kLanesX = 8;
constexpr int kStripWidth = 64, kStripHeight = 4, kStepWidth = 2 * kLanesX;
constexpr int kStrips = 4;  // of a warp: they share what is known of the crop
constexpr int kTileHeight = kWarps * kStripHeight * kStrips;
static_assert(4 * kStrips <= 32, "a lane per corner of a strip");

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T first, second;
};

template <typename T>
__device__ __forceinline__ Pair<T> to_pair(float first, float second) {
  return {to_output<T>(first), to_output<T>(second)};
}
#ifdef __CUDACC__  // one instruction for both
template <>
__device__ __forceinline__ Pair<__nv_bfloat16> to_pair(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return {pair.x, pair.y};
}
template <>
__device__ __forceinline__ Pair<__half> to_pair(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return {pair.x, pair.y};
}
#endif

// How a strip lies in shared memory: the output's order. With 16 elements between rows, lanes that store or load
// together use different banks, for every type and layout.
template <typename T, bool kChannelsLast>
struct Strip {
  static constexpr int kPlanes = kChannelsLast ? 1 : 3;
  static constexpr int kRowElements = kChannelsLast ? 3 * kStripWidth : kStripWidth;
  static constexpr int kPitch = kRowElements + 16;
  static constexpr int kElements = kPlanes * kStripHeight * kPitch;
  static_assert(kPitch * sizeof(T) % 16 == 0, "rows begin at multiples of a vector");

  // Two neighbouring pixels, the first of them an even one. `strip` begins at their row and column.
  static __device__ __forceinline__ void put(T* strip, float r0, float g0, float b0, float r1, float g1, float b1) {
    auto* pairs = reinterpret_cast<Pair<T>*>(strip);
    constexpr int kPlane = kStripHeight * kPitch / 2;
    pairs[0] = kChannelsLast ? to_pair<T>(r0, g0) : to_pair<T>(r0, r1);
    pairs[kChannelsLast ? 1 : kPlane] = kChannelsLast ? to_pair<T>(b0, r1) : to_pair<T>(g0, g1);
    pairs[kChannelsLast ? 2 : 2 * kPlane] = kChannelsLast ? to_pair<T>(g1, b1) : to_pair<T>(b0, b1);
  }

  // To the crop, of which the first `columns` pixels of the strip are part: one row per eight lanes, in vectors where
  // the crop's rows consist of whole ones. `out` and `strip` begin at the lane's row.
  static __device__ __forceinline__ void store(T* out, int64_t plane_stride, const T* strip, int lane_x, int columns,
                                               bool vectors) {
    const int elements = kRowElements / kStripWidth * columns;
    constexpr int kSize = Vector<T>::kSize;
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
      const T* from = strip + plane * kStripHeight * kPitch;
      T* to = out + plane * plane_stride;
      if (vectors) {
#pragma unroll
        for (int round = 0; round < (kRowElements - 1) / (kSize * kLanesX) + 1; ++round) {
          const int i = (round * kLanesX + lane_x) * kSize;
          if (i < elements) *reinterpret_cast<Vector<T>*>(to + i) = *reinterpret_cast<const Vector<T>*>(from + i);
        }
      } else {
#pragma unroll 1
        for (int i = lane_x; i < elements; i += kLanesX) to[i] = from[i];
      }
    }
  }
};

struct TiledCrop {
  AffineCropParams op;
  int64_t first;            // crop of the launch's first block
  unsigned tiles_x, tiles;  // of a crop: in a row, in all
  bool vectors;             // rows of the crop consist of whole ones
};

// kDiagonal: one colour map for all crops that mixes no channels, as normalisation does: its numbers need no registers.
template <typename T, bool kChannelsLast, bool kDiagonal>
__global__ void __launch_bounds__(kThreads, kDiagonal ? 4 : 3) affine_crop_kernel(const __grid_constant__ TiledCrop t) {
  using Staged = Strip<T, kChannelsLast>;
  const AffineCropParams& p = t.op;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, lane_x = lane % kLanesX, lane_y = lane / kLanesX;
  const unsigned crop = blockIdx.x / t.tiles, tile = blockIdx.x - crop * t.tiles, tile_y = tile / t.tiles_x;
  const int64_t b = t.first + crop;
  const int x_begin = static_cast<int>(tile - tile_y * t.tiles_x) * kStripWidth;
  const int y_of_warp = static_cast<int>(tile_y) * kTileHeight + warp * kStripHeight;
  float m[6], color[kDiagonal ? 1 : 12];
#pragma unroll
  for (int i = 0; i < 6; ++i) m[i] = p.crop_to_image[6 * b + i];
  if constexpr (!kDiagonal) {
#pragma unroll
    for (int i = 0; i < 12; ++i) color[i] = p.color != nullptr ? p.color[b * p.color_stride + i] : p.color_of_all[i];
  }
  const ImageView image = image_of_crop(p, b);
  const auto colored = [&](int c, const float (&rgb)[3]) {
    if constexpr (kDiagonal) {
      return p.color_of_all[5 * c] * rgb[c] + p.color_of_all[4 * c + 3];
    } else {
      return apply_color(color, c, rgb);
    }
  };
  const ImageWords words(image);
  // Each lane looks at one corner of one strip.
  const bool reach = words_reach(image);
  const float corner_x = static_cast<float>(x_begin + lane % 2 * (kStripWidth - 1));
  const float corner_y =
      static_cast<float>(y_of_warp + lane / 4 % kStrips * (kWarps * kStripHeight) + lane / 2 % 2 * (kStripHeight - 1));
  unsigned corners = __ballot_sync(kFullWarp, reach && corner_lies_inside(image, m, corner_x, corner_y));

  T* strip_row = dynamic_shared<T>() + warp * Staged::kElements + lane_y * Staged::kPitch;
  T* out =
      static_cast<T*>(p.out) + b * p.out_strides.b + x_begin * p.out_strides.x + (y_of_warp + lane_y) * p.out_strides.y;
  const int columns = min(kStripWidth, p.width - x_begin);
  const float first_x = static_cast<float>(x_begin + 2 * lane_x);
#pragma unroll 1
  for (int y = y_of_warp; y < min(y_of_warp + kTileHeight, p.height); y += kWarps * kStripHeight) {
    const float row = static_cast<float>(y + lane_y);
    const float row_x = m[1] * row + m[2], row_y = m[4] * row + m[5];
    T* to = strip_row + (kChannelsLast ? 6 : 2) * lane_x;
    float x = first_x;
    const auto put = [&](const float (&left)[3], const float (&right)[3], bool exists) {
      const auto value = [&](int c, const float (&rgb)[3]) {
        return exists ? colored(c, rgb) : no_image_value<T>(p.fill);
      };
      Staged::put(to, value(0, left), value(1, left), value(2, left), value(0, right), value(1, right),
                  value(2, right));
      to += (kChannelsLast ? 3 : 1) * kStepWidth;
      x += static_cast<float>(kStepWidth);
    };
    if ((corners & 15u) == 15u) {
#pragma unroll 1
      for (int step = 0; step < kStripWidth / kStepWidth; ++step) {
        float left[3], right[3];
        const Taps left_taps = load_taps(words, m[0] * x + row_x, m[3] * x + row_y);
        const Taps right_taps = load_taps(words, m[0] * (x + 1.0f) + row_x, m[3] * (x + 1.0f) + row_y);
        sample_taps(left_taps, left);
        sample_taps(right_taps, right);
        put(left, right, true);
      }
    } else {
      const auto sample = [&](float at, float (&rgb)[3]) {
        const float source_x = m[0] * at + row_x, source_y = m[3] * at + row_y;
        if (reach && lies_well_inside(image, source_x, source_y)) {
          sample_taps(load_taps(words, source_x, source_y), rgb);
        } else {
          sample_bilinear(image, source_x, source_y, p.fill, rgb);
        }
      };
#pragma unroll 1
      for (int step = 0; step < kStripWidth / kStepWidth; ++step) {
        float left[3], right[3];
        sample(x, left);
        sample(x + 1.0f, right);
        put(left, right, image.pixels != nullptr);
      }
    }
    corners >>= 4;
    __syncwarp();
    if (y + lane_y < p.height) Staged::store(out, p.out_strides.k, strip_row, lane_x, columns, t.vectors);
    out += kWarps * kStripHeight * p.out_strides.y;
    __syncwarp();  // the strip's memory is free for the next
  }
}

// Whether one colour map serves all crops and its output channels each take one input channel alone. An infinite fill
// times a 0 that is left out would be NaN.
bool is_diagonal(const AffineCropParams& p) {
  if (p.color != nullptr || !is_finite(p.fill)) return false;
  for (int i = 0; i < 12; ++i)
    if (i % 4 != 3 && i / 4 != i % 4 && p.color_of_all[i] != 0.0f) return false;
  return true;
}

template <typename T, bool kChannelsLast>
cudaError_t launch_layout(const AffineCropParams& params, cudaStream_t stream) {
  const unsigned tiles_x = (params.width - 1) / kStripWidth + 1;
  const unsigned tiles = tiles_x * ((params.height - 1) / kTileHeight + 1);
  const bool vectors = params.width % Vector<T>::kSize == 0 && is_vector_aligned(static_cast<T*>(params.out));
  const auto kernel =
      is_diagonal(params) ? affine_crop_kernel<T, kChannelsLast, true> : affine_crop_kernel<T, kChannelsLast, false>;
  const int64_t most = std::max(1u, (1u << 30) / tiles);  // crops that one launch has blocks for
  for (int64_t first = 0; first < params.batch; first += most) {
    const unsigned blocks = static_cast<unsigned>(std::min(most, params.batch - first)) * tiles;
    const cudaError_t error =
        launch(kernel, blocks, kThreads, stream, TiledCrop{params, first, tiles_x, tiles, vectors},
               sizeof(T) * kWarps * Strip<T, kChannelsLast>::kElements);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t launch_type(const AffineCropParams& params, cudaStream_t stream) {
  return has_layout(params.out_strides, MapLayout::kChannelsLast, 3) ? launch_layout<T, true>(params, stream)
                                                                     : launch_layout<T, false>(params, stream);
}

}  // namespace

cudaError_t launch_affine_crop(const AffineCropParams& params, cudaStream_t stream) {
  switch (params.kind) {
    case ScalarKind::kUInt8:
      return launch_type<uint8_t>(params, stream);
    case ScalarKind::kFloat16:
      return launch_type<__half>(params, stream);
    case ScalarKind::kBFloat16:
      return launch_type<__nv_bfloat16>(params, stream);
    default:
      return launch_type<float>(params, stream);
  }
}

}  // namespace fastpose
