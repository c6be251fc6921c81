#include "model/families/standard_family.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "attention/rope.h"
#include "core/errors.h"
#include "model/families/latent_tensors.h"

namespace cinch {
namespace {

constexpr int64_t kMostLayers = 100000;

void require_divides(const JsonObject& config, const char* what, int64_t whole, int64_t part) {
  if (whole % part != 0)
    throw ConfigError(
        fmt::format("{}: {} query heads cannot share {} KV heads evenly", config.where(what), whole, part));
}

std::string dtype_key(const JsonObject& config) {
  return config.string_or("torch_dtype", config.string_or("dtype", "float32"));
}

Activation parse_activation(const JsonObject& config, const FamilyDefaults& standard) {
  const std::string name = config.string_or(standard.activation_key, standard.activation);
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::gelu_tanh;
  if (name == "gelu") return Activation::gelu;
  throw UnsupportedError(
      fmt::format("{}: activation \"{}\" is not known", config.where(standard.activation_key), name));
}

/// Heads and rotary embedding; `config` holds the sizes of the trunk.
AttentionSpec parse_attention(const JsonObject& json, const ModelConfig& config, const FamilyDefaults& standard) {
  AttentionSpec spec;
  spec.hidden_size = config.hidden_size;
  spec.n_heads = json.size("num_attention_heads");
  const bool kv_default = !json.json().contains("num_key_value_heads") && standard.n_kv_heads > 0;
  spec.n_kv_heads = json.has("num_key_value_heads") ? json.size("num_key_value_heads")
                    : kv_default                    ? standard.n_kv_heads
                                                    : spec.n_heads;
  require_divides(json, "num_key_value_heads", spec.n_heads, spec.n_kv_heads);
  if (json.has("head_dim")) {
    spec.head_dim = json.size("head_dim");
  } else if (standard.head_dim > 0) {
    spec.head_dim = standard.head_dim;
  } else if (config.hidden_size % spec.n_heads == 0) {
    spec.head_dim = config.hidden_size / spec.n_heads;
  } else {
    throw ConfigError(fmt::format("{}: {} is not a multiple of {} heads and there is no head_dim",
                                  json.where("hidden_size"), config.hidden_size, spec.n_heads));
  }
  spec.scale = 1.0 / std::sqrt(static_cast<double>(spec.head_dim));
  const double rotated = json.number_or("partial_rotary_factor", 1.0);
  if (!(rotated > 0 && rotated <= 1) || (rotated != 1.0 && !standard.partial_rotary)) {
    throw UnsupportedError(
        fmt::format("{}: {} is not supported by this family", json.where("partial_rotary_factor"), rotated));
  }
  spec.rope = parse_rope(json, static_cast<int64_t>(static_cast<double>(spec.head_dim) * rotated),
                         config.max_position_embeddings);
  return spec;
}

}  // namespace

std::string layer_prefix(int64_t layer) { return fmt::format("model.layers.{}.", layer); }

int64_t parse_window(const JsonObject& config, int64_t class_default) {
  const int64_t window =
      config.json().contains("sliding_window") ? config.integer_or("sliding_window", 0) : class_default;
  if (window < 0) throw ConfigError(fmt::format("{}: {} is negative", config.where("sliding_window"), window));
  return window;
}

std::optional<std::vector<bool>> parse_sliding_layers(const JsonObject& config, int64_t n_layers) {
  if (!config.has("layer_types")) return std::nullopt;
  std::vector<bool> slides;
  for (const std::string& type : config.strings("layer_types")) {
    if (type != "sliding_attention" && type != "full_attention") {
      throw UnsupportedError(
          fmt::format("{}: layers of type \"{}\" are not supported", config.where("layer_types"), type));
    }
    slides.push_back(type == "sliding_attention");
  }
  if (static_cast<int64_t>(slides.size()) != n_layers) {
    throw ConfigError(
        fmt::format("{}: {} entries for {} layers", config.where("layer_types"), slides.size(), n_layers));
  }
  return slides;
}

RopeSpec parse_rope(const JsonObject& top, int64_t rotary_dim, int64_t max_position_embeddings) {
  RopeSpec rope;
  rope.rotary_dim = rotary_dim;
  rope.max_position_embeddings = max_position_embeddings;
  const auto modern = top.object_if("rope_parameters");
  const auto scaling = top.has("rope_scaling") ? top.object_if("rope_scaling") : modern;
  rope.theta = modern ? modern->number_or("rope_theta", 10000.0) : 10000.0;
  rope.theta = top.number_or("rope_theta", rope.theta);
  if (!scaling) return rope;
  rope.theta = scaling->number_or("rope_theta", rope.theta);
  rope.type = scaling->string_or("rope_type", scaling->string_or("type", "default"));
  if (rope.type == "su") rope.type = "longrope";  // Phi-3's first spelling
  if (rope.type == "default") return rope;
  rope.factor = scaling->number_or("factor", 1.0);
  rope.original_max_position_embeddings = scaling->integer_or("original_max_position_embeddings", 0);
  if (scaling->has("attention_factor")) rope.attention_factor = scaling->number("attention_factor");
  if (scaling->has("mscale")) rope.mscale = scaling->number("mscale");
  if (scaling->has("mscale_all_dim")) rope.mscale_all_dim = scaling->number("mscale_all_dim");
  rope.beta_fast = scaling->number_or("beta_fast", 32.0);
  rope.beta_slow = scaling->number_or("beta_slow", 1.0);
  rope.truncate = scaling->boolean_or("truncate", true);
  rope.low_freq_factor = scaling->number_or("low_freq_factor", 1.0);
  rope.high_freq_factor = scaling->number_or("high_freq_factor", 4.0);
  if (scaling->has("short_factor")) rope.short_factor = scaling->numbers("short_factor");
  if (scaling->has("long_factor")) rope.long_factor = scaling->numbers("long_factor");
  if (rope.type == "longrope") {
    // The original length may stand at the top level; then, or without a factor, the two lengths give the factor.
    const int64_t original = top.integer_or("original_max_position_embeddings", 0);
    if (original > 0) rope.original_max_position_embeddings = original;
    if (rope.original_max_position_embeddings > 0 && (original > 0 || !scaling->has("factor"))) {
      rope.factor =
          static_cast<double>(max_position_embeddings) / static_cast<double>(rope.original_max_position_embeddings);
    }
  }
  return rope;
}

ModelConfig StandardFamily::parse(const JsonObject& json) const {
  const FamilyDefaults standard = defaults();
  if (json.has("quantization_config")) {
    throw UnsupportedError(
        fmt::format("{}: the weights are quantised by another tool", json.where("quantization_config")),
        "take the unquantised weights of this model, or a .gguf file");
  }
  ModelConfig config;
  config.family = name();
  config.source = json.json();
  config.architecture = architecture();
  config.hidden_size = json.size("hidden_size");
  config.n_layers = json.size("num_hidden_layers", 1, kMostLayers);
  config.intermediate_size = json.size("intermediate_size");
  config.vocab_size = json.size("vocab_size");
  config.max_position_embeddings =
      json.has("max_position_embeddings") ? json.size("max_position_embeddings") : standard.max_position_embeddings;
  config.rms_norm_eps = json.number_or("rms_norm_eps", standard.rms_norm_eps);
  if (!(config.rms_norm_eps >= 0))
    throw ConfigError(fmt::format("{}: {} is negative", json.where("rms_norm_eps"), config.rms_norm_eps));
  config.activation = parse_activation(json, standard);
  config.tie_word_embeddings = json.boolean_or("tie_word_embeddings", standard.tie_word_embeddings);
  config.dtype = dtype_key(json);
  config.layers.assign(static_cast<size_t>(config.n_layers), parse_attention(json, config, standard));
  specialise(json, config);
  // Impossible numbers are found here, not in the middle of a conversion.
  if (config.layers.front().rope.rotary_dim > 0) const Rope rope(config.layers.front().rope);
  return config;
}

Json StandardFamily::to_json(const ModelConfig& config) const {
  Json json = config.source;
  const AttentionSpec& spec = config.layers.front();
  json["architectures"] = Json::array({config.architecture});
  json["num_key_value_heads"] = spec.n_kv_heads;
  json["head_dim"] = spec.head_dim;
  json["tie_word_embeddings"] = config.tie_word_embeddings;
  json["torch_dtype"] = config.dtype;
  if (json.contains("dtype")) json["dtype"] = config.dtype;
  // The folder holds the tensors of the class itself, never code or quantised weights.
  for (const char* key : {"auto_map", "quantization_config", "_name_or_path"}) json.erase(key);
  return json;
}

std::vector<WeightSpec> StandardFamily::grouped_query_specs(const AttentionSpec& spec,
                                                            const std::string& prefix) const {
  const int64_t q = spec.n_heads * spec.head_dim, kv = spec.n_kv_heads * spec.head_dim, e = spec.hidden_size;
  const std::string self = prefix + "self_attn.";
  std::vector<WeightSpec> list = {{self + "q_proj.weight", {q, e}},
                                  {self + "k_proj.weight", {kv, e}},
                                  {self + "v_proj.weight", {kv, e}},
                                  {self + "o_proj.weight", {e, q}}};
  if (spec.qkv_bias) {
    list.push_back({self + "q_proj.bias", {q}});
    list.push_back({self + "k_proj.bias", {kv}});
    list.push_back({self + "v_proj.bias", {kv}});
  }
  if (spec.output_bias) list.push_back({self + "o_proj.bias", {e}});
  if (spec.qk_norm) {
    list.push_back({self + "q_norm.weight", {spec.head_dim}});
    list.push_back({self + "k_norm.weight", {spec.head_dim}});
  }
  return list;
}

std::vector<WeightSpec> StandardFamily::mlp_and_norm_specs(const ModelConfig& config, const std::string& prefix) const {
  const int64_t e = config.hidden_size, f = config.intermediate_size;
  std::vector<WeightSpec> list = {{prefix + "mlp.gate_proj.weight", {f, e}},
                                  {prefix + "mlp.up_proj.weight", {f, e}},
                                  {prefix + "mlp.down_proj.weight", {e, f}},
                                  {prefix + "input_layernorm.weight", {e}},
                                  {prefix + "post_attention_layernorm.weight", {e}}};
  if (config.mlp_bias) {
    list.push_back({prefix + "mlp.gate_proj.bias", {f}});
    list.push_back({prefix + "mlp.up_proj.bias", {f}});
    list.push_back({prefix + "mlp.down_proj.bias", {e}});
  }
  return list;
}

std::vector<WeightSpec> StandardFamily::weights(const ModelConfig& config) const {
  std::vector<WeightSpec> list = {{embedding_name(), {config.vocab_size, config.hidden_size}}};
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    const std::string prefix = layer_prefix(layer);
    const AttentionSpec& spec = config.layers[static_cast<size_t>(layer)];
    const bool latent = spec.kind == AttentionKind::latent;
    for (WeightSpec& weight : latent ? latent_weight_specs(spec, prefix) : grouped_query_specs(spec, prefix)) {
      weight.layer = layer;
      weight.attention = true;
      list.push_back(std::move(weight));
    }
    for (WeightSpec& weight : mlp_and_norm_specs(config, prefix)) {
      weight.layer = layer;
      list.push_back(std::move(weight));
    }
  }
  list.push_back({final_norm_name(), {config.hidden_size}});
  if (!config.tie_word_embeddings) list.push_back({head_name(), {config.vocab_size, config.hidden_size}});
  return list;
}

LayerWeights StandardFamily::read_layer(const ModelConfig& config, int64_t layer, const TensorReader& read) const {
  const AttentionSpec& spec = config.layers.at(static_cast<size_t>(layer));
  const std::string prefix = layer_prefix(layer);
  LayerWeights w;
  if (spec.kind == AttentionKind::latent) {
    w.attention = read_latent(spec, prefix, read);
  } else {
    w.attention = read_grouped_query(spec, prefix, read);
  }
  read_mlp_and_norms(config, prefix, read, w);
  return w;
}

GroupedQueryWeights StandardFamily::read_grouped_query(const AttentionSpec& spec, const std::string& prefix,
                                                       const TensorReader& read) const {
  const std::string self = prefix + "self_attn.";
  GroupedQueryWeights w;
  w.q_proj = read(self + "q_proj.weight");
  w.k_proj = read(self + "k_proj.weight");
  w.v_proj = read(self + "v_proj.weight");
  w.o_proj = read(self + "o_proj.weight");
  if (spec.qkv_bias) {
    w.q_bias = read(self + "q_proj.bias");
    w.k_bias = read(self + "k_proj.bias");
    w.v_bias = read(self + "v_proj.bias");
  }
  if (spec.output_bias) w.o_bias = read(self + "o_proj.bias");
  if (spec.qk_norm) {
    w.q_norm = read(self + "q_norm.weight");
    w.k_norm = read(self + "k_norm.weight");
  }
  return w;
}

void StandardFamily::read_mlp_and_norms(const ModelConfig& config, const std::string& prefix, const TensorReader& read,
                                        LayerWeights& w) const {
  w.mlp.gate_proj = read(prefix + "mlp.gate_proj.weight");
  w.mlp.up_proj = read(prefix + "mlp.up_proj.weight");
  w.mlp.down_proj = read(prefix + "mlp.down_proj.weight");
  if (config.mlp_bias) {
    w.mlp.gate_bias = read(prefix + "mlp.gate_proj.bias");
    w.mlp.up_bias = read(prefix + "mlp.up_proj.bias");
    w.mlp.down_bias = read(prefix + "mlp.down_proj.bias");
  }
  w.input_norm = read(prefix + "input_layernorm.weight");
  w.post_attention_norm = read(prefix + "post_attention_layernorm.weight");
}

NamedTensors StandardFamily::attention_tensors(const ModelConfig& config, int64_t layer,
                                               const AttentionWeights& weights) const {
  const std::string prefix = layer_prefix(layer);
  if (const auto* latent = std::get_if<LatentWeights>(&weights)) {
    return latent_tensors(config.layers.at(static_cast<size_t>(layer)), prefix, *latent);
  }
  return grouped_query_tensors(prefix, std::get<GroupedQueryWeights>(weights));
}

NamedTensors StandardFamily::grouped_query_tensors(const std::string& prefix, const GroupedQueryWeights& w) const {
  const std::string self = prefix + "self_attn.";
  NamedTensors tensors = {{self + "q_proj.weight", w.q_proj}, {self + "k_proj.weight", w.k_proj},
                          {self + "v_proj.weight", w.v_proj}, {self + "o_proj.weight", w.o_proj},
                          {self + "q_proj.bias", w.q_bias},   {self + "k_proj.bias", w.k_bias},
                          {self + "v_proj.bias", w.v_bias},   {self + "o_proj.bias", w.o_bias},
                          {self + "q_norm.weight", w.q_norm}, {self + "k_norm.weight", w.k_norm}};
  std::erase_if(tensors, [](const auto& entry) { return !entry.second.defined(); });
  return tensors;
}

}  // namespace cinch
