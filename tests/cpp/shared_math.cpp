// SPDX-License-Identifier: Apache-2.0
// Tests of the functions that the CPU loops and the CUDA kernels share, without torch: `ctest` builds them in a second,
// and the sanitizers reach every line. Expected values are worked out by hand in the comments.
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "affine.h"
#include "affine_crop.h"
#include "crop_to_image_matrix.h"
#include "decode_heatmaps.h"
#include "heatmap_mse_loss.h"
#include "render_heatmaps.h"
#include "swap_pairs.h"
#include "transform_points.h"

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
  const bool flip[1] = {true};
  p.flip = flip;
  crop_to_image_of_one(p, 0);  // x -> 600 - x: x = 300 + 2 (y - 50)
  const float mirrored[6] = {0, 2, 200, 2, 0, 300};
  for (int i = 0; i < 6; ++i) EXPECT(m[i] == mirrored[i]);
}

void msra_center_truncates_toward_zero() {
  const TargetSpec spec{1.0, Encoding::kMsra, 8, 8};
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

}  // namespace

int main() {
  sines_are_exact_at_quarter_turns();
  inverse_undoes_and_singular_is_seen();
  box_center_falls_on_the_middle_of_the_crop();
  msra_center_truncates_toward_zero();
  maxima_take_the_lowest_index_and_never_nan();
  taps_never_leave_the_image();
  altered_tables_name_no_image();
  if (failures == 0) std::puts("shared_math: all passed");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
