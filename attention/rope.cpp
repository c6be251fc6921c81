#include "attention/rope.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "attention/rotation.h"
#include "core/errors.h"

namespace cinch {
namespace {

// The reference computes frequencies in single precision; the same steps in the same precision keep long positions
// equal to it.
std::vector<double> widen(const std::vector<float>& values) { return {values.begin(), values.end()}; }

std::vector<float> default_frequencies(double theta, int64_t dim) {
  std::vector<float> result(static_cast<size_t>(dim / 2));
  for (size_t j = 0; j < result.size(); ++j) {
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(dim);
    result[j] = 1.0f / std::pow(static_cast<float>(theta), exponent);
  }
  return result;
}

std::vector<float> dynamic_frequencies(const RopeSpec& spec, int64_t length) {
  const auto dim = static_cast<double>(spec.rotary_dim);
  const auto longest = static_cast<double>(spec.max_position_embeddings);
  const double seen = std::max(static_cast<double>(length), longest);
  const double stretch = spec.factor * seen / longest - (spec.factor - 1.0);
  return default_frequencies(spec.theta * std::pow(stretch, dim / (dim - 2.0)), spec.rotary_dim);
}

std::vector<float> llama3_frequencies(const RopeSpec& spec) {
  std::vector<float> result = default_frequencies(spec.theta, spec.rotary_dim);
  const auto context = static_cast<float>(spec.original_max_position_embeddings);
  const auto low = static_cast<float>(spec.low_freq_factor), high = static_cast<float>(spec.high_freq_factor);
  const auto factor = static_cast<float>(spec.factor);
  for (float& frequency : result) {
    const float wavelength = 2.0f * std::numbers::pi_v<float> / frequency;
    if (wavelength > context / low) {
      frequency /= factor;
    } else if (!(wavelength < context / high)) {
      const float smooth = (context / wavelength - low) / (high - low);
      frequency = (1.0f - smooth) * frequency / factor + smooth * frequency;
    }
  }
  return result;
}

/// Plane (fractional) that turns `rotations` times within `context` tokens.
double yarn_plane(double rotations, const RopeSpec& spec, double context) {
  return static_cast<double>(spec.rotary_dim) * std::log(context / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(spec.theta));
}

std::vector<float> yarn_frequencies(const RopeSpec& spec) {
  const auto context = static_cast<double>(
      spec.original_max_position_embeddings > 0 ? spec.original_max_position_embeddings : spec.max_position_embeddings);
  double low = yarn_plane(spec.beta_fast, spec, context), high = yarn_plane(spec.beta_slow, spec, context);
  if (spec.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(spec.rotary_dim - 1));
  if (low == high) high += 0.001;  // the reference's guard against a division by zero
  std::vector<float> result(static_cast<size_t>(spec.rotary_dim / 2));
  for (size_t j = 0; j < result.size(); ++j) {
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(spec.rotary_dim);
    const float power = std::pow(static_cast<float>(spec.theta), exponent);
    const float ramp =
        std::clamp((static_cast<float>(j) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f, 1.0f);
    const float kept = 1.0f - ramp;
    result[j] = 1.0f / (static_cast<float>(spec.factor) * power) * (1.0f - kept) + 1.0f / power * kept;
  }
  return result;
}

std::vector<float> longrope_frequencies(const RopeSpec& spec, const std::vector<double>& factors) {
  std::vector<float> result(static_cast<size_t>(spec.rotary_dim / 2));
  for (size_t j = 0; j < result.size(); ++j) {
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(spec.rotary_dim);
    result[j] = 1.0f / (static_cast<float>(factors[j]) * std::pow(static_cast<float>(spec.theta), exponent));
  }
  return result;
}

int64_t longrope_limit(const RopeSpec& spec) {
  return spec.original_max_position_embeddings > 0 ? spec.original_max_position_embeddings
                                                   : spec.max_position_embeddings;
}

double yarn_mscale(double factor, double mscale) { return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

double yarn_scaling(const RopeSpec& spec) {
  if (spec.mscale.value_or(0) != 0 && spec.mscale_all_dim.value_or(0) != 0) {
    return yarn_mscale(spec.factor, *spec.mscale) / yarn_mscale(spec.factor, *spec.mscale_all_dim);
  }
  return yarn_mscale(spec.factor, 1.0);
}

double longrope_scaling(const RopeSpec& spec) {
  if (spec.factor <= 1.0) return 1.0;
  return std::sqrt(1.0 + std::log(spec.factor) / std::log(static_cast<double>(longrope_limit(spec))));
}

void require(bool holds, const RopeSpec& spec, const std::string& rule) {
  if (!holds) throw ConfigError(fmt::format("rope_scaling of type \"{}\": {}", spec.type, rule));
}

void check_longrope(const RopeSpec& spec) {
  const auto planes = static_cast<size_t>(spec.rotary_dim / 2);
  require(spec.short_factor.size() == planes && spec.long_factor.size() == planes, spec,
          fmt::format("short_factor and long_factor need rotary_dim/2 = {} numbers each, found {} and {}", planes,
                      spec.short_factor.size(), spec.long_factor.size()));
  const auto positive = [](double value) { return std::isfinite(value) && value > 0; };
  require(std::all_of(spec.short_factor.begin(), spec.short_factor.end(), positive) &&
              std::all_of(spec.long_factor.begin(), spec.long_factor.end(), positive),
          spec, "short_factor and long_factor must be positive");
}

void check(const RopeSpec& spec) {
  static const std::vector<std::string> known = {"default", "linear", "dynamic", "yarn", "llama3", "longrope"};
  if (std::find(known.begin(), known.end(), spec.type) == known.end()) {
    throw UnsupportedError(fmt::format("rope_scaling: type \"{}\" is not known", spec.type),
                           fmt::format("known: {}", fmt::join(known, ", ")));
  }
  require(spec.rotary_dim > 0 && spec.rotary_dim % 2 == 0, spec,
          fmt::format("the rotated width {} is not a positive even number", spec.rotary_dim));
  require(std::isfinite(spec.theta) && spec.theta > 0, spec, fmt::format("theta {} is not positive", spec.theta));
  require(spec.max_position_embeddings > 0, spec,
          fmt::format("max_position_embeddings {} is not positive", spec.max_position_embeddings));
  // longrope with an explicit attention factor never uses its factor, and folders for other runtimes set it to 0 on
  // purpose.
  require(std::isfinite(spec.factor) && (spec.factor > 0 || spec.type == "longrope"), spec,
          fmt::format("factor {} is not positive", spec.factor));
  if (spec.type == "dynamic") require(spec.rotary_dim > 2, spec, "the rotated width must be more than 2");
  if (spec.type == "yarn") require(spec.theta != 1.0, spec, "theta must not be 1");
  if (spec.type == "longrope") check_longrope(spec);
  if (spec.type == "llama3") {
    require(spec.original_max_position_embeddings > 0, spec, "original_max_position_embeddings is missing");
    require(spec.low_freq_factor > 0 && spec.high_freq_factor > spec.low_freq_factor, spec,
            fmt::format("high_freq_factor {} must be more than low_freq_factor {} > 0", spec.high_freq_factor,
                        spec.low_freq_factor));
  }
}

std::vector<double> short_frequencies(const RopeSpec& spec) {
  if (spec.type == "llama3") return widen(llama3_frequencies(spec));
  if (spec.type == "yarn") return widen(yarn_frequencies(spec));
  if (spec.type == "longrope") return widen(longrope_frequencies(spec, spec.short_factor));
  std::vector<float> result = default_frequencies(spec.theta, spec.rotary_dim);
  if (spec.type == "linear") {
    for (float& frequency : result) frequency /= static_cast<float>(spec.factor);
  }
  return widen(result);
}

at::Tensor rotate_halves(const at::Tensor& x, const RotaryTable& table) {
  const int64_t planes = table.cos.size(-1), width = x.size(-1);
  at::Tensor result = at::empty_like(x);
  const auto first = x.narrow(-1, 0, planes), second = x.narrow(-1, planes, planes);
  at::Tensor turned = result.narrow(-1, 0, planes);
  at::mul_out(turned, first, table.cos);
  turned.addcmul_(second, table.sin, -1);
  turned = result.narrow(-1, planes, planes);
  at::mul_out(turned, second, table.cos);
  turned.addcmul_(first, table.sin);
  if (width > 2 * planes)
    result.narrow(-1, 2 * planes, width - 2 * planes).copy_(x.narrow(-1, 2 * planes, width - 2 * planes));
  return result;
}

/// Positions of a table.
struct Span {
  int64_t first, count;
};

RotaryTable scaled_table(const std::vector<double>& inv_freq, double scaling, Span span, at::ScalarType dtype,
                         at::Device device) {
  const at::ScalarType work = dtype == at::kDouble ? at::kDouble : at::kFloat;
  // Made on the device: a copy from the host would wait for what it computes.
  const auto options = at::TensorOptions(work).device(device);
  const auto planes =
      at::tensor(at::ArrayRef<double>(inv_freq), at::kDouble).to(work).to(device, /*non_blocking=*/true);
  const auto positions = at::arange(span.first, span.first + span.count, options);
  const auto angles = at::outer(positions, planes);  // (count, planes)
  at::Tensor cos = angles.cos(), sin = angles.sin();
  if (scaling != 1.0) {
    cos.mul_(scaling);
    sin.mul_(scaling);
  }
  return {cos.to(dtype), sin.to(dtype)};
}

}  // namespace

RotaryTable rotary_table(const std::vector<double>& inv_freq, int64_t first, int64_t count, at::ScalarType dtype,
                         at::Device device) {
  return scaled_table(inv_freq, 1.0, {first, count}, dtype, device);
}

Rope::Rope(const RopeSpec& spec) : spec_(spec) {
  check(spec_);
  short_inv_freq_ = short_frequencies(spec_);
  if (spec_.type == "longrope") long_inv_freq_ = widen(longrope_frequencies(spec_, spec_.long_factor));
}

std::vector<double> Rope::inv_freq(int64_t length) const {
  if (spec_.type == "longrope" && length > longrope_limit(spec_)) return long_inv_freq_;
  if (spec_.type == "dynamic" && length > spec_.max_position_embeddings)
    return widen(dynamic_frequencies(spec_, length));
  return short_inv_freq_;
}

double Rope::attention_scaling() const {
  if (spec_.type != "yarn" && spec_.type != "longrope") return 1.0;
  if (spec_.attention_factor) return *spec_.attention_factor;
  return spec_.type == "yarn" ? yarn_scaling(spec_) : longrope_scaling(spec_);
}

Rope::Table Rope::table(int64_t first, int64_t count, int64_t length, at::ScalarType dtype, at::Device device) const {
  return scaled_table(inv_freq(length), attention_scaling(), {first, count}, dtype, device);
}

at::Tensor Rope::apply(const at::Tensor& x, const Table& table) { return rotated(x, table, &rotate_halves); }

}  // namespace cinch
