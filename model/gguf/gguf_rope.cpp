#include "model/gguf/gguf_rope.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "attention/rope.h"
#include "core/errors.h"
#include "model/gguf/gguf_mapping.h"

namespace cinch {
namespace {

constexpr int64_t kLlama3Context = 8192;  // of every published llama3 model; GGUF does not say it

/// What llama.cpp multiplies the rotated vectors by for YaRN on its own.
double yarn_scaling(double factor) { return factor > 1 ? 1.0 + 0.1 * std::log(factor) : 1.0; }

bool close(double a, double b, double tolerance) { return std::abs(a - b) <= tolerance * std::abs(b); }

std::vector<double> read_divisors(const GgufSource& source, const std::string& name, int64_t planes) {
  const TensorData data = source.read(name);
  if (data.info.numel() != planes || data.info.dtype != Dtype::kF32) {
    throw CheckpointError(fmt::format("{}: tensor \"{}\" should hold {} F32 values, one per rotated plane",
                                      source.files().front().string(), name, planes));
  }
  std::vector<float> values(static_cast<size_t>(planes));
  std::memcpy(values.data(), data.bytes.data(), data.bytes.size());
  return {values.begin(), values.end()};
}

/// Unscaled frequencies over those of llama3 with its usual parameters and this factor.
std::vector<double> llama3_divisors(RopeSpec rope) {
  rope.type = "llama3";
  const std::vector<double> scaled = Rope(rope).inv_freq(0);
  rope.type = "default";
  std::vector<double> divisors = Rope(rope).inv_freq(0);
  for (size_t j = 0; j < divisors.size(); ++j) divisors[j] /= scaled[j];
  return divisors;
}

bool is_llama3(const std::vector<double>& divisors, double theta) {
  RopeSpec rope;
  rope.theta = theta;
  rope.rotary_dim = 2 * static_cast<int64_t>(divisors.size());
  rope.factor = divisors.back();
  rope.original_max_position_embeddings = kLlama3Context;
  if (!(rope.factor > 1)) return false;
  const std::vector<double> expected = llama3_divisors(rope);
  for (size_t j = 0; j < divisors.size(); ++j) {
    if (!close(divisors[j], expected[j], 1e-3)) return false;
  }
  return true;
}

Json divisors_to_scaling(const std::vector<double>& divisors, const Json& config) {
  if (is_llama3(divisors, config.at("rope_theta").get<double>())) {
    return {{"rope_type", "llama3"},
            {"factor", static_cast<double>(std::lround(divisors.back()))},
            {"low_freq_factor", 1.0},
            {"high_freq_factor", 4.0},
            {"original_max_position_embeddings", kLlama3Context}};
  }
  return {{"rope_type", "longrope"},
          {"factor", 1.0},
          {"attention_factor", 1.0},
          {"short_factor", divisors},
          {"long_factor", divisors}};
}

void read_longrope(const GgufSource& source, const std::string& arch, int64_t planes, Json& config) {
  const auto longest = config.at("max_position_embeddings").get<int64_t>();
  const int64_t original = source.integer(arch + ".rope.scaling.original_context_length").value_or(longest);
  Json scaling = {{"type", "longrope"},
                  {"short_factor", read_divisors(source, "rope_factors_short.weight", planes)},
                  {"long_factor", read_divisors(source, "rope_factors_long.weight", planes)}};
  config["original_max_position_embeddings"] = original;
  if (original <= 1)
    throw ConfigError(fmt::format("{}: {}.rope.scaling.original_context_length is {}", source.files().front().string(),
                                  arch, original));
  const double factor = static_cast<double>(longest) / static_cast<double>(original);
  const double derived = factor > 1 ? std::sqrt(1 + std::log(factor) / std::log(static_cast<double>(original))) : 1.0;
  const double stated = source.number(arch + ".rope.scaling.attn_factor").value_or(1.0);
  // transformers' Phi-3 takes no further key, and derives the same number.
  if (!close(stated, derived, 1e-5)) scaling["attention_factor"] = stated;
  if (arch != "phi3") {
    scaling["rope_type"] = "longrope";
    scaling.erase("type");
    scaling["factor"] = factor;
  }
  config["rope_scaling"] = std::move(scaling);
}

void read_yarn_or_linear(const GgufSource& source, const std::string& arch, const std::string& type, Json& config) {
  const double factor = source.number(arch + ".rope.scaling.factor").value_or(1.0);
  Json scaling = {{"rope_type", type}, {"factor", factor}};
  if (const auto original = source.integer(arch + ".rope.scaling.original_context_length")) {
    scaling["original_max_position_embeddings"] = *original;
  }
  if (type == "yarn") {
    if (const auto stated = source.number(arch + ".rope.scaling.attn_factor"); stated && *stated != 1.0) {
      scaling["attention_factor"] = *stated * yarn_scaling(factor);
    }
    if (const auto beta = source.number(arch + ".rope.scaling.yarn_beta_fast")) scaling["beta_fast"] = *beta;
    if (const auto beta = source.number(arch + ".rope.scaling.yarn_beta_slow")) scaling["beta_slow"] = *beta;
  }
  config["rope_scaling"] = std::move(scaling);
}

void add_yarn(const RopeSpec& rope, const std::string& prefix, GgufMetadata& metadata) {
  const auto stated = static_cast<float>(Rope(rope).attention_scaling() / yarn_scaling(rope.factor));
  if (stated != 1.0f) metadata.emplace_back(prefix + "attn_factor", GgufValue::f32(stated));
}

}  // namespace

void read_gguf_rope(const GgufSource& source, const std::string& arch, Json& config) {
  const auto head_dim = config.at("head_dim").get<int64_t>();
  const int64_t rotated = source.integer(arch + ".rope.dimension_count").value_or(head_dim);
  if (rotated <= 0 || rotated > head_dim) {
    throw ConfigError(fmt::format("{}: {}.rope.dimension_count {} is not between 1 and {}",
                                  source.files().front().string(), arch, rotated, head_dim));
  }
  if (rotated != head_dim)
    config["partial_rotary_factor"] = static_cast<double>(rotated) / static_cast<double>(head_dim);
  const std::string type = source.text(arch + ".rope.scaling.type").value_or("none");
  if (type == "linear" || type == "yarn") return read_yarn_or_linear(source, arch, type, config);
  if (source.find("rope_factors_long.weight") != nullptr) return read_longrope(source, arch, rotated / 2, config);
  if (type != "none") {
    throw UnsupportedError(fmt::format("{}: RoPE scaling \"{}\" is not known", source.files().front().string(), type));
  }
  if (source.find("rope_freqs.weight") == nullptr) return;
  config["rope_scaling"] = divisors_to_scaling(read_divisors(source, "rope_freqs.weight", rotated / 2), config);
}

std::string gguf_rope_obstacle(const ModelConfig& config) {
  const RopeSpec& rope = config.layers.front().rope;
  const std::string arch = gguf_architecture(config);
  if (rope.type == "yarn" && (rope.beta_fast != 32.0 || rope.beta_slow != 1.0 || !rope.truncate))
    return "llama.cpp knows only its own betas of YaRN";
  const bool known = rope.type == "default" || rope.type == "linear" || rope.type == "yarn" ||
                     (rope.type == "llama3" && arch == "llama") ||
                     (rope.type == "longrope" && (arch == "llama" || arch == "phi3"));
  if (known) return {};
  return fmt::format("llama.cpp does not compute rope_scaling \"{}\" for architecture {}", rope.type, arch);
}

GgufMetadata gguf_rope_metadata(const ModelConfig& config, const std::string& arch) {
  const RopeSpec& rope = config.layers.front().rope;
  GgufMetadata metadata;
  metadata.emplace_back(arch + ".rope.dimension_count", GgufValue::u32(static_cast<uint32_t>(rope.rotary_dim)));
  metadata.emplace_back(arch + ".rope.freq_base", GgufValue::f32(static_cast<float>(rope.theta)));
  const std::string prefix = arch + ".rope.scaling.";
  const auto add_original = [&] {
    const int64_t original = rope.original_max_position_embeddings > 0 ? rope.original_max_position_embeddings
                                                                       : rope.max_position_embeddings;
    metadata.emplace_back(prefix + "original_context_length", GgufValue::u32(static_cast<uint32_t>(original)));
  };
  if (rope.type == "default") return metadata;
  if (rope.type == "llama3" && arch == "llama") return metadata;  // its tensor says it
  if (rope.type == "linear" || rope.type == "yarn") {
    metadata.emplace_back(prefix + "type", GgufValue::string(rope.type));
    metadata.emplace_back(prefix + "factor", GgufValue::f32(static_cast<float>(rope.factor)));
    add_original();
    if (rope.type == "yarn") add_yarn(rope, prefix, metadata);
  } else if (rope.type == "longrope" && (arch == "llama" || arch == "phi3")) {
    metadata.emplace_back(prefix + "type", GgufValue::string("longrope"));
    add_original();
    metadata.emplace_back(prefix + "attn_factor", GgufValue::f32(static_cast<float>(Rope(rope).attention_scaling())));
  }
  return metadata;
}

std::vector<std::pair<std::string, std::vector<float>>> gguf_rope_tensors(const ModelConfig& config) {
  const RopeSpec& rope = config.layers.front().rope;
  const auto narrowed = [](const std::vector<double>& values) {
    return std::vector<float>(values.begin(), values.end());
  };
  if (rope.type == "llama3") return {{"rope_freqs.weight", narrowed(llama3_divisors(rope))}};
  if (rope.type == "longrope") {
    return {{"rope_factors_long.weight", narrowed(rope.long_factor)},
            {"rope_factors_short.weight", narrowed(rope.short_factor)}};
  }
  return {};
}

}  // namespace cinch
