// SPDX-License-Identifier: Apache-2.0
// Maxima as the CPU loops look for them: many values at a time.
#pragma once

#include <limits>

#include "maths/peak.h"

namespace fastpose {

// The maximum, lane by lane, which compilers vectorise without reordering anything. NaN compares false and is passed
// over; -infinity if there is nothing else.
template <typename A>
A highest_of(const A* values, int count) {
  constexpr int kLanes = 64;
  A lanes[kLanes];
  for (A& lane : lanes) lane = -std::numeric_limits<A>::infinity();
  const int whole = count - count % kLanes;
  for (int i = 0; i < whole; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane)
      lanes[lane] = values[i + lane] > lanes[lane] ? values[i + lane] : lanes[lane];
  for (int i = whole; i < count; ++i) lanes[0] = values[i] > lanes[0] ? values[i] : lanes[0];
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane)
      lanes[lane] = lanes[lane + half] > lanes[lane] ? lanes[lane + half] : lanes[lane];
  return lanes[0];
}

// The first place of a value that is there.
template <typename A>
int first_place_of(A wanted, const A* values, int count) {
  constexpr int kLanes = 64;
  int i = 0;
  for (int found = 0; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) found |= values[i + lane] == wanted;
    if (found) break;
  }
  while (values[i] != wanted) ++i;
  return i;
}

// Takes the pixels from `index` on into account, which follow on all those before.
template <typename A>
void keep_best(Peak<A>& best, const A* values, int count, int64_t index) {
  const A highest = highest_of(values, count);
  if (best.index >= 0 && !(highest > best.value)) return;
  if (highest > -std::numeric_limits<A>::infinity()) {
    const int place = first_place_of(highest, values, count);
    best = {values[place], index + place};
    return;
  }
  for (int i = 0; i < count; ++i) {  // NaN and -infinity only
    const Peak<A> candidate{values[i], index + i};
    if (is_better(candidate, best)) best = candidate;
  }
}

}  // namespace fastpose
