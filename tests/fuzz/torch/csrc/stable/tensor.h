// SPDX-License-Identifier: Apache-2.0
// As much of torch's stable interface as csrc/ uses, without torch: a tensor is a heap block of exactly the bytes that
// its sizes and strides reach, so that AddressSanitizer sees the first byte read or written beyond. A call costs about
// a microsecond. What is header-only in torch (its types of numbers) is torch's own.
#pragma once

#include <torch/headeronly/core/Layout.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <any>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace torch::stable {

struct Device {};

inline int64_t element_size_of(headeronly::ScalarType type) {
  using headeronly::ScalarType;
  switch (type) {
    case ScalarType::Byte:
    case ScalarType::Bool:
      return 1;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    default:
      return 4;
  }
}

// Every allocation of an op counts down; the one that reaches 0 fails, as do those of more bytes than a test should
// take.
inline int allocations_until_failure = -1;

class Tensor {
 public:
  Tensor() = default;
  Tensor(std::vector<int64_t> sizes, std::vector<int64_t> strides, headeronly::ScalarType type, int64_t offset = 0)
      : sizes_(std::move(sizes)), strides_(std::move(strides)), offset_(offset), type_(type) {
    int64_t last = offset_;
    for (size_t d = 0; d < sizes_.size(); ++d) last += (sizes_[d] - 1) * strides_[d];
    const size_t bytes = numel() == 0 ? 0 : static_cast<size_t>((last + 1) * element_size());
    if (bytes > 0) storage_ = std::shared_ptr<void>(std::malloc(bytes), std::free);
    bytes_ = bytes;
  }

  int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
  int64_t size(int64_t d) const { return sizes_.at(d); }
  int64_t stride(int64_t d) const { return strides_.at(d); }
  const std::vector<int64_t>& sizes() const { return sizes_; }
  const std::vector<int64_t>& strides() const { return strides_; }
  int64_t numel() const {
    int64_t count = 1;
    for (const int64_t size : sizes_) count *= size;
    return count;
  }
  bool is_contiguous() const {
    int64_t expected = 1;
    for (size_t d = sizes_.size(); d-- > 0;) {
      if (sizes_[d] != 1 && strides_[d] != expected && numel() > 0) return false;
      expected *= sizes_[d];
    }
    return true;
  }
  headeronly::ScalarType scalar_type() const { return type_; }
  int64_t element_size() const { return element_size_of(type_); }
  bool is_cpu() const { return true; }
  bool is_cuda() const { return false; }
  int32_t get_device_index() const { return -1; }
  Device device() const { return {}; }
  const void* const_data_ptr() const { return mutable_data_ptr(); }
  void* mutable_data_ptr() const {
    return storage_ ? static_cast<uint8_t*>(storage_.get()) + offset_ * element_size() : nullptr;
  }
  // All bytes, those before the first element and between the rows included.
  uint8_t* storage() const { return static_cast<uint8_t*>(storage_.get()); }
  size_t storage_bytes() const { return bytes_; }
  const void* at(int64_t i) const {  // the i-th element in the order of the indices
    int64_t place = 0;
    for (size_t d = sizes_.size(); d-- > 0; i /= sizes_[d]) place += i % sizes_[d] * strides_[d];
    return static_cast<uint8_t*>(mutable_data_ptr()) + place * element_size();
  }

 private:
  std::vector<int64_t> sizes_, strides_;
  int64_t offset_ = 0;
  headeronly::ScalarType type_ = headeronly::ScalarType::Float;
  std::shared_ptr<void> storage_;
  size_t bytes_ = 0;
};

inline std::vector<int64_t> strides_of(const std::vector<int64_t>& sizes, bool channels_last = false) {
  std::vector<int64_t> strides(sizes.size());
  std::vector<size_t> order(sizes.size());  // from the innermost dimension
  for (size_t d = 0; d < order.size(); ++d) order[d] = order.size() - 1 - d;
  if (channels_last) order = {1, 3, 2, 0};
  int64_t stride = 1;
  for (const size_t d : order) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  return strides;
}

inline Tensor allocate(const std::vector<int64_t>& sizes, headeronly::ScalarType type, bool channels_last) {
  int64_t bytes = element_size_of(type);
  for (const int64_t size : sizes) {
    if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes)) throw std::runtime_error("empty API call failed");
  }
  if (bytes > 1 << 26 || --allocations_until_failure == 0) throw std::runtime_error("empty API call failed");
  Tensor out(sizes, strides_of(sizes, channels_last), type);
  for (size_t i = 0; i < out.storage_bytes(); ++i) out.storage()[i] = 0xa5;  // no result that nobody wrote looks right
  return out;
}

inline Tensor empty(const std::vector<int64_t>& sizes, std::optional<headeronly::ScalarType> type,
                    std::optional<headeronly::Layout>, std::optional<Device>, std::optional<bool>,
                    std::optional<headeronly::MemoryFormat> format) {
  return allocate(sizes, *type, format == headeronly::MemoryFormat::ChannelsLast);
}

// The strides of a tensor without gaps and overlaps, else row by row, as torch's preserve_format.
inline Tensor empty_like(const Tensor& like) {
  const bool channels_last = like.dim() == 4 && like.strides() == strides_of(like.sizes(), true);
  return allocate(like.sizes(), like.scalar_type(), channels_last);
}

inline Tensor contiguous(const Tensor& t) {
  if (t.is_contiguous()) return t;
  Tensor out = allocate(t.sizes(), t.scalar_type(), false);
  for (int64_t i = 0; i < t.numel(); ++i) {
    const auto* from = static_cast<const uint8_t*>(t.at(i));
    for (int64_t byte = 0; byte < t.element_size(); ++byte) out.storage()[i * t.element_size() + byte] = from[byte];
  }
  return out;
}

// Two parts, as two threads would take them: a loop that leaves something behind for its next part is noticed.
template <typename Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  if (end - begin > grain) {
    const int64_t middle = begin + (end - begin) / 2;
    body(middle, end);
    body(begin, middle);
  } else if (begin < end) {
    body(begin, end);
  }
}

// The ops by name, as functions of their C++ types.
inline std::map<std::string, std::any>& registered() {
  static std::map<std::string, std::any> ops;
  return ops;
}

struct Library {
  void def(const char*) const {}
  void impl(const char* name, std::any function) const { registered()[name] = std::move(function); }
};

struct Registration {
  explicit Registration(void (*run)(const Library&)) { run({}); }
};

}  // namespace torch::stable

#define TORCH_BOX(function) std::any(function)
#define FASTPOSE_FUZZ_UNIQUE(m, number)                                   \
  static void run_##number(const torch::stable::Library& m);              \
  static const torch::stable::Registration run_##number##_(run_##number); \
  static void run_##number(const torch::stable::Library& m)
#define FASTPOSE_FUZZ_REGISTER(m, number) FASTPOSE_FUZZ_UNIQUE(m, number)
#define STABLE_TORCH_LIBRARY_FRAGMENT(ns, m) FASTPOSE_FUZZ_REGISTER(m, __COUNTER__)
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) FASTPOSE_FUZZ_REGISTER(m, __COUNTER__)
