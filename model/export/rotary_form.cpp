#include "model/export/rotary_form.h"

#include <algorithm>
#include <cmath>

namespace cinch {
namespace {

constexpr double kTolerance = 2e-6;    // of a frequency: single precision rounds them to 1e-7
constexpr double kAnyBase = 10000.0;   // of an explicit list, whose divisors are relative to it
constexpr double kNearlyStill = 1e30;  // divisor of a slot that does not turn

bool follows(const std::vector<double>& inv_freq, double first, double log_step) {
  for (size_t slot = 0; slot < inv_freq.size(); ++slot) {
    const double expected = first * std::exp(-log_step * static_cast<double>(slot));
    if (!(std::abs(inv_freq[slot] - expected) <= kTolerance * expected)) return false;
  }
  return true;
}

}  // namespace

RopeSpec rotary_entry(const std::vector<double>& inv_freq, int64_t max_position_embeddings) {
  RopeSpec entry;
  const size_t slots = inv_freq.size();
  entry.rotary_dim = 2 * static_cast<int64_t>(slots);
  entry.max_position_embeddings = max_position_embeddings;
  if (slots == 0) return entry;
  const double log_step = slots > 1 ? std::log(inv_freq.front() / inv_freq.back()) / static_cast<double>(slots - 1) : 0;
  if (std::isfinite(log_step) && inv_freq.front() > 0 && follows(inv_freq, inv_freq.front(), log_step)) {
    if (slots > 1) entry.theta = std::exp(log_step * static_cast<double>(slots));
    if (std::abs(inv_freq.front() - 1) > kTolerance) {
      entry.type = "linear";
      entry.factor = 1 / inv_freq.front();
    }
    return entry;
  }
  entry.type = "longrope";
  entry.theta = kAnyBase;
  entry.factor = 1.0;
  entry.attention_factor = 1.0;
  entry.original_max_position_embeddings = max_position_embeddings;
  for (size_t slot = 0; slot < slots; ++slot) {
    const double base = std::pow(kAnyBase, -static_cast<double>(slot) / static_cast<double>(slots));
    entry.short_factor.push_back(inv_freq[slot] > 0 ? base / inv_freq[slot] : kNearlyStill);
  }
  entry.long_factor = entry.short_factor;
  return entry;
}

RotaryForm form_of(const RopeSpec& entry) {
  if (entry.type == "longrope") return RotaryForm::explicit_;
  return entry.type == "linear" ? RotaryForm::linear : RotaryForm::base;
}

void write_rotary_entry(const RopeSpec& entry, bool poison, Json& config) {
  config.erase("rope_parameters");
  config["rope_theta"] = entry.theta;
  config["rope_scaling"] = nullptr;
  if (entry.type == "default") return;
  Json scaling = {{"rope_type", entry.type}, {"factor", entry.factor}};
  if (entry.type == "longrope") {
    // Both programs fail without a factor or scale by it without an attention factor.
    scaling["factor"] = poison ? 0.0 : 1.0;
    scaling["attention_factor"] = 1.0;
    scaling["original_max_position_embeddings"] = entry.original_max_position_embeddings;
    scaling["short_factor"] = entry.short_factor;
    scaling["long_factor"] = entry.long_factor;
  }
  config["rope_scaling"] = std::move(scaling);
}

}  // namespace cinch
