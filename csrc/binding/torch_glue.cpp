// SPDX-License-Identifier: Apache-2.0
#include "binding/torch_glue.h"

#include <dlfcn.h>

namespace fastpose {

const char* last_torch_error() {
  // Looked up at run time: the library serves torches that do not have it.
  using Getter = const char* (*)();
  static const auto getter =
      reinterpret_cast<Getter>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  return getter == nullptr ? "" : getter();
}

#ifdef FASTPOSE_WITH_CUDA

cudaStream_t current_cuda_stream(int32_t device_index) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    // torch has loaded its CUDA library by now, or there would be no CUDA tensor; NOLOAD only finds it again.
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr ? nullptr
                              : reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  void* stream = nullptr;
  if (getter == nullptr || getter(device_index, &stream) != 0)
    fail("fastpose: torch did not return its current CUDA stream (libtorch_cuda.so is not loaded, or too old)");
  return static_cast<cudaStream_t>(stream);
}
#endif

}  // namespace fastpose
