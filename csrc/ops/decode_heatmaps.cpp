// SPDX-License-Identifier: Apache-2.0
#include "binding/torch_glue.h"

#include "cpu/peaks.h"
#include "cpu/simd.h"
#include "ops/decode_heatmaps.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <type_traits>

namespace fastpose {
namespace {

constexpr int kBlock = 1024;      // pixels that are looked at together; they stay in the L1 cache
constexpr int kBlurColumns = 16;  // blurred at once: the 5 + 10 of dark's usual kernel, in whole vectors

// Asks for what lies a memory page further on: the processor's own prefetching stops at the end of each.
template <typename T>
void prefetch_ahead(const T* from, int count) {
  constexpr int kAhead = 4096, kLine = 64 / sizeof(T);
  for (int i = 0; i < count; i += kLine) __builtin_prefetch(reinterpret_cast<const char*>(from + i) + kAhead);
}

// DecodedMap::at of a part of some rows, x to x + columns. With strides of 1 known to the compiler this is vector code.
template <typename T, typename Stride>
void copy_rows(const DecodedMap<T>& map, int y, int y_end, int x, int columns, Stride stride_x, Stride flipped_stride_x,
               accumulate_t<T>* __restrict out) {
  using A = accumulate_t<T>;
  if (map.flipped == nullptr) {
    for (int row = y; row < y_end; ++row, out += columns) {
      const T* from = map.map + row * map.stride_y + x * stride_x;
      for (int i = 0; i < columns; ++i) out[i] = static_cast<A>(from[i * stride_x]);
    }
    return;
  }
  // First the un-mirrored rows, each with one pixel before it, which the shift moves in: the left neighbour, or for
  // column 0 its own. Then the means. Whole rows either time, as long as a vector's multiple where the map is.
  A other[2 * kBlock];
  A* unmirrored = other;
  for (int row = y; row < y_end; ++row, unmirrored += columns + 1) {
    const T* from = map.flipped + row * map.flipped_stride_y + (map.width - 1 - x) * flipped_stride_x;
    unmirrored[0] = static_cast<A>(x > 0 ? from[flipped_stride_x] : from[0]);
    for (int i = 0; i < columns; ++i) unmirrored[1 + i] = static_cast<A>(from[-i * flipped_stride_x]);
  }
  unmirrored = other + (map.flip_shift ? 0 : 1);
  for (int row = y; row < y_end; ++row, unmirrored += columns + 1, out += columns) {
    const T* from = map.map + row * map.stride_y + x * stride_x;
    for (int i = 0; i < columns; ++i) out[i] = (static_cast<A>(from[i * stride_x]) + unmirrored[i]) * A(0.5);
  }
}

template <typename T>
Peak<accumulate_t<T>> find_peak(const DecodedMap<T>& map, int height, int width) {
  using A = accumulate_t<T>;
  Peak<A> best{0, -1};
  const bool dense = map.stride_x == 1 && (map.flipped == nullptr || map.flipped_stride_x == 1);
  if constexpr (std::is_same_v<T, A>) {
    if (dense && map.flipped == nullptr && map.stride_y == width) {
      const int64_t size = static_cast<int64_t>(height) * width;
      const auto pixels = [&](int64_t i) { return static_cast<int>(std::min<int64_t>(kBlock, size - i)); };
      A highest = -std::numeric_limits<A>::infinity();
      int64_t place = -1;  // of the first block that holds it
      for (int64_t i = 0; i < size; i += kBlock) {
        prefetch_ahead(map.map + i, kBlock);
        const A in_block = highest_of(map.map + i, pixels(i));
        if (in_block > highest) {
          highest = in_block;
          place = i;
        }
      }
      if (place >= 0) {
        keep_best(best, map.map + place, pixels(place), place);
        return best;
      }
      for (int64_t i = 0; i < size; i += kBlock) keep_best(best, map.map + i, pixels(i), i);
      return best;
    }
  }
  // Other maps are first copied, block by block: whole rows, or parts of one where it is long.
  A block[kBlock];
  const int columns = std::min(width, kBlock), rows = kBlock / columns;
  using One = std::integral_constant<int, 1>;
  for (int y = 0; y < height; y += rows) {
    const int y_end = std::min(height, y + rows);
    for (int x = 0; x < width; x += columns) {
      const int part = std::min(columns, width - x);
      dense ? copy_rows(map, y, y_end, x, part, One(), One(), block)
            : copy_rows(map, y, y_end, x, part, map.stride_x, map.flipped_stride_x, block);
      keep_best(best, block, (y_end - y) * part, static_cast<int64_t>(y) * width + x);
    }
  }
  return best;
}

// The peaks of a sample of channels-last maps. Whole rows, all joints of all their pixels, are compared with the
// highest values so far of each joint in each column: vector code for any number of joints.
template <typename T>
class ChannelsLastPeaks {
 public:
  using A = accumulate_t<T>;

  explicit ChannelsLastPeaks(const DecodeHeatmapsParams& p)
      : p_(p),
        size_(p.width * p.joints),
        highest_(size_),
        first_rows_(size_),
        unmirrored_(p.flipped == nullptr ? 0 : kRows * size_) {}

  void load(int64_t b) {
    std::fill(highest_.begin(), highest_.end(), -std::numeric_limits<A>::infinity());
    const T* maps = static_cast<const T*>(p_.heatmaps) + b * p_.strides.b;
    const T* flipped = static_cast<const T*>(p_.flipped) + b * p_.flipped_strides.b;
    const T* other = unmirrored_.data();
    for (int y = 0; y < p_.height; y += kRows) {
      const T *rows[kRows], *flipped_rows[kRows];
      for (int row = 0; row < kRows; ++row) {
        const int at = std::min(y + row, p_.height - 1);  // the last row again changes nothing
        rows[row] = maps + at * p_.strides.y;
        if (p_.flipped != nullptr) flipped_rows[row] = flipped + at * p_.flipped_strides.y;
      }
      if (p_.flipped == nullptr) {
        keep_highest(y, [&](int row, int64_t i) { return static_cast<A>(rows[row][i]); });
      } else {
        unmirror(flipped_rows, unmirrored_.data());
        keep_highest(y, [&](int row, int64_t i) {
          return (static_cast<A>(rows[row][i]) + static_cast<A>(other[row * size_ + i])) * A(0.5);
        });
      }
    }
  }

  // Of the k-th joint, whose map this is; index -1 where it has nothing but NaN and -infinity.
  Peak<A> peak(const DecodedMap<T>& map, int64_t k) const {
    A wanted = -std::numeric_limits<A>::infinity();
    for (int64_t i = k; i < size_; i += p_.joints) wanted = highest_[i] > wanted ? highest_[i] : wanted;
    Peak<A> best{0, -1};
    if (!(wanted > -std::numeric_limits<A>::infinity())) return best;
    for (int x = 0; x < p_.width; ++x) {
      const int64_t i = x * p_.joints + k;
      if (highest_[i] != wanted) continue;
      int y = first_rows_[i];
      while (map.at(y, x) != wanted) ++y;
      const Peak<A> candidate{map.at(y, x), static_cast<int64_t>(y) * p_.width + x};
      if (is_better(candidate, best)) best = candidate;
    }
    return best;
  }

 private:
  static constexpr int kRows = 4;  // at once: the highest values are then loaded and stored a quarter as often

  template <typename Value>
  void keep_highest(int y, const Value& value_at) {
    A* __restrict highest = highest_.data();
    int* __restrict first_row = first_rows_.data();
    for (int64_t i = 0; i < size_; ++i) {
      A best = highest[i];
      for (int row = 0; row < kRows; ++row) {
        const A value = value_at(row, i);
        best = value > best ? value : best;
      }
      first_row[i] = best > highest[i] ? y : first_row[i];
      highest[i] = best;
    }
  }

  // Rows of the mirrored image's maps as DecodedMap::at reads them.
  void unmirror(const T* const (&flipped)[kRows], T* __restrict out) const {
    for (int x = 0; x < p_.width; ++x, out += p_.joints) {
      const int64_t pixel = (p_.width - 1 - (p_.flip_shift && x > 0 ? x - 1 : x)) * p_.joints;
      for (int64_t k = 0; k < p_.joints; ++k) {
        const int64_t from = pixel + p_.mirrored.of[k];
        for (int row = 0; row < kRows; ++row) out[row * size_ + k] = flipped[row][from];
      }
    }
  }

  const DecodeHeatmapsParams& p_;
  const int64_t size_;           // of a row
  std::vector<A> highest_;       // [w, K]
  std::vector<int> first_rows_;  // [w, K] of the kRows among which the highest is
  std::vector<T> unmirrored_;    // [kRows, w, K]
};

// Where the window's pixels lie along one axis of `size` pixels; an edge is repeated beyond it.
template <int kReach>
struct WindowAxis {
  int of[2 * kReach + 1];

  WindowAxis(int peak, int size) {
    for (int i = 0; i <= 2 * kReach; ++i) {
      const int place = peak + i - kReach;
      of[i] = place < 0 ? 0 : place < size ? place : size - 1;
    }
  }
};

// kColumns columns of the map from x on, blurred downwards, at the rows of the window. Columns beyond `last` repeat it.
template <int kColumns, int kReach, typename T>
void blur_columns(const DecodeHeatmapsParams& p, const DecodedMap<T>& map, const WindowAxis<kReach>& rows,
                  const BlurRange& range, int x, int last, double (&columns)[2 * kReach + 1][kColumns]) {
  for (auto& row : columns)
    for (double& value : row) value = 0.0;
  for (int y = range.first; y <= range.last; ++y) {
    double values[kColumns];
    for (int c = 0; c < kColumns; ++c) values[c] = static_cast<double>(map.at(y, x + c < last ? x + c : last));
    for (int i = 0; i <= 2 * kReach; ++i) {
      const int distance = y < rows.of[i] ? rows.of[i] - y : y - rows.of[i];
      if (distance > p.blur_radius) continue;
      for (int c = 0; c < kColumns; ++c) columns[i][c] += p.blur[distance] * values[c];
    }
  }
}

template <int kReach, typename T>
Offset blurred_offset(const DecodeHeatmapsParams& p, const DecodedMap<T>& map, const Peak<accumulate_t<T>>& peak) {
  constexpr int kSide = 2 * kReach + 1;
  const MapPixel at = map_pixel(p, peak.index);
  if (!is_refined<kReach>(p, at)) return {0.0, 0.0};
  const WindowAxis<kReach> rows(at.y, p.height), columns(at.x, p.width);
  const BlurRange range_y(at.y, kReach, p.blur_radius, p.height), range_x(at.x, kReach, p.blur_radius, p.width);
  double window[kSide][kSide] = {};
  for (int begin = range_x.first; begin <= range_x.last; begin += kBlurColumns) {
    double blurred[kSide][kBlurColumns];
    blur_columns(p, map, rows, range_y, begin, range_x.last, blurred);
    for (int x = begin; x < begin + kBlurColumns && x <= range_x.last; ++x) {
      for (int j = 0; j < kSide; ++j) {
        const int distance = std::abs(x - columns.of[j]);
        if (distance > p.blur_radius) continue;
        for (int i = 0; i < kSide; ++i) window[i][j] += p.blur[distance] * blurred[i][x - begin];
      }
    }
  }
  double highest = 0.0;
  for (const auto& row : window)
    for (const double value : row) highest = value > highest ? value : highest;
  const double scale = blur_scale(peak, highest);
  return offset_of<kReach>([&](int row, int column) { return log_above_floor<kReach>(window[row][column] * scale); });
}

template <typename T>
Offset offset_at(const DecodeHeatmapsParams& p, const DecodedMap<T>& map, const Peak<accumulate_t<T>>& peak) {
  if (!is_found(peak)) return {0.0, 0.0};
  switch (p.refine) {
    case Refine::kQuarter:
      return quarter_offset(p, map, map_pixel(p, peak.index));
    case Refine::kDark:
      return blurred_offset<2>(p, map, peak);
    case Refine::kDarkUdp:
      return blurred_offset<1>(p, map, peak);
    default:
      return {0.0, 0.0};
  }
}

void decode_heatmaps_cpu(const DecodeHeatmapsParams& p) {
  const SimdLevel level = simd_level();
  const auto lies_so = [&](const MapStrides& strides) {
    return has_layout(strides, MapLayout::kChannelsLast, p.joints);
  };
  const bool channels_last = p.joints > 1 && lies_so(p.strides) && (p.flipped == nullptr || lies_so(p.flipped_strides));
  const int64_t group = channels_last ? p.joints : 1;  // of maps whose peaks are found at once
  const int64_t groups = p.batch * p.joints / group, groups_per_thread = std::max<int64_t>(1, 16 / group);
  dispatch_floating(p.kind, [&](auto zero) {
    using T = decltype(zero);
    parallel_for("decode_heatmaps", 0, groups, groups_per_thread, [&](int64_t begin, int64_t end) {
      std::optional<ChannelsLastPeaks<T>> peaks;
      if (channels_last) peaks.emplace(p);
      for (int64_t index = begin * group; index < end * group; ++index) {
        const int64_t b = index / p.joints, k = index - b * p.joints;
        const DecodedMap<T> map = decoded_map<T>(p, b, k);
        Peak<accumulate_t<T>> peak{0, -1};
        Offset offset;
        with_simd(level, [&] {
          if (channels_last && k == 0) peaks->load(b);
          if (channels_last) peak = peaks->peak(map, k);
          if (peak.index < 0) peak = find_peak(map, p.height, p.width);
          offset = offset_at(p, map, peak);
        });
        const MapPixel at = is_found(peak) ? map_pixel(p, peak.index) : MapPixel{};
        write_decoded_point(p, index, map_to_image(p, b), peak, at, offset);
      }
    });
  });
}

std::tuple<Tensor, Tensor> decode_heatmaps(const Tensor& heatmaps, const std::optional<Tensor>& heatmap_to_image,
                                           const std::optional<Tensor>& flipped, std::vector<int64_t> mirrored,
                                           bool flip_shift, int64_t refine, int64_t blur_kernel, double blur_sigma) {
  constexpr const char* op = "decode_heatmaps";
  Argument(op, "heatmaps", heatmaps)
      .shape({-1, -1, -1, -1}, "[B, K, h, w]")
      .type({ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Double});
  const int64_t batch = heatmaps.size(0), joints = heatmaps.size(1), height = heatmaps.size(2),
                width = heatmaps.size(3);
  check_map_size(op, height, width);
  if (refine < 0 || refine > static_cast<int64_t>(Refine::kDarkUdp)) fail(op, ": unknown refine ", refine);
  if (blur_kernel < 1 || blur_kernel > kMaxBlurKernel || blur_kernel % 2 == 0)
    fail(op, ": blur_kernel must be an odd number of pixels from 1 to ", kMaxBlurKernel, ", got ", blur_kernel);
  if (blur_sigma != 0.0 && !(blur_sigma >= kLeastBlurSigma && blur_sigma <= kMostBlurSigma))
    fail(op, ": blur_sigma must be ", kLeastBlurSigma, " to ", kMostBlurSigma, " pixels, or 0 for OpenCV's, got ",
         blur_sigma);
  DecodeHeatmapsParams params{};
  std::optional<Tensor> matrices;
  if (heatmap_to_image) {
    Argument(op, "heatmap_to_image", *heatmap_to_image)
        .shape({batch, 2, 3}, "[B, 2, 3]")
        .type({ScalarType::Float})
        .on_device_of(heatmaps, "heatmaps");
    matrices = contiguous(op, "heatmap_to_image", *heatmap_to_image);
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
  Tensor keypoints = empty_on(op, "keypoints", heatmaps, {batch, joints, 2}, ScalarType::Float);
  Tensor scores = empty_on(op, "scores", heatmaps, {batch, joints}, ScalarType::Float);
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
  params.blur_radius = set_blur(params.blur, static_cast<int>(blur_kernel), blur_sigma);
  FASTPOSE_RUN(decode_heatmaps, heatmaps, params, decode_heatmaps_cpu);
  return {keypoints, scores};
}

}  // namespace

FASTPOSE_REGISTER(decode_heatmaps,
                  "(Tensor heatmaps, Tensor? heatmap_to_image, Tensor? flipped, int[] mirrored, bool flip_shift,"
                  " int refine, int blur_kernel, float blur_sigma=0.0) -> (Tensor, Tensor)");

}  // namespace fastpose
