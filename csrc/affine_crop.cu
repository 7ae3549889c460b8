// SPDX-License-Identifier: Apache-2.0
#include "cuda_launch.cuh"

#include "affine_crop.h"

namespace fastpose {
namespace {

// A block makes a tile of one crop; a warp four patches of 8 x 4 pixels. A rotated crop's patch stays a patch in the
// source, where a row of pixels would touch as many rows of the image. The finished tile goes through shared memory, so
// that it leaves in whole vectors whatever the layout.
constexpr int kTileWidth = 64, kTileHeight = 16, kPatches = 4;

// How a tile lies in shared memory: the output's order, with rows padded so that the rows of a patch lie in other
// banks.
template <typename T, bool kChannelsLast>
struct TileShape {
  static constexpr int kRowElements = kChannelsLast ? 3 * kTileWidth : kTileWidth;
  static constexpr int kRows = kChannelsLast ? kTileHeight : 3 * kTileHeight;
  static constexpr int kPadding = sizeof(T) == 1 ? 16 : kChannelsLast ? 24 : 8;
  static constexpr int kPitch = kRowElements + kPadding;
  static constexpr int kVectors = kRowElements / Vector<T>::kSize;  // of a row
  static_assert(kPitch * sizeof(T) % 16 == 0, "rows begin at multiples of a vector");

  static __device__ __forceinline__ int at(int c, int y, int x) {
    return kChannelsLast ? y * kPitch + 3 * x + c : (c * kTileHeight + y) * kPitch + x;
  }
};

struct CropTile {
  int64_t b;
  int x, y;
};

// The crop's element that row `row` of the tile begins with, or null where that row lies below the crop.
template <typename T, bool kChannelsLast>
__device__ __forceinline__ T* row_of_tile(const AffineCropParams& p, const CropTile& tile, int row) {
  const int c = kChannelsLast ? 0 : row / kTileHeight;
  const int y = tile.y + (kChannelsLast ? row : row % kTileHeight);
  if (y >= p.height) return nullptr;
  return static_cast<T*>(p.out) + tile.b * p.stride_b + c * p.stride_c + y * p.stride_y + tile.x * p.stride_x;
}

// Tile from shared to global memory, 16 bytes at a time where the crop's rows are whole vectors.
template <typename T, bool kChannelsLast>
__device__ __forceinline__ void store_tile(const AffineCropParams& p, const CropTile& tile, const T* shared,
                                           bool vectors) {
  using Shape = TileShape<T, kChannelsLast>;
  const int columns = min(kTileWidth, p.width - tile.x) * (kChannelsLast ? 3 : 1);
  if (vectors) {
    for (int i = threadIdx.x; i < Shape::kRows * Shape::kVectors; i += kThreads) {
      const int row = i / Shape::kVectors, column = i % Shape::kVectors * Vector<T>::kSize;
      T* out = row_of_tile<T, kChannelsLast>(p, tile, row);
      if (out == nullptr || column >= columns) continue;
      *reinterpret_cast<Vector<T>*>(out + column) =
          *reinterpret_cast<const Vector<T>*>(shared + row * Shape::kPitch + column);
    }
    return;
  }
  for (int i = threadIdx.x; i < Shape::kRows * Shape::kRowElements; i += kThreads) {
    const int row = i / Shape::kRowElements, column = i % Shape::kRowElements;
    T* out = row_of_tile<T, kChannelsLast>(p, tile, row);
    if (out != nullptr && column < columns) out[column] = shared[row * Shape::kPitch + column];
  }
}

template <typename T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads) affine_crop_kernel(const __grid_constant__ AffineCropParams p) {
  using Shape = TileShape<T, kChannelsLast>;
  T* shared = dynamic_shared<T>();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int patch_x = warp % 2 * (8 * kPatches) + lane % 8, patch_y = warp / 2 * 4 + lane / 8;
  const int tiles_x = (p.width - 1) / kTileWidth + 1, tiles_y = (p.height - 1) / kTileHeight + 1;
  const int64_t tiles = static_cast<int64_t>(tiles_x) * tiles_y;
  const bool vectors = p.width % Vector<T>::kSize == 0 && reinterpret_cast<uintptr_t>(p.out) % 16 == 0;

  for (int64_t index = blockIdx.x; index < p.batch * tiles; index += gridDim.x) {
    const int64_t b = index / tiles, rest = index - b * tiles;
    const CropTile tile{b, static_cast<int>(rest % tiles_x) * kTileWidth,
                        static_cast<int>(rest / tiles_x) * kTileHeight};
    const ImageView image = image_of_crop(p, b);
    float m[6], color[12];
#pragma unroll
    for (int i = 0; i < 6; ++i) m[i] = p.crop_to_image[6 * b + i];
#pragma unroll
    for (int i = 0; i < 12; ++i) color[i] = p.color != nullptr ? p.color[b * p.color_stride + i] : p.color_of_all[i];

    float rgb[kPatches][3];
    if (rectangle_lies_inside(image, m, tile.x, tile.x + kTileWidth - 1, tile.y, tile.y + kTileHeight - 1)) {
#pragma unroll
      for (int patch = 0; patch < kPatches; ++patch) {
        float source_x, source_y;
        source_of_pixel(m, static_cast<float>(tile.x + patch_x + 8 * patch), static_cast<float>(tile.y + patch_y),
                        source_x, source_y);
        sample_inside(image, source_x, source_y, rgb[patch]);
      }
    } else {
#pragma unroll
      for (int patch = 0; patch < kPatches; ++patch) {
        float source_x, source_y;
        source_of_pixel(m, static_cast<float>(tile.x + patch_x + 8 * patch), static_cast<float>(tile.y + patch_y),
                        source_x, source_y);
        sample_bilinear(image, source_x, source_y, p.fill, rgb[patch]);
      }
    }
#pragma unroll
    for (int patch = 0; patch < kPatches; ++patch) {
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        // A crop without an image (its index is out of range) is not a number, or `fill` where there is no NaN.
        shared[Shape::at(c, patch_y, patch_x + 8 * patch)] =
            image.pixels == nullptr ? no_image_value<T>(p.fill) : to_output<T>(apply_color(color, c, rgb[patch]));
      }
    }
    __syncthreads();
    store_tile<T, kChannelsLast>(p, tile, shared, vectors);
    __syncthreads();  // shared memory is free for the next tile
  }
}

template <typename T, bool kChannelsLast>
cudaError_t launch_layout(const AffineCropParams& params, cudaStream_t stream) {
  using Shape = TileShape<T, kChannelsLast>;
  const int64_t tiles_x = (params.width - 1) / kTileWidth + 1;
  const int64_t tiles_y = (params.height - 1) / kTileHeight + 1;
  return launch(affine_crop_kernel<T, kChannelsLast>, grid_for(params.batch * tiles_x * tiles_y, 1), kThreads, stream,
                params, sizeof(T) * Shape::kRows * Shape::kPitch);
}

template <typename T>
cudaError_t launch_type(const AffineCropParams& params, cudaStream_t stream) {
  return params.stride_x == 3 ? launch_layout<T, true>(params, stream) : launch_layout<T, false>(params, stream);
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
