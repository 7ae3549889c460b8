// SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_launch.cuh"

#include "cuda/target_in_tile.cuh"
#include "ops/heatmap_mse_loss.h"

namespace fastpose {
namespace {

constexpr int kLossThreads = 32 * kTilesPerBlock;
constexpr int kMaxSampleThreads = 512;
constexpr int kTotalThreads = 256;

struct TiledLoss {
  HeatmapMseLossParams op;
  LossTiling tiling;
  double scale;      // loss_scale, divided once on the host
  SmallDivisor row;  // the vectors in a row of a tile
  int factors;       // planar: of a warp's tile
  int rows_at_once;  // channels last: that a block's threads cover
};

// What a thread reads next, all of it under way at once: from[first], from[first + step], ...; zeros from `end` on.
template <int kCount>
__device__ __forceinline__ void load_ahead(uint4 (&loaded)[kCount], const uint4* from, unsigned first, unsigned step,
                                           unsigned end) {
#pragma unroll
  for (int u = 0; u < kCount; ++u) {
    loaded[u] = uint4{};
    if (first + u * step < end) loaded[u] = from[first + u * step];
  }
}

template <typename T, int kCount>
__device__ __forceinline__ void add_squares(accumulate_t<T> (&sums)[kCount], const accumulate_t<T> (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i] += values[i] * values[i];
}

// A warp per tile of one map, no barrier but that of the sum at the end. Where the target is 0 it is not looked at: the
// difference is the prediction. Floor: the bytes of the prediction forward, twice that backward.
template <typename T, bool kBackward>
__global__ void __launch_bounds__(kLossThreads, 8) loss_planar_kernel(const __grid_constant__ TiledLoss t) {
  using A = accumulate_t<T>;
  constexpr int V = Vector<T>::kSize, kUnroll = 4;
  const HeatmapMseLossParams& p = t.op;
  if constexpr (!kBackward) let_next_kernel_get_ready();
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const unsigned index = blockIdx.x * kTilesPerBlock + warp;
  double total = 0.0;
  if (index < static_cast<unsigned>(t.tiling.count)) {
    const WarpTile tile(t.tiling.tiles, p.spec, index);
    const unsigned joints = static_cast<unsigned>(p.joints), b = tile.map / joints, k = tile.map - b * joints;
    const int64_t first = static_cast<int64_t>(tile.y) * p.spec.width + tile.x;
    const auto* pred = reinterpret_cast<const uint4*>(static_cast<const T*>(p.pred) + b * p.pred_strides.b +
                                                      k * p.pred_strides.k + first);
    Vector<T>* grad = nullptr;
    if constexpr (kBackward) {
      grad =
          reinterpret_cast<Vector<T>*>(static_cast<T*>(p.grad) + b * p.grad_strides.b + k * p.grad_strides.k + first);
    }
    const unsigned row_vectors = static_cast<unsigned>(tile.width / V), vectors = tile.height * row_vectors;
    uint4 loaded[kUnroll];
    load_ahead(loaded, pred, lane, 32, vectors);

    const LossOfMap map = loss_of_map(p, b, k);
    A weight = static_cast<A>(map.weight);
    if constexpr (kBackward) weight = weight_of_gradient<A>(p, t.scale, tile.map, map.weight);
    const TargetInTile<A, V> window(p.spec, map.target, tile, dynamic_shared<A>() + warp * t.factors);
    const unsigned begin = window.row * row_vectors, count = window.rows * row_vectors;  // of the rows it touches

    A sums[V] = {};
    for (unsigned n = lane;;) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const unsigned vector = n + u * 32;
        A difference[V];
        unpack<T>(difference, loaded[u]);
        const unsigned at = vector - begin;
        if (at < count) {
          const unsigned row = t.row.quotient(at), column = at - row * row_vectors - window.column;
          if (column < static_cast<unsigned>(window.columns)) {
            A factor_x[V];
            load_aligned<V>(factor_x, window.factors_x + column * V);
            const A factor_y = window.factors_y[row];
#pragma unroll
            for (int i = 0; i < V; ++i) difference[i] -= factor_x[i] * factor_y;
          }
        }
        if constexpr (kBackward) {
          Vector<T> gradient;
#pragma unroll
          for (int i = 0; i < V; ++i) gradient.of[i] = static_cast<T>(weight * difference[i]);
          if (vector < vectors) grad[vector] = gradient;
        } else {
          add_squares<T>(sums, difference);
        }
      }
      n += kUnroll * 32;
      if (n - lane >= vectors) break;
      load_ahead(loaded, pred, n, 32, vectors);
    }
    if (!kBackward && lane < vectors) {  // no elements, no part in a weight that is no number
      A sum = A(0);
#pragma unroll
      for (int i = 0; i < V; ++i) sum += sums[i];
      total = static_cast<double>(sum) * static_cast<double>(weight);
    }
  }
  if constexpr (!kBackward) {
    if (p.of_maps) {  // tiles of a map follow each other
      total = warp_sum(total);
      if (lane == 0 && index < static_cast<unsigned>(t.tiling.count)) p.partial_sums[index] = total;
    } else {
      total = block_sum(total);
      if (threadIdx.x == 0) p.partial_sums[blockIdx.x] = total;
    }
  }
}

// How the block of a tile of channels-last maps lays out its shared memory. The first four are written where windows
// are, and hold zeros elsewhere. A vector of joints may go on from the last to the first, so rows of joints are
// repeated a little beyond their end.
template <typename T>
struct SampleLayout {
  using A = accumulate_t<T>;
  int pitch, factors_y, column_joints, row_joints, weights, targets, end;  // all but the first: offsets in bytes

  FASTPOSE_HOST_DEVICE SampleLayout(const MapTiles& tiles, int joints)
      : pitch(joints + Vector<T>::kSize - 1),
        factors_y(aligned(tiles.width * joints * sizeof(A))),
        column_joints(factors_y + aligned(tiles.height * pitch * sizeof(A))),
        row_joints(column_joints + aligned(tiles.width * joints / Vector<T>::kSize * sizeof(unsigned))),
        weights(row_joints + aligned(tiles.height * sizeof(unsigned))),
        targets(weights + aligned(pitch * sizeof(A))),
        end(targets + joints * static_cast<int>(sizeof(JointTarget))) {}
  static FASTPOSE_HOST_DEVICE int aligned(size_t bytes) { return static_cast<int>((bytes + 15) / 16 * 16); }
};

// A block per tile of a sample of channels-last maps. A thread keeps to one column of vectors, and so to the
// same joints: it adds up the squares of each by itself, and weighs the sums. Most vectors lie in no window, which two
// words show: the bits of the joints whose windows have its columns, and of those whose windows have its row.
// Floor: the bytes of the prediction forward, twice that backward.
template <typename T, bool kBackward>
__global__ void __launch_bounds__(kMaxSampleThreads, 2) loss_channels_last_kernel(const __grid_constant__ TiledLoss t) {
  using A = accumulate_t<T>;
  constexpr int V = Vector<T>::kSize, kUnroll = 4;
  const HeatmapMseLossParams& p = t.op;
  const MapTiles& tiles = t.tiling.tiles;
  if constexpr (!kBackward) let_next_kernel_get_ready();
  const int joints = static_cast<int>(p.joints), thread = static_cast<int>(threadIdx.x);
  const unsigned across = static_cast<unsigned>(tiles.across), in_sample = across * static_cast<unsigned>(tiles.down);
  const unsigned b = blockIdx.x / in_sample, tile = blockIdx.x - b * in_sample, tile_y = tile / across;
  const int x0 = static_cast<int>(tile - tile_y * across) * tiles.width, y0 = static_cast<int>(tile_y) * tiles.height;
  const int width = min(tiles.width, p.spec.width - x0), height = min(tiles.height, p.spec.height - y0);

  // This thread's column of vectors, and its rows: begin, begin + rows_at_once, ...
  const unsigned columns = static_cast<unsigned>(width * joints / V), rows = static_cast<unsigned>(height);
  const unsigned row_step = static_cast<unsigned>(p.spec.width * joints / V), rows_at_once = t.rows_at_once;
  const unsigned row_of_thread = t.row.quotient(threadIdx.x);
  const unsigned column = threadIdx.x - row_of_thread * static_cast<unsigned>(tiles.width * joints / V);
  const bool has_vectors = row_of_thread < min(rows_at_once, rows) && column < columns;
  const unsigned begin = has_vectors ? row_of_thread : rows;
  const int64_t first = (static_cast<int64_t>(y0) * p.spec.width + x0) * joints;
  const auto* pred = reinterpret_cast<const uint4*>(static_cast<const T*>(p.pred) + b * p.pred_strides.b + first);
  Vector<T>* grad = nullptr;
  if constexpr (kBackward) grad = reinterpret_cast<Vector<T>*>(static_cast<T*>(p.grad) + b * p.grad_strides.b + first);
  uint4 loaded[kUnroll];
  load_ahead(loaded, pred, begin * row_step + column, rows_at_once * row_step, rows * row_step);

  const SampleLayout<T> layout(t.tiling.tiles, joints);
  auto* shared = dynamic_shared<char>();
  auto* factors_x = reinterpret_cast<A*>(shared);                                    // [width][joints]
  auto* factors_y = reinterpret_cast<A*>(shared + layout.factors_y);                 // [height][pitch]
  auto* column_joints = reinterpret_cast<unsigned*>(shared + layout.column_joints);  // [row_vectors] bits
  auto* row_joints = reinterpret_cast<unsigned*>(shared + layout.row_joints);        // [height] bits
  auto* weights = reinterpret_cast<A*>(shared + layout.weights);                     // [pitch]
  auto* targets = reinterpret_cast<JointTarget*>(shared + layout.targets);           // [joints]
  const int block = static_cast<int>(blockDim.x);
#pragma unroll 1
  for (int i = thread; i < layout.weights / 16; i += block) reinterpret_cast<uint4*>(shared)[i] = uint4{};
#pragma unroll 1
  for (int j = thread; j < joints; j += block) {
    const LossOfMap map = loss_of_map(p, b, j);
    targets[j] = map.target;
    A weight = static_cast<A>(map.weight);
    if constexpr (kBackward) weight = weight_of_gradient<A>(p, t.scale, b * p.joints + j, map.weight);
    for (int copy = j; copy < layout.pitch; copy += joints) weights[copy] = weight;
  }
  __syncthreads();
  // A warp per joint. Beyond 32 joints several share a bit: some vectors are then looked at although no window has
  // them.
  for (int j = thread / 32; j < joints; j += block / 32) {
    const JointTarget target = targets[j];
    const int x_begin = max(target.x_begin - x0, 0), count_x = min(target.x_end - x0, width) - x_begin;
    const int y_begin = max(target.y_begin - y0, 0), count_y = min(target.y_end - y0, height) - y_begin;
    if (count_x <= 0 || count_y <= 0) continue;
    const unsigned bit = 1u << j % 32;
#pragma unroll 1
    for (int i = thread % 32; i < count_x + count_y; i += 32) {
      const bool along_x = i < count_x;
      const int at = along_x ? x_begin + i : y_begin + i - count_x;
      const A factor = target_factor_along<A>(p.spec, target, along_x, at + (along_x ? x0 : y0));
      if (along_x) {
        factors_x[at * joints + j] = factor;
        atomicOr(&column_joints[(at * joints + j) / V], bit);
      } else {
        for (int copy = j; copy < layout.pitch; copy += joints) factors_y[at * layout.pitch + copy] = factor;
        atomicOr(&row_joints[at], bit);
      }
    }
  }
  __syncthreads();

  const unsigned joint = column * V % static_cast<unsigned>(joints);  // of the first element of this thread's vectors
  const unsigned joints_of_column = has_vectors ? column_joints[column] : 0;
  A sums[V] = {}, weight[V];
  if constexpr (kBackward) {
#pragma unroll
    for (int i = 0; i < V; ++i) weight[i] = weights[joint + i];
  }
  for (unsigned first_row = begin; first_row < rows;) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const unsigned row = first_row + u * rows_at_once;
      A difference[V];
      unpack<T>(difference, loaded[u]);
      if (row < rows && (joints_of_column & row_joints[row]) != 0) {
        A factor_x[V];
        load_aligned<V>(factor_x, factors_x + column * V);
        const A* factor_y = factors_y + row * layout.pitch + joint;
#pragma unroll
        for (int i = 0; i < V; ++i) difference[i] -= factor_x[i] * factor_y[i];
      }
      if constexpr (kBackward) {
        Vector<T> gradient;
#pragma unroll
        for (int i = 0; i < V; ++i) gradient.of[i] = static_cast<T>(weight[i] * difference[i]);
        if (row < rows) grad[row * row_step + column] = gradient;
      } else {
        add_squares<T>(sums, difference);
      }
    }
    first_row += kUnroll * rows_at_once;
    load_ahead(loaded, pred, first_row * row_step + column, rows_at_once * row_step, rows * row_step);
  }
  if constexpr (!kBackward) {
    if (!p.of_maps) {
      A total = A(0);
      if (has_vectors) {  // no elements, no part in a weight that is no number
#pragma unroll
        for (int i = 0; i < V; ++i) total += sums[i] * weights[joint + i];
      }
      const double sum = block_sum(static_cast<double>(total));
      if (thread == 0) p.partial_sums[blockIdx.x] = sum;
      return;
    }
    // The threads' sums, side by side as the elements of their vectors are: every `joints`-th belongs to one joint.
#pragma unroll
    for (int i = 0; i < V; ++i) sums[i] *= weights[joint + i];
    __syncthreads();  // nobody reads the tables any more
    auto* of_elements = reinterpret_cast<A*>(shared);
    if (has_vectors) {
#pragma unroll
      for (int i = 0; i < V; ++i) of_elements[(row_of_thread * columns + column) * V + i] = sums[i];
    }
    __syncthreads();
    const int elements = static_cast<int>(min(rows_at_once, rows) * columns) * V;
    for (int j = thread; j < joints; j += block) {
      double sum = 0.0;
      for (int i = j; i < elements; i += joints) sum += static_cast<double>(of_elements[i]);
      p.partial_sums[static_cast<int64_t>(blockIdx.x) * joints + j] = sum;
    }
  }
}

// Any strides, widths and alignments, and float64: one block per map, one element at a time.
template <typename T, bool kBackward>
__global__ void __launch_bounds__(kLossThreads) loss_strided_kernel(const __grid_constant__ TiledLoss t) {
  using A = accumulate_t<T>;
  const HeatmapMseLossParams& p = t.op;
  for (int64_t map = blockIdx.x; map < p.batch * p.joints; map += gridDim.x) {
    const int64_t b = map / p.joints, k = map - b * p.joints;
    const LossOfMap l = loss_of_map(p, b, k);
    const T* pred = static_cast<const T*>(p.pred) + b * p.pred_strides.b + k * p.pred_strides.k;
    A sum = A(0), factor = static_cast<A>(l.weight);
    if constexpr (kBackward) factor = weight_of_gradient<A>(p, t.scale, map, l.weight);
    for (RowCursor at(threadIdx.x, kLossThreads, p.spec.width); at.row < p.spec.height; at.advance()) {
      const A difference =
          static_cast<A>(pred[at.row * p.pred_strides.y + at.column * p.pred_strides.x]) -
          target_factor_x<A>(p.spec, l.target, at.column) * target_factor_y<A>(p.spec, l.target, at.row);
      if constexpr (kBackward) {
        T* grad = static_cast<T*>(p.grad) + b * p.grad_strides.b + k * p.grad_strides.k;
        grad[at.row * p.grad_strides.y + at.column * p.grad_strides.x] = static_cast<T>(factor * difference);
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

// One block adds up what the others have left, always in the same order: two runs give the same bits. It gets ready
// while they still run, so that little of it can be noticed. A counter by which the last of them knew itself would have
// to be zero at its first use, in memory that no other stream or graph uses: to set it to zero costs as much.
template <typename T>
__global__ void __launch_bounds__(kTotalThreads) total_loss_kernel(const __grid_constant__ TiledLoss t) {
  wait_for_kernel_before();
  const int64_t count = blocks_of(t.tiling);
  double sum = 0.0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += kTotalThreads) sum += t.op.partial_sums[i];
  const double total = block_sum(sum);
  if (threadIdx.x == 0) {
    *static_cast<accumulate_t<T>*>(t.op.loss) = static_cast<accumulate_t<T>>(total * t.scale);
  }
}

// A warp adds up what the tiles of a map have left, always in the same order.
template <typename T>
__global__ void map_losses_kernel(const __grid_constant__ TiledLoss t) {
  wait_for_kernel_before();
  const HeatmapMseLossParams& p = t.op;
  const bool planar = t.tiling.layout == MapLayout::kPlanar, strided = t.tiling.layout == MapLayout::kStrided;
  const int64_t tiles = strided ? 1 : t.tiling.tiles.count(), step = planar ? 1 : p.joints;
  for (int64_t map = first_item() / 32; map < p.batch * p.joints; map += item_stride() / 32) {
    const int64_t b = map / p.joints, k = map - b * p.joints;
    const double* sums = p.partial_sums + b * p.joints * tiles + k * (planar ? tiles : 1);
    double sum = 0.0;
    for (int64_t i = threadIdx.x % 32; i < tiles; i += 32) sum += sums[i * step];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) {
      static_cast<accumulate_t<T>*>(p.loss)[map] = static_cast<accumulate_t<T>>(sum * t.scale);
    }
  }
}

// One pass over the maps in either direction; which kernel depends on how they lie in memory.
template <typename T, bool kBackward>
cudaError_t launch_pass(const TiledLoss& t, cudaStream_t stream) {
  const LossTiling& tiling = t.tiling;
  if (tiling.count == 0) return cudaSuccess;
  const unsigned blocks = grid_for(blocks_of(tiling), 1);
  if constexpr (kHasLayoutKernels<T>) {
    if (tiling.layout == MapLayout::kPlanar) {
      return launch(loss_planar_kernel<T, kBackward>, blocks, kLossThreads, stream, t,
                    sizeof(accumulate_t<T>) * kTilesPerBlock * t.factors);
    }
    if (tiling.layout == MapLayout::kChannelsLast) {
      constexpr int V = Vector<T>::kSize;
      const int joints = static_cast<int>(t.op.joints), vectors = tiling.tiles.width * joints / V * t.rows_at_once;
      size_t shared_bytes = SampleLayout<T>(tiling.tiles, joints).end;
      if (!kBackward && t.op.of_maps) shared_bytes = std::max(shared_bytes, vectors * V * sizeof(accumulate_t<T>));
      return launch(loss_channels_last_kernel<T, kBackward>, blocks, divided_up(vectors, 32) * 32, stream, t,
                    shared_bytes);
    }
  }
  return launch(loss_strided_kernel<T, kBackward>, blocks, kLossThreads, stream, t);
}

// The tiling, unless tiles are too many for 32-bit numbers, or the joints of channels-last maps for a block's threads
// or its shared memory.
template <typename T>
TiledLoss tiled_loss(const HeatmapMseLossParams& params) {
  constexpr int V = Vector<T>::kSize;
  TiledLoss t{params, loss_tiling(params), loss_scale(params), SmallDivisor(1), 0, 0};
  const MapTiles& tiles = t.tiling.tiles;
  bool fits = kHasLayoutKernels<T> && blocks_of(t.tiling) <= 1 << 28;
  if (t.tiling.layout == MapLayout::kPlanar) {
    t.row = SmallDivisor(tiles.width / V);
    t.factors = factors_of_tile<accumulate_t<T>, V>(params.spec, tiles);
  } else if (t.tiling.layout == MapLayout::kChannelsLast) {
    const int64_t sample = params.joints * params.spec.width * params.spec.height;
    fits = fits && params.joints <= kMaxSampleThreads && sample <= 1 << 28;
    if (fits) {
      const int joints = static_cast<int>(params.joints), row_vectors = tiles.width * joints / V;
      t.row = SmallDivisor(row_vectors);
      t.rows_at_once = std::max(1, (kSampleThreads + row_vectors / 2) / row_vectors);
      fits = row_vectors <= kMaxSampleThreads && SampleLayout<T>(tiles, joints).end <= static_cast<int>(kSharedBytes);
    }
  }
  if (!fits) t.tiling = strided_loss(params);
  return t;
}

}  // namespace

cudaError_t launch_heatmap_mse_loss(const HeatmapMseLossParams& params, cudaStream_t stream) {
  return dispatch_device_floating(params.kind, [&](auto zero) {
    using T = decltype(zero);
    const TiledLoss tiled = tiled_loss<T>(params);
    const bool is_empty = tiled.tiling.count == 0;
    if (is_empty && params.of_maps) return cudaSuccess;
    // Of an empty batch the total is the first kernel.
    if (is_empty) return launch(total_loss_kernel<T>, 1, kTotalThreads, stream, tiled);
    const cudaError_t error = launch_pass<T, false>(tiled, stream);
    if (error != cudaSuccess) return error;
    if (!params.of_maps) return launch_dependent(total_loss_kernel<T>, 1, kTotalThreads, stream, tiled);
    const unsigned blocks = grid_for(params.batch * params.joints, kThreads / 32);
    return launch_dependent(map_losses_kernel<T>, blocks, kThreads, stream, tiled);
  });
}

cudaError_t launch_heatmap_mse_loss_backward(const HeatmapMseLossParams& params, cudaStream_t stream) {
  return dispatch_device_floating(params.kind, [&](auto zero) {
    using T = decltype(zero);
    return launch_pass<T, true>(tiled_loss<T>(params), stream);
  });
}

}  // namespace fastpose
