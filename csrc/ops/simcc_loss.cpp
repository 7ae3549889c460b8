// SPDX-License-Identifier: Apache-2.0
#include "binding/torch_glue.h"

#include "cpu/exponential.h"
#include "cpu/peaks.h"
#include "cpu/simd.h"
#include "ops/simcc_loss.h"

#include <algorithm>

namespace fastpose {
namespace {

constexpr int kLanes = 16;  // independent partial sums: the compiler may not reorder additions, so the source does
constexpr int kPart = 64 * kLanes;  // bins after which these go on in float64

// One vector and its label, in tables as long as the vector.
template <typename T>
class SimccVector {
 public:
  using A = accumulate_t<T>;
  explicit SimccVector(const SimccLossParams& p)
      : p_(p), size_(std::max(p.axes[0].bins, p.axes[1].bins)), logits_(size_), log_labels_(size_), labels_(size_) {}

  void load(const SimccLossAxis& axis, int64_t b, int64_t k, float center, bool drawn) {
    bins_ = axis.bins;
    const T* pred = static_cast<const T*>(axis.pred) + b * axis.strides.b + k * axis.strides.k;
    const A beta = static_cast<A>(p_.beta);
    A* __restrict logits = logits_.data();
    if (axis.strides.bin == 1) {
      for (int i = 0; i < bins_; ++i) logits[i] = beta * static_cast<A>(pred[i]);
    } else {
      for (int i = 0; i < bins_; ++i) logits[i] = beta * static_cast<A>(pred[i * axis.strides.bin]);
    }
    const SimccLabel<A> label(p_, axis, center, drawn, [](A x) { return vectorised_exp(x); });
    std::fill_n(log_labels_.data(), bins_, label.log_beyond);
    std::fill_n(labels_.data(), bins_, label.beyond);
    A* __restrict log_labels = log_labels_.data();
    A* __restrict labels = labels_.data();
    // Step by step, as vector code has no branches.
    const A label_beta = label.label_beta, highest = label.highest;
    for (int i = label.begin; i < label.end; ++i) log_labels[i] = label.log_of_gaussian(i);
    if (p_.label_softmax)
      for (int i = label.begin; i < label.end; ++i)
        log_labels[i] = label_beta * vectorised_exp(log_labels[i]) - highest;
    for (int i = label.begin; i < label.end; ++i) labels[i] = vectorised_exp(log_labels[i]);
  }

  // Leaves exponentials instead of logits.
  SimccSums sums() {
    const A highest = highest_of(logits_.data(), bins_);  // NaN is passed over; the sums meet it
    A* __restrict logits = logits_.data();
    const A *log_labels = log_labels_.data(), *labels = labels_.data();
    SimccSums sums{};
    for (int begin = 0; begin < bins_; begin += kPart) {
      const int end = std::min(bins_, begin + kPart), whole = begin + (end - begin) / kLanes * kLanes;
      A predicted[kLanes] = {}, of_labels[kLanes] = {}, products[kLanes] = {};
      const auto add = [&](int i, int lane) {
        const A below = logits[i] - highest;
        products[lane] += labels[i] * (log_labels[i] - below);
        of_labels[lane] += labels[i];
        logits[i] = vectorised_exp(below);
        predicted[lane] += logits[i];
      };
      for (int i = begin; i < whole; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
      for (int i = whole; i < end; ++i) add(i, i - whole);
      for (int lane = 0; lane < kLanes; ++lane) {
        sums.predicted += static_cast<double>(predicted[lane]);
        sums.labels += static_cast<double>(of_labels[lane]);
        sums.products += static_cast<double>(products[lane]);
      }
    }
    return sums;
  }

  // After sums().
  void write_gradient(const SimccLossAxis& axis, int64_t b, int64_t k, const SimccGradientFactors& factors) const {
    T* __restrict grad = static_cast<T*>(axis.grad) + b * axis.grad_strides.b + k * axis.grad_strides.k;
    const A of_predicted = static_cast<A>(factors.predicted), of_labels = static_cast<A>(factors.labels);
    const A *exponentials = logits_.data(), *labels = labels_.data();
    const auto write = [&](int i, int64_t at) {
      grad[at] = static_cast<T>(exponentials[i] * of_predicted - labels[i] * of_labels);
    };
    if (axis.grad_strides.bin == 1) {
      for (int i = 0; i < bins_; ++i) write(i, i);
    } else {
      for (int i = 0; i < bins_; ++i) write(i, i * axis.grad_strides.bin);
    }
  }

 private:
  const SimccLossParams& p_;
  const int size_;
  int bins_ = 0;
  std::vector<A> logits_, log_labels_, labels_;
};

// Calls body(index, axis, b, k, weight, vector, sums) for the vectors of both axes, [B, K, 2].
template <typename T, typename Body>
void for_each_vector(const char* op, const SimccLossParams& p, const Body& body) {
  const SimdLevel level = simd_level();
  parallel_for(op, 0, 2 * p.batch * p.joints, 32, [&](int64_t begin, int64_t end) {
    SimccVector<T> vector(p);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t b = index / 2 / p.joints, k = index / 2 - b * p.joints;
      const SimccLossAxis& axis = p.axes[index % 2];
      const SimccJoint joint = simcc_joint(p, b, k);
      with_simd(level, [&] {
        vector.load(axis, b, k, joint.centers[index % 2], joint.drawn);
        body(index, axis, b, k, joint.weight, vector, vector.sums());
      });
    }
  });
}

template <typename T>
void forward_typed(const SimccLossParams& p) {
  const auto divergence = [&](int64_t index, const SimccLossAxis& axis, int64_t, int64_t, float weight,
                              const SimccVector<T>&, const SimccSums& sums) {
    p.partial_sums[index] = weight * simcc_divergence(sums, p.label_softmax, axis.bins);
  };
  for_each_vector<T>("simcc_loss", p, divergence);
  // In order, whatever the number of threads: the same bits on every run.
  double total = 0.0;
  for (int64_t i = 0; i < 2 * p.batch * p.joints; ++i) total += p.partial_sums[i];
  *static_cast<accumulate_t<T>*>(p.loss) = static_cast<accumulate_t<T>>(total * simcc_scale(p));
}

template <typename T>
void backward_typed(const SimccLossParams& p) {
  const auto gradient = [&](int64_t, const SimccLossAxis& axis, int64_t b, int64_t k, float weight,
                            const SimccVector<T>& vector, const SimccSums& sums) {
    vector.write_gradient(axis, b, k, simcc_gradient_factors<accumulate_t<T>>(p, sums, weight, axis.bins));
  };
  for_each_vector<T>("simcc_loss_backward", p, gradient);
}

void forward_cpu(const SimccLossParams& p) {
  dispatch_floating(p.kind, [&](auto zero) { forward_typed<decltype(zero)>(p); });
}
void backward_cpu(const SimccLossParams& p) {
  dispatch_floating(p.kind, [&](auto zero) { backward_typed<decltype(zero)>(p); });
}

struct SimccSettings {
  double split_ratio, sigma[2], beta, label_beta;
  bool label_softmax;
};

// The arguments that both directions share, checked, made contiguous and kept alive.
struct SimccLossArguments {
  Tensor keypoints, visible;
  std::optional<JointWeights> joint_weights;
  SimccLossParams params{};

  SimccLossArguments(const char* op, const Tensor& pred_x, const Tensor& pred_y, const Tensor& keypoints_,
                     const Tensor& visible_, const std::optional<Tensor>& joint_weights_,
                     const SimccSettings& settings) {
    check_vectors(op, pred_x, pred_y);
    const int64_t batch = pred_x.size(0), joints = pred_x.size(1);
    Argument(op, "keypoints", keypoints_)
        .shape({batch, joints, 2}, "[B, K, 2]")
        .type({ScalarType::Float})
        .on_device_of(pred_x, "pred_x");
    Argument(op, "visible", visible_)
        .shape({batch, joints}, "[B, K]")
        .type({ScalarType::Float})
        .on_device_of(pred_x, "pred_x");
    keypoints = contiguous(op, "keypoints", keypoints_);
    visible = contiguous(op, "visible", visible_);
    if (joint_weights_) {
      joint_weights.emplace(op, *joint_weights_, pred_x, "pred_x");
      params.joint_weights = data<float>(joint_weights->weights);
      params.weight_stride_b = joint_weights->stride_b;
    }
    const bool is_double = pred_x.scalar_type() == ScalarType::Double;
    const double reach = label_reach(is_double, settings.label_softmax, settings.label_beta);
    for (int axis = 0; axis < 2; ++axis) {
      const Tensor& pred = axis == 0 ? pred_x : pred_y;
      const double sigma = settings.sigma[axis];
      params.axes[axis].pred = pred.const_data_ptr();
      params.axes[axis].strides = vector_strides(pred);
      params.axes[axis].bins = static_cast<int>(pred.size(2));
      params.axes[axis].three_sigma = 3.0 * sigma;
      params.axes[axis].inverse_sigma = 1.0 / sigma;
      params.axes[axis].label_reach = reach * sigma;
    }
    params.kind = kind_of(pred_x.scalar_type());
    params.keypoints = data<float>(keypoints);
    params.visible = data<float>(visible);
    params.batch = batch;
    params.joints = joints;
    params.split_ratio = static_cast<float>(settings.split_ratio);
    params.beta = settings.beta;
    params.label_beta = settings.label_beta;
    params.label_softmax = settings.label_softmax;
  }
};

Tensor simcc_loss(const Tensor& pred_x, const Tensor& pred_y, const Tensor& keypoints, const Tensor& visible,
                  const std::optional<Tensor>& joint_weights, double split_ratio, double sigma_x, double sigma_y,
                  double beta, double label_beta, bool label_softmax) {
  constexpr const char* op = "simcc_loss";
  SimccLossArguments arguments(op, pred_x, pred_y, keypoints, visible, joint_weights,
                               {split_ratio, {sigma_x, sigma_y}, beta, label_beta, label_softmax});
  SimccLossParams& params = arguments.params;
  const Tensor partial_sums =
      empty_on(op, "partial sums", pred_x, {params.batch, params.joints, 2}, ScalarType::Double);
  Tensor loss = empty_on(op, "loss", pred_x, {}, loss_type(pred_x));
  params.partial_sums = mutable_data<double>(partial_sums);
  params.loss = loss.mutable_data_ptr();
  FASTPOSE_RUN(simcc_loss, pred_x, params, forward_cpu);
  return loss;
}

std::tuple<Tensor, Tensor> simcc_loss_backward(const Tensor& grad_output, const Tensor& pred_x, const Tensor& pred_y,
                                               const Tensor& keypoints, const Tensor& visible,
                                               const std::optional<Tensor>& joint_weights, double split_ratio,
                                               double sigma_x, double sigma_y, double beta, double label_beta,
                                               bool label_softmax) {
  constexpr const char* op = "simcc_loss_backward";
  SimccLossArguments arguments(op, pred_x, pred_y, keypoints, visible, joint_weights,
                               {split_ratio, {sigma_x, sigma_y}, beta, label_beta, label_softmax});
  SimccLossParams& params = arguments.params;
  Argument(op, "grad_output", grad_output).shape({}, "[]").type({loss_type(pred_x)}).on_device_of(pred_x, "pred_x");
  Tensor grad_x = empty_like(op, "gradient of pred_x", pred_x), grad_y = empty_like(op, "gradient of pred_y", pred_y);
  if (pred_x.numel() == 0) return {grad_x, grad_y};
  params.grad_output = grad_output.const_data_ptr();
  for (int axis = 0; axis < 2; ++axis) {
    Tensor& grad = axis == 0 ? grad_x : grad_y;
    params.axes[axis].grad = grad.mutable_data_ptr();
    params.axes[axis].grad_strides = vector_strides(grad);
  }
  FASTPOSE_RUN(simcc_loss_backward, pred_x, params, backward_cpu);
  return {grad_x, grad_y};
}

}  // namespace

FASTPOSE_REGISTER(simcc_loss,
                  "(Tensor pred_x, Tensor pred_y, Tensor keypoints, Tensor visible, Tensor? joint_weights,"
                  " float split_ratio, float sigma_x, float sigma_y, float beta, float label_beta, bool label_softmax)"
                  " -> Tensor");
FASTPOSE_REGISTER(simcc_loss_backward,
                  "(Tensor grad_output, Tensor pred_x, Tensor pred_y, Tensor keypoints, Tensor visible,"
                  " Tensor? joint_weights, float split_ratio, float sigma_x, float sigma_y, float beta,"
                  " float label_beta, bool label_softmax) -> (Tensor, Tensor)");

}  // namespace fastpose
