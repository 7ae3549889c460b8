// SPDX-License-Identifier: Apache-2.0
// The factors of targets as the CPU loops want them: many at a time.
#pragma once

#include <cstdlib>
#include <vector>

#include "maths/heatmap_target.h"

namespace fastpose {

// target_factor for runs of pixels, the same bits. msra centres on a pixel, so its factors depend on a whole number of
// pixels alone: a few exponentials per call instead of some per map.
template <typename A>
class TargetFactors {
 public:
  explicit TargetFactors(const TargetSpec& spec) : spec_(spec) {
    // Float32 holds the difference of two pixels exactly only below 2^24; a wider window costs more than it saves.
    const bool few = spec.radius < 512 && spec.height < 1 << 23 && spec.width < 1 << 23;
    if (spec.encoding != Encoding::kMsra || !few) return;
    for (int i = 0; i <= static_cast<int>(spec.radius); ++i)
      by_distance_.push_back(target_factor<A>(spec, i, 0.0f, 0, i + 1));
  }

  // factors[i] for i in [begin, end), the window of a target around `center`.
  void fill(float center, int begin, int end, A* factors) const {
    if (by_distance_.empty()) {
      for (int i = begin; i < end; ++i) factors[i] = target_factor<A>(spec_, i, center, begin, end);
    } else {
      for (int i = begin; i < end; ++i) factors[i] = by_distance_[std::abs(i - static_cast<int>(center))];
    }
  }

 private:
  TargetSpec spec_;
  std::vector<A> by_distance_;
};

}  // namespace fastpose
