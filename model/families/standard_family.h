// What Llama and its descendants share: config keys, weight names, one reading and one writing routine. A family
// overrides what differs.
#pragma once

#include "model/model_family.h"

namespace cinch {

/// What the family's class takes for a key that config.json leaves out (a key that is there and null means "none").
struct FamilyDefaults {
  int64_t n_kv_heads = 0;  // 0: as many as query heads
  int64_t head_dim = 0;    // 0: hidden_size / heads
  int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = false;
  int64_t window = 0;  // 0: none
  std::string activation_key = "hidden_act", activation = "silu";
  bool partial_rotary = false;  // honours partial_rotary_factor
};

class StandardFamily : public ModelFamily {
 public:
  ModelConfig parse(const JsonObject& config) const override;
  Json to_json(const ModelConfig& config) const override;
  std::vector<WeightSpec> weights(const ModelConfig& config) const override;
  LayerWeights read_layer(const ModelConfig& config, int64_t layer, const TensorReader& read) const override;
  NamedTensors attention_tensors(const ModelConfig& config, int64_t layer,
                                 const AttentionWeights& weights) const override;

 protected:
  virtual FamilyDefaults defaults() const { return {}; }
  /// Sets what the family's config.json means beyond the common keys; `config.layers` holds n_layers equal specs by
  /// then.
  virtual void specialise(const JsonObject& json, ModelConfig& config) const = 0;
  /// Grouped-query attention of one layer: what is stored, read and written again. Latent attention is the same in
  /// every family (latent_tensors.h).
  virtual std::vector<WeightSpec> grouped_query_specs(const AttentionSpec& spec, const std::string& prefix) const;
  virtual GroupedQueryWeights read_grouped_query(const AttentionSpec& spec, const std::string& prefix,
                                                 const TensorReader& read) const;
  virtual NamedTensors grouped_query_tensors(const std::string& prefix, const GroupedQueryWeights& weights) const;
  /// Weights of one layer besides attention.
  virtual std::vector<WeightSpec> mlp_and_norm_specs(const ModelConfig& config, const std::string& prefix) const;
  virtual void read_mlp_and_norms(const ModelConfig& config, const std::string& prefix, const TensorReader& read,
                                  LayerWeights& weights) const;
};

/// "model.layers.<layer>."
std::string layer_prefix(int64_t layer);
/// rope_theta and rope_scaling (transformers 4), or rope_parameters (transformers 5); `top` is the whole config.
RopeSpec parse_rope(const JsonObject& top, int64_t rotary_dim, int64_t max_position_embeddings);
/// sliding_window: the class default where the key is missing, 0 where it is null.
int64_t parse_window(const JsonObject& config, int64_t class_default);
/// Per layer: true where layer_types says "sliding_attention"; nothing when the key is missing. Throws ConfigError on
/// other words or another length.
std::optional<std::vector<bool>> parse_sliding_layers(const JsonObject& config, int64_t n_layers);

const ModelFamily& llama_family();
const ModelFamily& mistral_family();
const ModelFamily& qwen2_family();
const ModelFamily& qwen3_family();
const ModelFamily& gemma2_family();
const ModelFamily& phi3_family();
const ModelFamily& deepseek_v3_family();

}  // namespace cinch
