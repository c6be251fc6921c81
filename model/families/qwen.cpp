#include <fmt/format.h>

#include "core/errors.h"
#include "model/families/standard_family.h"

namespace cinch {
namespace {

/// Which layers slide: layer_types where given, else all from max_window_layers on (transformers,
/// configuration_qwen2.py).
void set_windows(const JsonObject& json, ModelConfig& config) {
  const int64_t window = json.boolean_or("use_sliding_window", false) ? parse_window(json, 4096) : 0;
  const int64_t first = json.integer_or("max_window_layers", 28);
  const auto slides = parse_sliding_layers(json, config.n_layers);
  for (size_t layer = 0; layer < config.layers.size(); ++layer) {
    const bool sliding = slides ? (*slides)[layer] : window > 0 && static_cast<int64_t>(layer) >= first;
    if (sliding && window == 0) {
      throw ConfigError(fmt::format("{}: layer {} slides, but use_sliding_window is off or sliding_window is missing",
                                    json.where("layer_types"), layer));
    }
    config.layers[layer].window = sliding ? window : 0;
  }
}

/// Qwen2, Qwen2.5: biases on q, k, v (transformers, modeling_qwen2.py).
class Qwen2Family : public StandardFamily {
 public:
  std::string name() const override { return "qwen2"; }
  std::string architecture() const override { return "Qwen2ForCausalLM"; }
  std::vector<std::string> model_types() const override { return {"qwen2"}; }

 protected:
  FamilyDefaults defaults() const override { return {.n_kv_heads = 32, .max_position_embeddings = 32768}; }
  void specialise(const JsonObject& json, ModelConfig& config) const override {
    for (AttentionSpec& spec : config.layers) spec.qkv_bias = true;
    set_windows(json, config);
  }
};

/// Qwen3: RMSNorm on each head's q and k (transformers, modeling_qwen3.py).
class Qwen3Family : public StandardFamily {
 public:
  std::string name() const override { return "qwen3"; }
  std::string architecture() const override { return "Qwen3ForCausalLM"; }
  std::vector<std::string> model_types() const override { return {"qwen3"}; }

 protected:
  FamilyDefaults defaults() const override {
    return {.n_kv_heads = 32, .head_dim = 128, .max_position_embeddings = 32768};
  }
  void specialise(const JsonObject& json, ModelConfig& config) const override {
    const bool bias = json.boolean_or("attention_bias", false);
    for (AttentionSpec& spec : config.layers) {
      spec.qkv_bias = spec.output_bias = bias;
      spec.qk_norm = true;
      spec.qk_norm_eps = config.rms_norm_eps;
    }
    set_windows(json, config);
  }
};

}  // namespace

const ModelFamily& qwen2_family() {
  static const Qwen2Family family;
  return family;
}

const ModelFamily& qwen3_family() {
  static const Qwen3Family family;
  return family;
}

}  // namespace cinch
