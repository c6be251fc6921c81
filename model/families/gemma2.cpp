#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "core/errors.h"
#include "model/families/standard_family.h"

namespace cinch {
namespace {

/// Null switches a cap off; a missing key means the class default.
double cap(const JsonObject& json, const char* key, double standard) {
  const double value = json.number_or(key, json.json().contains(key) ? 0.0 : standard);
  if (value < 0) throw ConfigError(fmt::format("{}: {} is negative", json.where(key), value));
  return value;
}

/// Gemma-2: soft caps, query_pre_attn_scalar, norms around attention and MLP, alternating windows (transformers,
/// modeling_gemma2.py).
class Gemma2Family : public StandardFamily {
 public:
  std::string name() const override { return "gemma2"; }
  std::string architecture() const override { return "Gemma2ForCausalLM"; }
  std::vector<std::string> model_types() const override { return {"gemma2"}; }

 protected:
  FamilyDefaults defaults() const override {
    return {.n_kv_heads = 4,
            .head_dim = 256,
            .max_position_embeddings = 8192,
            .tie_word_embeddings = true,
            .window = 4096,
            .activation_key = "hidden_activation",
            .activation = "gelu_pytorch_tanh"};
  }

  void specialise(const JsonObject& json, ModelConfig& config) const override {
    config.sandwich_norms = true;
    config.norm_offset = 1.0;
    config.embedding_multiplier = std::sqrt(static_cast<double>(config.hidden_size));
    config.final_logit_softcap = cap(json, "final_logit_softcapping", 30.0);
    const double scalar = json.number_or("query_pre_attn_scalar", 256);
    if (!(scalar > 0))
      throw ConfigError(fmt::format("{}: {} is not positive", json.where("query_pre_attn_scalar"), scalar));
    const auto slides = parse_sliding_layers(json, config.n_layers);
    for (size_t layer = 0; layer < config.layers.size(); ++layer) {
      AttentionSpec& spec = config.layers[layer];
      spec.scale = 1.0 / std::sqrt(scalar);
      spec.softcap = cap(json, "attn_logit_softcapping", 50.0);
      spec.window = (slides ? (*slides)[layer] : layer % 2 == 0) ? parse_window(json, defaults().window) : 0;
      spec.qkv_bias = spec.output_bias = json.boolean_or("attention_bias", false);
    }
  }

  void read_mlp_and_norms(const ModelConfig& config, const std::string& prefix, const TensorReader& read,
                          LayerWeights& w) const override {
    StandardFamily::read_mlp_and_norms(config, prefix, read, w);
    w.pre_mlp_norm = read(prefix + "pre_feedforward_layernorm.weight");
    w.post_mlp_norm = read(prefix + "post_feedforward_layernorm.weight");
  }

  std::vector<WeightSpec> mlp_and_norm_specs(const ModelConfig& config, const std::string& prefix) const override {
    std::vector<WeightSpec> list = StandardFamily::mlp_and_norm_specs(config, prefix);
    list.push_back({prefix + "pre_feedforward_layernorm.weight", {config.hidden_size}});
    list.push_back({prefix + "post_feedforward_layernorm.weight", {config.hidden_size}});
    return list;
  }
};

}  // namespace

const ModelFamily& gemma2_family() {
  static const Gemma2Family family;
  return family;
}

}  // namespace cinch
