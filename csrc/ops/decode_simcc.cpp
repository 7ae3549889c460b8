// SPDX-License-Identifier: Apache-2.0
#include "binding/torch_glue.h"

#include "cpu/peaks.h"
#include "cpu/simd.h"
#include "ops/decode_simcc.h"

#include <algorithm>
#include <type_traits>

namespace fastpose {
namespace {

constexpr int kLanes = 32;  // blurred bins that are computed together

// Calls body(i, value) for all bins, with the usual strides known to the compiler, which then makes vector code.
template <typename T, typename Body>
void for_each_bin(const T* from, int64_t stride, int bins, const Body& body) {
  const auto walk = [&](auto known) {
    for (int i = 0; i < bins; ++i) body(i, static_cast<accumulate_t<T>>(from[i * known]));
  };
  if (stride == 1) return walk(std::integral_constant<int, 1>());
  if (stride == -1) return walk(std::integral_constant<int, -1>());
  walk(stride);
}

// One vector at a time, in tables as long as the longest.
template <typename T>
class SimccDecoder {
 public:
  using A = accumulate_t<T>;
  explicit SimccDecoder(const DecodeSimccParams& p) {
    const int bins = std::max(p.axes[0].bins, p.axes[1].bins);
    const int radius = std::max(p.axes[0].blur_radius, p.axes[1].blur_radius);
    values_.resize(bins);
    if (!p.dark) return;
    padded_.resize(bins + 2 * radius + kLanes);
    blurred_.resize(bins + kLanes);
  }

  Peak<A> peak(const DecodedVector<T>& vector, int bins) {
    A* __restrict values = values_.data();
    for_each_bin(vector.pred, vector.stride, bins, [&](int i, A value) { values[i] = value; });
    if (vector.flipped != nullptr)
      for_each_bin(vector.flipped, vector.flipped_stride, bins,
                   [&](int i, A value) { values[i] = (values[i] + value) * A(0.5); });
    Peak<A> best{0, -1};
    keep_best(best, values, bins, 0);
    return best;
  }

  // Of the vector whose peak was found last.
  double step(const DecodeSimccAxis& axis, const Peak<A>& peak) {
    const int radius = axis.blur_radius, bins = axis.bins;
    std::fill(padded_.begin(), padded_.end(), 0.0);
    for (int i = 0; i < bins; ++i) padded_[radius + i] = static_cast<double>(values_[i]);
    for (int first = 0; first < bins; first += kLanes) {
      const double* middle = padded_.data() + radius + first;
      double sums[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) sums[lane] = axis.blur[0] * middle[lane];
      for (int d = 1; d <= radius; ++d)
        for (int lane = 0; lane < kLanes; ++lane) sums[lane] += axis.blur[d] * (middle[lane - d] + middle[lane + d]);
      std::copy_n(sums, kLanes, blurred_.data() + first);
    }
    double window[2 * kDarkReach + 1];
    for (int i = 0; i <= 2 * kDarkReach; ++i) window[i] = blurred_[dark_bin(peak.index, i, bins)];
    return dark_step(window, static_cast<double>(peak.value), highest_of(blurred_.data(), bins));
  }

 private:
  std::vector<A> values_;
  std::vector<double> padded_, blurred_;
};

void decode_simcc_cpu(const DecodeSimccParams& p) {
  const SimdLevel level = simd_level();
  dispatch_floating(p.kind, [&](auto zero) {
    using T = decltype(zero);
    parallel_for("decode_simcc", 0, p.batch * p.joints, 16, [&](int64_t begin, int64_t end) {
      SimccDecoder<T> decoder(p);
      for (int64_t index = begin; index < end; ++index) {
        const int64_t b = index / p.joints, k = index - b * p.joints;
        Peak<accumulate_t<T>> peaks[2];
        double steps[2] = {};
        with_simd(level, [&] {
          for (int i = 0; i < 2; ++i) {
            const DecodeSimccAxis& axis = p.axes[i];
            peaks[i] = decoder.peak(decoded_vector<T>(p, axis, b, k, i == 0), axis.bins);
            if (p.dark && is_found(peaks[i])) steps[i] = decoder.step(axis, peaks[i]);
          }
        });
        write_simcc_point(p, b, k, peaks, steps);
      }
    });
  });
}

std::tuple<Tensor, Tensor> decode_simcc(const Tensor& pred_x, const Tensor& pred_y,
                                        const std::optional<Tensor>& crop_to_image,
                                        const std::optional<Tensor>& flipped_x, const std::optional<Tensor>& flipped_y,
                                        std::vector<int64_t> mirrored, double split_ratio, int64_t refine,
                                        int64_t blur_x, int64_t blur_y) {
  constexpr const char* op = "decode_simcc";
  check_vectors(op, pred_x, pred_y);
  const int64_t batch = pred_x.size(0), joints = pred_x.size(1);
  if (refine < 0 || refine > 1) fail(op, ": unknown refine ", refine);
  for (const auto& [name, side] : {std::pair{"blur_x", blur_x}, std::pair{"blur_y", blur_y}}) {
    if (side < 1 || side > kMaxBlurKernel || side % 2 == 0)
      fail(op, ": ", name, " must be an odd number of bins from 1 to ", kMaxBlurKernel, ", got ", side);
  }
  DecodeSimccParams params{};
  std::optional<Tensor> matrices;
  if (crop_to_image) {
    Argument(op, "crop_to_image", *crop_to_image)
        .shape({batch, 2, 3}, "[B, 2, 3]")
        .type({ScalarType::Float})
        .on_device_of(pred_x, "pred_x");
    matrices = contiguous(op, "crop_to_image", *crop_to_image);
    params.crop_to_image = data<float>(*matrices);
  }
  if (flipped_x.has_value() != flipped_y.has_value()) fail(op, ": flipped_x and flipped_y must be passed together");
  if (flipped_x) {
    Argument(op, "flipped_x", *flipped_x)
        .shape({batch, joints, pred_x.size(2)}, "of pred_x")
        .type({pred_x.scalar_type()})
        .on_device_of(pred_x, "pred_x");
    Argument(op, "flipped_y", *flipped_y)
        .shape({batch, joints, pred_y.size(2)}, "of pred_y")
        .type({pred_x.scalar_type()})
        .on_device_of(pred_x, "pred_x");
    params.mirrored = joint_permutation(op, mirrored, joints);
  }
  for (int i = 0; i < 2; ++i) {
    const Tensor& pred = i == 0 ? pred_x : pred_y;
    const std::optional<Tensor>& flipped = i == 0 ? flipped_x : flipped_y;
    DecodeSimccAxis& axis = params.axes[i];
    axis.pred = pred.const_data_ptr();
    axis.strides = vector_strides(pred);
    axis.bins = static_cast<int>(pred.size(2));
    axis.blur_radius = set_blur(axis.blur, static_cast<int>(i == 0 ? blur_x : blur_y));
    if (!flipped) continue;
    axis.flipped = flipped->const_data_ptr();
    axis.flipped_strides = vector_strides(*flipped);
  }
  Tensor keypoints = empty_on(op, "keypoints", pred_x, {batch, joints, 2}, ScalarType::Float);
  Tensor scores = empty_on(op, "scores", pred_x, {batch, joints}, ScalarType::Float);
  if (batch * joints == 0) return {keypoints, scores};
  params.kind = kind_of(pred_x.scalar_type());
  params.keypoints = mutable_data<float>(keypoints);
  params.scores = mutable_data<float>(scores);
  params.batch = batch;
  params.joints = joints;
  params.split_ratio = split_ratio;
  params.dark = refine == 1;
  FASTPOSE_RUN(decode_simcc, pred_x, params, decode_simcc_cpu);
  return {keypoints, scores};
}

}  // namespace

FASTPOSE_REGISTER(decode_simcc,
                  "(Tensor pred_x, Tensor pred_y, Tensor? crop_to_image, Tensor? flipped_x, Tensor? flipped_y,"
                  " int[] mirrored, float split_ratio, int refine, int blur_x, int blur_y) -> (Tensor, Tensor)");

}  // namespace fastpose
