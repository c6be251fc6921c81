#include "convert/layer_findings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace cinch {
namespace {

constexpr double kTimesMedian = 3, kLeastError = 0.1, kWorse = 1.1;

double value(const Json& report, const char* key) {
  const auto found = report.find(key);
  return found != report.end() && found->is_number() ? found->get<double>() : 0.0;
}

double root_mean_square(const std::vector<Json>& reports, const char* key) {
  double sum = 0;
  for (const Json& report : reports) sum += value(report, key) * value(report, key);
  return reports.empty() ? 0.0 : std::sqrt(sum / static_cast<double>(reports.size()));
}

}  // namespace

std::vector<SuspiciousLayer> suspicious_layers(const std::vector<Json>& reports) {
  std::vector<double> errors;
  for (const Json& report : reports) errors.push_back(value(report, "output_error"));
  if (errors.empty()) return {};
  std::nth_element(errors.begin(), errors.begin() + static_cast<std::ptrdiff_t>(errors.size() / 2), errors.end());
  const double median = errors[errors.size() / 2];
  std::vector<SuspiciousLayer> found;
  for (const Json& report : reports) {
    const double error = value(report, "output_error"), before = value(report, "output_error_before_refit");
    const auto layer = report.at("layer").get<int64_t>();
    if (error > kTimesMedian * median && error > kLeastError) {
      found.push_back({layer, fmt::format("its attention output is off by {:.1f} %, the median layer's by {:.1f} %",
                                          100 * error, 100 * median)});
    } else if (error > kWorse * before && error > kLeastError) {
      // The refit is judged on the converted model's inputs, and better there.
      found.push_back(
          {layer, fmt::format("on the original's inputs the W_O refit took its attention output from {:.1f} % "
                              "off to {:.1f} %: the converted layers before it have changed its inputs",
                              100 * before, 100 * error)});
    }
  }
  return found;
}

SlotPrice slot_price(const std::vector<Json>& reports) {
  const double own = root_mean_square(reports, "predicted_error_own_slots");
  return own > 0 ? SlotPrice{root_mean_square(reports, "predicted_error"), own} : SlotPrice{};
}

}  // namespace cinch
