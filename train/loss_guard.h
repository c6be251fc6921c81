// Refuses steps whose loss or gradient is far outside of what the last steps had. No torch.
#pragma once

#include <cstdint>
#include <vector>

#include "core/json.h"

namespace cinch {

class LossGuard {
 public:
  struct Options {
    double deviations = 6;      // standard deviations above the mean that are too much; 0: only numbers that are none
    int64_t window = 128;       // steps that are remembered
    int64_t fewest = 32;        // of them before anything is too much
    int64_t most_refused = 10;  // in a row
  };
  explicit LossGuard(const Options& options) : options_(options) {}

  /// Whether a step is to be taken. Throws Error when too many in a row were refused: the run has diverged.
  bool accepts(double loss, double gradient_norm);

  Json to_json() const;
  void restore(const JsonObject& state);

 private:
  bool is_outlier(const std::vector<double>& seen, double value) const;

  Options options_;
  std::vector<double> losses_, norms_;  // oldest first
  int64_t refused_ = 0;                 // in a row
};

}  // namespace cinch
