#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "attention/rope.h"
#include "core/errors.h"
#include "model/families/standard_family.h"

namespace cinch {
namespace {

constexpr double kLatentNormEps = 1e-6;  // written into the class; rms_norm_eps is for the other norms only

/// What transformers multiplies a YaRN model's cos, sin and scores by.
double yarn_mscale(double factor, double mscale) {
  return factor > 1 && mscale != 0 ? 0.1 * mscale * std::log(factor) + 1.0 : 1.0;
}

void refuse_what_is_not_dense_mla(const JsonObject& json, int64_t n_layers) {
  const int64_t experts = json.integer_or("n_routed_experts", 0);
  if (experts > 0 && json.integer_or("first_k_dense_replace", 0) < n_layers) {
    throw UnsupportedError(
        fmt::format("{}: {} layers of {} are mixtures of {} experts", json.where("first_k_dense_replace"),
                    n_layers - json.integer_or("first_k_dense_replace", 0), n_layers, experts),
        "cinch reads dense models with latent attention only");
  }
  if (json.integer_or("index_topk", 0) > 0) {
    throw UnsupportedError(fmt::format("{}: attention to the {} tokens that an indexer picks is not supported",
                                       json.where("index_topk"), json.integer_or("index_topk", 0)));
  }
  if (!json.boolean_or("rope_interleave", true)) {
    throw UnsupportedError(
        fmt::format("{}: rotary rows in two halves are not supported", json.where("rope_interleave")),
        "export the model with interleaved pairs, which every runtime reads");
  }
  if (json.boolean_or("mlp_bias", false))
    throw UnsupportedError(fmt::format("{}: the class has no such biases", json.where("mlp_bias")));
}

/// DeepSeek-V2 and -V3 whose layers are all dense (transformers, modeling_deepseek_v3.py): what converted models are
/// exported as, and others of the class.
class DeepseekV3Family : public StandardFamily {
 public:
  std::string name() const override { return "deepseek_v3"; }
  std::string architecture() const override { return "DeepseekV3ForCausalLM"; }
  std::vector<std::string> model_types() const override { return {"deepseek_v3", "deepseek_v2"}; }
  AttentionKind attention_kind() const override { return AttentionKind::latent; }

  ModelConfig parse(const JsonObject& json) const override {
    // A query head is as wide as both parts together, whatever head_dim says (the class overwrites it).
    Json sizes = json.json();
    sizes["head_dim"] = json.size("qk_nope_head_dim", 0) + json.size("qk_rope_head_dim", 0);
    sizes["num_key_value_heads"] = json.size("num_attention_heads");
    ModelConfig config = StandardFamily::parse({std::move(sizes), json.origin()});
    config.source = json.json();
    return config;
  }

  Json to_json(const ModelConfig& config) const override {
    Json json = StandardFamily::to_json(config);
    const AttentionSpec& spec = config.layers.front();
    json["num_key_value_heads"] = spec.n_heads;
    json["q_lora_rank"] = spec.q_lora_rank > 0 ? Json(spec.q_lora_rank) : Json(nullptr);
    json["kv_lora_rank"] = spec.kv_lora_rank;
    json["qk_nope_head_dim"] = spec.qk_nope_head_dim;
    json["qk_rope_head_dim"] = spec.qk_rope_head_dim;
    json["v_head_dim"] = spec.v_head_dim;
    json["attention_bias"] = spec.down_bias || spec.output_bias;
    json.erase("head_dim");
    return json;
  }

 protected:
  FamilyDefaults defaults() const override { return {.max_position_embeddings = 4096}; }

  void specialise(const JsonObject& json, ModelConfig& config) const override {
    refuse_what_is_not_dense_mla(json, config.n_layers);
    AttentionSpec spec = config.layers.front();
    spec.kind = AttentionKind::latent;
    spec.kv_lora_rank = json.size("kv_lora_rank");
    spec.qk_nope_head_dim = json.size("qk_nope_head_dim", 0);
    spec.qk_rope_head_dim = json.size("qk_rope_head_dim", 0);
    spec.v_head_dim = json.size("v_head_dim");
    spec.q_lora_rank = json.has("q_lora_rank") ? json.size("q_lora_rank") : 0;
    spec.latent_norm = true;
    spec.latent_norm_eps = json.number_or("kv_a_layernorm_eps", kLatentNormEps);
    spec.down_bias = spec.output_bias = json.boolean_or("attention_bias", false);
    if (spec.qk_rope_head_dim % 2 != 0) {
      throw ConfigError(fmt::format("{}: {} is odd; rotated numbers come in pairs", json.where("qk_rope_head_dim"),
                                    spec.qk_rope_head_dim));
    }
    spec.rope.rotary_dim = spec.qk_rope_head_dim;
    set_rotation(json, spec);
    config.layers.assign(config.layers.size(), spec);
  }

 private:
  static void set_rotation(const JsonObject& json, AttentionSpec& spec) {
    if (spec.rope.type == "dynamic") {
      throw UnsupportedError(fmt::format("{}: frequencies that change with the length are not supported for latents",
                                         json.where("rope_scaling")));
    }
    if (spec.rope.type == "longrope" && spec.rope.short_factor != spec.rope.long_factor) {
      throw UnsupportedError(fmt::format("{}: long_factor other than short_factor is not supported for latents",
                                         json.where("rope_scaling")));
    }
    if (spec.rope.type != "default" && spec.rope.mscale_all_dim) {
      const double stretch = yarn_mscale(spec.rope.factor, *spec.rope.mscale_all_dim);
      spec.scale *= stretch * stretch;
    }
    if (spec.qk_rope_head_dim == 0) return;
    const Rope rope(spec.rope);
    spec.rope_inv_freq = rope.inv_freq(0);
    spec.rotary_scaling = rope.attention_scaling();
  }
};

}  // namespace

const ModelFamily& deepseek_v3_family() {
  static const DeepseekV3Family family;
  return family;
}

}  // namespace cinch
