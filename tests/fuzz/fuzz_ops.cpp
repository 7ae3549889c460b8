// SPDX-License-Identifier: Apache-2.0
// The ops' C++ entries, argument checks included, called with arguments of every kind: LLVMFuzzerTestOneInput for
// libFuzzer, and a main() that draws from a seed where there is no Clang. The buffers are as long as their tensors
// (torch/csrc/stable/tensor.h), so AddressSanitizer sees every byte beyond. An error has to be a runtime_error that
// begins with the op's name. Results are compared with the obvious loops in double below, which share no line with
// csrc/; where an argument is so large that rounding decides, they are only computed.
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <tuple>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Real = double;
using Shape = std::vector<int64_t>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// ---- choices --------------------------------------------------------------------------------------------------------

// From the fuzzer's bytes while there are any, then from a generator that they seed.
class Choices {
 public:
  Choices(uint64_t seed, const uint8_t* bytes, size_t size) : state_(seed), bytes_(bytes), end_(bytes + size) {
    for (size_t i = 0; i < size; ++i) state_ = (state_ ^ bytes[i]) * 0x100000001b3u;
  }
  uint64_t draw() {
    if (bytes_ != end_) return *bytes_++;
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;  // splitmix64
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(draw() % static_cast<uint64_t>(n)); }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool one_in(int64_t n) { return below(n) == 0; }
  bool coin() { return one_in(2); }
  template <typename T>
  T of(std::initializer_list<T> values) {
    return *(values.begin() + below(static_cast<int64_t>(values.size())));
  }

 private:
  uint64_t state_;
  const uint8_t *bytes_, *end_;
};

struct Counts {
  uint64_t calls = 0, errors = 0, compared = 0, numbers = 0, differences = 0;
};
const char* const kOps[] = {"affine_crop",      "crop_to_image_matrix",      "decode_heatmaps",    "decode_simcc",
                            "heatmap_mse_loss", "heatmap_mse_loss_backward", "heatmap_mse_losses", "render_heatmaps",
                            "simcc_loss",       "simcc_loss_backward",       "swap_pairs",         "transform_points"};
enum Op {
  kCrop,
  kMatrix,
  kDecode,
  kDecodeSimcc,
  kLoss,
  kLossBackward,
  kLosses,
  kRender,
  kSimcc,
  kSimccBackward,
  kSwap,
  kTransform,
  kOpCount
};
Counts counts[kOpCount];

// One call: what it draws, and whether its arguments are all as they should be.
struct Call {
  Choices choose;
  uint64_t seed;
  Op op;
  int hostility = 0;    // of the values: 0 none, 1 some, 2 all
  bool spoilt = false;  // an argument is wrong, or an allocation will fail: an error is no difference

  void differs(const char* what, int64_t at, Real got, Real wanted) {
    if (++counts[op].differences <= 20)
      std::fprintf(stderr, "%s: %s[%ld] is %.17g, expected %.17g (--seed %lu)\n", kOps[op], what, static_cast<long>(at),
                   got, wanted, static_cast<unsigned long>(seed));
  }
  void compare(const char* what, int64_t at, Real got, Real wanted, Real tolerance) {
    if (std::isfinite(wanted) && std::fabs(wanted) > 1e37) return;  // may be infinite where it is stored
    ++counts[op].numbers;
    const bool same = got == wanted || (std::isnan(got) && std::isnan(wanted)) || std::fabs(got - wanted) <= tolerance;
    if (!same) differs(what, at, got, wanted);
  }
};

// ---- tensors --------------------------------------------------------------------------------------------------------

float value_of(Call& c, float scale) {
  if (c.hostility == 2 || (c.hostility == 1 && c.choose.one_in(8))) {
    return c.choose.of({kNaN, kInfinity, -kInfinity, -0.0f, 0.0f, 1e-45f, -1e-40f, 3.4e38f, -3.4e38f, 1e30f,
                        16777216.0f, 2147483648.0f, -2147483904.0f, 9.3e18f, 0.49999997f, -0.50000006f, 65504.0f,
                        1e-30f});
  }
  // Halves, quarters and ties are common.
  return scale * static_cast<float>(c.choose.between(-64, 64)) / static_cast<float>(c.choose.of({1, 8, 64, 64, 61}));
}

void put(void* at, ScalarType type, float value) {
  const auto write = [&](auto converted) { std::memcpy(at, &converted, sizeof(converted)); };
  switch (type) {
    case ScalarType::Half:
      return write(c10::Half(value));
    case ScalarType::BFloat16:
      return write(c10::BFloat16(value));
    case ScalarType::Double:
      return write(static_cast<double>(value) * (1.0 + 0x1p-40));
    default:
      return write(value);
  }
}

Real get(const void* at, ScalarType type) {
  const auto read = [&](auto zero) {
    std::memcpy(&zero, at, sizeof(zero));
    return zero;
  };
  switch (type) {
    case ScalarType::Half:
      return static_cast<float>(read(c10::Half()));
    case ScalarType::BFloat16:
      return static_cast<float>(read(c10::BFloat16()));
    case ScalarType::Double:
      return read(double());
    case ScalarType::Byte:
    case ScalarType::Bool:
      return read(uint8_t());
    case ScalarType::Long:
      return static_cast<Real>(read(int64_t()));
    case ScalarType::Int:
      return read(int32_t());
    default:
      return read(float());
  }
}
Real get(const Tensor& t, int64_t i) { return get(t.at(i), t.scalar_type()); }

// Row by row; or channels last, transposed, padded, repeated, overlapping; any of them with something before the first.
Tensor tensor(Call& c, Shape sizes, ScalarType type, float scale = 1.0f) {
  if (c.choose.one_in(64)) {  // another shape or type
    c.spoilt = true;
    const auto d = static_cast<size_t>(c.choose.below(static_cast<int64_t>(sizes.size()) + 1));
    if (d == sizes.size()) {
      type = c.choose.of({ScalarType::Int, ScalarType::Double, ScalarType::Half, ScalarType::Bool, ScalarType::Long});
    } else if (c.choose.coin()) {
      sizes[d] = c.choose.of<int64_t>({0, 1, sizes[d] + 1});
    } else {
      sizes.erase(sizes.begin() + static_cast<int64_t>(d));
    }
  }
  Shape strides = torch::stable::strides_of(sizes, sizes.size() == 4 && c.choose.one_in(3));
  switch (c.choose.below(12)) {
    case 0:  // gaps, also between neighbours
      for (auto& stride : strides) stride *= c.choose.between(1, 2);
      break;
    case 1:  // gaps between rows and beyond
      for (size_t d = 0; d + 1 < sizes.size(); ++d) strides[d] += static_cast<int64_t>(sizes.size() - d);
      if (sizes.size() > 1)
        for (size_t d = sizes.size() - 1; d-- > 0;)
          strides[d] = std::max(strides[d], strides[d + 1] * sizes[d + 1] + 1);
      break;
    case 2:  // transposed
      if (sizes.size() > 1) {
        const auto a = static_cast<size_t>(c.choose.below(static_cast<int64_t>(sizes.size())));
        Shape order = sizes;
        std::swap(order[a], order[0]);
        strides = torch::stable::strides_of(order);
        std::swap(strides[a], strides[0]);
      }
      break;
    case 3:  // repeated, as by expand
      if (!strides.empty()) strides[static_cast<size_t>(c.choose.below(static_cast<int64_t>(strides.size())))] = 0;
      break;
    case 4:  // overlapping, as by as_strided
      for (auto& stride : strides) stride = c.choose.between(0, 3);
      break;
    case 5:  // of no consequence where there is one
      for (size_t d = 0; d < sizes.size(); ++d)
        if (sizes[d] == 1) strides[d] = c.choose.of<int64_t>({0, 1, 3, int64_t{1} << 40});
      break;
    default:
      break;
  }
  Tensor out(sizes, strides, type, c.choose.one_in(4) ? c.choose.between(1, 5) : 0);
  const int64_t size = out.element_size(), elements = static_cast<int64_t>(out.storage_bytes()) / size;
  for (int64_t i = 0; i < elements; ++i) {
    uint8_t* at = out.storage() + i * size;
    if (type == ScalarType::Byte) {
      *at = static_cast<uint8_t>(c.choose.draw());
    } else if (type == ScalarType::Bool) {
      *at = c.choose.of<uint8_t>({0, 1, 255, 2});
    } else if (type == ScalarType::Long || type == ScalarType::Int) {
      std::memset(at, 0, static_cast<size_t>(size));
    } else {
      put(at, type, value_of(c, scale));
    }
  }
  return out;
}

std::optional<Tensor> maybe(Call& c, const Shape& sizes, ScalarType type, float scale = 1.0f) {
  return c.choose.coin() ? std::optional(tensor(c, sizes, type, scale)) : std::nullopt;
}

bool is_moderate(const Tensor& t, Real limit = 1e6) {
  for (int64_t i = 0; i < t.numel(); ++i)
    if (!(std::fabs(get(t, i)) <= limit)) return false;
  return true;
}
bool is_moderate(const std::optional<Tensor>& t) { return !t || is_moderate(*t); }

// What is lost where a result is stored.
Real rounding(ScalarType type, Real value) {
  const Real magnitude = std::fabs(value);
  switch (type) {
    case ScalarType::Half:
      return magnitude * 0x1p-10 + 0x1p-24;
    case ScalarType::BFloat16:
      return magnitude * 0x1p-7 + 1e-40;
    case ScalarType::Double:
      return magnitude * 0x1p-50;
    default:
      return magnitude * 0x1p-22 + 1e-37;
  }
}

ScalarType floating(Call& c) {
  return c.choose.of(
      {ScalarType::Float, ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Double});
}

Shape map_shape(Call& c) {
  Shape shape{c.choose.between(0, 2), c.choose.between(0, 3), c.choose.between(1, 7), c.choose.between(1, 9)};
  if (c.choose.one_in(64)) shape[2 + static_cast<size_t>(c.choose.below(2))] = c.choose.between(20, 150);
  if (c.choose.one_in(256)) shape = {1, c.choose.between(1, 2), c.choose.between(1, 3), c.choose.between(1000, 2100)};
  if (c.choose.one_in(64)) {
    c.spoilt = true;
    shape[2 + static_cast<size_t>(c.choose.below(2))] = 0;
  }
  return shape;
}

int64_t whole(Call& c, int64_t right, std::initializer_list<int64_t> wrong) {
  if (!c.choose.one_in(64)) return right;
  c.spoilt = true;
  return c.choose.of(wrong);
}

constexpr int64_t kLeast = std::numeric_limits<int64_t>::min(), kMost = std::numeric_limits<int64_t>::max();

double number(Call& c, double right) {
  if (!c.choose.one_in(64)) return right;
  c.spoilt = true;
  return c.choose.of({0.0, -1.0, 1e-31, 1e39, 1e300, static_cast<double>(kNaN), static_cast<double>(kInfinity)});
}

// ---- calling --------------------------------------------------------------------------------------------------------

template <typename Function>
Function entry(Op op) {
  return std::any_cast<Function>(torch::stable::registered().at(kOps[op]));
}

// The result, or none after an error, which has to be the op's own.
template <typename Run>
auto run(Call& c, const Run& function) -> std::optional<decltype(function())> {
  ++counts[c.op].calls;
  try {
    auto out = function();
    torch::stable::allocations_until_failure = -1;
    return out;
  } catch (const std::runtime_error& error) {
    torch::stable::allocations_until_failure = -1;
    ++counts[c.op].errors;
    const std::string text = error.what(), name = std::string(kOps[c.op]) + ": ";
    if (text.compare(0, name.size(), name) != 0 || text.find("API call failed") != std::string::npos) {
      std::fprintf(stderr, "not %s's error: %s (--seed %lu)\n", kOps[c.op], text.c_str(),
                   static_cast<unsigned long>(c.seed));
      std::abort();
    }
    return std::nullopt;
  }
}

void maybe_fail_to_allocate(Call& c) {
  if (!c.choose.one_in(32)) return;
  torch::stable::allocations_until_failure = static_cast<int>(c.choose.between(1, 4));
  c.spoilt = true;
}

void expect_error(Call& c, bool failed, bool wanted) {
  if (!c.spoilt && failed != wanted) c.differs(wanted ? "error expected" : "error not expected", 0, failed, wanted);
}

std::vector<int64_t> permutation(Call& c, int64_t joints) {
  std::vector<int64_t> mirrored(static_cast<size_t>(joints));
  for (int64_t k = 0; k < joints; ++k) mirrored[static_cast<size_t>(k)] = k;
  if (joints > 1) std::swap(mirrored[0], mirrored[static_cast<size_t>(c.choose.below(joints))]);
  if (c.choose.one_in(64) && joints > 0) {
    c.spoilt = true;
    c.choose.coin() ? mirrored.pop_back() : void(mirrored[0] = c.choose.of({kLeast, int64_t{-1}, joints, kMost}));
  }
  return mirrored;
}

// ---- the ops and what they should give ------------------------------------------------------------------------------

void fuzz_swap(Call& c) {
  const int64_t batch = c.choose.between(0, 5), joints = c.choose.between(0, 6);
  const Tensor points = tensor(c, {batch, joints, 2}, ScalarType::Float);
  const Tensor visible = tensor(c, {batch, joints}, ScalarType::Float), flip = tensor(c, {batch}, ScalarType::Bool);
  const auto mirrored = permutation(c, joints);
  maybe_fail_to_allocate(c);
  using Function = std::tuple<Tensor, Tensor> (*)(const Tensor&, const Tensor&, const Tensor&, std::vector<int64_t>);
  const auto out = run(c, [&] { return entry<Function>(kSwap)(points, visible, flip, mirrored); });
  expect_error(c, !out, false);
  if (!out || c.spoilt) return;
  ++counts[kSwap].compared;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t k = 0; k < joints; ++k) {
      const int64_t from = get(flip, b) != 0 ? mirrored[static_cast<size_t>(k)] : k;
      for (int64_t i = 0; i < 2; ++i)
        c.compare("points", b, get(std::get<0>(*out), (b * joints + k) * 2 + i),
                  get(points, (b * joints + from) * 2 + i), 0);
      c.compare("visible", b, get(std::get<1>(*out), b * joints + k), get(visible, b * joints + from), 0);
    }
  }
}

void fuzz_matrix(Call& c) {
  const int64_t batch = c.choose.between(0, 4);
  const Tensor center = tensor(c, {batch, 2}, ScalarType::Float, 30), scale = tensor(c, {batch, 2}, ScalarType::Float);
  const Tensor rotation = tensor(c, {batch}, ScalarType::Float, c.choose.of({30.0f, 1.40625f * 64, 1e5f}));
  const auto flip = maybe(c, {batch}, ScalarType::Bool);
  const int64_t height = whole(c, c.choose.between(2, 300), {0, -1, 1, kLeast, kMost, 1 << 30}),
                width = c.choose.between(2, 300);
  const bool udp = c.choose.coin();
  maybe_fail_to_allocate(c);
  using Function =
      Tensor (*)(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, int64_t, int64_t, bool);
  const auto out = run(c, [&] { return entry<Function>(kMatrix)(center, scale, rotation, flip, height, width, udp); });
  expect_error(c, !out, false);
  if (!out || c.spoilt || !is_moderate(center) || !is_moderate(scale) || !is_moderate(rotation)) return;
  ++counts[kMatrix].compared;
  for (int64_t b = 0; b < batch; ++b) {
    const Real angle = std::fmod(get(rotation, b), 360.0) * 3.14159265358979323846264338 / 180.0;
    const Real steps_x = udp ? width - 1 : width, steps_y = udp ? height - 1 : height;
    const Real x_step = 200 * get(scale, 2 * b) / steps_x,
               y_step = udp ? 200 * get(scale, 2 * b + 1) / steps_y : x_step;
    const Real mirror = flip && get(*flip, b) != 0 ? -1 : 1;
    const Real linear[2][2] = {{mirror * std::cos(angle) * x_step, -mirror * std::sin(angle) * y_step},
                               {std::sin(angle) * x_step, std::cos(angle) * y_step}};
    // The op's sines and cosines are exact at multiples of 90 degrees, these are not.
    const Real turned = std::fabs(x_step * steps_x) + std::fabs(y_step * steps_y);
    for (int64_t row = 0; row < 2; ++row) {
      Real shift = get(center, 2 * b + row), magnitude = std::fabs(shift);
      for (int64_t column = 0; column < 2; ++column) {
        const Real middle = (column == 0 ? steps_x : steps_y) / 2, entry_ = linear[row][column];
        c.compare("matrix", 6 * b + 3 * row + column, get(*out, 6 * b + 3 * row + column), entry_,
                  1e-6 * (std::fabs(x_step) + std::fabs(y_step)) + 1e-44);
        shift -= entry_ * middle;
        magnitude += std::fabs(entry_ * middle);
      }
      c.compare("matrix", 6 * b + 3 * row + 2, get(*out, 6 * b + 3 * row + 2), shift,
                1e-6 * magnitude + 1e-15 * turned + 1e-30);
    }
  }
}

// The point of a matrix, and how large the terms are that it is the sum of.
struct Sum {
  Real value, magnitude;
};
Sum through(const Tensor& matrix, int64_t b, int64_t row, Real x, Real y) {
  const Real terms[3] = {get(matrix, 6 * b + 3 * row) * x, get(matrix, 6 * b + 3 * row + 1) * y,
                         get(matrix, 6 * b + 3 * row + 2)};
  return {terms[0] + terms[1] + terms[2], std::fabs(terms[0]) + std::fabs(terms[1]) + std::fabs(terms[2])};
}

void fuzz_transform(Call& c) {
  const int64_t batch = c.choose.between(0, 4), joints = c.choose.between(0, 5);
  const ScalarType type = c.choose.of({ScalarType::Float, ScalarType::Double});
  const Tensor points = tensor(c, {batch, joints, 2}, type, 10), matrix = tensor(c, {batch, 2, 3}, ScalarType::Float);
  const bool inverse = c.choose.coin();
  maybe_fail_to_allocate(c);
  using Function = Tensor (*)(const Tensor&, const Tensor&, bool);
  const auto out = run(c, [&] { return entry<Function>(kTransform)(points, matrix, inverse); });
  if (c.spoilt) return;
  bool singular = false;
  for (int64_t b = 0; inverse && joints > 0 && b < batch; ++b) {
    Real m[6];
    for (int64_t i = 0; i < 6; ++i) m[i] = get(matrix, 6 * b + i);
    for (const Real entry_ : m) singular = singular || !std::isfinite(entry_);
    singular = singular || m[0] * m[4] == m[1] * m[3];
  }
  expect_error(c, !out, singular);
  if (!out || !is_moderate(points) || !is_moderate(matrix)) return;
  ++counts[kTransform].compared;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t k = 0; k < joints; ++k) {
      const int64_t at = (b * joints + k) * 2;
      const Real x = get(points, at), y = get(points, at + 1);
      if (!inverse) {
        for (int64_t row = 0; row < 2; ++row) {
          const Sum to = through(matrix, b, row, x, y);
          c.compare("points", at + row, get(*out, at + row), to.value, rounding(type, to.magnitude));
        }
        continue;
      }
      Real m[6];
      for (int64_t i = 0; i < 6; ++i) m[i] = get(matrix, 6 * b + i);
      const Real determinant = m[0] * m[4] - m[1] * m[3], dx = x - m[2], dy = y - m[5];
      const Real lost = 1e-13 * std::fabs(m[0] * m[4] / determinant);  // of the determinant, where its terms are near
      const Real back[2] = {(m[4] * dx - m[1] * dy) / determinant, (m[0] * dy - m[3] * dx) / determinant};
      const Real size_x = std::fabs(x) + std::fabs(m[2]), size_y = std::fabs(y) + std::fabs(m[5]);
      const Real magnitude[2] = {(std::fabs(m[4]) * size_x + std::fabs(m[1]) * size_y) / std::fabs(determinant),
                                 (std::fabs(m[0]) * size_y + std::fabs(m[3]) * size_x) / std::fabs(determinant)};
      for (int64_t row = 0; row < 2; ++row)
        c.compare("points", at + row, get(*out, at + row), back[row],
                  rounding(type, back[row]) + (1e-13 + lost) * magnitude[row]);
    }
  }
}

struct Targets {
  double sigma;
  int64_t encoding;  // msra, unbiased, udp
};

Targets targets(Call& c) {
  const double sigma = c.choose.of({1.0, 2.0, 0.4, 0.1, 3.7, 1e-20, 200.0, 1e20});
  return {number(c, sigma), whole(c, c.choose.below(3), {-1, 3, kLeast, kMost})};
}

// A pixel of the target of one joint, and the joint's weight.
struct Target {
  Real center[2], peak[2], weight;
  bool drawn;
};

Target target(const Targets& t, int64_t height, int64_t width, Real x, Real y, Real visible) {
  Target out{{x, y}, {x, y}, 0, false};
  if (!std::isfinite(x) || !std::isfinite(y)) return out;
  const Real radius = std::trunc(static_cast<Real>(3.0 * t.sigma));
  const int64_t extent[2] = {width, height};
  for (int i = 0; i < 2; ++i) {
    if (t.encoding != 1) out.center[i] = std::trunc(out.center[i] + 0.5);
    if (t.encoding == 0) out.peak[i] = out.center[i];
    if (out.center[i] - radius >= extent[i] || out.center[i] + radius + 1 < 0) return out;
  }
  out.weight = visible;
  out.drawn = visible > 0.5;
  return out;
}

Real pixel(const Targets& t, const Target& joint, int64_t x, int64_t y) {
  if (!joint.drawn) return 0;
  const Real at[2] = {static_cast<Real>(x), static_cast<Real>(y)};
  Real squares = 0;
  for (int i = 0; i < 2; ++i) {
    if (t.encoding != 1 && std::fabs(at[i] - joint.center[i]) > std::trunc(static_cast<Real>(3.0 * t.sigma))) return 0;
    const Real scaled = (at[i] - joint.peak[i]) / static_cast<Real>(t.sigma);
    squares += scaled * scaled;
  }
  return std::exp(-0.5 * squares);
}

void fuzz_render(Call& c) {
  const Shape shape = map_shape(c);
  const int64_t batch = shape[0], joints = shape[1];
  const Tensor points = tensor(c, {batch, joints, 2}, ScalarType::Float, 20),
               visible = tensor(c, {batch, joints}, ScalarType::Float);
  const Targets t = targets(c);
  const int64_t height = whole(c, shape[2], {0, -1, kLeast, kMost, 1 << 24, (1 << 24) + 1, int64_t{1} << 32}),
                width = shape[3];
  ScalarType type = floating(c);
  if (c.choose.one_in(64)) {
    c.spoilt = true;
    type = c.choose.of({ScalarType::Byte, ScalarType::Int, ScalarType::Long, ScalarType::Bool});
  }
  maybe_fail_to_allocate(c);
  using Function =
      std::tuple<Tensor, Tensor> (*)(const Tensor&, const Tensor&, int64_t, int64_t, double, int64_t, ScalarType);
  const auto out =
      run(c, [&] { return entry<Function>(kRender)(points, visible, height, width, t.sigma, t.encoding, type); });
  expect_error(c, !out, false);
  if (!out || c.spoilt) return;
  ++counts[kRender].compared;
  for (int64_t map = 0; map < batch * joints; ++map) {
    const Target joint = target(t, height, width, get(points, 2 * map), get(points, 2 * map + 1), get(visible, map));
    c.compare("weights", map, get(std::get<1>(*out), map), joint.weight, 0);
    for (int64_t i = 0; i < height * width; ++i) {
      const Real wanted = pixel(t, joint, i % width, i / width);
      c.compare("heatmaps", map * height * width + i, get(std::get<0>(*out), map * height * width + i), wanted,
                rounding(type, wanted) + (type == ScalarType::Double ? 1e-14 : 2e-6));
    }
  }
}

void fuzz_loss(Call& c) {
  const bool backward = c.op == kLossBackward, of_maps = c.op == kLosses || (backward && c.choose.coin());
  const Shape shape = map_shape(c);
  const int64_t batch = shape[0], joints = shape[1], height = shape[2], width = shape[3];
  const ScalarType type = floating(c), wide = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor pred = tensor(c, shape, type, 0.5f), points = tensor(c, {batch, joints, 2}, ScalarType::Float, 20);
  const Tensor visible = tensor(c, {batch, joints}, ScalarType::Float);
  const auto weights = maybe(c, c.choose.coin() ? Shape{joints} : Shape{batch, joints}, ScalarType::Float);
  const Targets t = targets(c);
  const bool ignore = c.choose.coin();
  const Tensor upstream = tensor(c, of_maps ? Shape{batch, joints} : Shape{}, wide);
  maybe_fail_to_allocate(c);
  using Forward =
      Tensor (*)(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, int64_t, bool);
  using Backward = Tensor (*)(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&,
                              double, int64_t, bool);
  const auto out = run(c, [&] {
    return backward
               ? entry<Backward>(kLossBackward)(upstream, pred, points, visible, weights, t.sigma, t.encoding, ignore)
               : entry<Forward>(c.op)(pred, points, visible, weights, t.sigma, t.encoding, ignore);
  });
  expect_error(c, !out, false);
  if (!out || c.spoilt || !is_moderate(pred) || !is_moderate(visible) || !is_moderate(weights) ||
      !is_moderate(upstream))
    return;
  ++counts[c.op].compared;
  Real sum = 0, magnitude = 0, squares = 0;
  // A joint's weight is float32 also in a loss of float64. So is, in one of float32, the weight times the scale, which
  // may be so small that it has few bits left: a step of such numbers is lost, however large what it multiplies.
  const Real lost = type != ScalarType::Double ? 4e-6 : ignore && weights ? 1e-7 : 1e-12;
  const Real step = std::numeric_limits<float>::denorm_min();
  const Real pixels = static_cast<Real>(of_maps ? 1 : batch * joints) * height * width;
  const Real scale = pixels > 0 ? 0.5 / pixels : 0;
  const auto compare_loss = [&](int64_t at) {
    c.compare("loss", at, get(*out, at), scale * sum,
              scale * magnitude * (type == ScalarType::Double ? lost : 1e-5) + step * squares + 1e-37);
  };
  for (int64_t map = 0; map < batch * joints; ++map) {
    const Target joint = target(t, height, width, get(points, 2 * map), get(points, 2 * map + 1), get(visible, map));
    Real weight = ignore ? joint.weight : 1;
    if (weights) weight *= get(*weights, weights->dim() == 1 ? map % joints : map);
    for (int64_t i = 0; i < height * width; ++i) {
      const int64_t at = map * height * width + i;
      const Real value = get(pred, at), wanted = pixel(t, joint, i % width, i / width), difference = value - wanted;
      sum += weight * difference * difference;
      squares += difference * difference;
      magnitude += (std::fabs(weight) + 1e-39) * (difference * difference + 4e-6 * (std::fabs(value) + 1));
      if (!backward) continue;
      const Real factor = 2 * scale * weight * get(upstream, of_maps ? map : 0), gradient = factor * difference;
      if (type == ScalarType::Half && std::fabs(gradient) > 60000) continue;
      c.compare("gradient", at, get(*out, at), gradient,
                rounding(type, gradient) + (std::fabs(factor) * lost + step) * (std::fabs(value) + 1) + 1e-42);
    }
    if (c.op == kLosses) {
      compare_loss(map);
      sum = magnitude = squares = 0;
    }
  }
  if (c.op == kLoss) compare_loss(0);
}

// ---- decoding -------------------------------------------------------------------------------------------------------

std::vector<Real> gaussian(int64_t side, Real sigma) {  // 0: OpenCV's
  static const std::map<int64_t, std::vector<Real>> fixed{{1, {1}},
                                                          {3, {1, 2, 1}},
                                                          {5, {1, 4, 6, 4, 1}},
                                                          {7, {8, 28, 56, 72, 56, 28, 8}},
                                                          {9, {4, 13, 30, 51, 60, 51, 30, 13, 4}}};
  std::vector<Real> weights;
  if (const auto found = fixed.find(side); sigma == 0 && found != fixed.end()) {
    weights = found->second;
  } else {
    if (sigma == 0) sigma = 0.3 * ((static_cast<Real>(side) - 1) * 0.5 - 1) + 0.8;
    for (int64_t i = 0; i < side; ++i) {
      const Real d = static_cast<Real>(i - side / 2);
      weights.push_back(std::exp(-d * d / (2 * sigma * sigma)));
    }
  }
  Real sum = 0;
  for (const Real weight : weights) sum += weight;
  for (Real& weight : weights) weight /= sum;
  return weights;
}

// The step of dark (reach 2) or dark_udp (reach 1) from a maximum, and whether it is clear of the limits and floors
// that rounding could carry it across.
struct Step {
  Real x, y;
  bool clear;
};
Step newton(const std::vector<Real>& map, int64_t height, int64_t width, int64_t x, int64_t y, int64_t side, Real sigma,
            int reach) {
  if (reach == 2 && !(x > 1 && x < width - 2 && y > 1 && y < height - 2)) return {0, 0, true};
  const auto weights = gaussian(side, sigma);
  Real f[5][5] = {}, highest = -1;
  for (int row = 0; row <= 2 * reach; ++row) {
    for (int column = 0; column <= 2 * reach; ++column) {
      const int64_t middle_y = std::clamp<int64_t>(y + row - reach, 0, height - 1);
      const int64_t middle_x = std::clamp<int64_t>(x + column - reach, 0, width - 1);
      for (int64_t i = 0; i < side; ++i)
        for (int64_t j = 0; j < side; ++j) {
          const int64_t at_y = middle_y + i - side / 2, at_x = middle_x + j - side / 2;
          if (at_y < 0 || at_y >= height || at_x < 0 || at_x >= width) continue;
          f[row][column] += weights[static_cast<size_t>(i)] * weights[static_cast<size_t>(j)] *
                            map[static_cast<size_t>(at_y * width + at_x)];
        }
      highest = std::max(highest, f[row][column]);
    }
  }
  if (!(highest > 1e-12)) return {0, 0, false};
  const Real floor = reach == 2 ? 1e-10 : 1e-3, scale = map[static_cast<size_t>(y * width + x)] / highest;
  for (auto& row : f)
    for (Real& value : row) value = std::log(std::max(value * scale, floor));
  Real dx, dy, xx, xy, yy;
  if (reach == 2) {
    dx = (f[2][3] - f[2][1]) / 2;
    dy = (f[3][2] - f[1][2]) / 2;
    xx = (f[2][4] - 2 * f[2][2] + f[2][0]) / 4;
    yy = (f[4][2] - 2 * f[2][2] + f[0][2]) / 4;
    xy = (f[3][3] - f[1][3] - f[3][1] + f[1][1]) / 4;
  } else {
    const Real epsilon = std::numeric_limits<float>::epsilon();
    dx = (f[1][2] - f[1][0]) / 2;
    dy = (f[2][1] - f[0][1]) / 2;
    xx = f[1][2] - 2 * f[1][1] + f[1][0] + epsilon;
    yy = f[2][1] - 2 * f[1][1] + f[0][1] + epsilon;
    xy = (f[2][2] - f[1][2] - f[2][1] + 2 * f[1][1] - f[1][0] - f[0][1] + f[0][0]) / 2;
  }
  const Real determinant = xx * yy - xy * xy;
  const bool clear = std::fabs(determinant) > 1e-4 * (xx * xx + 2 * xy * xy + yy * yy) + 1e-6;
  return {(xy * dy - yy * dx) / determinant, (xy * dx - xx * dy) / determinant, clear};
}

void fuzz_decode(Call& c) {
  const Shape shape = map_shape(c);
  const int64_t batch = shape[0], joints = shape[1], height = shape[2], width = shape[3];
  const ScalarType type = floating(c);
  const Tensor heatmaps = tensor(c, shape, type);
  const auto matrix = maybe(c, {batch, 2, 3}, ScalarType::Float);
  const auto flipped = maybe(c, shape, type);
  const auto mirrored = permutation(c, joints);
  const bool shift = c.choose.coin();
  const int64_t refine = whole(c, c.choose.below(4), {-1, 4, kLeast, kMost});
  const int64_t side =
      whole(c, c.choose.of<int64_t>({1, 3, 5, 7, 9, 11, 17, 1, 3, 255}), {0, -1, 2, 256, 257, kLeast, kMost});
  const double sigma = number(c, c.choose.of({0.0, 0.0, 0.8, 3.0}));
  maybe_fail_to_allocate(c);
  using Function =
      std::tuple<Tensor, Tensor> (*)(const Tensor&, const std::optional<Tensor>&, const std::optional<Tensor>&,
                                     std::vector<int64_t>, bool, int64_t, int64_t, double);
  const auto out =
      run(c, [&] { return entry<Function>(kDecode)(heatmaps, matrix, flipped, mirrored, shift, refine, side, sigma); });
  expect_error(c, !out, false);
  if (!out || c.spoilt) return;
  ++counts[kDecode].compared;
  const bool is_double = type == ScalarType::Double;
  for (int64_t map = 0; map < batch * joints; ++map) {
    std::vector<Real> values(static_cast<size_t>(height * width));
    int64_t best = -1;
    bool moderate = true;
    for (int64_t i = 0; i < height * width; ++i) {
      Real value = get(heatmaps, map * height * width + i);
      if (flipped) {
        const int64_t x = i % width, from = shift && x > 0 ? x - 1 : x, k = mirrored[static_cast<size_t>(map % joints)];
        const Real other =
            get(*flipped, (((map / joints) * joints + k) * height + i / width) * width + width - 1 - from);
        value = is_double ? Real((double(value) + double(other)) * 0.5) : Real((float(value) + float(other)) * 0.5f);
      }
      values[static_cast<size_t>(i)] = value;
      moderate = moderate && std::fabs(value) < 1e6;
      if (!std::isnan(value) && (best < 0 || value > values[static_cast<size_t>(best)])) best = i;
    }
    const Real score = best < 0 ? kNaN : values[static_cast<size_t>(best)];
    c.compare("scores", map, get(std::get<1>(*out), map), static_cast<float>(score), 0);
    Real x = 0, y = 0, tolerance = 0;
    if (score > 0) {
      x = best % width;
      y = best / width;
      const auto at = [&](int64_t dy, int64_t dx) { return values[static_cast<size_t>(best + dy * width + dx)]; };
      if (refine == 1 && x > 1 && x < width - 1 && y > 1 && y < height - 1) {
        x += at(0, 1) > at(0, -1) ? 0.25 : at(0, 1) < at(0, -1) ? -0.25 : 0;
        y += at(1, 0) > at(-1, 0) ? 0.25 : at(1, 0) < at(-1, 0) ? -0.25 : 0;
      } else if (refine >= 2) {
        if (!moderate) continue;
        const Step step = newton(values, height, width, best % width, best / width, side, static_cast<Real>(sigma),
                                 refine == 2 ? 2 : 1);
        if (!step.clear) continue;
        x += step.x;
        y += step.y;
        tolerance = 1e-6 * (1 + std::fabs(step.x) + std::fabs(step.y));
      }
    }
    if (matrix && !is_moderate(matrix)) continue;
    for (int64_t row = 0; row < 2; ++row) {
      Sum to{row == 0 ? x : y, 0};
      to.magnitude = std::fabs(to.value) + tolerance;
      if (matrix) {
        to = through(*matrix, map / joints, row, x, y);
        to.magnitude += tolerance * 1e6 *
                        (std::fabs(get(*matrix, 6 * (map / joints) + 3 * row)) +
                         std::fabs(get(*matrix, 6 * (map / joints) + 3 * row + 1)));
      }
      c.compare("keypoints", 2 * map + row, get(std::get<0>(*out), 2 * map + row), to.value,
                rounding(ScalarType::Float, to.magnitude) + tolerance);
    }
  }
}

// ---- SimCC ----------------------------------------------------------------------------------------------------------

// [B, K, bins of x, bins of y].
Shape vector_shape(Call& c) {
  Shape shape{c.choose.between(0, 2), c.choose.between(0, 3), c.choose.between(1, 40), c.choose.between(1, 70)};
  if (c.choose.one_in(64)) shape[2 + static_cast<size_t>(c.choose.below(2))] = c.choose.between(500, 2100);
  if (c.choose.one_in(64)) {
    c.spoilt = true;
    shape[2 + static_cast<size_t>(c.choose.below(2))] = 0;
  }
  return shape;
}

void fuzz_simcc_loss(Call& c) {
  const bool backward = c.op == kSimccBackward;
  const Shape shape = vector_shape(c);
  const int64_t batch = shape[0], joints = shape[1];
  const ScalarType type = floating(c), wide = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor preds[2] = {tensor(c, {batch, joints, shape[2]}, type, 0.5f),
                           tensor(c, {batch, joints, shape[3]}, type, 0.5f)};
  const Tensor points = tensor(c, {batch, joints, 2}, ScalarType::Float, 20);
  const Tensor visible = tensor(c, {batch, joints}, ScalarType::Float);
  const auto weights = maybe(c, c.choose.coin() ? Shape{joints} : Shape{batch, joints}, ScalarType::Float);
  const double ratio = c.choose.of({2.0, 1.0, 0.5, 3.0});
  const double sigma[2] = {c.choose.of({4.9, 1.0, 0.3, 1e-20, 60.0}), c.choose.of({5.66, 2.0, 0.1, 1e20})};
  const double beta = c.choose.of({10.0, 1.0, 3.0}), label_beta = c.choose.of({10.0, 0.5, 30.0});
  const bool softmax = c.choose.coin();
  const Tensor upstream = tensor(c, {}, wide);
  maybe_fail_to_allocate(c);
  using Forward = Tensor (*)(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&,
                             double, double, double, double, double, bool);
  using Gradients = std::tuple<Tensor, Tensor>;
  using Backward = Gradients (*)(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                 const std::optional<Tensor>&, double, double, double, double, double, bool);
  const auto out = run(c, [&]() -> Gradients {
    if (backward)
      return entry<Backward>(kSimccBackward)(upstream, preds[0], preds[1], points, visible, weights, ratio, sigma[0],
                                             sigma[1], beta, label_beta, softmax);
    return {entry<Forward>(kSimcc)(preds[0], preds[1], points, visible, weights, ratio, sigma[0], sigma[1], beta,
                                   label_beta, softmax),
            Tensor()};
  });
  expect_error(c, !out, false);
  if (!out || c.spoilt || !is_moderate(preds[0]) || !is_moderate(preds[1]) || !is_moderate(visible) ||
      !is_moderate(weights) || !is_moderate(upstream))
    return;
  ++counts[c.op].compared;
  const bool is_double = type == ScalarType::Double;
  const Real scale = batch * joints > 0 ? 1.0 / static_cast<Real>(batch * joints) : 0;
  Real sum = 0, lost = 0;
  for (int64_t map = 0; map < batch * joints; ++map) {
    Real center[2];
    bool near = true;
    for (int axis = 0; axis < 2; ++axis) {
      center[axis] = std::nearbyint(static_cast<float>(get(points, 2 * map + axis)) * static_cast<float>(ratio));
      near = near && center[axis] - 3 * sigma[axis] < static_cast<Real>(preds[axis].size(2)) &&
             center[axis] + 3 * sigma[axis] + 1 >= 0;
    }
    const Real seen = get(visible, map);
    const bool drawn = seen >= 0.5 && near;
    float weight = near || seen < 0.5 ? static_cast<float>(seen) : 0.0f;
    if (weights) weight *= static_cast<float>(get(*weights, weights->dim() == 1 ? map % joints : map));
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t bins = preds[axis].size(2), first = map * bins;
      std::vector<Real> logits, labels;
      Real highest = -1e300, largest = 0, label_sum = 0, exponentials = 0;
      for (int64_t i = 0; i < bins; ++i) {
        const Real distance = static_cast<Real>(i) - center[axis];
        const Real label = drawn ? std::exp(-0.5 * (distance / sigma[axis]) * (distance / sigma[axis])) : 0;
        labels.push_back(softmax ? std::exp(label_beta * label) : label);
        logits.push_back(beta * get(preds[axis], first + i));
        label_sum += labels.back();
        highest = std::max(highest, logits.back());
        largest = std::max(largest, std::fabs(logits.back()));
      }
      for (const Real logit : logits) exponentials += std::exp(logit - highest);
      // In float32 logits lose their last bits, and so do distances from large middles.
      const Real rounded = is_double ? 1e-13 * (1 + largest) : 1e-5 + 3e-7 * largest;
      if (softmax)
        for (Real& label : labels) label /= label_sum;
      const Real total = softmax ? 1 : label_sum;
      const Real factor = get(upstream, 0) * weight * beta * scale / static_cast<Real>(bins);
      for (int64_t i = 0; i < bins; ++i) {
        const auto at = static_cast<size_t>(i);
        const Real logarithm = logits[at] - highest - std::log(exponentials), label = labels[at];
        const Real entropy = label > 0 ? std::log(label) : 0;
        sum += weight * label * (entropy - logarithm) / static_cast<Real>(bins);
        lost += std::fabs(weight) * label * rounded * (std::fabs(entropy) + std::fabs(logarithm) + 1) /
                static_cast<Real>(bins);
        if (!backward) continue;
        const Real predicted = std::exp(logarithm) * total, gradient = factor * (predicted - label);
        if (type == ScalarType::Half && std::fabs(gradient) > 60000) continue;
        c.compare(axis == 0 ? "gradient of pred_x" : "gradient of pred_y", first + i,
                  get(axis == 0 ? std::get<0>(*out) : std::get<1>(*out), first + i), gradient,
                  rounding(type, gradient) + std::fabs(factor) * rounded * (predicted + label) + 1e-42);
      }
    }
  }
  if (!backward) c.compare("loss", 0, get(std::get<0>(*out), 0), scale * sum, scale * lost + 1e-37);
}

// The step of dark, and whether its denominator is far enough from zero to be compared.
struct BinStep {
  Real of;
  bool clear;
};

BinStep dark_bin_step(const std::vector<Real>& values, int64_t peak, int64_t side) {
  const std::vector<Real> weights = gaussian(side, 0);
  const auto bins = static_cast<int64_t>(values.size());
  std::vector<Real> blurred;
  for (int64_t i = 0; i < bins; ++i) {
    Real sum = 0;
    for (int64_t tap = 0; tap < side; ++tap) {
      const int64_t from = i + tap - side / 2;
      if (from >= 0 && from < bins) sum += weights[static_cast<size_t>(tap)] * values[static_cast<size_t>(from)];
    }
    blurred.push_back(sum);
  }
  const Real highest = *std::max_element(blurred.begin(), blurred.end());
  const Real scale = values[static_cast<size_t>(peak)] / highest;
  Real f[5];
  for (int64_t i = 0; i < 5; ++i) {
    const auto at = static_cast<size_t>(std::clamp<int64_t>(peak + i - 2, 0, bins - 1));
    f[i] = std::log(std::clamp(blurred[at] * scale, 1e-3, 50.0));
  }
  const Real denominator = 1e-9 + 0.25 * (f[4] - 2 * f[2] + f[0]);
  return {0.5 * (f[3] - f[1]) / denominator, highest > 1e-3 && std::fabs(denominator) > 1e-4};
}

void fuzz_decode_simcc(Call& c) {
  const Shape shape = vector_shape(c);
  const int64_t batch = shape[0], joints = shape[1];
  const ScalarType type = floating(c);
  const Shape shapes[2] = {{batch, joints, shape[2]}, {batch, joints, shape[3]}};
  const Tensor preds[2] = {tensor(c, shapes[0], type), tensor(c, shapes[1], type)};
  const auto matrix = maybe(c, {batch, 2, 3}, ScalarType::Float);
  const bool mirror = c.choose.coin();
  std::optional<Tensor> flipped[2];
  for (int axis = 0; axis < 2; ++axis)
    if (mirror) flipped[axis] = tensor(c, shapes[axis], type);
  if (mirror && c.choose.one_in(64)) {
    c.spoilt = true;
    flipped[c.choose.below(2)].reset();
  }
  const auto mirrored = permutation(c, joints);
  const double ratio = c.choose.of({2.0, 1.0, 0.5, 3.0});
  const int64_t refine = whole(c, c.choose.below(2), {-1, 2, kLeast, kMost});
  int64_t sides[2];
  for (int64_t& side : sides)
    side = whole(c, c.choose.of<int64_t>({1, 3, 9, 11, 29, 35, 255}), {0, -1, 2, 256, 257, kLeast, kMost});
  maybe_fail_to_allocate(c);
  using Function = std::tuple<Tensor, Tensor> (*)(const Tensor&, const Tensor&, const std::optional<Tensor>&,
                                                  const std::optional<Tensor>&, const std::optional<Tensor>&,
                                                  std::vector<int64_t>, double, int64_t, int64_t, int64_t);
  const auto out = run(c, [&] {
    return entry<Function>(kDecodeSimcc)(preds[0], preds[1], matrix, flipped[0], flipped[1], mirrored, ratio, refine,
                                         sides[0], sides[1]);
  });
  expect_error(c, !out, false);
  if (!out || c.spoilt) return;
  ++counts[kDecodeSimcc].compared;
  for (int64_t map = 0; map < batch * joints; ++map) {
    std::vector<Real> values[2];
    int64_t best[2] = {-1, -1};
    bool moderate = true;
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t bins = preds[axis].size(2);
      for (int64_t i = 0; i < bins; ++i) {
        Real value = get(preds[axis], map * bins + i);
        if (mirror) {
          const int64_t k = mirrored[static_cast<size_t>(map % joints)], from = axis == 0 ? bins - 1 - i : i;
          const Real other = get(*flipped[axis], ((map / joints) * joints + k) * bins + from);
          value = type == ScalarType::Double ? (value + other) * 0.5
                                             : Real((static_cast<float>(value) + static_cast<float>(other)) * 0.5f);
        }
        values[axis].push_back(value);
        moderate = moderate && std::fabs(value) < 1e3;
        if (!std::isnan(value) && (best[axis] < 0 || value > values[axis][static_cast<size_t>(best[axis])]))
          best[axis] = i;
      }
    }
    Real score = kNaN;
    if (best[0] >= 0 && best[1] >= 0)
      score = std::min(values[0][static_cast<size_t>(best[0])], values[1][static_cast<size_t>(best[1])]);
    c.compare("scores", map, get(std::get<1>(*out), map), static_cast<float>(score), 0);
    Real at[2] = {-1, -1}, tolerance = 0;
    bool clear = true;
    for (int axis = 0; axis < 2 && score > 0; ++axis) {
      at[axis] = static_cast<Real>(best[axis]);
      if (refine == 0) continue;
      const BinStep step = moderate ? dark_bin_step(values[axis], best[axis], sides[axis]) : BinStep{0, false};
      clear = clear && step.clear;
      at[axis] -= step.of;
      tolerance += 1e-6 * (1 + std::fabs(step.of)) / ratio;
    }
    if (!clear || (matrix && !is_moderate(matrix))) continue;
    const Real x = at[0] / ratio, y = at[1] / ratio;
    for (int64_t row = 0; row < 2; ++row) {
      Sum to{row == 0 ? x : y, std::fabs(row == 0 ? x : y)};
      Real stretch = 1;
      if (matrix) {
        to = through(*matrix, map / joints, row, x, y);
        const int64_t first = 6 * (map / joints) + 3 * row;
        stretch = std::fabs(get(*matrix, first)) + std::fabs(get(*matrix, first + 1));
      }
      c.compare("keypoints", 2 * map + row, get(std::get<0>(*out), 2 * map + row), to.value,
                rounding(ScalarType::Float, to.magnitude) + tolerance * stretch);
    }
  }
}

// ---- cropping -------------------------------------------------------------------------------------------------------

// Pixels as they are named by image, row and column; none where the tables leave the buffer.
struct Image {
  const uint8_t* first = nullptr;
  int64_t height = 0, width = 0, row = 0;
};

Real sample(const Image& image, float x, float y, int channel, Real fill) {
  if (!(x > -1 && y > -1 && x < static_cast<float>(image.width) && y < static_cast<float>(image.height))) return fill;
  const Real left = std::floor(static_cast<Real>(x)), top = std::floor(static_cast<Real>(y));
  Real sum = 0;
  for (int dy = 0; dy < 2; ++dy) {
    for (int dx = 0; dx < 2; ++dx) {
      const int64_t at_x = static_cast<int64_t>(left) + dx, at_y = static_cast<int64_t>(top) + dy;
      const bool inside = at_x >= 0 && at_y >= 0 && at_x < image.width && at_y < image.height;
      const Real weight_x = dx == 1 ? x - left : 1 - (x - left), weight_y = dy == 1 ? y - top : 1 - (y - top);
      sum += weight_x * weight_y * (inside ? image.first[at_y * image.row + 3 * at_x + channel] : fill);
    }
  }
  return sum;
}

// Cubic convolution with a = -0.75, at a distance in pixels.
Real cubic(Real distance) {
  const Real d = std::fabs(distance), a = -0.75;
  if (d <= 1) return (a + 2) * d * d * d - (a + 3) * d * d + 1;
  return d < 2 ? a * (d * d * d - 5 * d * d + 8 * d - 4) : 0;
}

Real sample_cubic(const Image& image, float x, float y, int channel, Real fill) {
  if (!(x > -2 && y > -2 && x < static_cast<float>(image.width) + 1 && y < static_cast<float>(image.height) + 1))
    return fill;
  const auto left = static_cast<int64_t>(std::floor(x)), top = static_cast<int64_t>(std::floor(y));
  Real sum = 0;
  for (int64_t at_y = top - 1; at_y < top + 3; ++at_y) {
    for (int64_t at_x = left - 1; at_x < left + 3; ++at_x) {
      const bool inside = at_x >= 0 && at_y >= 0 && at_x < image.width && at_y < image.height;
      sum += cubic(x - static_cast<Real>(at_x)) * cubic(y - static_cast<Real>(at_y)) *
             (inside ? image.first[at_y * image.row + 3 * at_x + channel] : fill);
    }
  }
  return sum;
}

void fuzz_crop(Call& c) {
  const int64_t side = c.choose.one_in(32) ? 45 : 7;
  const int64_t batch = c.choose.between(0, 3), images = c.choose.one_in(16) ? 0 : c.choose.between(1, 3);
  const int64_t height = whole(c, c.choose.between(1, side), {0, -1, kLeast, kMost, 1 << 24, (1 << 24) + 1});
  const int64_t width = c.choose.one_in(64) ? c.choose.between(100, 300) : c.choose.between(1, side);
  const int64_t image_height = c.choose.between(1, side), image_width = c.choose.between(1, side + 4);
  const bool ragged = c.choose.coin();
  std::optional<Tensor> offsets, sizes;
  // Dense images: the channels of a pixel and the pixels of a row side by side, else anything.
  const int64_t gap = c.choose.one_in(4) ? c.choose.between(1, 9) : 0, row = 3 * image_width + gap;
  Tensor pixels = ragged
                      ? Tensor({images * image_height * image_width * 3 + gap}, {1}, ScalarType::Byte)
                      : Tensor({images, image_height, image_width, 3},
                               {c.choose.one_in(4) ? 0 : row * image_height + gap, c.choose.one_in(16) ? 0 : row, 3, 1},
                               ScalarType::Byte, gap);
  for (size_t i = 0; i < pixels.storage_bytes(); ++i) pixels.storage()[i] = static_cast<uint8_t>(c.choose.draw());
  if (!ragged && c.choose.one_in(32))
    pixels = tensor(c, {images, image_height, image_width, 3}, ScalarType::Byte), c.spoilt = true;
  if (ragged) {
    offsets = tensor(c, {images}, ScalarType::Long);
    sizes = tensor(c, {images, 2}, ScalarType::Int);
    const bool altered = c.choose.one_in(3);
    const auto fill_table = [&](Tensor& table, const auto& value_at) {
      using Value = decltype(value_at(int64_t{0}));
      for (int64_t i = 0; i < table.numel() && table.element_size() == sizeof(Value); ++i) {
        const Value value = value_at(i);
        std::memcpy(const_cast<void*>(table.at(i)), &value, sizeof(value));
      }
    };
    fill_table(*offsets, [&](int64_t n) -> int64_t {
      if (altered && c.choose.coin())
        return c.choose.of<int64_t>({kLeast, kLeast / 3, -1, -3, 1, pixels.numel() - 1, pixels.numel(),
                                     pixels.numel() + 1, int64_t{1} << 62, kMost, c.choose.between(0, pixels.numel())});
      return n * image_height * image_width * 3;
    });
    fill_table(*sizes, [&](int64_t i) -> int32_t {
      if (altered && c.choose.coin())
        return c.choose.of<int32_t>({std::numeric_limits<int32_t>::min(), -1, 0, 1, 2, 1 << 16, 1 << 24,
                                     std::numeric_limits<int32_t>::max(),
                                     static_cast<int32_t>(c.choose.between(0, 60))});
      return static_cast<int32_t>(i % 2 == 0 ? image_height : image_width);
    });
    if (!offsets->is_contiguous() || !sizes->is_contiguous()) c.spoilt = true;
    if (c.choose.one_in(32)) {
      c.spoilt = true;
      (c.choose.coin() ? offsets : sizes).reset();
    }
  }
  const Tensor matrix = tensor(c, {batch, 2, 3}, ScalarType::Float, c.choose.of({0.5f, 1.0f, 4.0f}));
  auto index = maybe(c, {batch}, ScalarType::Long);
  if (index && index->scalar_type() == ScalarType::Long) {
    for (int64_t b = 0; b < index->numel(); ++b) {
      const int64_t n = c.choose.one_in(32) ? c.choose.of({kLeast, int64_t{-1}, images, kMost})
                                            : c.choose.below(images + (images == 0));
      std::memcpy(const_cast<void*>(index->at(b)), &n, sizeof(n));
    }
  }
  const auto color = maybe(c, c.choose.coin() ? Shape{3, 4} : Shape{batch, 3, 4}, ScalarType::Float, 0.1f);
  const double fill = c.choose.one_in(64) ? number(c, 0.0) : static_cast<double>(c.choose.between(-5, 260)) / 2;
  ScalarType type =
      c.choose.of({ScalarType::Float, ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Byte});
  if (c.choose.one_in(64)) {
    c.spoilt = true;
    type = c.choose.of({ScalarType::Double, ScalarType::Int, ScalarType::Long, ScalarType::Bool});
  }
  const bool channels_last = c.choose.coin();
  const int64_t resample = whole(c, c.choose.between(0, 1), {kLeast, -1, 2, kMost});
  const int64_t boxes = c.choose.between(0, 3);
  const auto erase = maybe(c, {batch, boxes, 4}, ScalarType::Float, c.choose.of({4.0f, 16.0f}));
  maybe_fail_to_allocate(c);
  using Function = Tensor (*)(const Tensor&, const std::optional<Tensor>&, const std::optional<Tensor>&, const Tensor&,
                              const std::optional<Tensor>&, const std::optional<Tensor>&, int64_t, int64_t, double,
                              ScalarType, bool, int64_t, const std::optional<Tensor>&);
  const auto out = run(c, [&] {
    return entry<Function>(kCrop)(pixels, offsets, sizes, matrix, index, color, height, width, fill, type,
                                  channels_last, resample, erase);
  });
  if (c.spoilt) return;

  std::vector<Image> of_crop;
  bool wrong = !index && images != 1 && images != batch;
  for (int64_t b = 0; b < batch && !wrong; ++b) {
    const Real n = index ? get(*index, b) : images == 1 ? 0 : static_cast<Real>(b);
    if (!(n >= 0 && n < images)) {
      wrong = true;
      break;
    }
    const auto at = static_cast<int64_t>(n);
    Image image{static_cast<const uint8_t*>(pixels.const_data_ptr()), image_height, image_width, row};
    if (ragged) {
      const Real start = get(*offsets, at), rows = get(*sizes, 2 * at), columns = get(*sizes, 2 * at + 1);
      wrong = !(rows >= 1 && columns >= 1 && start >= 0 && start + 3 * rows * columns <= pixels.numel());
      if (wrong) break;
      image = {image.first + static_cast<int64_t>(start), static_cast<int64_t>(rows), static_cast<int64_t>(columns),
               3 * static_cast<int64_t>(columns)};
    } else {
      image.first += at * pixels.stride(0);
      image.row = pixels.stride(1);
    }
    of_crop.push_back(image);
  }
  expect_error(c, !out, wrong);
  if (!out || !is_moderate(color)) return;
  ++counts[kCrop].compared;
  for (int64_t b = 0; b < batch; ++b) {
    float m[6];
    for (int64_t i = 0; i < 6; ++i) m[i] = static_cast<float>(get(matrix, 6 * b + i));
    for (int64_t i = 0; i < height * width; ++i) {
      // The definition's one use of float32: it is the type of source points.
      const float x = static_cast<float>(i % width), y = static_cast<float>(i / width);
      const float source_x = m[0] * x + (m[1] * y + m[2]), source_y = m[3] * x + (m[4] * y + m[5]);
      bool erased = false;
      for (int64_t n = 0; n < boxes && erase; ++n) {
        const int64_t first = (b * boxes + n) * 4;
        erased = erased || (x >= get(*erase, first) && y >= get(*erase, first + 1) && x < get(*erase, first + 2) &&
                            y < get(*erase, first + 3));
      }
      Real rgb[3] = {static_cast<float>(fill), static_cast<float>(fill), static_cast<float>(fill)};
      for (int channel = 0; channel < 3 && !erased; ++channel)
        rgb[channel] = (resample == 1 ? sample_cubic : sample)(of_crop[static_cast<size_t>(b)], source_x, source_y,
                                                               channel, static_cast<float>(fill));
      for (int channel = 0; channel < 3; ++channel) {
        Real wanted = rgb[channel], magnitude = 260;
        if (color) {
          const int64_t first = (color->dim() == 3 ? 12 * b : 0) + 4 * channel;
          wanted = magnitude = std::fabs(get(*color, first + 3));
          wanted = get(*color, first + 3);
          for (int k = 0; k < 3; ++k) {
            wanted += get(*color, first + k) * rgb[k];
            magnitude += std::fabs(get(*color, first + k)) * 260;
          }
        }
        Real tolerance = 2e-6 * magnitude;
        if (type == ScalarType::Byte) {
          wanted = std::clamp<Real>(wanted, 0, 255);
          tolerance += 0.5;
        } else {
          tolerance += rounding(type, wanted);
        }
        if (type == ScalarType::Half && std::fabs(wanted) > 60000) continue;
        const int64_t at = (b * 3 + channel) * height * width + i;
        c.compare("crops", at, get(*out, at), wanted, tolerance);
      }
    }
  }
}

void fuzz_one(uint64_t seed, const uint8_t* bytes, size_t size) {
  Call call{Choices(seed, bytes, size), seed, kCrop};
  call.op = static_cast<Op>(call.choose.below(kOpCount));
  call.hostility = call.choose.of({0, 0, 1, 1, 2});
  void (*const fuzz[])(Call&) = {fuzz_crop, fuzz_matrix, fuzz_decode,     fuzz_decode_simcc, fuzz_loss, fuzz_loss,
                                 fuzz_loss, fuzz_render, fuzz_simcc_loss, fuzz_simcc_loss,   fuzz_swap, fuzz_transform};
  fuzz[call.op](call);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz_one(0, data, size);
  uint64_t differences = 0;
  for (const Counts& count : counts) differences += count.differences;
  if (differences > 0) std::abort();
  return 0;
}

#ifndef FASTPOSE_LIBFUZZER
// fuzz_ops [--calls N] [--seconds S] [--seed FIRST]: call number i has the seed FIRST + i.
int main(int arguments, char** values) {
  uint64_t calls = std::numeric_limits<uint64_t>::max(), seed = 0;
  double seconds = 10.0;
  for (int i = 1; i + 1 < arguments; i += 2) {
    if (std::strcmp(values[i], "--calls") == 0) calls = std::strtoull(values[i + 1], nullptr, 10);
    if (std::strcmp(values[i], "--seconds") == 0) seconds = std::strtod(values[i + 1], nullptr);
    if (std::strcmp(values[i], "--seed") == 0) seed = std::strtoull(values[i + 1], nullptr, 10);
  }
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  uint64_t done = 0;
  for (; done < calls && (done % 256 != 0 || elapsed() < seconds); ++done) fuzz_one(seed + done, nullptr, 0);
  uint64_t differences = 0, numbers = 0;
  std::printf("%-26s %12s %12s %12s %16s %12s\n", "op", "calls", "errors", "compared", "numbers", "differences");
  for (int op = 0; op < kOpCount; ++op) {
    const Counts& n = counts[op];
    std::printf("%-26s %12lu %12lu %12lu %16lu %12lu\n", kOps[op], static_cast<unsigned long>(n.calls),
                static_cast<unsigned long>(n.errors), static_cast<unsigned long>(n.compared),
                static_cast<unsigned long>(n.numbers), static_cast<unsigned long>(n.differences));
    differences += n.differences;
    numbers += n.numbers;
  }
  std::printf("%lu calls from seed %lu in %.0f s, %lu numbers compared, %lu differ\n", static_cast<unsigned long>(done),
              static_cast<unsigned long>(seed), elapsed(), static_cast<unsigned long>(numbers),
              static_cast<unsigned long>(differences));
  return differences == 0 ? 0 : 1;
}
#endif
