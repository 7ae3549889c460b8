// SPDX-License-Identifier: Apache-2.0
#include "torch_glue.h"

#include "render_heatmaps.h"

#include <cstring>

namespace fastpose {
namespace {

template <typename T>
void render_one_map(const RenderHeatmapsParams& p, int64_t map, std::vector<accumulate_t<T>>& factors_x) {
  using A = accumulate_t<T>;
  const int height = p.spec.height, width = p.spec.width;
  T* out = static_cast<T*>(p.heatmaps) + map * height * width;
  const JointTarget target = target_of_map(p, map);
  p.weights[map] = target.weight;
  // All-zero bits are 0 in every dtype; a joint's window is a few dozen pixels of thousands.
  std::memset(static_cast<void*>(out), 0, sizeof(T) * height * width);
  for (int x = target.x_begin; x < target.x_end; ++x) factors_x[x] = target_factor_x<A>(p.spec, target, x);
  for (int y = target.y_begin; y < target.y_end; ++y) {
    const A factor_y = target_factor_y<A>(p.spec, target, y);
    T* row = out + static_cast<int64_t>(y) * width;
    for (int x = target.x_begin; x < target.x_end; ++x) row[x] = static_cast<T>(factors_x[x] * factor_y);
  }
}

void render_heatmaps_cpu(const RenderHeatmapsParams& p) {
  dispatch_floating(p.kind, [&](auto zero) {
    using T = decltype(zero);
    torch::stable::parallel_for(0, p.maps, 64, [&](int64_t begin, int64_t end) {
      std::vector<accumulate_t<T>> factors_x(p.spec.width);
      for (int64_t map = begin; map < end; ++map) render_one_map<T>(p, map, factors_x);
    });
  });
}

std::tuple<Tensor, Tensor> render_heatmaps(const Tensor& keypoints, const Tensor& visible, int64_t height,
                                           int64_t width, double sigma, int64_t encoding, ScalarType dtype) {
  constexpr const char* op = "render_heatmaps";
  Argument(op, "keypoints", keypoints).shape({-1, -1, 2}, "[B, K, 2]").type({ScalarType::Float});
  const int64_t batch = keypoints.size(0), joints = keypoints.size(1);
  Argument(op, "visible", visible)
      .shape({batch, joints}, "[B, K]")
      .type({ScalarType::Float})
      .on_device_of(keypoints, "keypoints");
  const TargetSpec spec = target_spec(op, height, width, sigma, encoding);

  const Tensor points = torch::stable::contiguous(keypoints), flags = torch::stable::contiguous(visible);
  Tensor heatmaps = empty_on(keypoints, {batch, joints, height, width}, dtype);
  Argument(op, "dtype", heatmaps).type({ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Double});
  Tensor weights = empty_on(keypoints, {batch, joints}, ScalarType::Float);
  if (batch * joints == 0) return {heatmaps, weights};
  const RenderHeatmapsParams params{data<float>(points),
                                    data<float>(flags),
                                    heatmaps.mutable_data_ptr(),
                                    mutable_data<float>(weights),
                                    kind_of(dtype),
                                    batch * joints,
                                    spec};
  FASTPOSE_RUN(render_heatmaps, keypoints, params, render_heatmaps_cpu);
  return {heatmaps, weights};
}

}  // namespace

FASTPOSE_REGISTER(render_heatmaps,
                  "(Tensor keypoints, Tensor visible, SymInt height, SymInt width, float sigma, int encoding,"
                  " ScalarType dtype) -> (Tensor, Tensor)");

}  // namespace fastpose
