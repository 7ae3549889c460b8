// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "maths/host_device.h"

namespace fastpose {

// The running maximum of a map or a vector: its place, y * width + x in a map, or -1 while only NaN was seen.
template <typename A>
struct Peak {
  A value;
  int64_t index;
};

// Lowest index wins a tie; NaN never wins.
template <typename A>
FASTPOSE_HOST_DEVICE bool is_better(const Peak<A>& candidate, const Peak<A>& best) {
  if (candidate.index < 0 || candidate.value != candidate.value) return false;
  if (best.index < 0) return true;
  return candidate.value > best.value || (candidate.value == best.value && candidate.index < best.index);
}

template <typename A>
FASTPOSE_HOST_DEVICE bool is_found(const Peak<A>& peak) {
  return peak.index >= 0 && peak.value > A(0);
}

}  // namespace fastpose
