// SPDX-License-Identifier: Apache-2.0
#include "binding/torch_glue.h"

#include "cpu/simd.h"
#include "cpu/target_factors.h"
#include "ops/heatmap_mse_loss.h"

#include <algorithm>
#include <type_traits>

namespace fastpose {
namespace {

constexpr int kLanes = 32;  // independent partial sums: the compiler may not reorder additions, so the source does

bool is_channels_last(const HeatmapMseLossParams& p) {
  return p.joints > 1 && has_layout(p.pred_strides, MapLayout::kChannelsLast, p.joints) &&
         (p.grad == nullptr || has_layout(p.grad_strides, MapLayout::kChannelsLast, p.joints));
}

// One map of the prediction, or all of a sample if they are channels last, with the factors of their targets, 0 outside
// the window.
template <typename T>
struct MapsOfLoss {
  using A = accumulate_t<T>;
  const HeatmapMseLossParams& p;
  const int64_t joints;  // of a sample's, or 1
  const T* pred;
  T* grad;
  std::vector<A> factors_x, factors_y, weights;  // [w, joints], [h, joints], [joints]
  std::vector<A> window;

  MapsOfLoss(const HeatmapMseLossParams& params, int64_t joints_)
      : p(params),
        joints(joints_),
        factors_x(params.spec.width * joints),
        factors_y(params.spec.height * joints),
        weights(joints),
        window(std::max(params.spec.width, params.spec.height)) {}

  void load(int64_t group, const TargetFactors<A>& factors) {
    const double scale = loss_scale(p);
    const int64_t b = group * joints / p.joints, k = group * joints - b * p.joints;
    pred = static_cast<const T*>(p.pred) + b * p.pred_strides.b + k * p.pred_strides.k;
    grad = static_cast<T*>(p.grad) + b * p.grad_strides.b + k * p.grad_strides.k;
    std::fill(factors_x.begin(), factors_x.end(), A(0));
    std::fill(factors_y.begin(), factors_y.end(), A(0));
    for (int64_t j = 0; j < joints; ++j) {
      const LossOfMap loss = loss_of_map(p, b, k + j);
      const JointTarget& t = loss.target;
      weights[j] = p.grad == nullptr ? static_cast<A>(loss.weight)
                                     : weight_of_gradient<A>(p, scale, b * p.joints + k + j, loss.weight);
      factors.fill(t.center_x, t.x_begin, t.x_end, window.data());
      for (int x = t.x_begin; x < t.x_end; ++x) factors_x[x * joints + j] = window[x];
      factors.fill(t.center_y, t.y_begin, t.y_end, window.data());
      for (int y = t.y_begin; y < t.y_end; ++y) factors_y[y * joints + j] = window[y];
    }
  }
};

// One value for all elements, instead of a table.
template <typename A>
struct Same {
  A value;
  A operator[](int64_t) const { return value; }
};

// Calls body(dense, y, first, count, factors_x, factors_y, weights) for all rows; `dense`, known to the compiler, says
// that elements lie without gaps. A row of channels-last maps is one long row of all joints, so that its loops are
// vector code however many joints there are. It is taken in parts of some pixels, as long as the tables of what depends
// on the joint alone.
template <typename T, typename Body>
void for_each_row(const MapsOfLoss<T>& maps, bool dense, const Body& body) {
  using A = accumulate_t<T>;
  const int height = maps.p.spec.height;
  const int64_t joints = maps.joints, row = maps.p.spec.width * joints, part = kLanes * joints;
  const A* factors_x = maps.factors_x.data();
  const auto planar = [&](auto known_dense) {
    const Same<A> weight{maps.weights[0]};
    for (int y = 0; y < height; ++y) body(known_dense, y, 0, row, factors_x, Same<A>{maps.factors_y[y]}, weight);
  };
  if (joints == 1) return dense ? planar(std::true_type()) : planar(std::false_type());
  std::vector<A> factors_y(part), weights(part);
  const auto repeat = [&](const A* of_joints, std::vector<A>& table) {
    std::copy_n(of_joints, joints, table.data());
    for (int64_t n = joints; n < part; n *= 2) std::copy_n(table.data(), n, table.data() + n);
  };
  repeat(maps.weights.data(), weights);
  for (int y = 0; y < height; ++y) {
    repeat(maps.factors_y.data() + y * joints, factors_y);
    for (int64_t first = 0; first < row; first += part)
      body(std::true_type(), y, first, std::min(part, row - first), factors_x + first, factors_y.data(),
           weights.data());
  }
}

// Asks for what lies a memory page further on: the processor's own prefetching stops at the end of each.
template <typename T>
void prefetch_ahead(const T* from, int64_t count) {
  constexpr int kAhead = 4096, kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(reinterpret_cast<const char*>(from + i) + kAhead);
}

// Weighted squares of the errors: float lanes along a row, double ones down the rows.
template <typename T>
double squared_error(const MapsOfLoss<T>& maps) {
  using A = accumulate_t<T>;
  const int64_t stride = maps.p.pred_strides.x;
  double sums[kLanes] = {};
  const auto add_row = [&](auto dense, int y, int64_t first, int64_t count, const A* factors_x, auto factors_y,
                           auto weights) {
    const T* row = maps.pred + y * maps.p.pred_strides.y + first;
    if (dense) prefetch_ahead(row, count);
    constexpr bool alike = std::is_same_v<decltype(weights), Same<A>>;  // weighs the sum, below
    const auto square = [&](int64_t i) {
      const A difference = static_cast<A>(row[dense ? i : i * stride]) - factors_x[i] * factors_y[i];
      return alike ? difference * difference : weights[i] * (difference * difference);
    };
    A partial[kLanes] = {};
    const int64_t whole = count - count % kLanes;
    for (int64_t i = 0; i < whole; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) partial[lane] += square(i + lane);
    for (int lane = 0; lane < count - whole; ++lane) partial[lane] += square(whole + lane);
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += static_cast<double>(partial[lane]);
  };
  for_each_row(maps, stride == 1, add_row);
  double sum = 0.0;
  for (const double value : sums) sum += value;
  return maps.joints == 1 ? sum * maps.weights[0] : sum;
}

// The squared error of each of the maps by itself. Every element of a part of a row has a sum of its own.
template <typename T>
std::vector<double> squared_errors(const MapsOfLoss<T>& maps) {
  using A = accumulate_t<T>;
  if (maps.joints == 1) return {squared_error(maps)};
  std::vector<double> sums(kLanes * maps.joints);
  for_each_row(maps, true, [&](auto, int y, int64_t first, int64_t count, const A* factors_x, auto factors_y, auto) {
    const T* row = maps.pred + y * maps.p.pred_strides.y + first;
    prefetch_ahead(row, count);
    for (int64_t i = 0; i < count; ++i) {
      const A difference = static_cast<A>(row[i]) - factors_x[i] * factors_y[i];
      sums[i] += static_cast<double>(difference * difference);
    }
  });
  std::vector<double> errors(maps.joints);
  for (size_t i = 0; i < sums.size(); ++i) errors[i % maps.joints] += sums[i];
  for (int64_t j = 0; j < maps.joints; ++j) errors[j] *= maps.weights[j];
  return errors;
}

template <typename T>
void write_gradient(const MapsOfLoss<T>& maps) {
  using A = accumulate_t<T>;
  const int64_t stride = maps.p.pred_strides.x, grad_stride = maps.p.grad_strides.x;
  const auto write_row = [&](auto dense, int y, int64_t first, int64_t count, const A* factors_x, auto factors_y,
                             auto weights) {
    const T* row = maps.pred + y * maps.p.pred_strides.y + first;
    T* __restrict grad = maps.grad + y * maps.p.grad_strides.y + first;
    if (dense) prefetch_ahead(row, count);
    for (int64_t i = 0; i < count; ++i) {
      const A difference = static_cast<A>(row[dense ? i : i * stride]) - factors_x[i] * factors_y[i];
      grad[dense ? i : i * grad_stride] = static_cast<T>(weights[i] * difference);
    }
  };
  for_each_row(maps, stride == 1 && grad_stride == 1, write_row);
}

// Calls body(i, maps) for all maps, channels-last ones a sample at a time. Returns the number of groups.
template <typename T, typename Body>
int64_t for_each_group(const HeatmapMseLossParams& p, const Body& body) {
  using A = accumulate_t<T>;
  const SimdLevel level = simd_level();
  const TargetFactors<A> factors(p.spec);
  const int64_t joints = is_channels_last(p) ? p.joints : 1, groups = p.batch * p.joints / joints;
  parallel_for("heatmap_mse_loss", 0, groups, std::max<int64_t>(1, 16 / joints), [&](int64_t begin, int64_t end) {
    MapsOfLoss<T> maps(p, joints);
    for (int64_t i = begin; i < end; ++i) {
      maps.load(i, factors);
      with_simd(level, [&] { body(i, maps); });
    }
  });
  return groups;
}

template <typename T>
void forward_typed(const HeatmapMseLossParams& p) {
  using A = accumulate_t<T>;
  A* loss = static_cast<A*>(p.loss);
  const double scale = loss_scale(p);
  if (p.of_maps) {
    for_each_group<T>(p, [&](int64_t i, const MapsOfLoss<T>& maps) {
      const std::vector<double> errors = squared_errors(maps);
      for (int64_t j = 0; j < maps.joints; ++j) loss[i * maps.joints + j] = static_cast<A>(errors[j] * scale);
    });
    return;
  }
  const int64_t groups =
      for_each_group<T>(p, [&](int64_t i, const MapsOfLoss<T>& maps) { p.partial_sums[i] = squared_error(maps); });
  // In order, whatever the number of threads: the same bits on every run.
  double total = 0.0;
  for (int64_t i = 0; i < groups; ++i) total += p.partial_sums[i];
  *loss = static_cast<A>(total * scale);
}

template <typename T>
void backward_typed(const HeatmapMseLossParams& p) {
  for_each_group<T>(p, [](int64_t, const MapsOfLoss<T>& maps) { write_gradient(maps); });
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
  std::optional<JointWeights> joint_weights;
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
    keypoints = contiguous(op, "keypoints", keypoints_);
    visible = contiguous(op, "visible", visible_);
    params.spec = target_spec(op, pred.size(2), pred.size(3), sigma, encoding);
    if (joint_weights_) {
      joint_weights.emplace(op, *joint_weights_, pred);
      params.joint_weights = data<float>(joint_weights->weights);
      params.weight_stride_b = joint_weights->stride_b;
      params.weight_stride_k = 1;
    }
    params.pred = pred.const_data_ptr();
    params.pred_strides = map_strides(pred);
    params.kind = kind_of(pred.scalar_type());
    params.keypoints = data<float>(keypoints);
    params.visible = data<float>(visible);
    params.batch = batch;
    params.joints = joints;
    params.ignore_missing = ignore_missing;
  }
};

Tensor forward(const char* op, const LossArguments& arguments, const Tensor& pred, bool of_maps) {
  HeatmapMseLossParams params = arguments.params;
  params.of_maps = of_maps;
  const Tensor partial_sums = empty_on(op, "partial sums", pred, {partial_sum_count(params)}, ScalarType::Double);
  Tensor loss = of_maps ? empty_on(op, "losses", pred, {params.batch, params.joints}, loss_type(pred))
                        : empty_on(op, "loss", pred, {}, loss_type(pred));
  params.partial_sums = mutable_data<double>(partial_sums);
  params.loss = loss.mutable_data_ptr();
  FASTPOSE_RUN(heatmap_mse_loss, pred, params, forward_cpu);
  return loss;
}

Tensor heatmap_mse_loss(const Tensor& pred, const Tensor& keypoints, const Tensor& visible,
                        const std::optional<Tensor>& joint_weights, double sigma, int64_t encoding,
                        bool ignore_missing) {
  constexpr const char* op = "heatmap_mse_loss";
  return forward(op, {op, pred, keypoints, visible, joint_weights, sigma, encoding, ignore_missing}, pred, false);
}

Tensor heatmap_mse_losses(const Tensor& pred, const Tensor& keypoints, const Tensor& visible,
                          const std::optional<Tensor>& joint_weights, double sigma, int64_t encoding,
                          bool ignore_missing) {
  constexpr const char* op = "heatmap_mse_losses";
  return forward(op, {op, pred, keypoints, visible, joint_weights, sigma, encoding, ignore_missing}, pred, true);
}

Tensor heatmap_mse_loss_backward(const Tensor& grad_output, const Tensor& pred, const Tensor& keypoints,
                                 const Tensor& visible, const std::optional<Tensor>& joint_weights, double sigma,
                                 int64_t encoding, bool ignore_missing) {
  constexpr const char* op = "heatmap_mse_loss_backward";
  LossArguments arguments(op, pred, keypoints, visible, joint_weights, sigma, encoding, ignore_missing);
  HeatmapMseLossParams& params = arguments.params;
  const Argument argument(op, "grad_output", grad_output);
  params.of_maps = grad_output.dim() > 0;
  params.of_maps ? argument.shape({params.batch, params.joints}, "[] or [B, K]") : argument.shape({}, "[] or [B, K]");
  argument.type({loss_type(pred)}).on_device_of(pred, "pred");
  const Tensor incoming = contiguous(op, "grad_output", grad_output);
  Tensor grad = empty_like(op, "gradient", pred);
  if (pred.numel() == 0) return grad;
  params.grad_output = incoming.const_data_ptr();
  params.grad = grad.mutable_data_ptr();
  params.grad_strides = map_strides(grad);
  FASTPOSE_RUN(heatmap_mse_loss_backward, pred, params, backward_cpu);
  return grad;
}

}  // namespace

FASTPOSE_REGISTER(heatmap_mse_loss,
                  "(Tensor pred, Tensor keypoints, Tensor visible, Tensor? joint_weights, float sigma, int encoding,"
                  " bool ignore_missing) -> Tensor");
FASTPOSE_REGISTER(heatmap_mse_losses,
                  "(Tensor pred, Tensor keypoints, Tensor visible, Tensor? joint_weights, float sigma, int encoding,"
                  " bool ignore_missing) -> Tensor");
FASTPOSE_REGISTER(heatmap_mse_loss_backward,
                  "(Tensor grad_output, Tensor pred, Tensor keypoints, Tensor visible, Tensor? joint_weights,"
                  " float sigma, int encoding, bool ignore_missing) -> Tensor");

}  // namespace fastpose
