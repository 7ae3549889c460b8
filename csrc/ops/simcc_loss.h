// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "maths/heatmap_target.h"
#include "maths/map_layout.h"

namespace fastpose {

struct SimccLossAxis {
  const void* pred;  // [B, K, bins], any strides
  VectorStrides strides;
  int bins;
  double three_sigma;  // bins
  double inverse_sigma;
  double label_reach;  // bins from its middle, beyond which a label is the same everywhere

  void* grad;  // backward: of pred's shape, else null
  VectorStrides grad_strides;
};

struct SimccLossParams {
  SimccLossAxis axes[2];  // x, y
  ScalarKind kind;
  const float* keypoints;      // [B, K, 2] crop pixels
  const float* visible;        // [B, K]
  const float* joint_weights;  // row b at b * weight_stride_b, or null for 1
  int64_t weight_stride_b;
  int64_t batch, joints;
  float split_ratio;
  double beta, label_beta;
  bool label_softmax;

  double* partial_sums;  // forward: one per vector [B, K, 2]
  void* loss;            // forward: one number, float32 (float64 for float64)

  const void* grad_output;  // backward: one number on the device, of loss's type
};

// Beyond how many sigmas a label of the type that the kernels compute in is the same everywhere: it is 0; or so small
// that exp(label_beta · label) rounds to 1.
inline double label_reach(bool is_double, bool label_softmax, double label_beta) {
  constexpr double kLog2 = 0.6931471805599453;
  const double vanishing = label_softmax ? std::log(label_beta) + (is_double ? 55 : 26) * kLog2 : is_double ? 746 : 104;
  return std::sqrt(2.0 * std::fmax(vanishing, 0.0));
}

struct SimccJoint {
  float centers[2];  // bins
  float weight;
  bool drawn;
};

FASTPOSE_HOST_DEVICE SimccJoint simcc_joint(const SimccLossParams& p, int64_t b, int64_t k) {
  const int64_t index = b * p.joints + k;
  const float visible = p.visible[index];
  SimccJoint joint{{0.0f, 0.0f}, visible, !(visible < 0.5f)};
  bool near = true;  // false for NaN
  for (int axis = 0; axis < 2; ++axis) {
    // In float32, as mmpose multiplies, and half to even: which bin is nearest is a matter of the last bit.
    joint.centers[axis] = rintf(p.keypoints[2 * index + axis] * p.split_ratio);
    const double center = joint.centers[axis], reach = p.axes[axis].three_sigma;
    near = near && center - reach < p.axes[axis].bins && center + reach + 1.0 >= 0.0;
  }
  if (joint.drawn && !near) joint.weight = 0.0f;
  joint.drawn = joint.drawn && near;
  if (p.joint_weights != nullptr) joint.weight *= p.joint_weights[b * p.weight_stride_b + k];
  return joint;
}

// What a label is before it is divided by the sum of all its bins: exp(log_at(bin)) within [begin, end), `beyond`
// elsewhere. With label_softmax the highest is 1, as exp(label_beta) may be infinite.
template <typename A>
struct SimccLabel {
  A center, inverse_sigma, label_beta, highest;
  A log_beyond, beyond;
  int begin, end;
  bool softmax;

  // exponential: exp_of, or another that does the same.
  template <typename Exponential>
  FASTPOSE_HOST_DEVICE SimccLabel(const SimccLossParams& p, const SimccLossAxis& axis, float middle, bool drawn,
                                  const Exponential& exponential)
      : center(drawn ? static_cast<A>(middle) : A(0)),
        // Squares of larger ones would be infinite, and of the middle no number; its neighbours are out of reach.
        inverse_sigma(static_cast<A>(axis.inverse_sigma < 1e15 ? axis.inverse_sigma : 1e15)),
        label_beta(static_cast<A>(p.label_beta)),
        highest(0),
        begin(drawn ? clip_to_map(ceil(middle - axis.label_reach), axis.bins) : 0),
        end(drawn ? clip_to_map(floor(middle + axis.label_reach) + 1.0, axis.bins) : 0),
        softmax(p.label_softmax) {
    if (softmax && drawn) highest = label_beta * exponential(log_of_gaussian(clip_to_map(middle, axis.bins - 1)));
    log_beyond = softmax ? -highest : A(0);
    beyond = softmax ? exponential(log_beyond) : A(0);
  }

  FASTPOSE_HOST_DEVICE A log_of_gaussian(int bin) const {
    const A scaled = (static_cast<A>(bin) - center) * inverse_sigma;
    return A(-0.5) * scaled * scaled;
  }
  template <typename Exponential>
  FASTPOSE_HOST_DEVICE A log_at(int bin, const Exponential& exponential) const {
    const A gaussian = log_of_gaussian(bin);
    return softmax ? label_beta * exponential(gaussian) - highest : gaussian;
  }
};

// Sums over the bins of a vector.
struct SimccSums {
  double predicted;  // exp(d), d being beta · pred less its maximum
  double labels;     // of the labels
  double products;   // label · (log label - d)
};

// The mean over bins of label · log(label / prediction), both divided by their sums, or the label left as it is.
FASTPOSE_HOST_DEVICE double simcc_divergence(const SimccSums& sums, bool label_softmax, int bins) {
  const double whole = label_softmax ? sums.labels : 1.0;
  const double logs = std::log(sums.predicted) - (label_softmax ? std::log(whole) : 0.0);
  return (sums.products + sums.labels * logs) / whole / bins;
}

// The gradient at a bin is exp(d) · predicted - label · labels.
struct SimccGradientFactors {
  double predicted, labels;
};

// 1 / (B K). An empty batch adds nothing to a training step: loss 0.
FASTPOSE_HOST_DEVICE double simcc_scale(const SimccLossParams& p) {
  const int64_t joints = p.batch * p.joints;
  return joints == 0 ? 0.0 : 1.0 / static_cast<double>(joints);
}

// grad_output (a loss scaler's 65536, say) goes in before rounding to the predictions' type: in half precision it could
// not after.
template <typename A>
FASTPOSE_HOST_DEVICE SimccGradientFactors simcc_gradient_factors(const SimccLossParams& p, const SimccSums& sums,
                                                                 float weight, int bins) {
  const double grad_output = static_cast<double>(*static_cast<const A*>(p.grad_output));
  const double common = grad_output * weight * simcc_scale(p) * p.beta / bins;
  const double whole = p.label_softmax ? sums.labels : 1.0;
  return {common * (sums.labels / whole) / sums.predicted, common / whole};
}

#ifdef FASTPOSE_WITH_CUDA
cudaError_t launch_simcc_loss(const SimccLossParams& params, cudaStream_t stream);
cudaError_t launch_simcc_loss_backward(const SimccLossParams& params, cudaStream_t stream);
#endif

}  // namespace fastpose
