// Learning rates over the steps of a run. No torch.
#pragma once

#include <cstdint>
#include <string>

namespace cinch {

struct Schedule {
  /// wsd: warm-up, stable, then a decay by 1 - sqrt (Haegele et al., arXiv 2405.18392); cosine: warm-up, then half a
  /// cosine.
  std::string kind = "wsd";
  int64_t steps = 0;  // of the whole run
  int64_t warmup_steps = 0;
  double decay_share = 0.2;  // wsd: last part of the steps
  double floor = 0.0;        // share of the peak that the end has

  /// Share of the peak rate in step 0 .. steps - 1; the floor beyond. Warm-up starts at 1 / warmup_steps, never 0.
  double factor(int64_t step) const;
  /// Throws UsageError on an unknown kind or impossible numbers.
  void check() const;
};

}  // namespace cinch
