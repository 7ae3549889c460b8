// SPDX-License-Identifier: Apache-2.0
#include "binding/torch_glue.h"

#ifdef FASTPOSE_WITH_CUDA
#include <dlfcn.h>

namespace fastpose {

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

}  // namespace fastpose
#endif
