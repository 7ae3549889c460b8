// SPDX-License-Identifier: Apache-2.0
#include "binding/torch_glue.h"

#include "ops/swap_pairs.h"

namespace fastpose {
namespace {

void swap_pairs_cpu(const SwapPairsParams& p) {
  parallel_for("swap_pairs", 0, p.batch * p.joints, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) swap_one_joint(p, i);
  });
}

std::tuple<Tensor, Tensor> swap_pairs(const Tensor& points, const Tensor& visible, const Tensor& flip,
                                      std::vector<int64_t> mirrored) {
  constexpr const char* op = "swap_pairs";
  Argument(op, "points", points).shape({-1, -1, 2}, "[B, K, 2]").type({ScalarType::Float});
  const int64_t batch = points.size(0), joints = points.size(1);
  Argument(op, "visible", visible)
      .shape({batch, joints}, "[B, K]")
      .type({ScalarType::Float})
      .on_device_of(points, "points");
  Argument(op, "flip", flip).shape({batch}, "[B]").type({ScalarType::Bool}).on_device_of(points, "points");

  const Tensor in_points = contiguous(op, "points", points), in_visible = contiguous(op, "visible", visible);
  const Tensor flips = contiguous(op, "flip", flip);
  Tensor out_points = empty_on(op, "points", points, {batch, joints, 2}, ScalarType::Float);
  Tensor out_visible = empty_on(op, "visible", points, {batch, joints}, ScalarType::Float);
  const SwapPairsParams params{data<float>(in_points),
                               data<float>(in_visible),
                               data<uint8_t>(flips),
                               mutable_data<float>(out_points),
                               mutable_data<float>(out_visible),
                               batch,
                               joints,
                               joint_permutation(op, mirrored, joints)};
  if (batch * joints == 0) return {out_points, out_visible};
  FASTPOSE_RUN(swap_pairs, points, params, swap_pairs_cpu);
  return {out_points, out_visible};
}

}  // namespace

FASTPOSE_REGISTER(swap_pairs, "(Tensor points, Tensor visible, Tensor flip, int[] mirrored) -> (Tensor, Tensor)");

}  // namespace fastpose
