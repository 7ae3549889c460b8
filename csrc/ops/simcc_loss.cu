// SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda_launch.cuh"

#include "ops/simcc_loss.h"

namespace fastpose {
namespace {

constexpr int kVectorThreads = 128;  // a warp per vector
// That an SM is to hold, hence 64 registers for a thread, or 128: left alone, ptxas takes fewer and spills.
template <typename T>
constexpr int kBlocksPerSm = sizeof(T) == 8 ? 4 : 8;
constexpr int kTotalThreads = 256;
constexpr int kPart = 64;  // bins of a lane after which its sums go on in float64

__device__ __forceinline__ double warp_sum_everywhere(double value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

// One vector and its label, read by a warp. The vector is read once for its maximum and again, from the L1 cache, for
// the sums; the order of these depends on a thread's place alone.
template <typename T>
struct WarpVector {
  using A = accumulate_t<T>;
  const SimccLossAxis& axis;
  int lane;
  const T* pred;
  A beta, highest;
  SimccLabel<A> label;

  __device__ __forceinline__ static A exponential(A x) { return exp_of(x); }

  __device__ __forceinline__ WarpVector(const SimccLossParams& p, int which, int64_t b, int64_t k,
                                        const SimccJoint& joint)
      : axis(p.axes[which]),
        lane(threadIdx.x % 32),
        pred(static_cast<const T*>(axis.pred) + b * axis.strides.b + k * axis.strides.k),
        beta(static_cast<A>(p.beta)),
        highest(static_cast<A>(-INFINITY)),
        label(p, axis, which == 0 ? joint.centers[0] : joint.centers[1], joint.drawn, exponential) {
#pragma unroll 4
    for (int i = lane; i < axis.bins; i += 32) highest = max_number(highest, logit(i));
    for (int offset = 16; offset > 0; offset /= 2)
      highest = max_number(highest, __shfl_xor_sync(kFullWarp, highest, offset));
  }

  __device__ __forceinline__ A logit(int i) const { return beta * static_cast<A>(pred[i * axis.strides.bin]); }
  __device__ __forceinline__ bool is_within_reach(int i) const { return i >= label.begin && i < label.end; }
  __device__ __forceinline__ A log_label(int i) const {
    return is_within_reach(i) ? label.log_at(i, exponential) : label.log_beyond;
  }

  // In every lane.
  __device__ __forceinline__ SimccSums sums() const {
    SimccSums sums{};
    for (int first = lane; first < axis.bins; first += 32 * kPart) {
      A predicted = A(0), labels = A(0), products = A(0);
      const int end = min(axis.bins, first + 32 * kPart);
#pragma unroll 2
      for (int i = first; i < end; i += 32) {
        const A below = logit(i) - highest, log_label_here = log_label(i);
        const A label_here = is_within_reach(i) ? exponential(log_label_here) : label.beyond;
        predicted += exponential(below);
        labels += label_here;
        products += label_here * (log_label_here - below);
      }
      sums.predicted += static_cast<double>(predicted);
      sums.labels += static_cast<double>(labels);
      sums.products += static_cast<double>(products);
    }
    return {warp_sum_everywhere(sums.predicted), warp_sum_everywhere(sums.labels), warp_sum_everywhere(sums.products)};
  }
};

// Floor: the bytes of the predictions forward, twice that backward.
template <typename T, bool kBackward>
__global__ void __launch_bounds__(kVectorThreads, kBlocksPerSm<T>)
    simcc_loss_kernel(const __grid_constant__ SimccLossParams p) {
  using A = accumulate_t<T>;
  if constexpr (!kBackward) let_next_kernel_get_ready();
  const int64_t vectors = 2 * p.batch * p.joints;
  for (int64_t index = first_item() / 32; index < vectors; index += item_stride() / 32) {
    const int64_t b = index / 2 / p.joints, k = index / 2 - b * p.joints;
    const int which = static_cast<int>(index % 2);
    const SimccJoint joint = simcc_joint(p, b, k);
    const WarpVector<T> vector(p, which, b, k, joint);
    const SimccLossAxis& axis = vector.axis;
    const SimccSums sums = vector.sums();
    if constexpr (kBackward) {
      const SimccGradientFactors factors = simcc_gradient_factors<A>(p, sums, joint.weight, axis.bins);
      const A of_predicted = static_cast<A>(factors.predicted), of_labels = static_cast<A>(factors.labels);
      T* grad = static_cast<T*>(axis.grad) + b * axis.grad_strides.b + k * axis.grad_strides.k;
#pragma unroll 1
      for (int i = vector.lane; i < axis.bins; i += 32) {
        const A label = vector.is_within_reach(i) ? vector.exponential(vector.log_label(i)) : vector.label.beyond;
        const A predicted = vector.exponential(vector.logit(i) - vector.highest);
        grad[i * axis.grad_strides.bin] = static_cast<T>(predicted * of_predicted - label * of_labels);
      }
    } else if (vector.lane == 0) {
      p.partial_sums[index] = joint.weight * simcc_divergence(sums, p.label_softmax, axis.bins);
    }
  }
}

// One block adds up what the others have left, always in the same order: two runs give the same bits.
template <typename A>
__global__ void __launch_bounds__(kTotalThreads) total_simcc_loss_kernel(const __grid_constant__ SimccLossParams p) {
  wait_for_kernel_before();
  double sum = 0.0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < 2 * p.batch * p.joints; i += kTotalThreads) sum += p.partial_sums[i];
  const double total = block_sum(sum);
  if (threadIdx.x == 0) *static_cast<A*>(p.loss) = static_cast<A>(total * simcc_scale(p));
}

template <typename T, bool kBackward>
cudaError_t launch_pass(const SimccLossParams& params, cudaStream_t stream) {
  const unsigned blocks = grid_for(2 * params.batch * params.joints * 32, kVectorThreads);
  return launch(simcc_loss_kernel<T, kBackward>, blocks, kVectorThreads, stream, params);
}

}  // namespace

cudaError_t launch_simcc_loss(const SimccLossParams& params, cudaStream_t stream) {
  return dispatch_device_floating(params.kind, [&](auto zero) {
    using T = decltype(zero);
    // Of an empty batch the total is the first kernel.
    const auto total = total_simcc_loss_kernel<accumulate_t<T>>;
    if (params.batch * params.joints == 0) return launch(total, 1, kTotalThreads, stream, params);
    const cudaError_t error = launch_pass<T, false>(params, stream);
    return error != cudaSuccess ? error : launch_dependent(total, 1, kTotalThreads, stream, params);
  });
}

cudaError_t launch_simcc_loss_backward(const SimccLossParams& params, cudaStream_t stream) {
  return dispatch_device_floating(params.kind,
                                  [&](auto zero) { return launch_pass<decltype(zero), true>(params, stream); });
}

}  // namespace fastpose
