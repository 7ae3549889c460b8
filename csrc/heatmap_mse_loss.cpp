// SPDX-License-Identifier: Apache-2.0
#include "torch_glue.h"

#include "heatmap_mse_loss.h"
#include "simd.h"
#include "target_factors.h"

#include <algorithm>
#include <type_traits>

namespace fastpose {
namespace {

constexpr int kLanes = 32;  // independent partial sums: the compiler may not reorder additions, so the source does

// One map of the prediction with the factors of its target, 0 outside the window.
template <typename T>
struct MapOfLoss {
  using A = accumulate_t<T>;
  const HeatmapMseLossParams& p;
  int64_t b, k;
  LossOfMap loss;
  std::vector<A> factors_x, factors_y;

  explicit MapOfLoss(const HeatmapMseLossParams& params)
      : p(params), factors_x(params.spec.width), factors_y(params.spec.height) {}

  void load(int64_t map, const TargetFactors<A>& factors) {
    b = map / p.joints;
    k = map - b * p.joints;
    loss = loss_of_map(p, b, k);
    const JointTarget& t = loss.target;
    std::fill(factors_x.begin(), factors_x.end(), A(0));
    std::fill(factors_y.begin(), factors_y.end(), A(0));
    factors.fill(t.center_x, t.x_begin, t.x_end, factors_x.data());
    factors.fill(t.center_y, t.y_begin, t.y_end, factors_y.data());
  }
  const T* pred() const { return static_cast<const T*>(p.pred) + b * p.stride_b + k * p.stride_k; }
  T* grad() const { return static_cast<T*>(p.grad) + b * p.grad_stride_b + k * p.grad_stride_k; }
};

// Asks for the row that lies a memory page further on: the processor's own prefetching stops at the end of each.
template <typename T>
void prefetch_ahead(const T* row, int width) {
  constexpr int kAhead = 4096, kLine = 64 / sizeof(T);
  for (int x = 0; x < width; x += kLine) __builtin_prefetch(reinterpret_cast<const char*>(row + x) + kAhead);
}

// Squared error of one map: float lanes along a row, double ones down the rows.
template <typename T>
double map_error(const MapOfLoss<T>& map) {
  using A = accumulate_t<T>;
  const HeatmapMseLossParams& p = map.p;
  const int height = p.spec.height, width = p.spec.width, whole = p.stride_x == 1 ? width - width % kLanes : 0;
  const A* factors_x = map.factors_x.data();
  double sums[kLanes] = {};
  for (int y = 0; y < height; ++y) {
    const T* row = map.pred() + y * p.stride_y;
    const A factor_y = map.factors_y[y];
    if (p.stride_x == 1) prefetch_ahead(row, width);
    A partial[kLanes] = {};
    for (int x = 0; x < whole; x += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const A difference = static_cast<A>(row[x + lane]) - factors_x[x + lane] * factor_y;
        partial[lane] += difference * difference;
      }
    }
    for (int x = whole; x < width; ++x) {
      const A difference = static_cast<A>(row[x * p.stride_x]) - factors_x[x] * factor_y;
      partial[x % kLanes] += difference * difference;
    }
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += static_cast<double>(partial[lane]);
  }
  double sum = 0.0;
  for (const double value : sums) sum += value;
  return sum;
}

template <typename T, typename Stride>
void write_gradient(const MapOfLoss<T>& map, accumulate_t<T> factor, Stride stride_x, Stride grad_stride_x) {
  using A = accumulate_t<T>;
  const HeatmapMseLossParams& p = map.p;
  const int height = p.spec.height, width = p.spec.width;
  const A* factors_x = map.factors_x.data();
  for (int y = 0; y < height; ++y) {
    const T* row = map.pred() + y * p.stride_y;
    T* __restrict grad_row = map.grad() + y * p.grad_stride_y;
    const A factor_y = map.factors_y[y];
    if (stride_x == 1) prefetch_ahead(row, width);
    for (int x = 0; x < width; ++x) {
      const A difference = static_cast<A>(row[x * stride_x]) - factors_x[x] * factor_y;
      grad_row[x * grad_stride_x] = static_cast<T>(factor * difference);
    }
  }
}

template <typename T>
void forward_typed(const HeatmapMseLossParams& p) {
  using A = accumulate_t<T>;
  const SimdLevel level = simd_level();
  const TargetFactors<A> factors(p.spec);
  torch::stable::parallel_for(0, p.batch * p.joints, 16, [&](int64_t begin, int64_t end) {
    MapOfLoss<T> map(p);
    for (int64_t i = begin; i < end; ++i) {
      map.load(i, factors);
      with_simd(level, [&] { p.partial_sums[i] = map_error(map) * map.loss.weight; });
    }
  });
  // In order, whatever the number of threads: the same bits on every run.
  double total = 0.0;
  for (int64_t map = 0; map < p.batch * p.joints; ++map) total += p.partial_sums[map];
  *static_cast<A*>(p.loss) = static_cast<A>(total * loss_scale(p));
}

template <typename T>
void backward_typed(const HeatmapMseLossParams& p) {
  using A = accumulate_t<T>;
  const SimdLevel level = simd_level();
  const TargetFactors<A> factors(p.spec);
  const double grad_output = *static_cast<const A*>(p.grad_output);
  torch::stable::parallel_for(0, p.batch * p.joints, 16, [&](int64_t begin, int64_t end) {
    MapOfLoss<T> map(p);
    for (int64_t i = begin; i < end; ++i) {
      map.load(i, factors);
      // grad_output (a loss scaler's 65536, say) goes in before rounding to T: in half precision it could not after.
      const A factor = static_cast<A>(2.0 * loss_scale(p) * grad_output * map.loss.weight);
      using One = std::integral_constant<int, 1>;  // known to the compiler, which then vectorises
      const bool dense = p.stride_x == 1 && p.grad_stride_x == 1;
      with_simd(level, [&] {
        dense ? write_gradient(map, factor, One(), One()) : write_gradient(map, factor, p.stride_x, p.grad_stride_x);
      });
    }
  });
}

void forward_cpu(const HeatmapMseLossParams& p) {
  dispatch_floating(p.kind, [&](auto zero) { forward_typed<decltype(zero)>(p); });
}
void backward_cpu(const HeatmapMseLossParams& p) {
  dispatch_floating(p.kind, [&](auto zero) { backward_typed<decltype(zero)>(p); });
}

// The arguments that both directions share, checked, made contiguous and kept alive.
struct LossArguments {
  Tensor keypoints, visible;
  std::optional<Tensor> joint_weights;
  HeatmapMseLossParams params{};

  LossArguments(const char* op, const Tensor& pred, const Tensor& keypoints_, const Tensor& visible_,
                const std::optional<Tensor>& joint_weights_, double sigma, int64_t encoding, bool ignore_missing) {
    Argument(op, "pred", pred)
        .shape({-1, -1, -1, -1}, "[B, K, h, w]")
        .type({ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Double});
    const int64_t batch = pred.size(0), joints = pred.size(1);
    Argument(op, "keypoints", keypoints_)
        .shape({batch, joints, 2}, "[B, K, 2]")
        .type({ScalarType::Float})
        .on_device_of(pred, "pred");
    Argument(op, "visible", visible_)
        .shape({batch, joints}, "[B, K]")
        .type({ScalarType::Float})
        .on_device_of(pred, "pred");
    keypoints = torch::stable::contiguous(keypoints_);
    visible = torch::stable::contiguous(visible_);
    params.spec = target_spec(op, pred.size(2), pred.size(3), sigma, encoding);
    if (joint_weights_) {
      const Argument argument(op, "joint_weights", *joint_weights_);
      const bool per_sample = joint_weights_->dim() == 2;
      per_sample ? argument.shape({batch, joints}, "[B, K]") : argument.shape({joints}, "[K] or [B, K]");
      argument.type({ScalarType::Float}).on_device_of(pred, "pred");
      joint_weights = torch::stable::contiguous(*joint_weights_);
      params.joint_weights = data<float>(*joint_weights);
      params.weight_stride_b = per_sample ? joints : 0;
      params.weight_stride_k = 1;
    }
    params.pred = pred.const_data_ptr();
    params.stride_b = pred.stride(0);
    params.stride_k = pred.stride(1);
    params.stride_y = pred.stride(2);
    params.stride_x = pred.stride(3);
    params.kind = kind_of(pred.scalar_type());
    params.keypoints = data<float>(keypoints);
    params.visible = data<float>(visible);
    params.batch = batch;
    params.joints = joints;
    params.ignore_missing = ignore_missing;
  }
};

ScalarType loss_type(const Tensor& pred) {
  return pred.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor heatmap_mse_loss(const Tensor& pred, const Tensor& keypoints, const Tensor& visible,
                        const std::optional<Tensor>& joint_weights, double sigma, int64_t encoding,
                        bool ignore_missing) {
  LossArguments arguments("heatmap_mse_loss", pred, keypoints, visible, joint_weights, sigma, encoding, ignore_missing);
  HeatmapMseLossParams& params = arguments.params;
  const Tensor partial_sums = empty_on(pred, {partial_sum_count(params)}, ScalarType::Double);
  Tensor loss = empty_on(pred, {}, loss_type(pred));
  params.partial_sums = mutable_data<double>(partial_sums);
  params.loss = loss.mutable_data_ptr();
  FASTPOSE_RUN(heatmap_mse_loss, pred, params, forward_cpu);
  return loss;
}

Tensor heatmap_mse_loss_backward(const Tensor& grad_output, const Tensor& pred, const Tensor& keypoints,
                                 const Tensor& visible, const std::optional<Tensor>& joint_weights, double sigma,
                                 int64_t encoding, bool ignore_missing) {
  constexpr const char* op = "heatmap_mse_loss_backward";
  LossArguments arguments(op, pred, keypoints, visible, joint_weights, sigma, encoding, ignore_missing);
  HeatmapMseLossParams& params = arguments.params;
  Argument(op, "grad_output", grad_output).shape({}, "[]").type({loss_type(pred)}).on_device_of(pred, "pred");
  Tensor grad = torch::stable::empty_like(pred);
  if (pred.numel() == 0) return grad;
  params.grad_output = grad_output.const_data_ptr();
  params.grad = grad.mutable_data_ptr();
  params.grad_stride_b = grad.stride(0);
  params.grad_stride_k = grad.stride(1);
  params.grad_stride_y = grad.stride(2);
  params.grad_stride_x = grad.stride(3);
  FASTPOSE_RUN(heatmap_mse_loss_backward, pred, params, backward_cpu);
  return grad;
}

}  // namespace

FASTPOSE_REGISTER(heatmap_mse_loss,
                  "(Tensor pred, Tensor keypoints, Tensor visible, Tensor? joint_weights, float sigma, int encoding,"
                  " bool ignore_missing) -> Tensor");
FASTPOSE_REGISTER(heatmap_mse_loss_backward,
                  "(Tensor grad_output, Tensor pred, Tensor keypoints, Tensor visible, Tensor? joint_weights,"
                  " float sigma, int encoding, bool ignore_missing) -> Tensor");

}  // namespace fastpose
