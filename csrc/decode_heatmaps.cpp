// SPDX-License-Identifier: Apache-2.0
#include "torch_glue.h"

#include "decode_heatmaps.h"

#include <algorithm>

namespace fastpose {
namespace {

// The rows of a map in order, one running maximum: strides of any kind, mirror test, every dtype.
template <typename T>
Peak<accumulate_t<T>> find_peak(const DecodedMap<T>& map, int height, int width) {
  Peak<accumulate_t<T>> best{0, -1};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      const Peak<accumulate_t<T>> candidate{map.at(y, x), static_cast<int64_t>(y) * width + x};
      if (is_better(candidate, best)) best = candidate;
    }
  }
  return best;
}

// A contiguous map without mirror test. Maxima of blocks are taken lane by lane, which the compiler turns into vector
// code without reordering anything; only a block that beats all before it is searched for the place.
template <typename T>
Peak<accumulate_t<T>> find_peak_contiguous(const T* map, int64_t size) {
  using A = accumulate_t<T>;
  constexpr int kLanes = 16, kBlock = 64;
  Peak<A> best{0, -1};
  int64_t start = 0;
  for (; start + kBlock <= size; start += kBlock) {
    A lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = -std::numeric_limits<A>::infinity();
    for (int i = 0; i < kBlock; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const A value = static_cast<A>(map[start + i + lane]);
        lanes[lane] = value > lanes[lane] ? value : lanes[lane];  // NaN compares false and is passed over
      }
    }
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int lane = 0; lane < half; ++lane) lanes[lane] = std::max(lanes[lane], lanes[lane + half]);
    if (best.index >= 0 && !(lanes[0] > best.value)) continue;
    for (int i = 0; i < kBlock; ++i) {
      const Peak<A> candidate{static_cast<A>(map[start + i]), start + i};
      if (is_better(candidate, best)) best = candidate;
    }
  }
  for (; start < size; ++start) {
    const Peak<A> candidate{static_cast<A>(map[start]), start};
    if (is_better(candidate, best)) best = candidate;
  }
  return best;
}

void decode_heatmaps_cpu(const DecodeHeatmapsParams& p) {
  dispatch_floating(p.kind, [&](auto zero) {
    using T = decltype(zero);
    const int64_t size = static_cast<int64_t>(p.height) * p.width;
    const bool contiguous = p.flipped == nullptr && p.strides.x == 1 && p.strides.y == p.width;
    torch::stable::parallel_for(0, p.batch * p.joints, 16, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const int64_t b = index / p.joints;
        const DecodedMap<T> map = decoded_map<T>(p, b, index - b * p.joints);
        const auto peak = contiguous ? find_peak_contiguous(map.map, size) : find_peak(map, p.height, p.width);
        write_decoded_point(p, index, map, peak);
      }
    });
  });
}

MapStrides map_strides(const Tensor& maps) { return {maps.stride(0), maps.stride(1), maps.stride(2), maps.stride(3)}; }

std::tuple<Tensor, Tensor> decode_heatmaps(const Tensor& heatmaps, const std::optional<Tensor>& heatmap_to_image,
                                           const std::optional<Tensor>& flipped, std::vector<int64_t> mirrored,
                                           bool flip_shift, int64_t refine) {
  constexpr const char* op = "decode_heatmaps";
  Argument(op, "heatmaps", heatmaps)
      .shape({-1, -1, -1, -1}, "[B, K, h, w]")
      .type({ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Double});
  const int64_t batch = heatmaps.size(0), joints = heatmaps.size(1), height = heatmaps.size(2),
                width = heatmaps.size(3);
  check_map_size(op, height, width);
  if (refine < 0 || refine > static_cast<int64_t>(Refine::kQuarter)) fail(op, ": unknown refine ", refine);
  DecodeHeatmapsParams params{};
  std::optional<Tensor> matrices;
  if (heatmap_to_image) {
    Argument(op, "heatmap_to_image", *heatmap_to_image)
        .shape({batch, 2, 3}, "[B, 2, 3]")
        .type({ScalarType::Float})
        .on_device_of(heatmaps, "heatmaps");
    matrices = torch::stable::contiguous(*heatmap_to_image);
    params.heatmap_to_image = data<float>(*matrices);
  }
  if (flipped) {
    Argument(op, "flipped", *flipped)
        .shape({batch, joints, height, width}, "of heatmaps")
        .type({heatmaps.scalar_type()})
        .on_device_of(heatmaps, "heatmaps");
    params.flipped = flipped->const_data_ptr();
    params.flipped_strides = map_strides(*flipped);
    params.mirrored = joint_permutation(op, mirrored, joints);
  }
  Tensor keypoints = empty_on(heatmaps, {batch, joints, 2}, ScalarType::Float);
  Tensor scores = empty_on(heatmaps, {batch, joints}, ScalarType::Float);
  if (batch * joints == 0) return {keypoints, scores};
  params.heatmaps = heatmaps.const_data_ptr();
  params.strides = map_strides(heatmaps);
  params.flip_shift = flip_shift;
  params.kind = kind_of(heatmaps.scalar_type());
  params.keypoints = mutable_data<float>(keypoints);
  params.scores = mutable_data<float>(scores);
  params.batch = batch;
  params.joints = joints;
  params.height = static_cast<int>(height);
  params.width = static_cast<int>(width);
  params.refine = static_cast<Refine>(refine);
  FASTPOSE_RUN(decode_heatmaps, heatmaps, params, decode_heatmaps_cpu);
  return {keypoints, scores};
}

}  // namespace

FASTPOSE_REGISTER(decode_heatmaps,
                  "(Tensor heatmaps, Tensor? heatmap_to_image, Tensor? flipped, int[] mirrored, bool flip_shift,"
                  " int refine) -> (Tensor, Tensor)");

}  // namespace fastpose
