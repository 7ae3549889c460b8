// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "maths/host_device.h"

namespace fastpose {

// Whole-body skeletons have 133 joints. The table travels to the GPU in the kernel's parameters (4 KiB at most), so a
// launch needs no copy and no synchronisation.
constexpr int kMaxJoints = 512;

// Row `of[k]` of the mirrored person is joint k: left and right swapped, the others themselves.
struct JointPermutation {
  int16_t of[kMaxJoints];
};

}  // namespace fastpose
