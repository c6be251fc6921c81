#include "model/mixed_layers.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/errors.h"
#include "model/model_family.h"

namespace cinch {
namespace {

constexpr const char* kNativeType = "cinch";  // a model_type that no other program takes for its own

bool same_sizes(const AttentionSpec& a, const AttentionSpec& b) {
  return a.kind == b.kind && a.n_kv_heads == b.n_kv_heads && a.kv_lora_rank == b.kv_lora_rank &&
         a.qk_nope_head_dim == b.qk_nope_head_dim && a.qk_rope_head_dim == b.qk_rope_head_dim &&
         a.v_head_dim == b.v_head_dim && a.rope_inv_freq == b.rope_inv_freq && a.qkv_bias == b.qkv_bias &&
         a.output_bias == b.output_bias;
}

/// The frequencies of all latent layers when they are the same, else nothing.
const std::vector<double>* shared_frequencies(const ModelConfig& config) {
  const std::vector<double>* shared = nullptr;
  for (const AttentionSpec& spec : config.layers) {
    if (spec.kind != AttentionKind::latent) continue;
    if (shared != nullptr && *shared != spec.rope_inv_freq) return nullptr;
    shared = &spec.rope_inv_freq;
  }
  return shared;
}

Json layer_entry(const AttentionSpec& spec, bool with_frequencies) {
  Json entry = {{"kind", kind_name(spec.kind)}, {"num_key_value_heads", spec.n_kv_heads}};
  if (spec.kind == AttentionKind::grouped_query) return entry;
  entry["kv_lora_rank"] = spec.kv_lora_rank;
  entry["qk_nope_head_dim"] = spec.qk_nope_head_dim;
  entry["qk_rope_head_dim"] = spec.qk_rope_head_dim;
  entry["v_head_dim"] = spec.v_head_dim;
  if (with_frequencies) entry["rope_inv_freq"] = spec.rope_inv_freq;
  entry["key_scale_tail"] = spec.key_scale_tail;
  entry["qkv_bias"] = spec.qkv_bias;
  entry["output_bias"] = spec.output_bias;
  return entry;
}

/// From the layer, or from what all layers share.
std::vector<double> read_frequencies(const JsonObject& entry, const JsonObject& shared, int64_t rotary) {
  const JsonObject& holder = entry.has("rope_inv_freq") || !shared.has("rope_inv_freq") ? entry : shared;
  if (rotary == 0 && !entry.has("rope_inv_freq")) return {};
  const std::vector<double> values = holder.numbers("rope_inv_freq");
  const std::string where = holder.where("rope_inv_freq");
  if (2 * static_cast<int64_t>(values.size()) != rotary) {
    throw ConfigError(fmt::format("{}: {} frequencies, but {} is {}, which needs {}", where, values.size(),
                                  entry.where("qk_rope_head_dim"), rotary, rotary / 2));
  }
  for (size_t slot = 0; slot < values.size(); ++slot) {
    if (!std::isfinite(values[slot]) || values[slot] < 0)
      throw ConfigError(fmt::format("{}[{}]: {} is not a finite number of at least 0", where, slot, values[slot]));
  }
  return values;
}

void check_keys(const JsonObject& entry, AttentionKind kind) {
  static const std::vector<std::string> grouped = {"kind", "num_key_value_heads"};
  static const std::vector<std::string> latent = {
      "kind",       "num_key_value_heads", "kv_lora_rank",   "qk_nope_head_dim", "qk_rope_head_dim",
      "v_head_dim", "rope_inv_freq",       "key_scale_tail", "qkv_bias",         "output_bias"};
  const std::vector<std::string>& known = kind == AttentionKind::latent ? latent : grouped;
  for (const auto& [key, value] : entry.json().items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    const std::string near = nearest_word(key, known);
    throw ConfigError(fmt::format("{}: a {} layer has no such key{}", entry.where(key), kind_name(kind),
                                  near.empty() ? "" : fmt::format(" (the nearest is \"{}\")", near)));
  }
}

AttentionKind read_kind(const JsonObject& entry) {
  const std::string name = entry.string_or("kind", kind_name(AttentionKind::grouped_query));
  for (const AttentionKind kind : {AttentionKind::grouped_query, AttentionKind::latent}) {
    if (name == kind_name(kind)) return kind;
  }
  throw ConfigError(fmt::format("{}: \"{}\" is not a kind of attention", entry.where("kind"), name),
                    "known: grouped_query, latent");
}

/// `spec` is what the family's stock class says of the layer.
void read_latent_sizes(const JsonObject& entry, const JsonObject& shared, AttentionSpec& spec) {
  spec.kv_lora_rank = entry.size("kv_lora_rank", 1);
  spec.qk_nope_head_dim = entry.size("qk_nope_head_dim", 0);
  spec.qk_rope_head_dim = entry.size("qk_rope_head_dim", 0);
  spec.v_head_dim = entry.size("v_head_dim", 1);
  if (spec.qk_rope_head_dim % 2 != 0) {
    throw ConfigError(fmt::format("{}: {} is odd; rotated numbers come in pairs", entry.where("qk_rope_head_dim"),
                                  spec.qk_rope_head_dim));
  }
  if (spec.qk_nope_head_dim + spec.qk_rope_head_dim == 0) {
    throw ConfigError(fmt::format("{}: 0, and {} is 0 too: a query head needs at least one number",
                                  entry.where("qk_nope_head_dim"), entry.where("qk_rope_head_dim")));
  }
  spec.rope_inv_freq = read_frequencies(entry, shared, spec.qk_rope_head_dim);
  spec.key_scale_tail = entry.boolean_or("key_scale_tail", false);
  if (spec.key_scale_tail != spec.qk_norm) {
    throw ConfigError(fmt::format("{}: {}, but this family {}", entry.where("key_scale_tail"), spec.key_scale_tail,
                                  spec.qk_norm ? "normalises keys, whose scales the cache must hold"
                                               : "does not normalise keys: there are no scales to cache"));
  }
  if (spec.qk_norm && spec.qk_nope_head_dim != spec.head_dim) {
    throw ConfigError(
        fmt::format("{}: {}, but queries of this family are normalised over their {} numbers, all of which "
                    "must be there",
                    entry.where("qk_nope_head_dim"), spec.qk_nope_head_dim, spec.head_dim));
  }
  spec.qkv_bias = entry.boolean_or("qkv_bias", spec.qkv_bias);
  spec.output_bias = entry.boolean_or("output_bias", spec.output_bias);
}

void read_layer(const JsonObject& entry, const JsonObject& shared, AttentionSpec& spec) {
  spec.kind = read_kind(entry);
  check_keys(entry, spec.kind);
  const int64_t heads = entry.integer("num_key_value_heads");
  if (heads <= 0 || spec.n_heads % heads != 0)
    throw ConfigError(
        fmt::format("{}: {} does not divide {} query heads", entry.where("num_key_value_heads"), heads, spec.n_heads));
  spec.n_kv_heads = heads;
  if (spec.kind == AttentionKind::latent) read_latent_sizes(entry, shared, spec);
}

}  // namespace

bool has_latent_layers(const ModelConfig& config) {
  return std::any_of(config.layers.begin(), config.layers.end(),
                     [](const AttentionSpec& spec) { return spec.kind == AttentionKind::latent; });
}

bool layers_differ(const ModelConfig& config) {
  return std::any_of(config.layers.begin(), config.layers.end(),
                     [&](const AttentionSpec& spec) { return !same_sizes(spec, config.layers.front()); });
}

std::string native_reason(const ModelConfig& config) {
  const AttentionKind stock = model_family(config.family).attention_kind();
  if (has_latent_layers(config) && stock != AttentionKind::latent) return "its attention is latent";
  return layers_differ(config) ? "its layers have different KV heads" : "";
}

void write_layer_list(const ModelConfig& config, Json& json) {
  json.erase("cinch");
  if (native_reason(config).empty()) return;
  const std::vector<double>* shared = shared_frequencies(config);
  Json native = {{"model_type", json.at("model_type")}};
  if (shared != nullptr) native["rope_inv_freq"] = *shared;
  native["layers"] = Json::array();
  for (const AttentionSpec& spec : config.layers) native["layers"].push_back(layer_entry(spec, shared == nullptr));
  // Under the stock names other programs would load what they can and fill the rest with random numbers.
  json["model_type"] = kNativeType;
  json["architectures"] = Json::array({"CinchForCausalLM"});
  json["cinch"] = std::move(native);
}

JsonObject stock_config(const JsonObject& json) {
  if (json.string("model_type") != kNativeType) return json;
  Json stock = json.json();
  stock["model_type"] = json.object("cinch").string("model_type");
  return {std::move(stock), json.origin()};
}

void read_layer_list(const JsonObject& json, ModelConfig& config) {
  const auto native = json.object_if("cinch");
  if (!native || !native->has("layers")) return;
  const std::vector<JsonObject> list = native->objects("layers");
  if (list.size() != config.layers.size())
    throw ConfigError(
        fmt::format("{}: {} entries for {} layers", native->where("layers"), list.size(), config.layers.size()));
  for (size_t layer = 0; layer < list.size(); ++layer) read_layer(list[layer], *native, config.layers[layer]);
}

}  // namespace cinch
