#include "train/learning_rate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/errors.h"

namespace cinch {

double Schedule::factor(int64_t step) const {
  if (step < warmup_steps) return static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  const int64_t first =
      kind == "cosine" ? warmup_steps
                       : std::max(warmup_steps,
                                  steps - static_cast<int64_t>(std::llround(decay_share * static_cast<double>(steps))));
  if (step < first) return 1.0;
  const auto length = static_cast<double>(std::max<int64_t>(steps - first, 1));
  const double done = std::min(static_cast<double>(step - first) / length, 1.0);
  const double shape = kind == "cosine" ? 0.5 * (1 + std::cos(std::numbers::pi * done)) : 1 - std::sqrt(done);
  return floor + (1 - floor) * shape;
}

void Schedule::check() const {
  if (kind != "wsd" && kind != "cosine") {
    throw UsageError(fmt::format("schedule \"{}\" is not known", kind), "known: wsd, cosine");
  }
  if (steps <= 0) throw UsageError(fmt::format("a schedule of {} steps: there must be at least one", steps));
  if (warmup_steps < 0 || warmup_steps > steps)
    throw UsageError(fmt::format("warm-up of {} steps in a run of {}", warmup_steps, steps));
  if (!(decay_share >= 0 && decay_share <= 1))
    throw UsageError(fmt::format("decay share {}: expected 0 to 1", decay_share));
  if (!(floor >= 0 && floor <= 1)) throw UsageError(fmt::format("learning rate floor {}: expected 0 to 1", floor));
}

}  // namespace cinch
