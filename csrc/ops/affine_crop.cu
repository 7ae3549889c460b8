// SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_launch.cuh"

#include "ops/affine_crop.h"

namespace fastpose {
namespace {

// A block makes a tile of one crop, each of its warps a few strips of 64 x 4 pixels. The lanes of a warp stand 16 x 2,
// on neighbouring pixels: the L1 limits the kernel, by the cache lines and sectors that a load touches, and neighbours
// share them. A lane makes two pixels at a time, one two rows below the other; the warp's 16 x 4 stay compact in the
// source when the crop is rotated, where a row of pixels would touch as many rows of the image. A finished strip goes
// through the warp's own shared memory, so that it leaves in vectors whatever the layout. No warp waits for another.
constexpr int kWarps = kThreads / 32, kLanesX = 16, kLanesY = 32 / kLanesX;
constexpr int kStripWidth = 64, kStripHeight = 2 * kLanesY, kBlockRows = kWarps * kStripHeight;
// The strips of a warp share what is known of the crop, but are made one after the other. A small batch takes fewer per
// warp, as long as all blocks then still run at once on 132 SMs with room for four blocks each.
constexpr int kStrips = 4;
constexpr int64_t kBlocksAtOnce = 4 * 132;
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

template <typename T>
constexpr int kHalf = Vector<T>::kSize / 2;  // elements in 8 bytes

template <typename T>
__device__ __forceinline__ void store_half(T* to, const T (&from)[kHalf<T>]) {
  uint32_t words[2];
  memcpy(&words[0], from, 4);
  memcpy(&words[1], from + kHalf<T> / 2, 4);
  *reinterpret_cast<uint64_t*>(to) = static_cast<uint64_t>(words[1]) << 32 | words[0];
}

// How a strip lies in shared memory: the upper half of its rows in the output's order, each element paired with the one
// kLanesY rows below. With 16 pairs between rows, lanes that store or load together use different banks.
template <typename T, bool kChannelsLast>
struct Strip {
  static constexpr int kPlanes = kChannelsLast ? 1 : 3;
  static constexpr int kRowPairs = kChannelsLast ? 3 * kStripWidth : kStripWidth;
  static constexpr int kPitch = kRowPairs + 16;
  static constexpr int kPlane = kLanesY * kPitch;
  static constexpr int kPairs = kPlanes * kPlane;
  static_assert(kPitch * sizeof(Pair<T>) % 16 == 0, "rows begin at multiples of a vector");

  // To the crop, of which the first `columns` pixels of the strip are part: one row of pairs per kLanesX lanes, in
  // vectors where the crop's rows consist of whole ones. `upper`, `lower` and `strip` begin at the lane's rows.
  static __device__ __forceinline__ void store(T* upper, T* lower, int64_t plane_stride, const Pair<T>* strip,
                                               int lane_x, int columns, bool has_lower, bool vectors) {
    const int elements = kRowPairs / kStripWidth * columns;
    if (vectors) {
#pragma unroll
      for (int round = 0; round < (kRowPairs - 1) / (kHalf<T> * kLanesX) + 1; ++round) {
        const int i = (round * kLanesX + lane_x) * kHalf<T>;
        if (i >= elements) return;
#pragma unroll
        for (int plane = 0; plane < kPlanes; ++plane) {
          const auto pairs = *reinterpret_cast<const Vector<Pair<T>>*>(strip + plane * kPlane + i);
          T first[kHalf<T>], second[kHalf<T>];
#pragma unroll
          for (int j = 0; j < kHalf<T>; ++j) {
            first[j] = pairs.of[j].first;
            second[j] = pairs.of[j].second;
          }
          store_half(upper + plane * plane_stride + i, first);
          if (has_lower) store_half(lower + plane * plane_stride + i, second);
        }
      }
    } else {
#pragma unroll 1
      for (int i = lane_x; i < elements; i += kLanesX) {
        for (int plane = 0; plane < kPlanes; ++plane) {
          const Pair<T> pair = strip[plane * kPlane + i];
          upper[plane * plane_stride + i] = pair.first;
          if (has_lower) lower[plane * plane_stride + i] = pair.second;
        }
      }
    }
  }
};

struct TiledCrop {
  AffineCropParams op;
  int64_t first;            // crop of the launch's first block
  unsigned tiles_x, tiles;  // of a crop: in a row, in all
  int tile_height;          // pixels
  bool vectors;             // rows of the crop consist of whole ones
};

// kDiagonal: one colour map for all crops that mixes no channels, as normalisation does: its numbers need no registers.
template <typename T, bool kChannelsLast, bool kDiagonal>
__global__ void __launch_bounds__(kThreads, 4) affine_crop_kernel(const __grid_constant__ TiledCrop t) {
  using Staged = Strip<T, kChannelsLast>;
  const AffineCropParams& p = t.op;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, lane_x = lane % kLanesX, lane_y = lane / kLanesX;
  const unsigned crop = blockIdx.x / t.tiles, tile = blockIdx.x - crop * t.tiles, tile_y = tile / t.tiles_x;
  const int64_t b = t.first + crop;
  const int x_begin = static_cast<int>(tile - tile_y * t.tiles_x) * kStripWidth;
  const int y_of_warp = static_cast<int>(tile_y) * t.tile_height + warp * kStripHeight;
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
      static_cast<float>(y_of_warp + lane / 4 % kStrips * kBlockRows + lane / 2 % 2 * (kStripHeight - 1));
  unsigned corners = __ballot_sync(kFullWarp, reach && corner_lies_inside(image, m, corner_x, corner_y));

  Pair<T>* strip_row = dynamic_shared<Pair<T>>() + warp * Staged::kPairs + lane_y * Staged::kPitch;
  T* out =
      static_cast<T*>(p.out) + b * p.out_strides.b + x_begin * p.out_strides.x + (y_of_warp + lane_y) * p.out_strides.y;
  const int columns = min(kStripWidth, p.width - x_begin);
  const float first_x = static_cast<float>(x_begin + lane_x);
#pragma unroll 1
  for (int y = y_of_warp; y < min(y_of_warp + t.tile_height, p.height); y += kBlockRows) {
    const float row = static_cast<float>(y + lane_y), lower_row = static_cast<float>(y + lane_y + kLanesY);
    const float upper_x = m[1] * row + m[2], upper_y = m[4] * row + m[5];
    const float lower_x = m[1] * lower_row + m[2], lower_y = m[4] * lower_row + m[5];
    Pair<T>* to = strip_row + (kChannelsLast ? 3 : 1) * lane_x;
    float x = first_x;
    const auto put = [&](const float (&upper)[3], const float (&lower)[3], bool exists) {
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        to[(kChannelsLast ? 1 : Staged::kPlane) * c] =
            exists ? to_pair<T>(colored(c, upper), colored(c, lower))
                   : to_pair<T>(no_image_value<T>(p.fill), no_image_value<T>(p.fill));
      }
      to += (kChannelsLast ? 3 : 1) * kLanesX;
      x += static_cast<float>(kLanesX);
    };
    if ((corners & 15u) == 15u) {
#pragma unroll 1
      for (int step = 0; step < kStripWidth / kLanesX; ++step) {
        float upper[3], lower[3];
        const Taps upper_taps = load_taps(words, m[0] * x + upper_x, m[3] * x + upper_y);
        const Taps lower_taps = load_taps(words, m[0] * x + lower_x, m[3] * x + lower_y);
        sample_taps(upper_taps, upper);
        sample_taps(lower_taps, lower);
        put(upper, lower, true);
      }
    } else {
      const auto sample = [&](float source_x, float source_y, float (&rgb)[3]) {
        if (reach && lies_well_inside(image, source_x, source_y)) {
          sample_taps(load_taps(words, source_x, source_y), rgb);
        } else {
          sample_bilinear(image, source_x, source_y, p.fill, rgb);
        }
      };
#pragma unroll 1
      for (int step = 0; step < kStripWidth / kLanesX; ++step) {
        float upper[3], lower[3];
        sample(m[0] * x + upper_x, m[3] * x + upper_y, upper);
        sample(m[0] * x + lower_x, m[3] * x + lower_y, lower);
        put(upper, lower, image.pixels != nullptr);
      }
    }
    corners >>= 4;
    __syncwarp();
    if (y + lane_y < p.height) {
      Staged::store(out, out + kLanesY * p.out_strides.y, p.out_strides.k, strip_row, lane_x, columns,
                    y + lane_y + kLanesY < p.height, t.vectors);
    }
    out += kBlockRows * p.out_strides.y;
    __syncwarp();  // the strip's memory is free for the next
  }
}

// Bicubic crops, in tiles of 32 x 8 pixels, a thread per pixel. It is for boxes that are enlarged, whose taps lie close
// together, and does without what makes the kernel above fast.
constexpr int kBicubicWidth = 32, kBicubicHeight = kThreads / kBicubicWidth;

struct BicubicCrop {
  AffineCropParams op;
  int tiles_x, tiles_y;  // of a crop
  int64_t tiles;         // of all
};

template <typename T>
__global__ void __launch_bounds__(kThreads) bicubic_crop_kernel(const __grid_constant__ BicubicCrop t) {
  const AffineCropParams& p = t.op;
  for (int64_t tile = blockIdx.x; tile < t.tiles; tile += gridDim.x) {
    const int64_t tile_row = tile / t.tiles_x, b = tile_row / t.tiles_y;
    const int x = static_cast<int>(tile - tile_row * t.tiles_x) * kBicubicWidth + threadIdx.x % kBicubicWidth;
    const int y = static_cast<int>(tile_row - b * t.tiles_y) * kBicubicHeight + threadIdx.x / kBicubicWidth;
    if (x >= p.width || y >= p.height) continue;
    T* out = static_cast<T*>(p.out) + b * p.out_strides.b + y * p.out_strides.y + x * p.out_strides.x;
    const ImageView image = image_of_crop(p, b);
    if (image.pixels == nullptr) {
      for (int c = 0; c < 3; ++c) out[c * p.out_strides.k] = to_output<T>(no_image_value<T>(p.fill));
      continue;
    }
    crop_one_pixel<T, Resample::kBicubic>(p, image, p.crop_to_image + 6 * b, color_of_crop(p, b), x, y, out);
  }
}

template <typename T>
cudaError_t launch_bicubic(const AffineCropParams& params, cudaStream_t stream) {
  const int tiles_x = (params.width - 1) / kBicubicWidth + 1, tiles_y = (params.height - 1) / kBicubicHeight + 1;
  const int64_t tiles = params.batch * tiles_y * tiles_x;
  return launch(bicubic_crop_kernel<T>, grid_for(tiles, 1), kThreads, stream,
                BicubicCrop{params, tiles_x, tiles_y, tiles});
}

// Boxes of crops that are made already. A block has one band of one box, each of its warps a row at a time. Boxes may
// overlap: they write the same.
template <typename T>
__global__ void __launch_bounds__(kThreads) erase_kernel(const __grid_constant__ AffineCropParams p) {
  const int bands = (p.height - 1) / kBand + 1;
  const int64_t items = p.batch * p.boxes * bands;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t box = item / bands, b = box / p.boxes;
    const PixelBox pixels = erased_in_band(p, b, box - b * p.boxes, static_cast<int>(item - box * bands));
    if (pixels.x_begin >= pixels.x_end || pixels.y_begin >= pixels.y_end) continue;
    if (image_of_crop(p, b).pixels == nullptr) continue;  // such a crop stays what it is
    T outside[3];
    outside_values(p, b, outside);
    for (int y = pixels.y_begin + threadIdx.x / 32; y < pixels.y_end; y += kThreads / 32) {
      T* out = static_cast<T*>(p.out) + b * p.out_strides.b + y * p.out_strides.y;
      for (int x = pixels.x_begin + threadIdx.x % 32; x < pixels.x_end; x += 32)
        for (int c = 0; c < 3; ++c) out[c * p.out_strides.k + x * p.out_strides.x] = outside[c];
    }
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
  const auto tiles_of = [&](int strips) { return tiles_x * ((params.height - 1) / (kBlockRows * strips) + 1); };
  int strips = kStrips;
  while (strips > 1 && params.batch * tiles_of(strips / 2) <= kBlocksAtOnce) strips /= 2;
  const unsigned tiles = tiles_of(strips);
  const bool vectors = params.width % kHalf<T> == 0 && is_vector_aligned(static_cast<T*>(params.out));
  const auto kernel =
      is_diagonal(params) ? affine_crop_kernel<T, kChannelsLast, true> : affine_crop_kernel<T, kChannelsLast, false>;
  const int64_t most = std::max(1u, (1u << 30) / tiles);  // crops that one launch has blocks for
  for (int64_t first = 0; first < params.batch; first += most) {
    const unsigned blocks = static_cast<unsigned>(std::min(most, params.batch - first)) * tiles;
    const cudaError_t error =
        launch(kernel, blocks, kThreads, stream, TiledCrop{params, first, tiles_x, tiles, kBlockRows * strips, vectors},
               sizeof(Pair<T>) * kWarps * Strip<T, kChannelsLast>::kPairs);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t launch_type(const AffineCropParams& params, cudaStream_t stream) {
  const bool channels_last = has_layout(params.out_strides, MapLayout::kChannelsLast, 3);
  const cudaError_t error = params.resample == Resample::kBicubic ? launch_bicubic<T>(params, stream)
                            : channels_last                       ? launch_layout<T, true>(params, stream)
                                                                  : launch_layout<T, false>(params, stream);
  if (error != cudaSuccess || params.boxes == 0) return error;
  const int64_t bands = (params.height - 1) / kBand + 1;
  return launch(erase_kernel<T>, grid_for(params.batch * params.boxes * bands, 1), kThreads, stream, params);
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
