// What is reported of repeated times.
#pragma once

#include <vector>

namespace cinch {

/// The value below which the share `q` (0 to 1) of the values lies, interpolated between neighbours (numpy's default
/// rule). Throws std::invalid_argument on no value and on q outside of [0, 1].
double percentile(std::vector<double> values, double q);

inline double median(std::vector<double> values) { return percentile(std::move(values), 0.5); }

}  // namespace cinch
