// SPDX-License-Identifier: Apache-2.0
// The importable module. Importing it loads the library, and that registers the ops with torch.
#include <pybind11/pybind11.h>

#include "build_info.h"
#include "cpu/simd.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native ops of fastpose; they are called through torch.ops.fastpose";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["torch"] = FASTPOSE_BUILD_TORCH;
        info["cuda"] = FASTPOSE_BUILD_CUDA;
        info["cuda_architectures"] = FASTPOSE_BUILD_ARCHITECTURES;
        info["no_cuda_reason"] = FASTPOSE_BUILD_NO_CUDA_REASON;
        info["compiler"] = FASTPOSE_BUILD_COMPILER;
        info["csrc_sha256"] = FASTPOSE_BUILD_CSRC_SHA256;
        info["simd"] = fastpose::simd_name(fastpose::simd_level());
        return info;
      },
      "What this library was built from, versions as text, empty where CUDA was left out, and a hash of csrc/; and"
      " `simd`, the level the CPU loops run at");
}
