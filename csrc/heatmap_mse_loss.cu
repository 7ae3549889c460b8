// SPDX-License-Identifier: Apache-2.0
#include "cuda_launch.cuh"

#include "heatmap_mse_loss.h"

namespace fastpose {
namespace {

constexpr int kLossThreads = 128;
constexpr int kTotalThreads = 1024;

struct TiledLoss {
  HeatmapMseLossParams op;
  LossTiling tiling;
  double scale;  // loss_scale, divided once on the host
};

// How a tile's block lays out its shared memory. A vector of joints may wrap around from the last to the first, so rows
// of joints are repeated a little beyond their end.
template <typename T, bool kInterleaved>
struct TileLayout {
  using A = accumulate_t<T>;
  int joints, pitch, factors_y, weights, maps;  // the last three: offsets in elements of A

  FASTPOSE_HOST_DEVICE explicit TileLayout(const TiledLoss& t)
      : joints(kInterleaved ? static_cast<int>(t.op.joints) : 1),
        pitch(kInterleaved ? joints + Vector<T>::kSize - 1 : 1),
        factors_y(aligned_count(t.op.spec.width * joints)),
        weights(factors_y + aligned_count(t.tiling.rows * pitch)),
        maps(weights + aligned_count(pitch)) {}
  FASTPOSE_HOST_DEVICE size_t bytes() const { return sizeof(A) * maps + sizeof(LossOfMap) * joints; }
};

// What a thread reads in its next rounds, all of it under way at once.
template <typename T, int kCount>
__device__ __forceinline__ void load_ahead(Vector<T> (&loaded)[kCount], const Vector<T>* from, int first, int end) {
#pragma unroll
  for (int u = 0; u < kCount; ++u) {
    const int vector = first + u * kLossThreads;
    loaded[u] = vector < end ? from[vector] : Vector<T>{};
  }
}

// One block per tile: either direction reads the prediction once, in 16-byte loads that are under way while the factors
// of the target are computed. Floor: the bytes of the prediction forward, twice that backward.
template <typename T, bool kInterleaved, bool kBackward>
__global__ void __launch_bounds__(kLossThreads, 6) loss_tile_kernel(const __grid_constant__ TiledLoss t) {
  using A = accumulate_t<T>;
  constexpr int V = Vector<T>::kSize, kUnroll = 4;
  const HeatmapMseLossParams& p = t.op;
  const TileLayout<T, kInterleaved> layout(t);
  const int width = p.spec.width, joints = layout.joints, pitch = layout.pitch, row_vectors = width * joints / V;
  A* factors_x = dynamic_shared<A>();                                  // [width][joints]
  A* factors_y = factors_x + layout.factors_y;                         // [rows][pitch]
  A* weights = factors_x + layout.weights;                             // [pitch]
  auto* maps = reinterpret_cast<LossOfMap*>(factors_x + layout.maps);  // [joints]
  double common = 1.0;
  // grad_output goes in before rounding to T: a gradient in half precision would be 0 before loss scaling.
  if constexpr (kBackward) common = 2.0 * t.scale * static_cast<double>(*static_cast<const A*>(p.grad_output));

  const unsigned tile = blockIdx.x, group = tile / t.tiling.tiles;
  const unsigned b = kInterleaved ? group : group / static_cast<unsigned>(p.joints);
  const unsigned k = kInterleaved ? 0 : group - b * static_cast<unsigned>(p.joints);
  const int y_begin = static_cast<int>(tile - group * t.tiling.tiles) * t.tiling.rows;
  const int rows = min(t.tiling.rows, p.spec.height - y_begin), vectors = rows * row_vectors;
  const auto* pred = reinterpret_cast<const Vector<T>*>(static_cast<const T*>(p.pred) + b * p.stride_b +
                                                        k * p.stride_k + y_begin * p.stride_y);
  Vector<T> loaded[kUnroll];
  load_ahead(loaded, pred, threadIdx.x, vectors);

  for (int j = threadIdx.x; j < joints; j += kLossThreads) maps[j] = loss_of_map(p, b, k + j);
  __syncthreads();
  for (int i = threadIdx.x; i < width * joints; i += kLossThreads) {
    const JointTarget& target = maps[i % joints].target;
    factors_x[i] = target_factor_x<A>(p.spec, target, i / joints);
  }
  for (int i = threadIdx.x; i < rows * pitch; i += kLossThreads) {
    const JointTarget& target = maps[i % pitch % joints].target;
    factors_y[i] = target_factor_y<A>(p.spec, target, y_begin + i / pitch);
  }
  for (int i = threadIdx.x; i < pitch; i += kLossThreads)
    weights[i] = static_cast<A>(common * static_cast<double>(maps[i % joints].weight));
  __syncthreads();

  A sum = A(0);
  int joint = threadIdx.x * V % joints;  // of a vector's first element; whole rows do not change it
  const int joint_step = kLossThreads * V % joints;
  RowCursor at(threadIdx.x, kLossThreads, row_vectors);
  for (int first = threadIdx.x; first < vectors; first += kUnroll * kLossThreads) {
    if (first >= kLossThreads) load_ahead(loaded, pred, first, vectors);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int vector = first + u * kLossThreads;
      if (vector < vectors) {
        A factor_x[V];
        load_aligned<V>(factor_x, factors_x + at.column * V);
        const A* factor_y = factors_y + at.row * pitch + joint;
        Vector<T> gradient;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const int j = kInterleaved ? i : 0;
          const A difference = static_cast<A>(loaded[u].of[i]) - factor_x[i] * factor_y[j];
          if constexpr (kBackward) {
            gradient.of[i] = static_cast<T>(weights[joint + j] * difference);
          } else {
            sum += weights[joint + j] * (difference * difference);
          }
        }
        if constexpr (kBackward) {
          T* grad = static_cast<T*>(p.grad) + b * p.grad_stride_b + k * p.grad_stride_k + y_begin * p.grad_stride_y;
          reinterpret_cast<Vector<T>*>(grad)[vector] = gradient;
        }
      }
      at.advance();
      joint += joint_step;
      if (joint >= joints) joint -= joints;
    }
  }
  if constexpr (!kBackward) {
    const double total = block_sum(static_cast<double>(sum));
    if (threadIdx.x == 0) p.partial_sums[tile] = total;
  }
}

// Any strides, widths and alignments: one block per map, one element at a time.
template <typename T, bool kBackward>
__global__ void __launch_bounds__(kLossThreads) loss_strided_kernel(const __grid_constant__ TiledLoss t) {
  using A = accumulate_t<T>;
  const HeatmapMseLossParams& p = t.op;
  for (int64_t map = blockIdx.x; map < p.batch * p.joints; map += gridDim.x) {
    const int64_t b = map / p.joints, k = map - b * p.joints;
    const LossOfMap l = loss_of_map(p, b, k);
    const T* pred = static_cast<const T*>(p.pred) + b * p.stride_b + k * p.stride_k;
    A sum = A(0), factor = static_cast<A>(l.weight);
    if constexpr (kBackward) {
      const double grad_output = static_cast<double>(*static_cast<const A*>(p.grad_output));
      factor = static_cast<A>(2.0 * t.scale * grad_output * l.weight);
    }
    for (RowCursor at(threadIdx.x, kLossThreads, p.spec.width); at.row < p.spec.height; at.advance()) {
      const A difference =
          static_cast<A>(pred[at.row * p.stride_y + at.column * p.stride_x]) -
          target_factor_x<A>(p.spec, l.target, at.column) * target_factor_y<A>(p.spec, l.target, at.row);
      if constexpr (kBackward) {
        T* grad = static_cast<T*>(p.grad) + b * p.grad_stride_b + k * p.grad_stride_k;
        grad[at.row * p.grad_stride_y + at.column * p.grad_stride_x] = static_cast<T>(factor * difference);
      } else {
        sum += factor * (difference * difference);
      }
    }
    if constexpr (!kBackward) {
      const double total = block_sum(static_cast<double>(sum));
      if (threadIdx.x == 0) p.partial_sums[map] = total;
    }
  }
}

// One block adds the tiles up, always in the same order: two runs give the same bits.
template <typename T>
__global__ void __launch_bounds__(kTotalThreads) total_loss_kernel(const __grid_constant__ TiledLoss t) {
  double sum = 0.0;
  for (int64_t tile = threadIdx.x; tile < t.tiling.groups * t.tiling.tiles; tile += kTotalThreads)
    sum += t.op.partial_sums[tile];
  const double total = block_sum(sum);
  if (threadIdx.x == 0) {
    *static_cast<accumulate_t<T>*>(t.op.loss) = static_cast<accumulate_t<T>>(total * t.scale);
  }
}

template <typename T, bool kInterleaved, bool kBackward>
cudaError_t launch_tiles(const TiledLoss& tiled, cudaStream_t stream) {
  const size_t bytes = TileLayout<T, kInterleaved>(tiled).bytes();
  return launch(loss_tile_kernel<T, kInterleaved, kBackward>, grid_for(tiled.tiling.groups * tiled.tiling.tiles, 1),
                kLossThreads, stream, tiled, bytes);
}

// One pass over the maps in either direction; which kernel depends on how they lie in memory.
template <typename T, bool kBackward>
cudaError_t launch_pass(const TiledLoss& tiled, cudaStream_t stream) {
  if (tiled.tiling.groups == 0) return cudaSuccess;
  if (!tiled.tiling.tiled) {
    return launch(loss_strided_kernel<T, kBackward>, grid_for(tiled.tiling.groups, 1), kLossThreads, stream, tiled);
  }
  return tiled.tiling.interleaved ? launch_tiles<T, true, kBackward>(tiled, stream)
                                  : launch_tiles<T, false, kBackward>(tiled, stream);
}

// The tiling, unless its factors are too many for shared memory, or its tiles for 32-bit numbers.
template <typename T>
TiledLoss tiled_loss(const HeatmapMseLossParams& params) {
  TiledLoss tiled{params, loss_tiling(params), loss_scale(params)};
  const size_t bytes =
      tiled.tiling.interleaved ? TileLayout<T, true>(tiled).bytes() : TileLayout<T, false>(tiled).bytes();
  if (bytes > kSharedBytes || tiled.tiling.groups * tiled.tiling.tiles > 1 << 30) tiled.tiling = untiled_loss(params);
  return tiled;
}

}  // namespace

cudaError_t launch_heatmap_mse_loss(const HeatmapMseLossParams& params, cudaStream_t stream) {
  return dispatch_device_floating(params.kind, [&](auto zero) {
    using T = decltype(zero);
    const TiledLoss tiled = tiled_loss<T>(params);
    const cudaError_t error = launch_pass<T, false>(tiled, stream);
    return error != cudaSuccess ? error : launch(total_loss_kernel<T>, 1, kTotalThreads, stream, tiled);
  });
}

cudaError_t launch_heatmap_mse_loss_backward(const HeatmapMseLossParams& params, cudaStream_t stream) {
  return dispatch_device_floating(params.kind, [&](auto zero) {
    using T = decltype(zero);
    return launch_pass<T, true>(tiled_loss<T>(params), stream);
  });
}

}  // namespace fastpose
