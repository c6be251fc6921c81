#include "eval/bench/statistics.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace cinch {

double percentile(std::vector<double> values, double q) {
  if (values.empty() || !(q >= 0 && q <= 1)) throw std::invalid_argument("percentile of no values, or beyond 0 to 1");
  std::sort(values.begin(), values.end());
  const double place = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(std::floor(place));
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (place - std::floor(place)) * (values[high] - values[low]);
}

}  // namespace cinch
