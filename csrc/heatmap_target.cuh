// SPDX-License-Identifier: Apache-2.0
// How blocks hold the factors of their targets in shared memory.
#pragma once

#include "cuda_launch.cuh"
#include "heatmap_target.h"

namespace fastpose {

// Elements that `count` take so that what follows them is aligned for 16-byte accesses.
FASTPOSE_HOST_DEVICE int aligned_count(int count) { return (count + 3) / 4 * 4; }

}  // namespace fastpose
