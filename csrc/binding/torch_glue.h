// SPDX-License-Identifier: Apache-2.0
// What the glue of every op shares: argument checks that name the argument, dtype dispatch, launch on the current
// stream, registration. Only <op>.cpp includes this; torch is reached through its stable ABI alone.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <atomic>
#include <initializer_list>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#ifdef FASTPOSE_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#include "maths/heatmap_target.h"
#include "maths/host_device.h"
#include "maths/joint_permutation.h"
#include "maths/map_layout.h"

namespace fastpose {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- errors ---------------------------------------------------------------------------------------------------------

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline std::string spelled(ScalarType type, const std::vector<int64_t>& shape) {
  std::ostringstream text;
  text << torch::headeronly::toString(type) << " [";
  for (size_t d = 0; d < shape.size(); ++d) text << (d ? ", " : "") << shape[d];
  text << "]";
  return text.str();
}

inline std::vector<int64_t> shape_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return {sizes.begin(), sizes.end()};
}

inline std::string describe(const Tensor& t) {
  std::ostringstream text;
  text << spelled(t.scalar_type(), shape_of(t))
       << (t.is_cpu()    ? " on cpu"
           : t.is_cuda() ? " on cuda:"
                         : " on another device");
  if (t.is_cuda()) text << t.get_device_index();
  return text.str();
}

// One named argument of one op; each expectation throws with what was expected and what was passed.
class Argument {
 public:
  Argument(const char* op, const char* name, const Tensor& tensor) : op_(op), name_(name), tensor_(tensor) {}

  // -1 in the shape stands for any size.
  const Argument& shape(std::initializer_list<int64_t> sizes, const char* spelled) const {
    bool same = tensor_.dim() == static_cast<int64_t>(sizes.size());
    int64_t d = 0;
    for (const int64_t size : sizes) {
      if (!same) break;
      same = size == -1 || tensor_.size(d) == size;
      ++d;
    }
    if (!same) {
      std::ostringstream got;
      d = 0;
      for (const int64_t size : sizes) {
        got << (d++ ? ", " : "");
        size == -1 ? got << "any" : got << size;
      }
      fail(op_, ": ", name_, " must have shape ", spelled, " = [", got.str(), "], got ", describe(tensor_));
    }
    return *this;
  }
  const Argument& type(std::initializer_list<ScalarType> types) const {
    std::ostringstream wanted;
    for (const ScalarType type : types) {
      if (tensor_.scalar_type() == type) return *this;
      wanted << (wanted.tellp() > 0 ? " or " : "") << torch::headeronly::toString(type);
    }
    fail(op_, ": ", name_, " must be ", wanted.str(), ", got ", describe(tensor_));
  }
  const Argument& on_device_of(const Tensor& other, const char* other_name) const {
    const bool same = tensor_.is_cpu() == other.is_cpu() && tensor_.get_device_index() == other.get_device_index();
    if (!same) {
      fail(op_, ": ", name_, " must be on the device of ", other_name, " (", describe(other), "), got ",
           describe(tensor_));
    }
    return *this;
  }

 private:
  const char* op_;
  const char* name_;
  const Tensor& tensor_;
};

// ---- dtypes ---------------------------------------------------------------------------------------------------------

inline ScalarKind kind_of(ScalarType type) {
  switch (type) {
    case ScalarType::Half:
      return ScalarKind::kFloat16;
    case ScalarType::BFloat16:
      return ScalarKind::kBFloat16;
    case ScalarType::Double:
      return ScalarKind::kFloat64;
    case ScalarType::Byte:
      return ScalarKind::kUInt8;
    default:
      return ScalarKind::kFloat32;  // the checks have let nothing else through
  }
}

// Of the types that the ops take or return.
inline int64_t bytes_of(ScalarType type) {
  switch (type) {
    case ScalarType::Long:
      return 8;
    case ScalarType::Bool:
      return 1;
    default:
      return bytes_of(kind_of(type));
  }
}

// Of a loss: that in which it is computed.
inline ScalarType loss_type(const Tensor& pred) {
  return pred.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The dtype of a result, checked before there is one.
inline void check_dtype(const char* op, ScalarType dtype, std::initializer_list<ScalarType> types) {
  if (std::find(types.begin(), types.end(), dtype) != types.end()) return;
  std::ostringstream wanted;
  for (const ScalarType type : types) wanted << (wanted.tellp() > 0 ? " or " : "") << torch::headeronly::toString(type);
  fail(op, ": dtype must be ", wanted.str(), ", got ", torch::headeronly::toString(dtype));
}

// Calls body with a value of the C++ type behind kind: body(auto zero) { using T = decltype(zero); ... }
template <typename Body>
void dispatch_floating(ScalarKind kind, const Body& body) {
  switch (kind) {
    case ScalarKind::kFloat16:
      return body(c10::Half());
    case ScalarKind::kBFloat16:
      return body(c10::BFloat16());
    case ScalarKind::kFloat64:
      return body(double());
    default:
      return body(float());
  }
}

// ---- tensors --------------------------------------------------------------------------------------------------------

// torch's own words for what went wrong in its C interface, or none: a torch before 2.13 writes them to stderr.
const char* last_torch_error();

// allocate(), or an error that names op, argument, shape and bytes. The C interface does not say which kind of error it
// was; fastpose/ops/_native.py makes torch's OutOfMemoryError of the words "CUDA out of memory".
template <typename Allocate>
Tensor allocated(const char* op, const char* name, const Tensor& on, const std::vector<int64_t>& shape, ScalarType type,
                 const Allocate& allocate) {
  const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  int64_t bytes = bytes_of(type);
  for (const int64_t size : shape) {
    if (!empty && __builtin_mul_overflow(bytes, size, &bytes))
      fail(op, ": ", name, " would be ", spelled(type, shape), ", more bytes than 64 bits can count");
  }
  try {
    return allocate();
  } catch (const std::exception&) {
    const std::string why = last_torch_error();
    const bool out_of_memory = on.is_cuda() && (why.empty() || why.find("out of memory") != std::string::npos);
    fail(op, ": ", out_of_memory ? "CUDA out of memory: " : "", name, ", ", spelled(type, shape), ", ",
         empty ? 0 : bytes, " bytes, could not be allocated", why.empty() ? "" : ": ", why);
  }
}

inline Tensor empty_on(const char* op, const char* name, const Tensor& like, const std::vector<int64_t>& shape,
                       ScalarType type, MapLayout layout = MapLayout::kPlanar) {
  const auto format = layout == MapLayout::kChannelsLast ? torch::headeronly::MemoryFormat::ChannelsLast
                                                         : torch::headeronly::MemoryFormat::Contiguous;
  return allocated(op, name, like, shape, type, [&] {
    return torch::stable::empty(shape, type, std::nullopt, like.device(), std::nullopt, format);
  });
}

inline Tensor empty_like(const char* op, const char* name, const Tensor& like) {
  return allocated(op, name, like, shape_of(like), like.scalar_type(), [&] { return torch::stable::empty_like(like); });
}

inline Tensor contiguous(const char* op, const char* name, const Tensor& t) {
  if (t.is_contiguous()) return t;
  return allocated(op, name, t, shape_of(t), t.scalar_type(), [&] { return torch::stable::contiguous(t); });
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

inline MapStrides map_strides(const Tensor& maps) {
  return {maps.stride(0), maps.stride(1), maps.stride(2), maps.stride(3)};
}

inline VectorStrides vector_strides(const Tensor& vectors) {
  return {vectors.stride(0), vectors.stride(1), vectors.stride(2)};
}

// Weights of the joints, [B, K] through their strides, or [K] for every sample.
struct JointWeights {
  Tensor weights;
  int64_t stride_b;

  JointWeights(const char* op, const Tensor& given, const Tensor& pred, const char* name_of_pred = "pred")
      : weights(given), stride_b(given.dim() == 2 ? pred.size(1) : 0) {
    const Argument argument(op, "joint_weights", given);
    given.dim() == 2 ? argument.shape({pred.size(0), pred.size(1)}, "[B, K]")
                     : argument.shape({pred.size(1)}, "[K] or [B, K]");
    argument.type({ScalarType::Float}).on_device_of(pred, name_of_pred);
    weights = contiguous(op, "joint_weights", given);
  }
};

// mirrored[k] is the joint that k becomes in the mirrored image.
inline JointPermutation joint_permutation(const char* op, const std::vector<int64_t>& mirrored, int64_t joints) {
  if (joints > kMaxJoints) fail(op, ": at most ", kMaxJoints, " joints can be mirrored, got ", joints);
  if (static_cast<int64_t>(mirrored.size()) != joints)
    fail(op, ": mirrored must name ", joints, " joints, got ", mirrored.size());
  JointPermutation permutation{};
  for (int64_t k = 0; k < joints; ++k) {
    if (mirrored[k] < 0 || mirrored[k] >= joints)
      fail(op, ": mirrored must name joints in [0, ", joints, "), got ", mirrored[k]);
    permutation.of[k] = static_cast<int16_t>(mirrored[k]);
  }
  return permutation;
}

// Beyond 2^24 the coordinates of neighbouring pixels are equal in float32.
constexpr int64_t kMaxExtent = 1 << 24;

inline void check_map_size(const char* op, int64_t height, int64_t width) {
  if (height < 1 || width < 1 || height > kMaxExtent || width > kMaxExtent)
    fail(op, ": the maps must be at least 1 x 1 pixels and at most ", kMaxExtent, " high or wide, got (h, w) = (",
         height, ", ", width, ")");
}

// Vectors of one batch for x and y, each of at least one bin.
inline void check_vectors(const char* op, const Tensor& pred_x, const Tensor& pred_y) {
  Argument(op, "pred_x", pred_x)
      .shape({-1, -1, -1}, "[B, K, Wx]")
      .type({ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Double});
  Argument(op, "pred_y", pred_y)
      .shape({pred_x.size(0), pred_x.size(1), -1}, "[B, K, Wy]")
      .type({pred_x.scalar_type()})
      .on_device_of(pred_x, "pred_x");
  for (const auto& [name, pred] : {std::pair{"pred_x", &pred_x}, std::pair{"pred_y", &pred_y}}) {
    if (pred->size(2) < 1 || pred->size(2) > kMaxExtent)
      fail(op, ": ", name, " must have 1 to ", kMaxExtent, " bins, got ", pred->size(2));
  }
}

inline TargetSpec target_spec(const char* op, int64_t height, int64_t width, double sigma, int64_t encoding) {
  check_map_size(op, height, width);
  // 1e-30: in float32 it must still be a number to divide by.
  if (!(sigma >= 1e-30) || !is_finite(static_cast<float>(sigma)))
    fail(op, ": sigma must be a positive number of map pixels, got ", sigma);
  if (encoding < 0 || encoding > static_cast<int64_t>(Encoding::kUdp)) fail(op, ": unknown encoding ", encoding);
  return make_target_spec(sigma, static_cast<Encoding>(encoding), static_cast<int>(height), static_cast<int>(width));
}

// ---- running --------------------------------------------------------------------------------------------------------

// torch's threads. Where the tables of a thread do not fit into memory, torch's interface would only say that the call
// failed.
template <typename Body>
void parallel_for(const char* op, int64_t begin, int64_t end, int64_t grain, const Body& body) {
  std::atomic<bool> no_memory = false;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    try {
      body(first, last);
    } catch (const std::bad_alloc&) {
      no_memory = true;
    }
  });
  if (no_memory) fail(op, ": the tables of its threads could not be allocated");
}

#ifdef FASTPOSE_EMULATE_CUDA
template <typename Params>
void run_emulated(const char* op, const Params& params, cudaError_t (*run_kernels)(const Params&, cudaStream_t)) {
  if (run_kernels(params, nullptr) != cudaSuccess) fail(op, ": the emulated launch failed");
}
// The kernels run instead of the CPU function: what tests say of the CPU, they then say of the kernels. The function is
// named and not used, so that the compiler leaves it out, which halves the time that this build takes.
#define FASTPOSE_RUN(op, on, params, cpu) (static_cast<void>(sizeof(&cpu)), run_emulated(#op, params, &launch_##op))
#elif defined(FASTPOSE_WITH_CUDA)
// torch's current stream. Looked up at run time: CPU builds of libtorch lack the symbol, and one library serves both.
cudaStream_t current_cuda_stream(int32_t device_index);

template <typename Params>
void run_on_cuda(const char* op, const Tensor& on, const Params& params,
                 cudaError_t (*launch)(const Params&, cudaStream_t)) {
  const torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
  const cudaError_t error = launch(params, current_cuda_stream(on.get_device_index()));
  if (error != cudaSuccess) fail(op, ": CUDA launch failed: ", cudaGetErrorString(error));
}
// Runs the op where `on` lies: the CPU function, or the launcher on the current stream of that device.
#define FASTPOSE_RUN(op, on, params, cpu) ((on).is_cpu() ? cpu(params) : run_on_cuda(#op, on, params, &launch_##op))
#else
#define FASTPOSE_RUN(op, on, params, cpu) cpu(params)
#endif

#ifdef FASTPOSE_WITH_CUDA
#define FASTPOSE_REGISTER_CUDA(op) \
  STABLE_TORCH_LIBRARY_IMPL(fastpose, CUDA, m) { m.impl(#op, TORCH_BOX(&op)); }
#else  // the op in plain torch serves GPUs, as it does every other device
#define FASTPOSE_REGISTER_CUDA(op)
#endif

// The schema, and one function for both devices: it checks and allocates, then FASTPOSE_RUN decides.
#define FASTPOSE_REGISTER(op, schema)                                          \
  STABLE_TORCH_LIBRARY_FRAGMENT(fastpose, m) { m.def(#op schema); }            \
  STABLE_TORCH_LIBRARY_IMPL(fastpose, CPU, m) { m.impl(#op, TORCH_BOX(&op)); } \
  FASTPOSE_REGISTER_CUDA(op)                                                   \
  static_assert(true, "a semicolon follows")

}  // namespace fastpose
