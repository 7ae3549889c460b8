// SPDX-License-Identifier: Apache-2.0
// Included before all else when csrc/ops/*.cu are compiled as C++ against tests/cuda_emulation: their launchers then
// record what they would launch, for bench/launches.py, and run nothing.
#pragma once

#define cudaLaunchKernelEx emulated_launch
#include <cuda_runtime.h>
#undef cudaLaunchKernelEx

struct RecordedLaunch {
  void* kernel;  // the symbol table has its name
  size_t blocks, threads, shared_bytes, parameter_bytes;
  unsigned char parameters[4096];  // a kernel takes no more
};

extern "C" {
inline RecordedLaunch recorded_launches[8];
inline size_t recorded_count = 0;
}

template <typename Params>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params), const Params& params) {
  if (recorded_count == 8) return cudaErrorInvalidConfiguration;
  RecordedLaunch& launch = recorded_launches[recorded_count++];
  static_assert(sizeof(Params) <= sizeof(launch.parameters));
  launch.kernel = reinterpret_cast<void*>(kernel);
  launch.blocks = config->gridDim.x;
  launch.threads = config->blockDim.x;
  launch.shared_bytes = config->dynamicSmemBytes;
  launch.parameter_bytes = sizeof(Params);
  std::memcpy(launch.parameters, &params, sizeof(Params));
  return cudaSuccess;
}
