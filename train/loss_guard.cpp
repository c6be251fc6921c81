#include "train/loss_guard.h"

#include <fmt/format.h>

#include <cmath>

#include "core/errors.h"

namespace cinch {

bool LossGuard::is_outlier(const std::vector<double>& seen, double value) const {
  if (options_.deviations <= 0 || static_cast<int64_t>(seen.size()) < options_.fewest) return false;
  double mean = 0, squares = 0;
  for (const double x : seen) mean += x / static_cast<double>(seen.size());
  for (const double x : seen) squares += (x - mean) * (x - mean) / static_cast<double>(seen.size());
  return value > mean + options_.deviations * std::sqrt(squares);
}

bool LossGuard::accepts(double loss, double gradient_norm) {
  const bool finite = std::isfinite(loss) && std::isfinite(gradient_norm);
  if (!finite || is_outlier(losses_, loss) || is_outlier(norms_, gradient_norm)) {
    if (++refused_ > options_.most_refused) {
      throw Error(fmt::format("{} steps in a row were refused, the last with loss {:.4g} and gradient norm {:.4g}: the "
                              "training has diverged",
                              refused_, loss, gradient_norm),
                  "go on from the last state with a lower --lr, or check the data");
    }
    return false;
  }
  refused_ = 0;
  for (auto* seen : {&losses_, &norms_}) {
    seen->push_back(seen == &losses_ ? loss : gradient_norm);
    if (static_cast<int64_t>(seen->size()) > options_.window) seen->erase(seen->begin());
  }
  return true;
}

Json LossGuard::to_json() const { return {{"losses", losses_}, {"norms", norms_}, {"refused", refused_}}; }

void LossGuard::restore(const JsonObject& state) {
  losses_ = state.numbers("losses");
  norms_ = state.numbers("norms");
  refused_ = state.integer("refused");
}

}  // namespace cinch
