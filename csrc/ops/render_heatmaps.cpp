// SPDX-License-Identifier: Apache-2.0
#include "binding/torch_glue.h"

#include "cpu/simd.h"
#include "cpu/target_factors.h"
#include "ops/render_heatmaps.h"

#include <cstring>

namespace fastpose {
namespace {

template <typename T>
void render_one_map(const RenderHeatmapsParams& p, int64_t map, const TargetFactors<accumulate_t<T>>& factors,
                    accumulate_t<T>* factors_x, accumulate_t<T>* factors_y) {
  const int height = p.spec.height, width = p.spec.width;
  T* out = static_cast<T*>(p.heatmaps) + map * height * width;
  const JointTarget t = target_of_map(p, map);
  p.weights[map] = t.weight;
  if (p.spec.encoding == Encoding::kUnbiased && t.x_end == 0)
    std::memset(static_cast<void*>(out), 0, sizeof(T) * height * width);
  factors.fill(t.center_x, t.x_begin, t.x_end, factors_x);
  factors.fill(t.center_y, t.y_begin, t.y_end, factors_y);
  for (int y = t.y_begin; y < t.y_end; ++y) {
    T* __restrict row = out + static_cast<int64_t>(y) * width;
    for (int x = t.x_begin; x < t.x_end; ++x) row[x] = static_cast<T>(factors_x[x] * factors_y[y]);
  }
}

void render_heatmaps_cpu(const RenderHeatmapsParams& p) {
  const SimdLevel level = simd_level();
  dispatch_floating(p.kind, [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate_t<T>;
    const TargetFactors<A> factors(p.spec);
    char* maps = static_cast<char*>(p.heatmaps);
    const int64_t bytes = static_cast<int64_t>(sizeof(T)) * p.spec.height * p.spec.width;  // of a map
    parallel_for("render_heatmaps", 0, p.maps, 16, [&](int64_t begin, int64_t end) {
      std::vector<A> factors_x(p.spec.width), factors_y(p.spec.height);
      with_simd(level, [&] {
        // All-zero bits are 0 in every dtype. A window is a few dozen pixels of thousands, an unbiased map all of them.
        // One large memset is faster than one per map: it need not read what it overwrites.
        if (p.spec.encoding != Encoding::kUnbiased) std::memset(maps + begin * bytes, 0, (end - begin) * bytes);
        for (int64_t map = begin; map < end; ++map)
          render_one_map<T>(p, map, factors, factors_x.data(), factors_y.data());
      });
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
  check_dtype(op, dtype, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Double});

  const Tensor points = contiguous(op, "keypoints", keypoints), flags = contiguous(op, "visible", visible);
  Tensor heatmaps = empty_on(op, "heatmaps", keypoints, {batch, joints, height, width}, dtype);
  Tensor weights = empty_on(op, "weights", keypoints, {batch, joints}, ScalarType::Float);
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
