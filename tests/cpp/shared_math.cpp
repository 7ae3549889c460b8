// SPDX-License-Identifier: Apache-2.0
// Tests of the functions that the CPU loops and the CUDA kernels share, without torch: `ctest` builds them in a second,
// and the sanitizers reach every line. Expected values are worked out by hand in the comments.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "maths/affine.h"
#include "ops/affine_crop.h"
#include "ops/crop_to_image_matrix.h"
#include "ops/decode_heatmaps.h"
#include "ops/heatmap_mse_loss.h"
#include "ops/render_heatmaps.h"
#include "ops/swap_pairs.h"
#include "ops/transform_points.h"

namespace {

int failures = 0;

void expect(bool holds, const char* what, int line) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "shared_math.cpp:%d: %s\n", line, what);
}
#define EXPECT(condition) expect((condition), #condition, __LINE__)

using namespace fastpose;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

void sines_are_exact_at_quarter_turns() {
  const double sines[] = {0, 1, 0, -1}, cosines[] = {1, 0, -1, 0};
  for (int turn = -8; turn <= 8; ++turn) {
    double s, c;
    sincos_degrees(90.0 * turn, s, c);
    const int quadrant = ((turn % 4) + 4) % 4;
    EXPECT(s == sines[quadrant] && c == cosines[quadrant]);
  }
  double s, c;
  sincos_degrees(150.0, s, c);  // sin 150 = 1/2, cos 150 = -sqrt(3)/2
  EXPECT(std::fabs(s - 0.5) < 1e-15 && std::fabs(c + 0.8660254037844386) < 1e-15);
}

void inverse_undoes_and_singular_is_seen() {
  const float m[6] = {2, 1, 3, 1, 1, -4};  // determinant 1; inverse [1 -1 -7; -1 2 11]
  const Affine b = invert(load_affine(m));
  const double expected[6] = {1, -1, -7, -1, 2, 11};
  for (int i = 0; i < 6; ++i) EXPECT(b.m[i] == expected[i]);
  const float parallel[6] = {0.1f, 0.2f, 0,
                             0.3f, 0.6f, 0};  // float32(0.1) * float32(0.6) == float32(0.2) * float32(0.3)?
  const Affine a = load_affine(parallel);
  EXPECT(is_invertible(a) == (a.m[0] * a.m[4] != a.m[1] * a.m[3]));
  const float zero[6] = {};
  EXPECT(!is_invertible(load_affine(zero)));
  const float infinite[6] = {1, 0, kInfinity, 0, 1, 0};
  EXPECT(!is_invertible(load_affine(infinite)));
}

void box_center_falls_on_the_middle_of_the_crop() {
  // scale 1 is a 200 px box on a 100 px crop: 2 image pixels per crop pixel; (50, 50) of the crop is the centre.
  const float center[2] = {300, 400}, scale[2] = {1, 1}, rotation[1] = {90};
  float m[6];
  CropToImageMatrixParams p{center, scale, rotation, nullptr, m, 1, 100, 100, false};
  crop_to_image_of_one(p, 0);
  // A quarter turn: crop x runs down the image, crop y runs to the left. x = 300 - 2 (y - 50), y = 400 + 2 (x - 50).
  const float expected[6] = {0, -2, 400, 2, 0, 300};
  for (int i = 0; i < 6; ++i) EXPECT(m[i] == expected[i]);
  const uint8_t flip[1] = {255};  // a mask that is viewed as bool
  p.flip = flip;
  crop_to_image_of_one(p, 0);  // x -> 600 - x: x = 300 + 2 (y - 50)
  const float mirrored[6] = {0, 2, 200, 2, 0, 300};
  for (int i = 0; i < 6; ++i) EXPECT(m[i] == mirrored[i]);
}

void msra_center_truncates_toward_zero() {
  const TargetSpec spec = make_target_spec(1.0, Encoding::kMsra, 8, 8);
  EXPECT(joint_target(spec, -0.7f, 3.5f, 1.0f).center_x == 0.0f);        // -0.2 truncates to 0, where floor gives -1
  EXPECT(joint_target(spec, -0.7f, 3.5f, 1.0f).center_y == 4.0f);        // 3.5 + 0.5
  EXPECT(joint_target(spec, 0.49999997f, 3.0f, 1.0f).center_x == 0.0f);  // in float32 the sum would be 1
  EXPECT(joint_target(spec, -4.4f, 3.0f, 1.0f).weight == 1.0f);          // centre -3: ends at exactly 1
  EXPECT(joint_target(spec, -4.5f, 3.0f, 1.0f).weight == 1.0f);  // centre -4: c + r + 1 = 0, kept, nothing drawn
  EXPECT(joint_target(spec, -4.5f, 3.0f, 1.0f).x_end == 0);
  EXPECT(joint_target(spec, -5.5f, 3.0f, 1.0f).weight == 0.0f);  // centre -5: c + r + 1 = -1
  EXPECT(joint_target(spec, 10.4f, 3.0f, 1.0f).weight == 1.0f);  // centre 10: c - r = 7 < 8
  EXPECT(joint_target(spec, 10.5f, 3.0f, 1.0f).weight == 0.0f);  // centre 11: c - r = 8
  EXPECT(joint_target(spec, kNaN, 3.0f, 1.0f).weight == 0.0f);
  EXPECT(joint_target(spec, 3.0f, kInfinity, 1.0f).weight == 0.0f);
  EXPECT(joint_target(spec, 3e38f, 3.0f, 1.0f).weight == 0.0f);
  EXPECT(joint_target(spec, 3.0f, 3.0f, 0.5f).x_end == 0);  // drawn above 0.5 only
  EXPECT(joint_target(spec, 3.0f, 3.0f, 0.5f).weight == 0.5f);
}

void maxima_take_the_lowest_index_and_never_nan() {
  const Peak<float> none{0, -1}, nan{kNaN, 0}, one{1, 5}, also_one{1, 3}, two{2, 9};
  EXPECT(!is_better(nan, none));
  EXPECT(is_better(one, none));
  EXPECT(is_better(also_one, one) && !is_better(one, also_one));
  EXPECT(is_better(two, one) && !is_better(one, two));
  EXPECT(!is_better(none, one));
  EXPECT(quarter_toward(1.0f, 2.0f) == 0.25 && quarter_toward(2.0f, 1.0f) == -0.25 &&
         quarter_toward(1.0f, 1.0f) == 0.0);
  EXPECT(quarter_toward(kNaN, 1.0f) == 0.0);
}

void taps_never_leave_the_image() {
  // 2 x 2 pixels on the heap, exactly: an address sanitizer sees one byte too far.
  const std::vector<uint8_t> pixels{10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120};
  const ImageView image{pixels.data(), 6, 2, 2};
  float rgb[3];
  sample_bilinear(image, 0.5f, 0.5f, 0.0f, rgb);
  EXPECT(rgb[0] == 55.0f && rgb[1] == 65.0f && rgb[2] == 75.0f);  // means of (10 40 70 100), (20 50 80 110), ...
  sample_bilinear(image, 1.5f, 0.0f, 200.0f, rgb);
  EXPECT(rgb[0] == 120.0f);  // half 40, half the fill 200
  sample_bilinear(image, -0.75f, 1.75f, 0.0f, rgb);
  EXPECT(rgb[0] == 70.0f * 0.25f * 0.25f);
  // Half a pixel from each of the nine pixels between 4 x 4 and around them: of equal ones and an equal fill their
  // value.
  const std::vector<uint8_t> flat(48, 90);
  for (const float x : {-1.5f, -0.5f, 0.5f, 1.5f, 2.5f, 3.5f, 4.5f}) {
    for (const float y : {-1.5f, 0.5f, 1.5f, 2.5f, 4.5f}) {
      sample_bicubic({flat.data(), 12, 4, 4}, x, y, 90.0f, rgb);
      EXPECT(rgb[0] == 90.0f && rgb[1] == 90.0f && rgb[2] == 90.0f);
    }
  }
  for (const float x : {-2.0f, 3.0f, -1e30f, 1e30f, kInfinity, -kInfinity, kNaN, 2147483648.0f}) {
    sample_bicubic(image, x, 0.0f, 7.0f, rgb);
    EXPECT(rgb[0] == 7.0f && rgb[1] == 7.0f && rgb[2] == 7.0f);
    sample_bicubic(image, 0.0f, x, 7.0f, rgb);
    EXPECT(rgb[0] == 7.0f);
  }
  for (const float x : {-1.0f, 2.0f, -1e30f, 1e30f, kInfinity, -kInfinity, kNaN, 2147483648.0f}) {
    sample_bilinear(image, x, 0.0f, 7.0f, rgb);
    EXPECT(rgb[0] == 7.0f && rgb[1] == 7.0f && rgb[2] == 7.0f);
    sample_bilinear(image, 0.0f, x, 7.0f, rgb);
    EXPECT(rgb[0] == 7.0f);
  }
  EXPECT(to_output<uint8_t>(2.5f) == 2 && to_output<uint8_t>(3.5f) == 4 && to_output<uint8_t>(-3.0f) == 0);
  EXPECT(to_output<uint8_t>(300.0f) == 255 && to_output<uint8_t>(kNaN) == 0);
}

void altered_tables_name_no_image() {
  const std::vector<uint8_t> buffer(12);
  const float matrix[6] = {1, 0, 0, 0, 1, 0};
  AffineCropParams p{};
  p.data = buffer.data();
  p.data_bytes = 12;
  p.images = 1;
  p.crop_to_image = matrix;
  const auto names_image = [&](int64_t offset, int32_t height, int32_t width) {
    const int32_t size[2] = {height, width};
    p.offsets = &offset;
    p.sizes = size;
    return image_of_crop(p, 0).pixels != nullptr;
  };
  EXPECT(names_image(0, 2, 2) && names_image(3, 1, 3));
  EXPECT(!names_image(1, 2, 2) && !names_image(-1, 1, 1) && !names_image(0, 0, 2) && !names_image(0, -2, -2));
  EXPECT(!names_image(0, 2147483647, 2147483647) && !names_image(INT64_MAX, 1, 1));
}

using Random = std::mt19937;

float uniform(Random& random, float low, float high) {
  return std::uniform_real_distribution<float>(low, high)(random);
}
int pick(Random& random, int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }

// Matrices of every temper: turned and scaled, nearly singular, huge terms that cancel, entries that are no numbers.
// Most carry the pixel (x, y) of the crop to somewhere in the image, so that many rectangles are worth a decision.
void draw_matrix(Random& random, float x, float y, const ImageView& image, float m[6]) {
  const float angle = uniform(random, -4.0f, 4.0f);
  const float scale =
      std::exp2(uniform(random, pick(random, 0, 1) == 0 ? -20.0f : -4.0f, pick(random, 0, 3) == 0 ? 24.0f : 3.0f));
  m[0] = scale * std::cos(angle);
  m[1] = -scale * std::sin(angle);
  m[3] = scale * std::sin(angle) * (pick(random, 0, 1) == 0 ? 1.0f : -1.0f);
  m[4] = scale * std::cos(angle);
  switch (pick(random, 0, 5)) {
    case 0:  // the rows are almost parallel
      m[3] = m[0] * uniform(random, 0.999f, 1.001f);
      m[4] = m[1];
      break;
    case 1:  // a line
      m[pick(random, 0, 1)] = 0.0f;
      m[3 + pick(random, 0, 1)] = 0.0f;
      break;
    default:
      break;
  }
  // Often just at the first or last row and column that a rectangle may touch, where rounding decides.
  const auto somewhere = [&](int size) {
    const int where = pick(random, 0, 3);
    return where == 0   ? uniform(random, 0.0f, 3.0f)
           : where == 1 ? static_cast<float>(size) - uniform(random, 2.0f, 5.0f)
                        : uniform(random, 0.0f, static_cast<float>(size));
  };
  m[2] = somewhere(image.width) - m[0] * x - m[1] * y;
  m[5] = somewhere(image.height) - m[3] * x - m[4] * y;
  const float strange[] = {kNaN, kInfinity, -kInfinity, 3e38f, -3e38f, 1e30f};
  if (pick(random, 0, 19) == 0) m[pick(random, 0, 5)] = strange[pick(random, 0, 5)];
}

// What load_taps reads: two rows, and of each the pixels x0 and x0 + 1 with up to three bytes before and six behind.
bool may_be_read(const ImageView& image, float x, float y) {
  if (!(x >= 0.0f && y >= 0.0f && x < 2e9f && y < 2e9f)) return false;
  const int x0 = static_cast<int>(x), y0 = static_cast<int>(y);
  return 3 * x0 - 3 >= 0 && 3 * x0 + 5 + 6 <= 3 * image.width - 1 && y0 + 1 <= image.height - 1;
}

bool rectangle_lies_inside(const ImageView& image, const float* m, int x, int x_last, int y, int y_last) {
  const float left = static_cast<float>(x), right = static_cast<float>(x_last);
  const float top = static_cast<float>(y), bottom = static_cast<float>(y_last);
  return corner_lies_inside(image, m, left, top) && corner_lies_inside(image, m, right, top) &&
         corner_lies_inside(image, m, left, bottom) && corner_lies_inside(image, m, right, bottom);
}

void whole_rectangles_inside_are_inside() {
  Random random(1);
  int inside = 0, with_large_terms = 0;
  for (int round = 0; round < 100000; ++round) {
    const ImageView image{nullptr, 0, pick(random, 1, 3000), pick(random, 1, 3000)};
    const int width = pick(random, 1, 64), height = pick(random, 1, 16);
    // Up to 2^24, the largest crop, and half of the time in its far half: float32 is coarse there.
    const auto far = [&] { return pick(random, 0, (1 << (pick(random, 0, 1) == 0 ? 24 : pick(random, 0, 23))) - 1); };
    const int x = far(), y = far();
    float m[6];
    draw_matrix(random, static_cast<float>(x + pick(random, 0, 1) * (width - 1)),
                static_cast<float>(y + pick(random, 0, 1) * (height - 1)), image, m);
    if (!rectangle_lies_inside(image, m, x, x + width - 1, y, y + height - 1)) continue;
    ++inside;
    with_large_terms += std::fabs(m[2]) > 100000.0f ? 1 : 0;
    bool all = true;
    for (int j = y; j < y + height; ++j) {
      for (int i = x; i < x + width; ++i) {
        const float fx = static_cast<float>(i), fy = static_cast<float>(j);
        float source_x, source_y;
        source_of_pixel(m, fx, fy, source_x, source_y);
        all = all && may_be_read(image, source_x, source_y);
        // The same as a GPU may compute it, with its multiply-adds contracted.
        all = all && may_be_read(image, std::fma(m[0], fx, std::fma(m[1], fy, m[2])),
                                 std::fma(m[3], fx, std::fma(m[4], fy, m[5])));
      }
    }
    EXPECT(all);
  }
  EXPECT(inside > 10000 && with_large_terms > 1000);  // or the fuzz would say nothing
  // 64 x 16 crop pixels onto themselves: columns 2 to 65 and rows 1 to 16 leave the margins of a 69 x 19 image.
  const float shifted[6] = {1, 0, 2, 0, 1, 1};
  EXPECT(rectangle_lies_inside({nullptr, 0, 19, 69}, shifted, 0, 63, 0, 15));
  EXPECT(!rectangle_lies_inside({nullptr, 0, 18, 69}, shifted, 0, 63, 0, 15));
  EXPECT(!rectangle_lies_inside({nullptr, 0, 19, 68}, shifted, 0, 63, 0, 15));
}

void biased_numbers_hold_integers_exactly() {
  for (int n = 0; n < 4; ++n)
    for (uint32_t byte = 0; byte < 256; ++byte)
      EXPECT(biased_byte(byte << (8 * n), n) - kBias == static_cast<float>(byte));
  for (const float x : {0.0f, 0.99999994f, 1.0f, 2.5f, 1048575.9f, 1048576.0f, 8388607.5f}) {
    const float floor = biased_floor(x);
    EXPECT(floor - kBias == std::floor(x));
    EXPECT(bits_of(floor) - kBiasBits == static_cast<uint32_t>(x));
  }
}

void words_and_bytes_sample_the_same_bits() {
  Random random(3);
  int words = 0;
  for (int round = 0; round < 300; ++round) {
    const int width = pick(random, 4, 40), height = pick(random, 4, 20), first = pick(random, 0, 3);
    const int row_stride = 3 * width + pick(random, 0, 5);
    // On the heap, where an address sanitizer sees what is read beyond; the image begins at any byte of a word.
    std::vector<uint8_t> buffer(first + row_stride * (height - 1) + 3 * width);
    for (uint8_t& byte : buffer) byte = static_cast<uint8_t>(pick(random, 0, 255));
    const ImageView image{buffer.data() + first, row_stride, height, width};
    bool same = true;
    for (int sample = 0; sample < 200; ++sample) {
      float x = uniform(random, 0.0f, static_cast<float>(width));
      float y = uniform(random, 0.0f, static_cast<float>(height));
      if (sample % 3 == 0) x = std::floor(x);
      if (sample % 5 == 0) y = std::floor(y);
      if (!lies_well_inside(image, x, y)) continue;
      ++words;
      float one[3], other[3];
      sample_taps(load_taps(ImageWords(image), x, y), one);
      sample_bilinear(image, x, y, 77.0f, other);
      same = same && may_be_read(image, x, y) && std::memcmp(one, other, sizeof(one)) == 0;
    }
    EXPECT(same);
  }
  EXPECT(words > 10000);
  // At the largest offset: 2^28 bytes are 2^31 bits.
  const ImageView last{nullptr, 1 << 18, 1 << 10, 80000};
  EXPECT(!words_reach(last) && words_reach({nullptr, (1 << 18) - 1, 1 << 10, 80000}));
  EXPECT(!words_reach({nullptr, 3, 1 << 20, 1}) && !words_reach({nullptr, 3 << 20, 1, 1 << 20}));
  EXPECT(!words_reach({nullptr, -30, 10, 10}));
}

void tiles_cover_the_maps_and_fit_their_sums() {
  Random random(4);
  alignas(16) static unsigned char memory[32];
  int planar = 0, channels_last = 0, strided = 0;
  for (int round = 0; round < 20000; ++round) {
    HeatmapMseLossParams p{};
    const ScalarKind kinds[] = {ScalarKind::kFloat32, ScalarKind::kFloat16, ScalarKind::kBFloat16,
                                ScalarKind::kFloat64};
    p.kind = kinds[pick(random, 0, 3)];
    const int64_t vector = 16 / bytes_of(p.kind);
    p.batch = pick(random, 0, 5);
    p.joints = pick(random, 0, 9) == 0 ? 0 : pick(random, 1, 150);
    const int height = pick(random, 1, 300);
    const int width = pick(random, 0, 3) == 0 ? pick(random, 1, 30000) : 8 * pick(random, 1, 40);
    p.spec = make_target_spec(1.0, Encoding::kMsra, height, width);
    p.pred = memory + (pick(random, 0, 5) == 0 ? bytes_of(p.kind) : 0);
    const auto strides = [&](bool last) -> MapStrides {
      const int64_t w = width, slack = pick(random, 0, 5) == 0 ? 1 : 0, x = last ? p.joints : 1;
      return {p.joints * height * w + slack, last ? 1 : height * w + slack, w * x, x};
    };
    const bool last = pick(random, 0, 1) == 0;
    p.pred_strides = strides(last);
    if (pick(random, 0, 1) == 0) {
      p.grad = memory;
      const bool as_pred = pick(random, 0, 5) != 0;
      p.grad_strides = strides(as_pred ? last : !last);
    }
    const LossTiling tiling = loss_tiling(p);
    const MapTiles& tiles = tiling.tiles;
    const bool samples = tiling.layout == MapLayout::kChannelsLast;
    EXPECT(partial_sum_count(p) >= p.batch * p.joints && partial_sum_count(p) >= partial_sums_of(p, tiling));
    EXPECT(tiling.count == (samples ? p.batch : p.batch * p.joints) * tiles.count());
    EXPECT(tiles.width >= 1 && tiles.height >= 1);
    EXPECT(tiles.across * tiles.width >= width && (tiles.across - 1) * tiles.width < width);
    EXPECT(tiles.down * tiles.height >= height && (tiles.down - 1) * tiles.height < height);
    if (tiling.layout == MapLayout::kStrided) {
      EXPECT(tiles.count() == 1);
      ++strided;
      continue;
    }
    ++(samples ? channels_last : planar);
    const int64_t joints = samples ? p.joints : 1, row = width * joints, of_tile = tiles.width * joints;
    EXPECT(row > 0 && row % vector == 0);
    EXPECT(tiles.across == 1 || tiles.width % vector == 0);  // every tile begins where a vector does
    if (samples) {
      EXPECT(tiles.height == 1 || of_tile * tiles.height * bytes_of(p.kind) <= kSampleTileBytes);
      EXPECT(of_tile / vector <= kSampleThreads);  // of up to 256 joints
    } else {
      EXPECT(tiles.across == 1 || tiles.height == 1);  // one piece of memory
      EXPECT(of_tile * tiles.height * bytes_of(p.kind) <= kWarpTileBytes);
      EXPECT(tiles.width <= kWarpTileSide && tiles.height <= kWarpTileSide);
    }
    EXPECT(p.pred == memory && p.pred_strides.b % vector == 0 && p.pred_strides.y == row);
    EXPECT(p.grad == nullptr || (p.grad_strides.b % vector == 0 && p.grad_strides.y == row));
    EXPECT((samples ? p.pred_strides.k : p.pred_strides.x) == 1);
  }
  EXPECT(planar > 100 && channels_last > 100 && strided > 100);
}

void maps_without_joints_have_no_tiles() {
  // As torch lays out [2, 0, 8, 7] in channels_last: every stride but the joints' is 0.
  HeatmapMseLossParams p{};
  alignas(16) static unsigned char memory[16];
  p.pred = memory;
  p.pred_strides.k = 1;
  p.kind = ScalarKind::kFloat32;
  p.batch = 2;
  p.spec = make_target_spec(1.0, Encoding::kMsra, 8, 7);
  EXPECT(partial_sum_count(p) >= 0 && loss_scale(p) == 0.0);
}

}  // namespace

int main() {
  sines_are_exact_at_quarter_turns();
  inverse_undoes_and_singular_is_seen();
  box_center_falls_on_the_middle_of_the_crop();
  msra_center_truncates_toward_zero();
  maxima_take_the_lowest_index_and_never_nan();
  taps_never_leave_the_image();
  altered_tables_name_no_image();
  whole_rectangles_inside_are_inside();
  biased_numbers_hold_integers_exactly();
  words_and_bytes_sample_the_same_bits();
  tiles_cover_the_maps_and_fit_their_sums();
  maps_without_joints_have_no_tiles();
  if (failures == 0) std::puts("shared_math: all passed");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
